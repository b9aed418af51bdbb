"""How long a whole model takes, and how much of it each of its parts."""

from __future__ import annotations

import copy
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope
from mmseg.apis import inference_model
from torch import nn
from tqdm import tqdm

from ..backbone.reparameterize import reparameterize
from ..engine.config import load_config
from ..engine.models import load_strict, read_checkpoint
from .timing import interleave

PARTS = ("preprocessing", "backbone", "neck", "heads", "post-processing")
_PART_OF = {"data_preprocessor": "preprocessing", "backbone": "backbone", "neck": "neck"}


class PartTimer:
    """Adds up the time spent in the parts of a model of OpenMMLab, while it is in use.

    Parts are children of the model: data preprocessor, backbone, neck. Time inside of any other child's
    layers is the heads'. What is in none of them, such as proposals, suppression of overlapping boxes,
    pasting of masks and the argmax, is post-processing.

    Args:
        model: with the children named above, as detectors, segmentors and the hand model have them.
        clock: gives seconds; the device is waited for by then.
    """

    def __init__(self, model: nn.Module, clock: Callable[[], float] | None = None) -> None:
        self.model = model
        self.cuda = next(model.parameters()).device.type == "cuda"
        self.clock = clock or self._now
        self._spent = dict.fromkeys(PARTS[:-1], 0.0)
        self._inside = False

    def run(self, call: Callable[[], Any]) -> dict[str, float]:
        """Seconds of each of `PARTS` in one call, which runs the model."""
        self._spent = dict.fromkeys(PARTS[:-1], 0.0)
        with self._watched():
            start = self.clock()
            call()
            whole = self.clock() - start
        return {**self._spent, PARTS[-1]: whole - sum(self._spent.values())}

    @contextmanager
    def _watched(self) -> Iterator[None]:
        # Heads are run by calling them and by their `forward`, which hooks would not see.
        parts = {}
        for name, child in self.model.named_children():
            part = _PART_OF.get(name, "heads")
            for module in child.modules() if part == "heads" else [child]:
                parts[module] = part
        try:
            for module, part in parts.items():
                module.forward = self._timed(module.forward, part)
            yield
        finally:
            for module in parts:
                module.__dict__.pop("forward", None)

    def _timed(self, forward: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # a part of a part
                return forward(*args, **kwargs)
            self._inside = True
            start = self.clock()
            try:
                return forward(*args, **kwargs)
            finally:
                self._spent[part] += self.clock() - start
                self._inside = False

        return timed

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_parts(
    models: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    warmup: int = 100,
    runs: int = 100,
) -> dict[str, dict[str, list[float]]]:
    """Time whole models part by part, in turn: pass k of each comes before pass k + 1 of any.

    Args:
        models: by name; each in eval mode, with ``test_step``.
        data: what ``test_step`` takes, as :func:`random_data` makes it.
        warmup: passes before the timed ones.
        runs: timed passes.

    Returns:
        For each model seconds of each pass, for each of `PARTS`.

    Raises:
        ValueError: fewer than one timed pass, or a negative number to warm up.
    """
    timers = {name: PartTimer(model) for name, model in models.items()}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in models}

    def step(name: str) -> None:
        timer = timers[name]
        # The preprocessor may replace entries of what it gets.
        call = lambda: models[name].test_step({k: list(v) for k, v in data.items()})  # noqa: E731
        with torch.no_grad():
            parts[name].append(timer.run(call))

    interleave(
        {name: lambda name=name: step(name) for name in models},  # type: ignore[misc]
        warmup=warmup,
        runs=runs,
    )
    return {
        name: {part: [p[part] for p in passes[warmup:]] for part in PARTS}
        for name, passes in parts.items()
    }


