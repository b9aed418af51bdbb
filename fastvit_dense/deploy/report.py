"""How an exported file compares with PyTorch, and the report that says so."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .formats import Plan, Run, require, to_numpy
from .graphs import Graph


class Comparison(NamedTuple):
    """An exported file against PyTorch on one input.

    Attributes:
        shape: (B, 3, H, W) of the input.
        errors: of each output, the L2 norm of the difference over that of PyTorch's output.
    """

    shape: tuple[int, ...]
    errors: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What was exported and how it compares.

    Attributes:
        path: the file.
        weights: where the weights come from.
        interface: inputs and outputs, a line each.
        absent: what of the model is not in the graph.
        inspected: what the format's own check says.
        comparisons: with PyTorch, one an input; empty where nothing could be run.
        runtime: what ran the file; or why nothing did.
    """

    path: str
    weights: str
    interface: tuple[str, ...]
    absent: str
    inspected: str
    comparisons: tuple[Comparison, ...]
    runtime: str

    @property
    def worst(self) -> float:
        """Largest relative error; 0 where nothing could be run."""
        return max((e for c in self.comparisons for e in c.errors.values()), default=0.0)

    def __str__(self) -> str:
        size = _bytes(Path(self.path))
        lines = [
            f"{self.path}: {size / 1e6:.1f} MB, {self.inspected}",
            f"weights: {self.weights}",
            *self.interface,
            f"not in the graph: {self.absent}",
        ]
        if not self.comparisons:
            return "\n".join([*lines, f"converted, not run: {self.runtime}"])
        lines.append(
            f"run in {self.runtime} and compared with the given model in PyTorch; relative error (L2):"
        )
        for shape, errors in self.comparisons:
            listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
            lines.append(f"  {' x '.join(map(str, shape))}: {listed}")
        return "\n".join(lines)


def compare(
    run: Run, reference: Graph, inputs: Sequence[tuple[int, tuple[int, int]]]
) -> tuple[Comparison, ...]:
    """Run an exported file and PyTorch on the same random images.

    Args:
        run: the file, opened.
        reference: the graph of the model as it was before fusing.
        inputs: batch and (H, W) of each image.

    Raises:
        ValueError: the file does not run at one of the sizes.
    """
    comparisons = []
    for batch, shape in inputs:
        image = reference.example(batch, shape, seed=batch)
        with torch.no_grad():
            maps = reference(image)
        try:
            found = run(to_numpy(image))
        except Exception as e:  # of the runtime's own classes
            raise ValueError(
                f"the file does not run at {batch} x 3 x {shape[0]} x {shape[1]}: {first_line(e)}. "
                "--static, for one size, may pass"
            ) from e
        errors = {}
        for name, wanted in zip(reference.output_names, maps, strict=True):
            got = torch.from_numpy(found[name])
            same = got.shape == wanted.shape
            errors[name] = relative_error(got, wanted) if same else float("inf")
        comparisons.append(Comparison(tuple(image.shape), errors))
    return tuple(comparisons)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """L2 norm of the difference over that of `wanted`, both of one shape; infinite for NaN."""
    error = float((found.double() - wanted.double()).norm() / wanted.double().norm())
    return error if error == error else float("inf")


def refuse_difference(report: Report, limit: float) -> None:
    """Raise ValueError where an output is further from PyTorch than `limit`, a relative error."""
    if report.worst <= limit:
        return
    worst = max(report.comparisons, key=lambda c: max(c.errors.values()))
    name = max(worst.errors, key=lambda n: worst.errors[n])
    raise ValueError(
        f"{report.path} was not written: at {' x '.join(map(str, worst.shape))} its output {name} differs "
        f"from PyTorch by {worst.errors[name]:.1e} (infinite for another shape), expected at most "
        f"{limit:.0e}. --static, for one size, may pass"
    )


def input_text(graph: Graph) -> str:
    """What the values of a graph's input are."""
    if graph.normalisation is None:
        return "float32, normalised by the caller"
    return (
        "float32, grey levels 0 to 255, channels in OpenCV's order (BGR); normalised in the graph"
    )


def describe_interface(graph: Graph, plan: Plan, format: str) -> tuple[str, ...]:
    """Names and shapes of the input and of the outputs, a line each."""
    outputs = graph.example_outputs(plan.shape)
    sides = "x".join(map(str, plan.shape))
    batch = "B" if plan.dynamic and format != "coreml" else "1"
    open_sides = "H x W" if plan.dynamic else sides
    shapes = [f"{name} {tuple(m.shape[1:])}" for name, m in outputs.items()]
    kind = " (C, H, W)" if all(m.dim() == 4 for m in outputs.values()) else ""
    return (
        f"input {graph.input_name}: {batch} x 3 x {open_sides}, {input_text(graph)}",
        f"outputs{kind} for an image of {sides}: {', '.join(shapes)}",
        *([f"licence: {graph.licence}"] if graph.licence else []),
    )


def files_of(target: Path) -> list[Path]:
    """The paths of an exported model: OpenVINO's is two files."""
    return [target, target.with_suffix(".bin")] if target.suffix == ".xml" else [target]


def _bytes(target: Path) -> int:
    files = [f for path in files_of(target) for f in (path, *path.rglob("*")) if f.is_file()]
    return sum(f.stat().st_size for f in files)


def first_line(error: Exception) -> str:
    """Class and first line of an error of a converter or runtime, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def describe_runtime(package: str, *, ran: bool) -> str:
    """What ran an exported file, or why nothing did."""
    if not ran:
        if package == "coremltools":
            return f"Core ML exists on macOS only, this is {platform.system()}"
        return f"{package} is not installed"
    return f"{package} {require(package).__version__.split('-')[0]} on the CPU"
