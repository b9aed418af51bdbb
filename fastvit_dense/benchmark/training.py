"""How fast models train and how much memory that takes, side by side in one run."""

import gc
import multiprocessing
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, PixelData
from mmengine.utils import import_modules_from_strings

from ..deploy.runtimes import DTYPES
from ..engine.devices import wait_for
from ..engine.models import build_model, count_parameters
from .model import HAND, read_model_config
from .timing import Candidate, Row


class Workload(NamedTuple):
    """What is fed to a model, and where.

    Attributes:
        batch: images per step.
        shape: height and width of the images in pixels.
        device: cpu, cuda or cuda:0.
        amp: autocast, float16 with loss scaling on cuda and bfloat16 on cpu.
        objects: boxes with masks per image, for detectors.
        channels_last: weights, and with them all maps, in that memory format.
    """

    batch: int
    shape: tuple[int, int]
    device: str
    amp: bool = False
    objects: int = 7
    channels_last: bool = False

    @property
    def dtype(self) -> str:
        """Of the arithmetic."""
        if not self.amp:
            return "float32"
        return "float16" if torch.device(self.device).type == "cuda" else "bfloat16"


class TrainingStep:
    """A model with its optimizer and one batch of random data; called, it does one step.

    Args:
        cfg: of :func:`read_training_config`.
        work: the step to do.

    Raises:
        ValueError: the device is neither a CPU nor a CUDA device.
    """

    def __init__(self, cfg: Config, work: Workload) -> None:
        kind = torch.device(work.device).type
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"training is timed on cpu or cuda, got the device {work.device!r}")
        # On a CPU, this is a new process.
        import_modules_from_strings(cfg.get("custom_imports", {}).get("imports", []))
        self.work = work
        self.model: Any = build_model(cfg).to(work.device).train()
        if work.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        # At the usual scale of 2**16 gradients overflow in the first steps, which then leave the optimizer
        # out, and with it the memory of its state. At 1 no step does, and each costs what it costs later.
        scaled = work.dtype == "float16"
        self.scaler = torch.amp.GradScaler(kind, init_scale=1.0, enabled=scaled)
        self.autocast = torch.autocast(kind, DTYPES[work.dtype], enabled=work.amp)
        self.data = _annotated_data(self.model, cfg.get("default_scope", "mmengine"), work)

    def __call__(self) -> None:
        """One training step, finished on the device when it returns; in mmengine's order."""
        data = self.model.data_preprocessor(self.data, training=True)
        with self.autocast:
            loss, _ = self.model.parse_losses(self.model(**data, mode="loss"))
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        wait_for(self.work.device)


def candidates(configs: Sequence[str], work: Workload) -> list[Candidate]:
    """Training steps of several models, with the peak memory of their first two.

    On cuda that is what tensors of this model took; on cpu the resident set of a process of its own.

    Args:
        configs: of detectors, segmentors or hand models; files, or ``mmdet::...``.
        work: the step to do.

    Raises:
        FileNotFoundError: a config does not exist.
        ValueError: a config is of another kind of model.
    """
    found: list[Candidate] = []
    for path, cfg in [(path, read_training_config(path)) for path in configs]:
        step, memory = _begin(cfg, work)
        figures = dict(parameters=count_parameters(step.model), memory=memory)
        found.append((Row(Path(path).stem, "eager", work.dtype, work.batch, figures), step))
    return found


def read_training_config(path: str) -> Config:
    """A config for :class:`TrainingStep`, whose weights are random whatever its ``init_cfg``.

    Hand models get the synthetic hand, which computes as much as MANO does.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is no config, or of another kind of model.
    """
    cfg = read_model_config(path)
    if cfg.model.type == HAND:
        cfg.model.head.mano = "synthetic"
    return cfg


def _annotated_data(model: Any, scope: str, work: Workload) -> dict[str, Any]:
    """One batch of random images with what the model's losses need, on the device."""
    size = dict(img_shape=work.shape, pad_shape=work.shape, batch_input_shape=work.shape)
    generator = torch.Generator().manual_seed(0)
    if scope == "mmdet":
        from mmdet.testing import demo_mm_inputs

        # The largest of all parts: an RPN counts one class, object or not.
        classes = max(getattr(module, "num_classes", 0) for module in model.modules())
        data = demo_mm_inputs(
            work.batch, [[3, *work.shape]] * work.batch, num_items=[work.objects] * work.batch,
            num_classes=classes + 1, with_mask=True, device=work.device,  # it leaves class 0 out
        )  # fmt: skip
        for sample in data["data_samples"]:
            sample.gt_instances.labels -= 1
        return data
    samples: list[Any] = []
    for _ in range(work.batch):
        if scope == "mmseg":
            from mmseg.structures import SegDataSample

            labels = torch.randint(model.num_classes, (1, *work.shape), generator=generator)
            sample = SegDataSample(metainfo=size, gt_sem_seg=PixelData(data=labels))
        else:  # the hand model
            points = dict(vertices=(778, 3), keypoints=(21, 3), keypoints_2d=(21, 2))
            truth = {k: torch.rand(shape, generator=generator) for k, shape in points.items()}
            sample = BaseDataElement(metainfo=size, gt=BaseDataElement(**truth))
        samples.append(sample.to(work.device))
    images = torch.randint(
        256, (work.batch, 3, *work.shape), dtype=torch.uint8, generator=generator
    )
    return dict(inputs=list(images.to(work.device)), data_samples=samples)


def _begin(cfg: Config, work: Workload) -> tuple[TrainingStep, int]:
    """A training step after two calls, or on a CPU before any, and peak bytes of such calls."""
    if torch.device(work.device).type == "cpu":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return TrainingStep(cfg, work), pool.apply(_resident, (cfg, work))
    gc.collect()  # or garbage of the models before it is freed meanwhile
    before = torch.cuda.memory_allocated(work.device)
    torch.cuda.reset_peak_memory_stats(work.device)
    step = _after_two(cfg, work)
    return step, torch.cuda.max_memory_allocated(work.device) - before


def _after_two(cfg: Config, work: Workload) -> TrainingStep:
    step = TrainingStep(cfg, work)
    for _ in range(2):  # the optimizer's state is there from the second one on
        step()
    return step


def _resident(cfg: Config, work: Workload) -> int:
    _after_two(cfg, work)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
