"""What a measurement or a run leaves to look at: tables, JSON, plots, the conditions it was made under."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

from ..deploy import runtimes as backends
from .timing import Row, timing
from .training import device_name

COLUMNS = (
    "model", "backend", "dtype", "params, M", "MACs, G", "error", "ms (median)", "p10", "p90",
    "p90/p10", "speed-up",
)  # fmt: skip


def environment(device: str, threads: int, used: Sequence[str]) -> dict[str, str]:
    """The conditions of a run: processor, threads, versions, how idle OpenMP threads wait, and on CUDA
    what :func:`fastvit_dense.deploy.runtimes.arithmetic` tells.

    Args:
        device: cpu or cuda.
        threads: threads of the CPU that each backend was given.
        used: keys of ``backends.BACKENDS``.
    """
    return {
        "device": device_name(device),
        "threads": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        **backends.versions(used),
        **backends.arithmetic(device),
    }


def check_reference(name: str | None, names: Sequence[str]) -> None:
    """See that there is a model for speed-ups to refer to.

    Args:
        name: of the model; None means the first.
        names: of the models that are measured.

    Raises:
        ValueError: it is none of them.
    """
    if name is not None and name not in names:
        raise ValueError(f"--reference must be one of {', '.join(names)}; got {name!r}")


def reference_row(rows: Sequence[Row], name: str | None = None) -> Row | None:
    """The row that speed-ups refer to: the first that was timed.

    Args:
        rows: of :func:`fastvit_dense.benchmark.timing.measure`.
        name: of a model, to take its first timed row.

    Returns:
        The row; None if nothing was timed.

    Raises:
        ValueError: no row has this name.
    """
    check_reference(name, list(dict.fromkeys(row.name for row in rows)))
    timed = [row for row in rows if row.seconds and name in (None, row.name)]
    return timed[0] if timed else None


def table(rows: Sequence[Row], warnings: Sequence[str], *, reference: str | None = None) -> str:
    """A Markdown table of all rows, what could not be measured and why, and warnings.

    Args:
        rows: of :func:`fastvit_dense.benchmark.timing.measure`.
        warnings: likewise.
        reference: model whose first row speed-ups refer to; None means the first row.

    Raises:
        ValueError: there is no model of that name.
    """
    base = reference_row(rows, reference)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    missing: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        cells = [row.name, row.backend, row.dtype, f"{row.parameters / 1e6:.2f}"]
        cells += [f"{row.macs / 1e9:.2f}", "-" if row.error is None else f"{row.error:.1e}"]
        if row.seconds and base:
            t = timing(row.seconds)
            cells += [f"{1e3 * s:.2f}" for s in (t.median, t.p10, t.p90)]
            cells += [f"{t.spread:.2f}", f"{timing(base.seconds).median / t.median:.2f}"]
        elif row.error is not None:
            cells += ["WRONG OUTPUT", *["-"] * 4]
        if len(cells) == len(COLUMNS):
            lines.append("| " + " | ".join(cells) + " |")
        if row.problem:
            missing.setdefault((row.backend, row.dtype, row.problem), []).append(row.name)
    if missing:
        lines += ["", "Not measured:"]
        for (backend, dtype, problem), names in missing.items():
            lines.append(f"- {backend}, {dtype} ({', '.join(names)}): {problem}")
    lines.append("")
    if base:
        lines.append(f"Speed-up: against {base.name}, {base.backend}, {base.dtype}.")
    lines += [f"WARNING: {warning}" for warning in warnings]
    return "\n".join(lines)


def write_json(
    path: str | Path,
    rows: Sequence[Row],
    warnings: Sequence[str],
    *,
    conditions: dict[str, str],
    arguments: dict[str, Any],
) -> None:
    """Write everything that was measured, each pass included; all times in seconds.

    Args:
        path: file to write.
        rows: of :func:`fastvit_dense.benchmark.timing.measure`.
        warnings: likewise.
        conditions: of :func:`environment`.
        arguments: what the run was asked for.
    """
    entries = []
    for row in rows:
        entry = row._asdict()
        if row.seconds:
            entry |= timing(row.seconds)._asdict()
        # JSON has neither NaN nor infinity.
        entries.append({k: None if _not_finite(v) else v for k, v in entry.items()})
    content = dict(
        conditions=conditions,
        arguments=arguments,
        warnings=list(warnings),
        rows=entries,
    )
    Path(path).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def plot(rows: Sequence[Row], path: str | Path, *, title: str = "") -> None:
    """Draw the medians as horizontal bars, with whiskers from p10 to p90.

    Args:
        rows: of :func:`fastvit_dense.benchmark.timing.measure`; those without times are left out.
        path: image file to write.
        title: above the plot, such as the device.

    Raises:
        ValueError: no row has times.
    """
    timed = [row for row in rows if row.seconds]
    if not timed:
        raise ValueError("nothing was timed, so there is nothing to plot: see the rows' problems")
    figure = Figure(figsize=(9, 1.2 + 0.26 * len(timed)), layout="constrained")
    axes = figure.subplots()
    colors = {
        key: f"C{i}" for i, key in enumerate(dict.fromkeys((r.backend, r.dtype) for r in timed))
    }
    for i, row in enumerate(timed):
        t = timing(row.seconds)
        key = (row.backend, row.dtype)
        axes.barh(i, 1e3 * t.median, color=colors[key], height=0.75, label=", ".join(key))
        whisker = [[1e3 * (t.median - t.p10)], [1e3 * (t.p90 - t.median)]]
        axes.errorbar(1e3 * t.median, i, xerr=whisker, color="black", capsize=2, linewidth=1)
    axes.set_yticks(range(len(timed)), [row.name for row in timed], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms a pass: median, p10 to p90")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=8)
    figure.savefig(path, dpi=120)


def _not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


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
