"""What a run leaves to look at: its curves and a sheet of its pictures."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

Scalars = dict[str, list[tuple[int, float]]]


def read_scalars(work_dir: str | Path) -> Scalars:
    """Read what a Runner logged.

    Args:
        work_dir: the run's folder; its newest ``*/vis_data/scalars.json`` is read.

    Returns:
        For each name, such as ``loss`` or ``coco/segm_mAP_50``, (step, value) in the order logged;
        the step is the iteration for training values, the epoch or iteration for metrics.

    Raises:
        FileNotFoundError: nothing was logged there.
    """
    files = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    if not files:
        raise FileNotFoundError(
            f"no */vis_data/scalars.json in {work_dir}: did a training run there?"
        )
    scalars: Scalars = {}
    for line in files[-1].read_text().splitlines():
        entry = json.loads(line)
        step = int(entry.get("step", entry.get("iter", 0)))
        for name, value in entry.items():
            if isinstance(value, (int, float)) and name not in ("step", "iter", "epoch"):
                scalars.setdefault(name, []).append((step, float(value)))
    return scalars


def plot_training(scalars: Scalars, path: str | Path) -> None:
    """Draw the loss terms over the iterations, and the learning rate below.

    Args:
        scalars: as :func:`read_scalars` gives them.
        path: image file to write.
    """
    losses = [n for n in scalars if n == "loss" or ("loss_" in n and len(scalars[n]) > 1)]
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for name, color in zip(losses, TABLEAU_COLORS.values(), strict=False):
        steps, values = zip(*scalars[name], strict=True)
        top.plot(steps, values, label=name, color=color, linewidth=2.5 if name == "loss" else 1.2)
    top.set_yscale("log")
    top.set_ylabel("training loss")
    top.grid(alpha=0.3)
    top.legend(ncols=3, fontsize=8)
    bottom.plot(*zip(*scalars.get("lr", [(0, 0.0)]), strict=True), color="black")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("iteration")
    bottom.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def contact_sheet(
    pictures: Sequence[str | Path], path: str | Path, *, columns: int = 2, height: int = 300
) -> None:
    """Tile pictures, scaled to one height, rows filled to one width with white.

    Args:
        pictures: image files.
        path: image file to write.
        columns: pictures a row.
        height: height of a row in pixels.

    Raises:
        ValueError: there is no picture, or one cannot be read.
        OSError: `path` cannot be written.
    """
    if not pictures:
        raise ValueError(f"no pictures for {path}: expected at least one file")
    images = []
    for picture in pictures:
        image = cv2.imread(str(picture))
        if image is None:
            raise ValueError(f"{picture} is not an image that OpenCV can read")
        width = round(image.shape[1] * height / image.shape[0])
        images.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    cell = max(image.shape[1] for image in images)
    rows = -(-len(images) // columns)
    gap = 8
    sheet = np.full((rows * (height + gap) + gap, columns * (cell + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y = gap + (i // columns) * (height + gap)
        x = gap + (i % columns) * (cell + gap) + (cell - image.shape[1]) // 2
        sheet[y : y + height, x : x + image.shape[1]] = image
    if not cv2.imwrite(str(path), sheet):
        raise OSError(f"{path} could not be written: does its folder exist?")
