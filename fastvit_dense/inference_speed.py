"""How long a segmentor takes from an image file to labels, and which step takes it."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import Compose
from mmseg.apis import inference_model
from tqdm import tqdm

from .part_times import PartTimer

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


def table(seconds: dict[str, list[float]]) -> str:
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