def measure_config(
    config: str,
    *,
    batch: int,
    shape: tuple[int, int],
    device: str = "cpu",
    checkpoint: str | None = None,
    warmup: int = 100,
    runs: int = 100,
) -> dict[str, dict[str, list[float]]]:
    """Time the model of a config as it is, fused, and fused in channels_last, in turn, on random images.

    Args:
        config: file of a detector, a segmentor or a hand model.
        batch: images a pass.
        shape: height and width of the images in pixels, as the model gets them.
        device: cpu or cuda.
        checkpoint: file with weights, random ones if None. They decide how much there is to
            post-process.
        warmup: passes before the timed ones.
        runs: timed passes.

    Returns:
        As :func:`measure_parts`, for "eager", "fused" and "fused, channels_last".

    Raises:
        FileNotFoundError: there is no such config or checkpoint.
        ValueError: the checkpoint does not fit the model, or the model holds no FastViT.
    """
    model = build(config, checkpoint=checkpoint).to(device)
    data = random_data(batch, shape, scope=model.cfg.get("default_scope", "mmengine"))
    fused = reparameterize(model)
    # Weights in that format are enough: the maps of convolutions take the format of their weights.
    other = copy.deepcopy(fused).to(memory_format=torch.channels_last)
    models = {"eager": model, "fused": fused, "fused, channels_last": other}
    return measure_parts(models, data, warmup=warmup, runs=runs)


