"""A training of seconds that draws random numbers wherever a real one does: to be stopped and resumed."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import Dataset

STOP_AT = "TOY_STOP_AT"  # iteration at which the process sends itself SIGTERM
STOP_VAL_AT = "TOY_STOP_VAL_AT"  # likewise the batch of all validations
KILL_AT = "TOY_KILL_AT"  # likewise SIGKILL
BEGUN = "TOY_BEGUN"  # file to touch at the first iteration
PAUSE = "TOY_PAUSE"  # seconds that a forward pass takes more


@DATASETS.register_module()
class ToyDataset(Dataset):
    """Drawn images with noise from Python, numpy and torch."""

    metainfo = dict(classes=("toy",))

    def __init__(self, length: int = 22, poison: int | None = None, ballast: int = 0) -> None:
        self.length, self.poison, self.ballast = length, poison, ballast

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        image = torch.full((3, 12, 12), index / self.length) + 0.1 * noise
        if index == self.poison:
            image[:] = float("nan")
        # No tensor, which would go through shared memory: a worker writes it to a pipe.
        meta = dict(img_path=f"image_{index}.jpg", ballast=bytes(self.ballast))
        sample = BaseDataElement(metainfo=meta)
        return dict(inputs=image, data_samples=sample)


@MODELS.register_module()
class ToyModel(BaseModel):
    """A convolution, BatchNorm, dropout, and numbers from numpy, as assigners sample them."""

    def __init__(self, width: int = 8, poison: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)
        self.ballast = nn.Linear(width, 256)  # so that saving takes some of the time
        self.steps = 0

    def forward(self, inputs: Tensor, data_samples: list, mode: str = "tensor") -> object:
        x = torch.stack(list(inputs))
        x = self.ballast(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3)))
        if mode != "predict":
            self._happen()
        time.sleep(float(os.environ.get(PAUSE, 0)))
        if mode == "predict":
            return data_samples
        target = np.random.rand() + random.random() + torch.rand(())
        return dict(loss_a=(x - target).square().mean(), loss_b=x.abs().mean())

    def _happen(self) -> None:
        self.steps += 1
        if self.steps == 1 and BEGUN in os.environ:
            Path(os.environ[BEGUN]).touch()
        if self.steps == int(os.environ.get(STOP_AT, 0)):
            os.kill(os.getpid(), signal.SIGTERM)
        if self.steps == int(os.environ.get(KILL_AT, 0)):
            os.kill(os.getpid(), signal.SIGKILL)


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Draws numbers, which training must not notice, and gets better all the time."""

    evaluations = 0
    batches = 0

    def process(self, data_batch: object, data_samples: object) -> None:
        self.results.append(np.random.rand() + torch.rand(()).item() + random.random())
        type(self).batches += 1
        if self.batches == int(os.environ.get(STOP_VAL_AT, 0)):
            os.kill(os.getpid(), signal.SIGTERM)

    def compute_metrics(self, results: list) -> dict[str, float]:
        type(self).evaluations += 1
        return dict(score=float(type(self).evaluations))


@HOOKS.register_module()
class ValidatedStatistics(Hook):
    """Keeps the BatchNorm statistics that each process validates with, and how far training moved them."""

    def before_val_epoch(self, runner: object) -> None:
        self.trained = self._statistics(runner)

    def after_val_iter(self, runner: object, *_: object, **__: object) -> None:
        name = f"validated_{runner.epoch}_{get_rank()}.pth"
        torch.save(
            dict(trained=self.trained, validated=self._statistics(runner)),
            Path(runner.work_dir, name),
        )

    @staticmethod
    def _statistics(runner: object) -> Tensor:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return torch.stack([model.norm.running_mean, model.norm.running_var])


@HOOKS.register_module()
class ResidentMemory(Hook):
    """Notes the resident memory of the process every 100 iterations, in KiB."""

    def after_train_iter(self, runner: object, batch_idx: int, *_: object, **__: object) -> None:
        if self.every_n_train_iters(runner, 100):
            status = Path("/proc/self/status").read_text()
            kib = status.split("VmRSS:")[1].split()[0]
            with Path(runner.work_dir, "memory.txt").open("a") as file:
                print(kib, file=file)


CONFIG = """
custom_imports = dict(imports=["fastvit_dense", "toy_training"])
model = dict(type="ToyModel", width={width})
train_dataloader = dict(batch_size=4, num_workers={workers}, persistent_workers={workers} > 0,
    sampler=dict(type="{sampler}", shuffle=True), dataset=dict(type="ToyDataset"))
val_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="ToyDataset", length=8))
val_evaluator = dict(type="ToyMetric")
train_cfg = {train_cfg}
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-2), accumulative_counts={accumulate})
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=10, T_max=40),
]
custom_hooks = [dict(type="EMAHook")]
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch={by_epoch}, interval={interval}, max_keep_ckpts=2,
        save_best="score", rule="greater"),
    logger=dict(type="LoggerHook", interval=1),
)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="Visualizer", vis_backends=vis_backends)
default_scope = "mmengine"
"""


def write_config(
    path: Path, *, by_epoch: bool, workers: int = 0, interval: int | None = None, width: int = 8,
    accumulate: int = 1, epochs: int = 8,
) -> Path:  # fmt: skip
    """Write a config of `epochs` of 6 iterations (3 in two processes), or of 48 iterations."""
    loop = dict(by_epoch=True, max_epochs=epochs, val_interval=2)
    if not by_epoch:
        loop = dict(by_epoch=False, max_iters=48, val_interval=12)
    text = CONFIG.format(
        by_epoch=by_epoch, workers=workers, width=width, accumulate=accumulate,
        sampler="DefaultSampler" if by_epoch else "InfiniteSampler", train_cfg=loop,
        interval=interval or (1 if by_epoch else 5),
    )  # fmt: skip
    path.write_text(text)
    return path
