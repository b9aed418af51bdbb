"""Export of fused models to ONNX, OpenVINO and Core ML, each file run again and compared with PyTorch."""

import json
import os
import os.path as osp
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastvit_dense

from ..backbone.archs import ARCHS
from ..backbone.fastvit import FastViT
from ..backbone.pretrained import load_pretrained
from ..backbone.reparameterize import reparameterize, split_patch_embeddings
from ..engine import models
from ..engine.config import load_config
from .compare import randomise_statistics, relative_error
from .fuse import OTHER_SHAPE
from .runtimes import (
    OPSET,
    Unavailable,
    first_line,
    open_onnx,
    open_openvino,
    quiet,
    require,
    to_onnx,
    to_openvino,
)

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "coreml": ".mlpackage"}
PACKAGES = {"onnx": ("onnx",), "openvino": ("onnx", "openvino"), "coreml": ("coremltools",)}
PARTS = ("model", "backbone")
SMALLEST_SIDE = 32
# Of files that are not static; below 64 a map at stride 32 could be one pixel, which is another graph.
RANGE_CORE_ML = (64, 2048)
# Largest relative difference (L2 norm of the difference over that of the map) that is accepted.
TOLERANCE = 1e-4
TOLERANCE_HALF = 1e-2
# An exported file opened in its runtime: an image (B, 3, H, W) float32 to maps by name.
RunFile = Callable[[np.ndarray], dict[str, np.ndarray]]


class Normalisation(NamedTuple):
    """How a model's data preprocessor makes the network's input of an image as OpenCV reads it.

    Attributes:
        mean: of each channel, subtracted; in grey levels 0 to 255 and the order of the network.
        std: of each channel, divided by; likewise.
        bgr_to_rgb: whether the channels are reversed first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr_to_rgb: bool


def normalisation_of(model: nn.Module) -> Normalisation | None:
    """The normalisation of a model's data preprocessor; None if it has none."""
    preprocessor: Any = getattr(model, "data_preprocessor", None)
    mean, std = getattr(preprocessor, "mean", None), getattr(preprocessor, "std", None)
    if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
        return None
    # mmengine and mmdet keep the flag under the first name, mmseg under the second.
    reverse = getattr(preprocessor, "_channel_conversion", None)
    if reverse is None:
        reverse = getattr(preprocessor, "channel_conversion", False)
    return Normalisation(
        tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()), bool(reverse)
    )


class Graph(nn.Module):
    """One graph to export.

    Args:
        body: takes the normalised image and returns a tuple of maps.
        output_names: a name for each of them.
        absent: what of the model is not in the graph, in words.
        normalisation: made part of the graph; None leaves it to the caller.
        licence: whose terms hold for the file beside the project's and those of the weights, in words.

    Attributes:
        input_name: ``image`` for an image of grey levels 0 to 255, BGR; ``input`` for a normalised one.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        output_names: Sequence[str],
        absent: str,
        normalisation: Normalisation | None,
        licence: str = "",
    ) -> None:
        super().__init__()
        self.body = body
        self.output_names = tuple(output_names)
        self.absent = absent
        self.licence = licence
        self.normalisation = normalisation
        self.input_name = "input" if normalisation is None else "image"
        self._half = False
        self.mean: Tensor
        self.std: Tensor
        if normalisation is not None:
            self.register_buffer("mean", torch.tensor(normalisation.mean).view(-1, 1, 1))
            self.register_buffer("std", torch.tensor(normalisation.std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32 -> one float32 map for each of ``output_names``."""
        if self.normalisation is not None:
            if self.normalisation.bgr_to_rgb:
                image = image.flip(1)
            image = (image - self.mean) / self.std
        if not self._half:
            return self.body(image)
        return tuple(out.float() for out in self.body(image.half()))

    def to_half(self) -> "Graph":
        """Compute in float16 between a float32 input and float32 outputs. Changes the graph itself."""
        self._half = True
        self.body.half()
        return self

    def example(self, batch: int, shape: tuple[int, int], *, seed: int = 0) -> Tensor:
        """A random input (batch, 3, H, W), float32, of the values that the graph expects."""
        generator = torch.Generator().manual_seed(seed)
        size = (batch, 3, *shape)
        if self.normalisation is None:
            return torch.randn(size, generator=generator)
        return torch.randint(0, 256, size, generator=generator).float()

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        """What the graph makes of an image, by name."""
        with torch.no_grad():
            return dict(zip(self.output_names, self(image), strict=True))


