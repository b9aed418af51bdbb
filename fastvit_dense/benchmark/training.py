"""How fast models train and how much memory that takes, side by side in one run."""

import gc
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from mmengine.utils import import_modules_from_strings
from tqdm import tqdm

from ..engine.devices import wait_for
from .model import random_data


class Workload(NamedTuple):
    """One training step: what is fed to the model, and where.

    Attributes:
        batch: images a step.
        shape: height and width of the images in pixels.
        device: cpu, cuda or cuda:0.
        amp: autocast, float16 with loss scaling on cuda and bfloat16 on cpu.
        objects: boxes with masks an image, for detectors.
        channels_last: weights, and with them all maps, in that memory format.
    """

    batch: int
    shape: tuple[int, int]
    device: str
    amp: bool
    objects: int = 7
    channels_last: bool = False


class Speed(NamedTuple):
    """What was measured for one model.

    Attributes:
        seconds: of each timed step: forward, losses, backward, optimizer.
        memory: peak bytes of the first two steps. On cuda what tensors of this model took; on cpu the
            resident set of a process of its own.
    """

    seconds: list[float]
    memory: int


class Trainee:
    """A model with its optimizer and one batch of random data.

    Args:
        model: ``model`` of a config, as :func:`detectors` gives it; weights are random whatever its
            ``init_cfg``.
        work: the step to do.

    Raises:
        ValueError: the device is neither a CPU nor a CUDA device.
    """

    def __init__(self, model: dict[str, Any], work: Workload) -> None:
        kind = torch.device(work.device).type
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"training is timed on cpu or cuda, got the device {work.device!r}")
        model = dict(model)
        import_modules_from_strings(model.pop("_imports_", []))  # on a CPU, this is a new process
        scope = model.get("_scope_", "mmdet")
        self.work = work
        with DefaultScope.overwrite_default_scope(scope):
            self.model: Any = MODELS.build(model).to(work.device).train()
        if work.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        # At the usual scale of 2**16 gradients overflow in the first steps, which then leave the optimizer
        # out, and with it the memory of its state. At 1 no step does, and each costs what it costs later.
        self.scaler = torch.amp.GradScaler(
            kind, init_scale=1.0, enabled=work.amp and kind == "cuda"
        )
        self.autocast = (
            nullcontext()
            if not work.amp
            else torch.autocast(kind, torch.float16 if kind == "cuda" else torch.bfloat16)
        )
        self.data = _annotated_data(self.model, scope, work)

    def step(self) -> None:
        """One training step, finished on the device when it returns; in mmengine's order."""
        data = self.model.data_preprocessor(self.data, training=True)
        with self.autocast:
            loss, _ = self.model.parse_losses(self.model(**data, mode="loss"))
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        wait_for(self.work.device)


def measure(
    models: dict[str, dict[str, Any]], work: Workload, *, steps: int = 10, warmup: int = 2
) -> dict[str, Speed]:
    """Time training steps of several models, one of each in turn, so that drift hits all alike.

    Args:
        models: name to ``model`` of a config, as :func:`detectors` gives them.
        work: the step to do.
        steps: timed steps of each.
        warmup: steps before, not timed.

    Returns:
        For each name its times and peak memory.
    """
    trainees, memory = dict[str, Trainee](), dict[str, int]()
    for name, model in models.items():
        trainees[name], memory[name] = _begin(model, work)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for i in tqdm(range(warmup + steps), desc="training steps", disable=None):
        for name, trainee in trainees.items():
            start = time.perf_counter()
            trainee.step()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Speed(seconds[name], memory[name]) for name in models}


