"""The three formats a graph is exported to: how each is written, and how each is run again.

Packages of the extra ``export`` are imported when they are needed, so that the rest works without.
"""

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .graphs import Graph

# Of the exporter used here: attention needs 14, and it ends at 20.
OPSETS = (14, 20)
DEFAULT_OPSET = 17
SMALLEST_SIDE = 32
# Of files that are not static; below 64 a map at stride 32 could be one pixel, which is another graph.
RANGE_CORE_ML = (64, 2048)
_RT_INFO = "fastvit_dense"  # the section of OpenVINO's rt_info
# An exported file opened in its runtime: an image (B, 3, H, W) float32 to maps by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Plan(NamedTuple):
    """How a graph is written.

    Attributes:
        shape: (H, W) of the image in pixels: the only one of a static file, an example otherwise.
        dynamic: whether batch, height and width are left open.
        opset: of ONNX.
        half: float16 instead of float32; see :func:`fastvit_dense.deploy.export.export_model`.
        metadata: texts to store in the file.
    """

    shape: tuple[int, int]
    dynamic: bool
    opset: int
    half: bool
    metadata: dict[str, str]


class Format(NamedTuple):
    """One format.

    Attributes:
        suffix: of the file.
        packages: that writing needs.
        runtime: the package that runs such files; the same as that of `open` below.
        dynamic: whether files are dynamic unless asked otherwise.
        write: writes a graph to a path.
        open: opens a file to run it; None where no runtime for it exists on this system.
        inspect: checks what can be checked without running, raises ValueError, and says what it saw.
    """

    suffix: str
    packages: tuple[str, ...]
    runtime: str
    dynamic: bool
    write: Callable[[Graph, Path, Plan], None]
    open: Callable[[Path], Run | None]
    inspect: Callable[[Path, Graph, Plan], str]


def require(package: str) -> Any:
    """Import a package of the extra ``export``.

    Raises:
        ModuleNotFoundError: it is not installed; the message has the command.
    """
    try:
        with _quiet():
            return importlib.import_module(package)
    except ModuleNotFoundError as e:
        if e.name != package:
            raise
        raise ModuleNotFoundError(
            f'{package} is not installed: expected for this format. pip install -e ".[export]" '
            "brings it",
            name=package,
        ) from e


def write_onnx(graph: Graph, path: Path, plan: Plan) -> None:
    """ONNX with named, where asked dynamic, axes and the metadata in ``metadata_props``."""
    onnx = require("onnx")
    axes: dict[str, dict[int, str]] = {}
    if plan.dynamic:
        axes[graph.input_name] = {0: "batch", 2: "height", 3: "width"}
        for name, output in graph.example_outputs(plan.shape).items():
            is_map = output.dim() == 4
            axes[name] = {
                0: "batch",
                **({2: f"{name}_height", 3: f"{name}_width"} if is_map else {}),
            }
    with _quiet(), torch.no_grad():
        # NOTE: the exporter that replaces this one (dynamo=True) needs onnxscript, and refuses models
        # whose Python computes sizes with int(), as mmseg's do.
        torch.onnx.export(
            graph,
            (graph.example(1, plan.shape),),
            str(path),
            dynamo=False,
            input_names=[graph.input_name],
            output_names=list(graph.output_names),
            dynamic_axes=axes,
            opset_version=plan.opset,
        )
    model = onnx.load(str(path))
    model.producer_name = "fastvit_dense"
    model.producer_version = plan.metadata["version"]
    onnx.helper.set_model_props(model, plan.metadata)
    onnx.save(model, str(path))


def open_onnx(path: Path) -> Run | None:
    """The file in ONNX Runtime on the CPU; None where that is not installed."""
    try:
        ort = require("onnxruntime")
    except ModuleNotFoundError:
        return None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {source: image}), strict=True))


def inspect_onnx(path: Path, graph: Graph, plan: Plan) -> str:
    """ONNX's own checker, with shape inference."""
    onnx = require("onnx")
    onnx.checker.check_model(str(path), full_check=True)
    return f"ONNX opset {plan.opset}, passes onnx.checker"