def make_graph(
    model: nn.Module,
    *,
    part: str = "model",
    normalisation: Normalisation | None = None,
    full_size: bool = True,
) -> Graph:
    """The graph of a model in eval mode, fused or not.

    Args:
        model: a FastViT, or a detector, a segmentor or a hand model that holds one.
        part: ``model``, or ``backbone`` for the FastViT inside alone.
        normalisation: made part of the graph; None leaves it to the caller.
        full_size: resize a segmentor's logits to the image, as it does itself; otherwise they are left
            at the head's resolution. True for all else.

    Returns:
        The graph; it shares the model's parameters.

    Raises:
        ValueError: the part does not exist, the model is of another kind or has an unusual head, or
            `full_size` is False and it is no segmentor.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}; got {part!r}")
    if not full_size and (part == "backbone" or not _is_segmentor(model)):
        raise ValueError(
            "full_size=False (--head-size) leaves a segmentor's logits at the head's resolution; got "
            f"{'a backbone' if part == 'backbone' else type(model).__name__}, of which nothing is resized: "
            "leave it out"
        )
    licence = ""
    if part == "backbone" or isinstance(model, FastViT):
        backbone = backbone_of(model)
        body: Any = backbone
        names = [f"c{stride.bit_length() - 1}" for stride in backbone.strides]
        absent = "everything after the maps"
    elif _is_segmentor(model):
        from ..seg.graph import segmentor_graph

        body, names, absent = segmentor_graph(model, full_size=full_size)
    elif isinstance(getattr(model, "rpn_head", getattr(model, "bbox_head", None)), nn.Module):
        from ..det.graph import detector_graph

        body, names, absent = detector_graph(model)
    elif hasattr(getattr(model, "head", None), "mano"):
        from ..hand.graph import hand_graph, hand_licence

        (body, names, absent), licence = hand_graph(model), hand_licence(model)
    else:
        raise ValueError(
            f"{type(model).__name__} is neither a detector, a segmentor nor a hand model: it cannot be "
            "exported as a whole. --part backbone exports the backbone alone."
        )
    return Graph(
        body, output_names=names, absent=absent, normalisation=normalisation, licence=licence
    ).eval()


def backbone_of(model: nn.Module) -> FastViT:
    """The FastViT of a model; ValueError if it has none."""
    for module in model.modules():
        if isinstance(module, FastViT):
            return module
    raise ValueError(
        f"{type(model).__name__} holds no FastViT: only models of this project are exported"
    )


def _is_segmentor(model: nn.Module) -> bool:
    return getattr(model, "decode_head", None) is not None


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
        summary: the format, what its own check says, the weights, inputs and outputs, and what of the model
            is not in the graph; a line each.
        comparisons: with PyTorch, one an input; empty if nothing could be run.
        runtime: what ran the file; or why nothing did.
    """

    path: str
    summary: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    runtime: str

    @property
    def worst(self) -> float:
        """Largest relative error; 0 if nothing could be run."""
        return max((e for c in self.comparisons for e in c.errors.values()), default=0.0)

    def __str__(self) -> str:
        files = [f for p in _files_of(Path(self.path)) for f in (p, *p.rglob("*")) if f.is_file()]
        size = sum(f.stat().st_size for f in files)
        lines = [f"{self.path}: {size / 1e6:.1f} MB", *self.summary]
        if not self.comparisons:
            return "\n".join([*lines, f"converted, not run: {self.runtime}"])
        lines.append(
            f"run in {self.runtime} and compared with the given model in PyTorch; relative error (L2):"
        )
        for shape, errors in self.comparisons:
            listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
            lines.append(f"  {' x '.join(map(str, shape))}: {listed}")
        return "\n".join(lines)