def table(results: dict[str, Speed], work: Workload) -> str:
    """Format results as a Markdown table, in the order given, with ratios to the last row.

    Args:
        results: as :func:`measure` gives them.
        work: the step that was done.
    """
    last = results[list(results)[-1]]
    rows = [
        "| model | images/s (median) | step, s: min / median / max | peak memory, GiB | "
        "speed, relative | memory, relative |",
        "|---|---|---|---|---|---|",
    ]
    for name, speed in results.items():
        median = statistics.median(speed.seconds)
        rows.append(
            f"| {name} | {work.batch / median:.2f} | {min(speed.seconds):.3f} / {median:.3f} / "
            f"{max(speed.seconds):.3f} | {speed.memory / 2**30:.2f} | "
            f"{statistics.median(last.seconds) / median:.2f} | {speed.memory / last.memory:.2f} |"
        )
    return "\n".join(rows)


def detectors(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the ``model`` of several configs, by the file's name: detectors, segmentors, hand models.

    Weights are left random; hand models get the synthetic hand, which computes as much as MANO does.
    ``_scope_`` is the config's ``default_scope``, ``_imports_`` the modules that it imports.

    Args:
        paths: config files; ``mmdet::...`` names one inside mmdet.
    """
    models = {}
    for path in paths:
        if "::" in path:
            from mmengine.hub import get_config

            cfg = get_config(path)
        else:
            cfg = Config.fromfile(path)
        cfg.model.backbone.init_cfg = None
        if "pretrained" in cfg.model:  # mmseg's configs name the backbone's weights there
            cfg.model.pretrained = None
        cfg.model._scope_ = cfg.get("default_scope", "mmengine")
        cfg.model._imports_ = cfg.get("custom_imports", {}).get("imports", [])
        if cfg.model.type == "HandMeshModel":
            cfg.model.head.mano = "synthetic"
        models[path.split("/")[-1].removesuffix(".py")] = cfg.model
    return models


def device_name(device: str) -> str:
    """The GPU's or processor's name as it gives it; "CPU" where the system does not tell.

    Args:
        device: cpu, cuda or cuda:0.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty on many of them
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def _annotated_data(model: Any, scope: str, work: Workload) -> dict[str, Any]:
    """One batch of random images with what the model's losses need, on the device."""
    if scope == "mmdet":
        from mmdet.testing import demo_mm_inputs

        # The largest of all parts: an RPN counts one class, object or not.
        classes = max(getattr(module, "num_classes", 0) for module in model.modules())
        data = demo_mm_inputs(
            work.batch,
            [[3, *work.shape]] * work.batch,
            num_items=[work.objects] * work.batch,
            num_classes=classes + 1,  # it leaves class 0 out
            with_mask=True,
            device=work.device,
        )
        for sample in data["data_samples"]:
            sample.gt_instances.labels -= 1
        return data
    data = random_data(work.batch, work.shape, scope=scope)
    generator = torch.Generator().manual_seed(0)
    for sample in data["data_samples"]:
        if scope == "mmseg":
            labels = torch.randint(model.num_classes, (1, *work.shape), generator=generator)
            sample.gt_sem_seg = PixelData(data=labels)
        else:  # the hand model
            points = {"vertices": (778, 3), "keypoints": (21, 3), "keypoints_2d": (21, 2)}
            sample.gt = BaseDataElement(
                **{name: torch.rand(size, generator=generator) for name, size in points.items()}
            )
    return {key: [x.to(work.device) for x in values] for key, values in data.items()}


def _begin(model: dict[str, Any], work: Workload) -> tuple[Trainee, int]:
    """A model after its first two steps, or on a CPU before any, and peak bytes of such steps."""
    if torch.device(work.device).type == "cpu":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return Trainee(model, work), pool.apply(_resident, (model, work))
    gc.collect()  # or garbage of the models before it is freed meanwhile
    before = torch.cuda.memory_allocated(work.device)
    torch.cuda.reset_peak_memory_stats(work.device)
    trainee = Trainee(model, work)
    for _ in range(2):  # the optimizer's state is there from the second one on
        trainee.step()
    return trainee, torch.cuda.max_memory_allocated(work.device) - before


def _resident(model: dict[str, Any], work: Workload) -> int:
    trainee = Trainee(model, work)
    for _ in range(2):
        trainee.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
