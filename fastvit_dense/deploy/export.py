"""Export of fused models to ONNX, OpenVINO and Core ML, each file run again and compared with PyTorch."""

import os
import os.path as osp
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import fastvit_dense

from ..backbone.archs import ARCHS
from ..backbone.fastvit import FastViT
from ..backbone.pretrained import load_pretrained
from ..backbone.reparameterize import reparameterize, split_patch_embeddings
from ..engine.config import load_config
from ..engine.models import load_strict, read_checkpoint
from .compare import randomise_statistics
from .formats import (
    DEFAULT_OPSET,
    FORMATS,
    OPSETS,
    RANGE_CORE_ML,
    SMALLEST_SIDE,
    Format,
    Plan,
    as_json,
    require,
)
from .fuse import OTHER_SHAPE
from .graphs import Graph, backbone_of, make_graph, make_traceable, normalisation_of
from .report import (
    Report,
    compare,
    describe_interface,
    describe_runtime,
    files_of,
    first_line,
    input_text,
    refuse_difference,
)

# Largest relative difference (L2 norm of the difference over that of the map) that is accepted.
TOLERANCE = 1e-4
TOLERANCE_HALF = 1e-2


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
        FileNotFoundError: there is no such config or checkpoint.
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
        init_default_scope(cfg.get("default_scope") or "mmengine")
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        classes: Sequence[str] = _classes(cfg)
        if checkpoint is not None:
            classes = _load(model, checkpoint) or classes
        if classes:
            about["classes"] = as_json(list(classes))
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
    opset: int | None = None,
    half: bool = False,
    normalise: bool = True,
    full_size: bool = True,
    force: bool = False,
    about: dict[str, str] | None = None,
) -> Report:
    """Fuse a model, write it to a file, run the file and compare it with the model as it was.

    The comparison uses the given shape and, where sizes are dynamic, two smaller ones with odd sides, one
    of them with a batch of 2. `out` appears only once it has passed.

    Args:
        model: in eval mode; left as it is. A FastViT, a detector, segmentor or hand model that holds one,
            or a module whose ``forward(x)`` returns tensors. See
            :func:`fastvit_dense.deploy.graphs.make_graph`.
        out: path of the file: ``.onnx``, ``.xml`` (OpenVINO; ``.bin`` is written beside it) or
            ``.mlpackage`` (Core ML).
        format: onnx, openvino or coreml.
        part: ``model`` or ``backbone``.
        shape: (H, W) in pixels of a static file, and the first to compare at. None means the model's own
            `image_size`, such as 224x224 of hands, and 512x512 for others.
        dynamic: leave batch, height and width open. None means yes, except for Core ML. Core ML's
            batch is always 1.
        opset: of ONNX (and on the way to OpenVINO), 14 to 20; 17 by default.
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
        ModuleNotFoundError: a package of the extra ``export`` is missing.
        ValueError: an argument is not possible, the format cannot express the model, or the file computes
            something else than the model, by more than 1e-4 (1e-2 for `half`).
    """
    chosen = _format(format, out)
    if shape is None:
        shape = getattr(model, "image_size", OTHER_SHAPE)
    assert shape is not None
    dynamic = chosen.dynamic if dynamic is None else dynamic
    alone = part == "backbone" or isinstance(model, FastViT)
    _check(format, alone=alone, shape=shape, dynamic=dynamic, opset=opset)
    target = Path(out)
    _check_target(target, force=force)
    for package in chosen.packages:
        require(package)

    normalisation = normalisation_of(model) if normalise else None
    source = backbone_of(model) if part == "backbone" else model
    kind: dict[str, Any] = dict(part=part, normalisation=normalisation, full_size=full_size)
    fused = reparameterize(source)  # first: it refuses training mode
    if format != "coreml":  # faster in the other two (docs/latency.md); Core ML does not run here
        fused = split_patch_embeddings(fused)
    fused = make_traceable(fused)
    reference, graph = make_graph(source, **kind), make_graph(fused, **kind)
    if half and format == "onnx":
        graph.to_half()
    plan = Plan(
        shape,
        dynamic,
        opset or DEFAULT_OPSET,
        half,
        {**_metadata(graph, backbone_of(model).arch, part), **(about or {})},
    )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as folder:
        aside = Path(folder) / target.name
        try:
            chosen.write(graph, aside, plan)
            inspected = chosen.inspect(aside, graph, plan)
            run = chosen.open(aside)
        except Exception as e:  # converters raise whatever class comes up inside
            raise ValueError(_failure(format, plan, e)) from e
        report = Report(
            path=out,
            weights=plan.metadata.get("weights", "the given model's"),
            interface=describe_interface(graph, plan, format),
            absent=graph.absent,
            inspected=inspected,
            comparisons=compare(run, reference, _inputs(format, plan)) if run else (),
            runtime=describe_runtime(chosen.runtime, ran=run is not None),
        )
        del run  # it maps the file
        refuse_difference(report, TOLERANCE_HALF if half else TOLERANCE)
        _move(aside, target)
    return report