def load_model(source: str, checkpoint: str | None = None) -> tuple[nn.Module, dict[str, str]]:
    """Build the model of a config, or a bare backbone, with its weights.

    Args:
        source: a config file, or an arch such as ``sa12`` for a backbone without one.
        checkpoint: for a config, what tools/train.py wrote (or tools/reparameterize.py, with the config
            that it wrote beside it); for an arch, a path or address of backbone weights, such as
            ``timm://fastvit_sa12.apple_in1k``. None makes random weights, with statistics and layer
            scales that are random too: good for measuring speed, and for nothing else.

    Returns:
        The model in eval mode, on the CPU, and texts about it: config, classes (JSON) and weights, as
        far as known.

    Raises:
        FileNotFoundError: the config or checkpoint does not exist.
        ValueError: the checkpoint cannot be read or does not fit.
    """
    about = {"config": osp.basename(source)}
    if source in ARCHS:
        model: nn.Module = FastViT(source)
        if checkpoint is not None:
            load_pretrained(model, checkpoint)
    else:
        if not source.endswith(".py"):
            raise FileNotFoundError(
                f"{source!r} is neither a config file (.py) nor one of the backbones {', '.join(ARCHS)}"
            )
        cfg = load_config(source)
        model = models.load_model(cfg, checkpoint) if checkpoint else models.build_model(cfg)
        dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
        classes: Sequence[str] = (dataset.get("metainfo") or {}).get("classes") or ()
        classes = getattr(model, "dataset_meta", {}).get("classes") or classes
        if classes:
            about["classes"] = _as_json(classes)
    if checkpoint is None:
        randomise_statistics(model)
    about["weights"] = osp.basename(checkpoint) if checkpoint else "random"
    return model.eval(), about


def export_model(
    model: nn.Module,
    out: str,
    *,
    format: str,
    part: str = "model",
    shape: tuple[int, int] | None = None,
    dynamic: bool | None = None,
    half: bool = False,
    normalise: bool = True,
    full_size: bool = True,
    force: bool = False,
    about: dict[str, str] | None = None,
) -> Report:
    """Fuse a model, write it to a file, run the file and compare it with the model as it was.

    The comparison uses the given shape and, if sizes are dynamic, two smaller ones with odd sides, one
    of them with a batch of 2. `out` appears only once it has passed.

    Args:
        model: in eval mode; left as it is. See :func:`make_graph`.
        out: path of the file: ``.onnx``, ``.xml`` (OpenVINO; ``.bin`` is written beside it) or
            ``.mlpackage`` (Core ML).
        format: onnx, openvino or coreml.
        part: ``model`` or ``backbone``.
        shape: (H, W) in pixels of a static file, and the first to compare at. None means the model's own
            `image_size`, such as 224x224 of hands, and 512x512 for others.
        dynamic: leave batch, height and width open. None means yes, except for Core ML. Core ML's
            batch is always 1.
        half: ONNX and Core ML compute in float16, with float32 in- and outputs; OpenVINO stores the
            weights in float16.
        normalise: put the data preprocessor's normalisation into the graph: the input is then an image of
            grey levels 0 to 255, BGR as OpenCV reads it. Otherwise, and for a bare backbone, the input is
            the normalised image.
        full_size: resize a segmentor's logits to the image; otherwise the head's resolution is kept.
        force: replace `out`.
        about: texts to store in the file beside the graph's own.

    Returns:
        What was written and how far it is from PyTorch.

    Raises:
        FileNotFoundError: the folder of `out` does not exist.
        FileExistsError: `out` exists, and `force` is not set.
        Unavailable: a package of the extra ``export`` is missing.
        ValueError: an argument is not possible, the format cannot express the model, or the file computes
            something else than the model, by more than 1e-4 (1e-2 for `half`).
    """
    if shape is None:
        shape = getattr(model, "image_size", OTHER_SHAPE)
    assert shape is not None
    if dynamic is None:
        dynamic = format != "coreml"
    plan = Plan(format, shape, dynamic, half)
    target = Path(out)
    _check_target(format, target, force=force)
    _check(plan, alone=part == "backbone" or isinstance(model, FastViT))
    for package in PACKAGES[format]:
        require(package)

    kind: dict[str, Any] = dict(
        part=part, normalisation=normalisation_of(model) if normalise else None, full_size=full_size
    )
    source = backbone_of(model) if part == "backbone" else model
    fused = reparameterize(source)  # first: it refuses training mode
    if format != "coreml":  # faster in the other two (docs/latency.md); Core ML does not run here
        fused = split_patch_embeddings(fused)
    if _is_segmentor(fused):
        from ..seg.graph import make_traceable

        make_traceable(fused)
    reference, graph = make_graph(source, **kind), make_graph(fused, **kind)
    outputs = graph.outputs(graph.example(1, shape))
    if half and format == "onnx":
        graph.to_half()
    metadata = {**_metadata(graph, backbone_of(model).arch, part), **(about or {})}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as folder:
        unfinished = Path(folder) / target.name
        try:
            inspected = _write(graph, unfinished, plan, outputs, metadata)
            run, runtime = _open(format, unfinished)
        except Exception as e:  # converters raise whatever class comes up inside
            hint = "--static, for one size, or " if dynamic else ""
            raise ValueError(
                f"this model does not convert to {format}: {first_line(e)}. Try {hint}--part backbone"
            ) from e
        report = Report(
            path=out,
            summary=(inspected, *_describe(graph, plan, outputs, metadata)),
            comparisons=_compare(run, reference, plan) if run else (),
            runtime=runtime,
        )
        del run  # it maps the file
        _refuse_difference(report, TOLERANCE_HALF if half else TOLERANCE)
        # The weights first: whoever sees the file named sees all of it.
        for old, new in reversed(list(zip(_files_of(unfinished), _files_of(target), strict=True))):
            if new.is_dir():
                shutil.rmtree(new)
            os.replace(old, new)
    return report


