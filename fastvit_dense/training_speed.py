"""How fast detectors train and how much memory that takes, side by side in one run."""

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
from mmengine.registry import init_default_scope
from tqdm import tqdm


class Workload(NamedTuple):
    """One training step: what is fed to the detector, and where.

    Attributes:
        batch: images a step.
        shape: height and width of the images in pixels.
        device: cpu or cuda.
        amp: autocast, float16 with loss scaling on cuda and bfloat16 on cpu.
        objects: boxes with masks an image.
    """

    batch: int
    shape: tuple[int, int]
    device: str
    amp: bool
    objects: int = 7


class Speed(NamedTuple):
    """What was measured for one detector.

    Attributes:
        seconds: of each timed step: forward, losses, backward, optimizer.
        memory: peak bytes. On cuda what the allocator held for this detector; on cpu the resident set
            of a process of its own that does two steps.
    """

    seconds: list[float]
    memory: int


class Trainee:
    """A detector with its optimizer and one batch of random data.

    Args:
        model: ``model`` of a detection config; weights are random whatever its ``init_cfg``.
        work: the step to do.
    """

    def __init__(self, model: dict[str, Any], work: Workload) -> None:
        from mmdet.registry import MODELS
        from mmdet.testing import demo_mm_inputs

        init_default_scope("mmdet")
        self.work = work
        self.model: Any = MODELS.build(model).to(work.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.scaler = torch.amp.GradScaler(work.device, enabled=work.amp and work.device == "cuda")
        self.data = demo_mm_inputs(
            work.batch,
            [[3, *work.shape]] * work.batch,
            num_items=[work.objects] * work.batch,
            num_classes=80,
            with_mask=True,
            device=work.device,
        )

    def step(self) -> None:
        """One training step, finished on the device when it returns."""
        data = self.model.data_preprocessor(self.data, training=True)
        dtype = torch.float16 if self.work.device == "cuda" else torch.bfloat16
        with torch.autocast(self.work.device, dtype) if self.work.amp else nullcontext():
            loss, _ = self.model.parse_losses(self.model(**data, mode="loss"))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.work.device == "cuda":
            torch.cuda.synchronize()


def measure(
    models: dict[str, dict[str, Any]], work: Workload, *, steps: int = 10, warmup: int = 2
) -> dict[str, Speed]:
    """Time training steps of several detectors, one of each in turn, so that drift hits all alike.

    Args:
        models: name to ``model`` of a detection config.
        work: the step to do.
        steps: timed steps of each.
        warmup: steps before, not timed.

    Returns:
        For each name its times and peak memory.
    """
    memory = {name: _peak_memory(model, work) for name, model in models.items()}
    trainees = {name: Trainee(model, work) for name, model in models.items()}
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
        "| detector | images/s (median) | step, s: min / median / max | peak memory, GiB | "
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
    """Read the ``model`` of several configs, by the file's name, weights left random.

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


def _peak_memory(model: dict[str, Any], work: Workload) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_two_steps, (model, work))


def _two_steps(model: dict[str, Any], work: Workload) -> int:
    import fastvit_dense  # noqa: F401  (a new process: FastViT is not registered yet)

    trainee = Trainee(model, work)
    for _ in range(2):
        trainee.step()
    if work.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
