"""What a measurement or a training leaves to look at: table, JSON, plots, the conditions of the run."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from ..compat import mmcv_ops
from ..deploy import runtimes
from ..io.files import why_unwritable
from .timing import Row, percentiles

# Of a row's figures: column and format.
FIGURES = {
    "parameters": ("params, M", lambda value: f"{value / 1e6:.2f}"),
    "macs": ("MACs, G", lambda value: f"{value / 1e9:.2f}"),
    "memory": ("peak memory, GiB", lambda value: f"{value / 2**30:.2f}"),
    "error": ("error", lambda value: f"{value:.1e}"),
}
_TIMES = ("ms (median)", "p10", "p90", "p90/p10", "images/s", "speed-up")


def environment(device: str, threads: int, backends: Sequence[str]) -> dict[str, str]:
    """The conditions of a run: processor, threads, versions, operators, how idle OpenMP threads wait, and
    on CUDA what :func:`fastvit_dense.deploy.runtimes.arithmetic` tells.

    Args:
        device: cpu, cuda or cuda:0.
        threads: threads of the CPU that each backend was given.
        backends: keys of ``runtimes.BACKENDS``.
    """
    return {
        "device": device_name(device),
        "threads": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "mmcv operators": mmcv_ops.describe().partition(": ")[2],
        **runtimes.versions(backends),
        **runtimes.arithmetic(device),
    }


def device_name(device: str) -> str:
    """The GPU's or processor's name as it gives it; "CPU" if the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty on many of them
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def check_outputs(**paths: str | None) -> None:
    """See, before anything is measured, that files can be written.

    Args:
        paths: by the option's name, ``json`` and ``plot``; None is not written.

    Raises:
        ValueError: one cannot be written, or matplotlib does not know the plot's format.
    """
    formats = Figure().canvas.get_supported_filetypes()
    for option, path in ((option, Path(path)) for option, path in paths.items() if path):
        problem = "is a folder" if path.is_dir() else why_unwritable(path.parent)
        if option == "plot" and path.suffix[1:] not in formats:
            problem = f"is no picture: expected a name that ends in one of {', '.join(formats)}"
        if problem:
            raise ValueError(f"--{option} {path} {problem}")


def reference_row(rows: Sequence[Row], name: str | None = None) -> Row | None:
    """The row that speed-ups refer to: the first that is timed, of a model's name if one is given.

    Raises:
        ValueError: no row has this name.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    if name is not None and name not in names:
        raise ValueError(f"--reference must be one of {', '.join(names)}; got {name!r}")
    return next((row for row in rows if row.seconds and name in (None, row.name)), None)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def table(
    rows: Sequence[Row], warnings: Sequence[str] = (), *, reference: str | None = None
) -> str:
    """A Markdown table of what was timed, what could not be measured and why, and warnings.

    Args:
        rows: of :func:`fastvit_dense.benchmark.timing.measure`.
        warnings: likewise.
        reference: model whose first row speed-ups refer to; None means the first row.

    Raises:
        ValueError: no row has this name.
    """
    base = reference_row(rows, reference)
    timed = [row for row in rows if row.seconds]
    figures = [key for key in FIGURES if any(key in row.figures for row in timed)]
    header = ["model", "backend", "dtype", *(FIGURES[key][0] for key in figures), *_TIMES]
    cells = []
    for row in timed:
        p10, median, p90 = percentiles(row.seconds)
        speed, parts = row.images / median, [percentiles(s)[1] for s in row.parts.values()]
        cells.append([
            *row[:3], *(FIGURES[key][1](row.figures[key]) for key in figures),
            *(f"{1e3 * s:.2f}" for s in (median, p10, p90)), f"{p90 / p10:.2f}", f"{speed:.2f}",
            f"{speed / base.images * percentiles(base.seconds)[1]:.2f}" if base else "",
            *(f"{1e3 * part:.2f} ({part / sum(parts):.0%})" for part in parts),
        ])  # fmt: skip
    header += [f"{part}, ms (share)" for part in next((r.parts for r in timed if r.parts), {})]
    lines = markdown(header, cells)
    problems = [f"- {r.name}, {r.backend}, {r.dtype}: {r.problem}" for r in rows if r.problem]
    if problems:
        lines += ["", "Not measured:", *problems]
    if base:
        lines += ["", f"Speed-up: against {base.name}, {base.backend}, {base.dtype}."]
    return "\n".join([*lines, *(f"WARNING: {warning}" for warning in warnings)])


def write_json(
    path: str, rows: Sequence[Row], warnings: Sequence[str], conditions: Mapping[str, str],
    arguments: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write everything that was measured, each pass included; all times in seconds.

    Args:
        path: file to write.
        rows: of :func:`fastvit_dense.benchmark.timing.measure`.
        warnings: likewise.
        conditions: of :func:`environment`.
        arguments: what the run was asked for.
    """
    entries = [row._asdict() for row in rows]
    for entry in entries:
        if entry["seconds"]:
            entry |= zip(("p10", "median", "p90"), percentiles(entry["seconds"]), strict=True)
    found = dict(conditions=conditions, arguments=arguments, warnings=warnings, rows=entries)
    text = json.dumps(found, indent=1, allow_nan=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f"{text}\n", encoding="utf-8")


def plot(rows: Sequence[Row], path: str | Path, *, title: str = "") -> None:
    """Draw the medians as horizontal bars, of their parts if there are any, with whiskers from p10 to p90.

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
    figure = Figure(figsize=(9, 1.7 + 0.26 * len(timed)), layout="constrained")
    axes = figure.subplots()
    bars: dict[str, Any] = {}
    for i, row in enumerate(timed):
        left, (p10, _, p90) = 0.0, percentiles(row.seconds)
        for label, seconds in (row.parts or {f"{row.backend}, {row.dtype}": row.seconds}).items():
            color = bars[label][0].get_facecolor() if label in bars else f"C{len(bars)}"
            width = 1e3 * percentiles(seconds)[1]
            bars[label] = axes.barh(i, width, left=left, color=color)
            left += width
        axes.hlines(i, 1e3 * p10, 1e3 * p90, color="black")
    axes.set_yticks(range(len(timed)), [row.name for row in timed], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms per pass: median, p10 to p90")
    axes.set_title(title, fontsize=10)
    figure.legend(bars.values(), bars.keys(), fontsize=8, ncols=4, loc="outside lower center")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


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
            if isinstance(value, int | float) and name not in ("step", "iter", "epoch"):
                scalars.setdefault(name, []).append((step, float(value)))
    return scalars


def plot_training(scalars: Scalars, path: str | Path) -> None:
    """Draw the loss terms over the iterations.

    Args:
        scalars: as :func:`read_scalars` gives them.
        path: image file to write.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in scalars.items():
        if name == "loss" or ("loss_" in name and len(points) > 1):
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend(ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)


def contact_sheet(
    pictures: Sequence[str | Path], path: str | Path, *, columns: int = 2, width: int = 480
) -> None:
    """Show pictures in one, side by side.

    Args:
        pictures: image files.
        path: image file to write.
        columns: pictures per row.
        width: of a column in pixels; a row is as high as the first picture is at this width.

    Raises:
        ValueError: there is no picture.
    """
    if not pictures:
        raise ValueError(f"no pictures for {path}: expected at least one file")
    images = [imread(picture) for picture in pictures]
    rows, (height, own_width) = -(-len(images) // columns), images[0].shape[:2]
    size = columns * width, rows * width * height / own_width
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image in zip(figure.axes, images, strict=False):
        axes.imshow(image)
    figure.savefig(path)