class Plan(NamedTuple):
    """How a graph is written.

    Attributes:
        format: a key of ``SUFFIXES``.
        shape: (H, W) of the image in pixels: the only one of a static file, an example otherwise.
        dynamic: whether batch (except in Core ML), height and width are left open.
        half: float16 instead of float32; see :func:`export_model`.
    """

    format: str
    shape: tuple[int, int]
    dynamic: bool
    half: bool


def _check_target(format: str, target: Path, *, force: bool) -> None:
    if format not in SUFFIXES:
        raise ValueError(f"format must be one of {', '.join(SUFFIXES)}; got {format!r}")
    if target.suffix != SUFFIXES[format]:
        raise ValueError(
            f"{str(target)!r} does not end in {SUFFIXES[format]}, as files of format {format} do: rename it"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder {str(target.parent)!r} does not exist: create it first")
    for path in _files_of(target):
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists: choose another name, or --force to replace it")


def _check(plan: Plan, *, alone: bool) -> None:
    """Raise ValueError for what a format cannot express; `alone`: only a backbone is exported."""
    given = f"shape is {plan.shape[0]} x {plan.shape[1]}"
    if min(plan.shape) < SMALLEST_SIDE:
        raise ValueError(f"{given}, expected sides of at least {SMALLEST_SIDE} pixels")
    if plan.format != "coreml":
        return
    if plan.dynamic and not alone:
        raise ValueError(
            "Core ML resizes by fixed factors: a whole model needs one size. Leave out --dynamic, or "
            "export --part backbone"
        )
    if not alone and any(side % 32 for side in plan.shape):
        raise ValueError(
            f"{given}: for a whole model in Core ML, which resizes by fixed factors, both must be "
            "multiples of 32"
        )
    low, high = RANGE_CORE_ML
    if plan.dynamic and not low <= min(plan.shape) <= max(plan.shape) <= high:
        raise ValueError(
            f"{given}: sides of a dynamic Core ML file are {low} to {high}, use --static for others"
        )


def _metadata(graph: Graph, arch: str, part: str) -> dict[str, str]:
    norm = graph.normalisation
    texts = {
        "project": "fastvit_dense",
        "version": fastvit_dense.__version__,
        "torch": str(torch.__version__),
        "arch": arch,
        "part": part,
        "fused": "true",
        "input": "float32, normalised by the caller",
        "not_in_the_graph": graph.absent,
    }
    if graph.licence:
        texts["licence"] = graph.licence
    if norm is not None:
        texts |= {"mean": _as_json(norm.mean), "std": _as_json(norm.std)}
        texts["bgr_to_rgb"] = _as_json(norm.bgr_to_rgb)
        texts["input"] = (
            "float32, grey levels 0 to 255, channels in OpenCV's order (BGR); normalised in the graph"
        )
    return texts


def _write(
    graph: Graph,
    path: Path,
    plan: Plan,
    outputs: Mapping[str, Tensor],
    metadata: dict[str, str],
) -> str:
    """Write the file and check it as far as its format's own tools can; says what they saw."""
    if plan.format == "coreml":
        _write_coreml(graph, path, plan, metadata)
        return _inspect_coreml(path, graph, plan, outputs)
    axes = {graph.input_name: {0: "batch", 2: "height", 3: "width"}}
    for name, output in outputs.items():
        axes[name] = {0: "batch"}
        if output.dim() == 4:
            axes[name] |= {2: f"{name}_height", 3: f"{name}_width"}
    options: dict[str, Any] = dict(
        names=(graph.input_name, *graph.output_names),
        axes=axes if plan.dynamic else None,
        metadata=metadata,
    )
    example = graph.example(1, plan.shape)
    if plan.format == "onnx":
        path.write_bytes(to_onnx(graph, example, **options))
        require("onnx").checker.check_model(str(path), full_check=True)
        return f"ONNX opset {OPSET}, passes onnx.checker"
    model = to_openvino(graph, example, **options)
    # The weights alone become float16: what they are computed in is the device's choice.
    require("openvino").save_model(model, str(path), compress_to_fp16=plan.half)
    weights = "float16" if plan.half else "float32"
    return f"OpenVINO IR, {len(model.get_ops())} operations, weights in {weights}"


def _write_coreml(graph: Graph, path: Path, plan: Plan, metadata: dict[str, str]) -> None:
    """A Core ML program (``.mlpackage``) for iOS 16, macOS 13 and later; batch 1."""
    ct = require("coremltools")
    example = graph.example(1, plan.shape)
    size: tuple[Any, ...] = example.shape
    ranges = None
    if plan.dynamic:
        low, high = RANGE_CORE_ML
        size = (1, 3, *(ct.RangeDim(low, high, default=side) for side in plan.shape))
        ranges = ({i: torch.export.Dim(f"side_{i}", min=low, max=high) for i in (2, 3)},)
    with quiet(), torch.no_grad():
        # NOTE: coremltools 9 fails on the sizes in a trace (torch.jit) of the attention blocks.
        program = torch.export.export(graph, (example,), dynamic_shapes=ranges)
        precision = ct.precision.FLOAT16 if plan.half else ct.precision.FLOAT32
        model = ct.convert(
            program.run_decompositions({}),
            inputs=[ct.TensorType(name=graph.input_name, shape=ct.Shape(size), dtype=np.float32)],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in graph.output_names],
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
        model.version = metadata["version"]
        model.short_description = "FastViT for dense prediction, fused"
        model.user_defined_metadata.update(metadata)
        model.save(str(path))


def _inspect_coreml(path: Path, graph: Graph, plan: Plan, outputs: Mapping[str, Tensor]) -> str:
    """Names, shapes and dtypes of the inputs and outputs of the program, and that GELU is exact."""
    ct = require("coremltools")
    with quiet():
        spec = ct.utils.load_spec(str(path))
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    types = {o.name: o.type.tensorType for op in block.operations for o in op.outputs}
    expected = {name: tuple(m.shape) for name, m in outputs.items()}
    found = {name: [d.constant.size for d in types[name].dimensions] for name in block.outputs}
    filled = {  # a size that is left open reads as 0
        name: tuple(f or e for f, e in zip_longest(sizes, expected.get(name, ()), fillvalue=0))
        for name, sizes in found.items()
    }
    if filled != expected or [i.name for i in spec.description.input] != [graph.input_name]:
        raise ValueError(f"the Core ML program has outputs {found}, expected {expected}")
    modes = {
        op.inputs["mode"].arguments[0].value.immediateValue.tensor.strings.values[0]
        for op in block.operations
        if op.type == "gelu" and op.inputs["mode"].arguments[0].HasField("value")
    }
    if modes - {"EXACT"}:
        raise ValueError(f"the Core ML program approximates GELU ({', '.join(sorted(modes))})")
    return (
        f"Core ML program, {len(block.operations)} operations, {function.opset}, computing in "
        f"{'float16' if plan.half else 'float32'}; names and shapes of the outputs are as in PyTorch"
    )


def _open(format: str, path: Path) -> tuple[RunFile | None, str]:
    """Open a file on the CPU: the call that runs it and its runtime, or None and why nothing runs it."""
    if format == "coreml":
        return None, "Core ML exists on macOS only"
    package = "onnxruntime" if format == "onnx" else "openvino"
    try:
        runtime = require(package)
    except Unavailable:
        return None, f"{package} is not installed"
    version = f"{package} {runtime.__version__.split('-')[0]} on the CPU"
    if format == "onnx":
        session = open_onnx(str(path), threads=torch.get_num_threads())
        names = [output.name for output in session.get_outputs()]
        source = session.get_inputs()[0].name
        return lambda x: dict(zip(names, session.run(names, {source: x}), strict=True)), version
    model = open_openvino(str(path), threads=torch.get_num_threads())
    return lambda x: {o.get_any_name(): m for o, m in model(x).items()}, version


def _compare(run: RunFile, reference: Graph, plan: Plan) -> tuple[Comparison, ...]:
    """Run a file and the graph of the model as it was before fusing on the same random images.

    At the given shape and, if sizes are dynamic, at two smaller ones with odd sides.
    """
    height, width = (max(side // 2, SMALLEST_SIDE) for side in plan.shape)
    inputs = [(1, plan.shape)]
    if plan.dynamic:
        narrow = max(plan.shape[1] // 3, SMALLEST_SIDE) + 17
        inputs.append((1 if plan.format == "coreml" else 2, (height | 1, width + 3 | 1)))
        inputs.append((1, (height + 30, narrow)))
    comparisons = []
    for batch, shape in inputs:
        image = reference.example(batch, shape, seed=batch)
        try:
            found = run(image.numpy())
        except Exception as e:  # of the runtime's own classes
            raise ValueError(
                f"the file does not run at {batch} x 3 x {shape[0]} x {shape[1]}: {first_line(e)}. "
                "--static, for one size, may pass"
            ) from e
        errors = {
            name: relative_error([torch.from_numpy(found[name])], [expected])
            for name, expected in reference.outputs(image).items()
        }
        comparisons.append(Comparison(tuple(image.shape), errors))
    return tuple(comparisons)


def _refuse_difference(report: Report, limit: float) -> None:
    """Raise ValueError if an output is further from PyTorch than `limit`, a relative error."""
    for shape, errors in report.comparisons:
        name = max(errors, key=lambda n: errors[n])
        if errors[name] > limit:
            raise ValueError(
                f"{report.path} was not written: at {' x '.join(map(str, shape))} its output {name} "
                f"differs from PyTorch by {errors[name]:.1e} (infinite for another shape), expected at "
                f"most {limit:.0e}. --static, for one size, may pass"
            )


def _describe(
    graph: Graph, plan: Plan, outputs: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> list[str]:
    """Weights, input and outputs, licence and what is not in the graph, a line each."""
    sides = "x".join(map(str, plan.shape))
    batch = "B" if plan.dynamic and plan.format != "coreml" else "1"
    open_sides = "H x W" if plan.dynamic else sides
    shapes = ", ".join(f"{name} {tuple(m.shape[1:])}" for name, m in outputs.items())
    lines = [
        f"weights: {metadata.get('weights', 'the given model')}",
        f"input {graph.input_name}: {batch} x 3 x {open_sides}, {metadata['input']}",
        f"outputs for an image of {sides}: {shapes}",
        f"not in the graph: {graph.absent}",
    ]
    return lines + ([f"licence: {graph.licence}"] if graph.licence else [])


def _files_of(target: Path) -> list[Path]:
    """The paths of an exported model: OpenVINO's is two files."""
    return [target, target.with_suffix(".bin")] if target.suffix == ".xml" else [target]


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