def build(config: str, *, checkpoint: str | None = None) -> Any:
    """Build the model of a config for testing.

    Args:
        config: file of a detector, a segmentor or a hand model.
        checkpoint: file with weights, random ones if None.

    Returns:
        The model in eval mode, with the config as its attribute ``cfg``.

    Raises:
        FileNotFoundError: there is no such config or checkpoint.
        ValueError: the checkpoint does not fit the model.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        state_dict = read_checkpoint(checkpoint)["state_dict"]
        load_strict(model, state_dict, checkpoint=checkpoint, config=config)
    model.cfg = cfg
    return model.eval()


def random_data(batch: int, shape: tuple[int, int], *, scope: str) -> dict[str, list[Any]]:
    """Random images as a data loader of OpenMMLab gives them, sized as the model gets them.

    Args:
        batch: images.
        shape: height and width of the images in pixels.
        scope: ``default_scope`` of the config: mmdet, mmseg or another.

    Returns:
        ``inputs``, uint8 tensors (3, H, W), and ``data_samples`` that name this size.
    """
    module, name = {
        "mmdet": ("mmdet.structures", "DetDataSample"),
        "mmseg": ("mmseg.structures", "SegDataSample"),
    }.get(scope, ("mmengine.structures", "BaseDataElement"))
    sample = getattr(importlib.import_module(module), name)
    generator = np.random.default_rng(0)
    metainfo = dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape,
        scale_factor=(1.0, 1.0), flip=False, img_id=0,
    )  # fmt: skip
    images = [generator.integers(0, 256, (3, *shape), dtype=np.uint8) for _ in range(batch)]
    return dict(
        inputs=[torch.from_numpy(image) for image in images],
        data_samples=[sample(metainfo=metainfo) for _ in images],
    )


def table(results: Mapping[str, Mapping[str, list[float]]]) -> str:
    """A Markdown table: for each model the median of each part in ms and its share of the whole.

    Args:
        results: as :func:`measure_parts` gives them; speed-ups refer to the first model.
    """
    lines = [
        "| model | " + " | ".join(f"{part}, ms (share)" for part in PARTS) + " | whole, ms: "
        "median (p10 to p90) | speed-up |",
        "|---|" + "---|" * (len(PARTS) + 2),
    ]
    first = None
    for name, parts in results.items():
        wholes = [sum(p) for p in zip(*parts.values(), strict=True)]
        p10, whole, p90 = np.percentile(wholes, (10, 50, 90))
        first = first or whole
        medians = {part: statistics.median(seconds) for part, seconds in parts.items()}
        total = sum(medians.values())
        cells = [f"{1e3 * m:.1f} ({m / total:.0%})" for m in medians.values()]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {1e3 * whole:.1f} ({1e3 * p10:.1f} to "
            f"{1e3 * p90:.1f}) | {first / whole:.2f} |"
        )
    return "\n".join(lines)


def write_json(
    path: str | Path,
    results: Mapping[str, Mapping[str, list[float]]],
    *,
    conditions: Mapping[str, str],
    arguments: Mapping[str, Any],
) -> None:
    """Write seconds of every pass and part.

    Args:
        path: file to write.
        results: as :func:`measure_parts` gives them.
        conditions: processor, threads, versions.
        arguments: what the run was asked for.
    """
    content = dict(conditions=conditions, arguments=arguments, seconds=results)
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def plot(
    results: Mapping[str, Mapping[str, list[float]]], path: str | Path, *, title: str = ""
) -> None:
    """Draw the medians of the parts end to end, a bar for each model.

    Args:
        results: as :func:`measure_parts` gives them.
        path: image file to write.
        title: above the plot, such as the device.
    """
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(results)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(results))
    for part in PARTS:
        width = np.array([1e3 * statistics.median(parts[part]) for parts in results.values()])
        axes.barh(list(results), width, left=left, label=part)
        left += width
    axes.invert_yaxis()
    axes.set_xlabel("ms a pass: medians of the parts")
    axes.set_title(title, fontsize=10)
    axes.legend(ncols=len(PARTS), fontsize=8)
    figure.savefig(path, dpi=120)


DECODING = ("LoadImageFromFile", "CheckImage")
STEPS = ("decode", "resize", "normalise", "backbone", "neck", "head", "upsample + argmax")
WHOLE = "inference_model"


def measure_steps(
    model: Any, images: Sequence[str | Path], *, rounds: int = 10, warmup: int = 2
) -> dict[str, list[float]]:
    """Time `inference_model` of mmseg, and each step it consists of, on the same images in turn.

    Args:
        model: segmentor of :func:`mmseg.apis.init_model`, in test mode "whole".
        images: files.
        rounds: times each image is timed.
        warmup: rounds before, not timed.

    Returns:
        Seconds an image: for each of `STEPS`, and under `WHOLE` for the function from end to end.

    Raises:
        ValueError: no images, or the model segments in windows, which are not one pass.
    """
    if not images:
        raise ValueError("no images: name at least one file")
    if model.test_cfg.get("mode", "whole") != "whole":
        raise ValueError(
            f"test_cfg.mode must be 'whole' to be timed step by step, got {model.test_cfg}"
        )
    steps = [s for s in copy.deepcopy(model.cfg.test_pipeline) if s["type"] != "LoadAnnotations"]
    decode = Compose([s for s in steps if s["type"] in DECODING])
    resize = Compose([s for s in steps if s["type"] not in DECODING])
    timer = PartTimer(model)
    now = timer.clock
    seconds: dict[str, list[float]] = {name: [] for name in (*STEPS, WHOLE)}

    for i in tqdm(range(warmup + rounds), desc="images", disable=None):
        for path in images:
            start = now()
            loaded = decode(dict(img_path=str(path)))
            decoded = now()
            packed = resize(loaded)
            resized = now()
            batch = dict(inputs=[packed["inputs"]], data_samples=[packed["data_samples"]])
            with torch.no_grad():
                parts = timer.run(partial(model.test_step, batch))
            began = now()
            inference_model(model, str(path))
            whole = now() - began
            if i >= warmup:
                times = (decoded - start, resized - decoded, *parts.values(), whole)
                for name, spent in zip((*STEPS, WHOLE), times, strict=True):
                    seconds[name].append(spent)
    return seconds


def step_table(seconds: dict[str, list[float]]) -> str:
    """A Markdown table: median and spread of each step in ms, and its share of all steps.

    Args:
        seconds: as :func:`measure_steps` gives them.
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    total = sum(medians[name] for name in STEPS)
    lines = ["| step | ms (median) | min to max | share |", "|---|---|---|---|"]
    for name, times in seconds.items():
        share = f"{medians[name] / total:.0%}" if name in STEPS else "-"
        lines.append(
            f"| {name} | {1e3 * medians[name]:.1f} | {1e3 * min(times):.1f} to "
            f"{1e3 * max(times):.1f} | {share} |"
        )
    lines.append(
        f"\n{1 / medians[WHOLE]:.2f} images/s end to end; the steps add up to "
        f"{total / medians[WHOLE]:.0%} of it."
    )
    return "\n".join(lines)