def write_openvino(graph: Graph, path: Path, plan: Plan) -> None:
    """OpenVINO IR, ``.xml`` with ``.bin`` beside it, by way of ONNX."""
    ov = require("openvino")
    source = path.with_suffix(".onnx")
    # The weights alone become float16, below: what they are computed in is the device's choice.
    write_onnx(graph, source, plan)
    model = ov.Core().read_model(str(source))
    for key, value in plan.metadata.items():
        model.set_rt_info(value, [_RT_INFO, key])
    ov.save_model(model, str(path), compress_to_fp16=plan.half)
    del model  # it maps the file
    source.unlink()


def open_openvino(path: Path) -> Run | None:
    """The file in OpenVINO on the CPU, computing in float32."""
    ov = require("openvino")
    core = ov.Core()
    # On processors with bfloat16 or float16 units that would be the default.
    model = core.compile_model(
        core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    names = [output.get_any_name() for output in model.outputs]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        results = model(image)
        return {name: np.array(results[i]) for i, name in enumerate(names)}

    return run


def inspect_openvino(path: Path, graph: Graph, plan: Plan) -> str:
    """Both files are there and OpenVINO reads them."""
    ov = require("openvino")
    model = ov.Core().read_model(str(path))
    weights = "float16" if plan.half else "float32"
    return f"OpenVINO IR, {len(model.get_ops())} operations, weights in {weights}"


def write_coreml(graph: Graph, path: Path, plan: Plan) -> None:
    """A Core ML program (``.mlpackage``) for iOS 16, macOS 13 and later; batch 1."""
    ct = require("coremltools")
    example = graph.example(1, plan.shape)
    size: tuple[Any, ...] = example.shape
    ranges = None
    if plan.dynamic:
        low, high = RANGE_CORE_ML
        size = (1, 3, *(ct.RangeDim(low, high, default=side) for side in plan.shape))
        ranges = ({i: torch.export.Dim(f"side_{i}", min=low, max=high) for i in (2, 3)},)
    with _quiet(), torch.no_grad():
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
        model.version = plan.metadata["version"]
        model.short_description = "FastViT for dense prediction, fused"
        model.user_defined_metadata.update(plan.metadata)
        model.save(str(path))


def open_coreml(path: Path) -> Run | None:
    """The package in Core ML on the CPU; None elsewhere than on macOS, where there is no Core ML."""
    ct = require("coremltools")
    if not ct.utils._is_macos():
        return None
    model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_ONLY)
    source = model.get_spec().description.input[0].name
    return lambda image: model.predict({source: image})


def inspect_coreml(path: Path, graph: Graph, plan: Plan) -> str:
    """Names, shapes and dtypes of the inputs and outputs of the program, and that GELU is exact."""
    ct = require("coremltools")
    with _quiet():
        spec = ct.utils.load_spec(str(path))
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    types = {o.name: o.type.tensorType for op in block.operations for o in op.outputs}
    wanted = {name: tuple(m.shape) for name, m in graph.example_outputs(plan.shape).items()}
    found = {name: _dimensions(types[name]) for name in block.outputs}
    matching = found.keys() == wanted.keys() and all(
        len(found[name]) == len(wanted[name])
        and all(f in (None, w) for f, w in zip(found[name], wanted[name], strict=True))
        for name in wanted
    )
    if not matching or [i.name for i in spec.description.input] != [graph.input_name]:
        raise ValueError(f"the Core ML program has outputs {found}, expected {wanted}")
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


def _dimensions(tensor: Any) -> tuple[int | None, ...]:
    """Sides of a tensor of a Core ML program, None for those left open."""
    return tuple(d.constant.size if d.HasField("constant") else None for d in tensor.dimensions)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and notes of exporters, about versions and about values they take as fixed.

    Whether something was fixed that should not be is what running the file at other sizes shows.
    """
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def to_numpy(image: Tensor) -> np.ndarray:
    """(B, 3, H, W) as runtimes take it."""
    return np.ascontiguousarray(image.numpy())


def as_json(value: Any) -> str:
    """A value as text for metadata."""
    return json.dumps(value, ensure_ascii=False)


FORMATS = {
    "onnx": Format(".onnx", ("onnx",), "onnxruntime", True, write_onnx, open_onnx, inspect_onnx),
    "openvino": Format(
        ".xml",
        ("onnx", "openvino"),
        "openvino",
        True,
        write_openvino,
        open_openvino,
        inspect_openvino,
    ),
    "coreml": Format(
        ".mlpackage",
        ("coremltools",),
        "coremltools",
        False,
        write_coreml,
        open_coreml,
        inspect_coreml,
    ),
}