def _check(
    format: str, *, alone: bool, shape: tuple[int, int], dynamic: bool, opset: int | None
) -> None:
    if min(shape) < SMALLEST_SIDE:
        raise ValueError(
            f"shape is {shape[0]} x {shape[1]}, expected sides of at least {SMALLEST_SIDE} pixels"
        )
    if opset is not None and format == "coreml":
        raise ValueError("opset is of ONNX: leave it out for coreml")
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be {OPSETS[0]} to {OPSETS[1]}; got {opset}")
    if format == "coreml" and not alone:
        if dynamic:
            raise ValueError(
                "Core ML resizes by fixed factors: a whole model needs one size. Leave out --dynamic, or "
                "export --part backbone"
            )
        if shape[0] % 32 or shape[1] % 32:
            raise ValueError(
                f"shape is {shape[0]} x {shape[1]}: for a whole model in Core ML, which resizes by "
                "fixed factors, both must be multiples of 32"
            )
    low, high = RANGE_CORE_ML
    if format == "coreml" and dynamic and not low <= min(shape) <= max(shape) <= high:
        raise ValueError(
            f"shape is {shape[0]} x {shape[1]}: sides of a dynamic Core ML file are {low} to {high}, "
            "use --static for others"
        )


def _format(format: str, out: str) -> Format:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    chosen = FORMATS[format]
    if not out.endswith(chosen.suffix) or osp.basename(out) == chosen.suffix:
        raise ValueError(
            f"{out!r} does not end in {chosen.suffix}, as files of format {format} do: rename it"
        )
    return chosen


def _check_target(target: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder {str(target.parent)!r} does not exist: create it first")
    for path in files_of(target):
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists: choose another name, or --force to replace it")


def _move(aside: Path, target: Path) -> None:
    """The weights first: whoever sees the file named sees all of it."""
    for old, new in reversed(list(zip(files_of(aside), files_of(target), strict=True))):
        if new.is_dir():
            shutil.rmtree(new)
        os.replace(old, new)


def _load(model: nn.Module, checkpoint: str) -> Sequence[str]:
    """Load all weights; returns the classes that the checkpoint names."""
    content = read_checkpoint(checkpoint)
    load_strict(model, content["state_dict"], checkpoint=checkpoint)
    return ((content.get("meta") or {}).get("dataset_meta") or {}).get("classes") or ()


def _classes(cfg: Config) -> Sequence[str]:
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    return (dataset.get("metainfo") or {}).get("classes") or ()


def _metadata(graph: Graph, arch: str, part: str) -> dict[str, str]:
    norm = graph.normalisation
    texts = {
        "project": "fastvit_dense",
        "version": fastvit_dense.__version__,
        "torch": str(torch.__version__),
        "arch": arch,
        "part": part,
        "fused": "true",
        "input": input_text(graph),
        "not_in_the_graph": graph.absent,
    }
    if graph.licence:
        texts["licence"] = graph.licence
    if norm is not None:
        texts |= {"mean": as_json(norm.mean), "std": as_json(norm.std)}
        texts["bgr_to_rgb"] = as_json(norm.bgr_to_rgb)
    return texts


def _inputs(format: str, plan: Plan) -> list[tuple[int, tuple[int, int]]]:
    """Batch and (H, W) to compare at."""
    height, width = plan.shape
    inputs = [(1, plan.shape)]
    if plan.dynamic:
        half = (max(height // 2, SMALLEST_SIDE) | 1, max(width // 2, SMALLEST_SIDE) + 3 | 1)
        inputs.append((1 if format == "coreml" else 2, half))
        inputs.append(
            (1, (max(height // 2, SMALLEST_SIDE) + 30, max(width // 3, SMALLEST_SIDE) + 17))
        )
    return inputs


def _failure(format: str, plan: Plan, error: Exception) -> str:
    cure = "--static, for one size, or " if plan.dynamic else ""
    return (
        f"this model does not convert to {format}: {first_line(error)}. Try {cure}--part backbone"
    )
