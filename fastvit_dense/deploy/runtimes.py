"""PyTorch to ONNX and OpenVINO, and the runtimes that execute a model: for export and benchmark alike.

What a machine, a runtime or a dtype cannot do raises `Unavailable` with the reason.
"""

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.devices import wait_for
from .compare import relative_error as relative_error  # for the benchmarks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPSET = 17  # of ONNX; attention needs 14
_RT_INFO = "fastvit_dense"  # the section of OpenVINO's rt_info
# One forward pass, finished on the device when it returns. The maps may be overwritten by the next one.
Run = Callable[[], list[Tensor]]


class Unavailable(ValueError):
    """A package, or a combination of backend, dtype and device, that this machine does not have."""


class Setting(NamedTuple):
    """What a model is run in.

    Attributes:
        backend: a key of ``BACKENDS``.
        dtype: a key of ``DTYPES``: what the arithmetic is done in. In PyTorch and on CUDA in ONNX Runtime,
            image and maps are of this dtype; otherwise float32, and the runtimes convert inside.
        device: cpu or cuda.
        threads: threads of the CPU.
    """

    backend: str
    dtype: str
    device: str
    threads: int


def configure(device: str) -> None:
    """Fix what PyTorch leaves open on CUDA: float32 in full, and cuDNN's fastest algorithm for each shape.

    By default cuDNN's float32 convolutions round to TF32, 10 bits of mantissa, and are off by 1e-3.

    Args:
        device: cpu, cuda or cuda:0.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


def arithmetic(device: str) -> dict[str, str]:
    """How PyTorch computes float32 on CUDA and chooses cuDNN's algorithms, for the conditions of a run.

    Args:
        device: cpu, cuda or cuda:0; nothing is left open on a CPU.
    """
    if torch.device(device).type != "cuda":
        return {}
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    on = {True: "on", False: "off"}
    return {
        "TF32": f"{on[convolutions]} in convolutions and {on[products]} in matrix products",
        "cuDNN's benchmark mode": on[torch.backends.cudnn.benchmark],
    }


def prepare(model: nn.Module, image: Tensor, setting: Setting) -> Run:
    """Bring a model into a runtime.

    Args:
        model: in eval mode, float32; it is copied. Takes a batch of images and returns a sequence of
            maps.
        image: (B, C, H, W), float32. The runtime may be specialised to its shape.
        setting: backend, dtype, device and threads.

    Returns:
        A call that runs the model on this image and returns its maps, each (B, C_i, H_i, W_i).

    Raises:
        Unavailable: this machine cannot do this; the message says why.
        ValueError: the backend, dtype or device does not exist.
    """
    for kind, value, known in (
        ("backend", setting.backend, BACKENDS),
        ("dtype", setting.dtype, DTYPES),
        ("device", setting.device, ("cpu", "cuda")),
    ):
        if value not in known:
            raise ValueError(f"{kind} must be one of {', '.join(known)}; got {value!r}")
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("PyTorch sees no CUDA device: use --device cpu")
    return BACKENDS[setting.backend](model, image, setting)


def require(package: str) -> Any:
    """Import a package of the extra ``export``; `Unavailable`, with the command, if it is missing."""
    try:
        with quiet():
            return importlib.import_module(package)
    except ModuleNotFoundError as e:
        if e.name != package:
            raise
        raise Unavailable(
            f'{package} is not installed: pip install -e ".[export]" brings it'
        ) from e


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings about versions and about values that they take as constants.

    Whether a value is constant that should not be is what running the file at other sizes shows.
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


def to_onnx(
    model: nn.Module,
    image: Tensor,
    *,
    names: Sequence[str] = ("input",),
    axes: Mapping[str, dict[int, str]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """The model as ONNX.

    Args:
        model: in eval mode.
        image: (B, C, H, W), an example of the model's dtype and device.
        names: of the input, then of the outputs; outputs without a name get one.
        axes: names of the axes that are left open, by input or output; none are by default.
        metadata: texts to store in ``metadata_props``.

    Raises:
        Unavailable: the package onnx, which PyTorch's exporter needs, is not installed.
    """
    onnx = require("onnx")
    target: Any = (
        io.BytesIO()
    )  # torch documents that a stream may be given, its annotations lack it
    with quiet(), torch.no_grad():
        # NOTE: the exporter that replaces this one (dynamo=True) needs onnxscript, and refuses models
        # whose Python computes sizes with int(), as mmseg's do.
        torch.onnx.export(
            model,
            (image,),
            target,
            dynamo=False,
            input_names=list(names[:1]),
            output_names=list(names[1:]),
            dynamic_axes=axes,
            opset_version=OPSET,
        )
    if not metadata:
        return target.getvalue()
    proto = onnx.load_from_string(target.getvalue())
    proto.producer_name, proto.producer_version = "fastvit_dense", metadata["version"]
    onnx.helper.set_model_props(proto, dict(metadata))
    return proto.SerializeToString()


def to_openvino(model: nn.Module, image: Tensor, **options: Any) -> Any:
    """The model as OpenVINO's ``Model``, by way of ONNX.

    Args:
        model: in eval mode.
        image: (B, C, H, W), an example.
        options: of :func:`to_onnx`; the metadata go into ``rt_info``, section ``fastvit_dense``.
    """
    ov = require("openvino")
    graph = ov.Core().read_model(to_onnx(model, image, **options))
    for key, value in (options.get("metadata") or {}).items():
        graph.set_rt_info(value, [_RT_INFO, key])
    return graph


def open_onnx(model: bytes | str, *, threads: int, device: str = "cpu") -> Any:
    """ONNX Runtime's session of a model, or of a file.

    Args:
        model: the content, or the file's path.
        threads: threads of the CPU.
        device: cpu or cuda; on CUDA float32 is computed in full.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Its threads wait for work by spinning, also after the run, where they would slow down whatever
    # comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    provider, settings = "CPUExecutionProvider", {}
    if device == "cuda":
        provider, settings = "CUDAExecutionProvider", {"use_tf32": "0"}
        if provider not in ort.get_available_providers():
            raise Unavailable("this ONNX Runtime is the one for CPUs: onnxruntime-gpu has CUDA")
    session = ort.InferenceSession(model, options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:  # a library is missing: it goes on with the CPU
        raise Unavailable(f"ONNX Runtime cannot load its {provider}: see what it logged")
    return session


def open_openvino(model: Any, *, threads: int, dtype: str = "float32") -> Any:
    """OpenVINO's compiled model on the CPU.

    Args:
        model: as :func:`to_openvino` returns it, or a file's path.
        threads: threads of the CPU.
        dtype: of the arithmetic, a key of ``DTYPES``. Without it, OpenVINO computes in bfloat16 or float16
            on processors that have units for them.
    """
    core = require("openvino").Core()
    hint, needed = {
        "float32": ("f32", "FP32"),
        "bfloat16": ("bf16", "BF16"),
        "float16": ("f16", "FP16"),
    }[dtype]
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if needed not in able:
        raise Unavailable(f"OpenVINO computes in {', '.join(able)} on this processor")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    return core.compile_model(model, "CPU", options)


def first_line(error: Exception) -> str:
    """Class and first line of an error of a converter or runtime, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def versions(backends: Sequence[str]) -> dict[str, str]:
    """Version of each package that takes part, by name.

    Args:
        backends: keys of ``BACKENDS``; of runtimes that are not installed nothing is said.
    """
    found = {"torch": str(torch.__version__)}
    for name in ("onnxruntime", "openvino"):
        if name in backends:
            try:
                found[name] = importlib.import_module(name).__version__.split("-")[0]
            except ModuleNotFoundError:
                continue
    if torch.version.cuda and torch.cuda.is_available():
        found["CUDA"] = torch.version.cuda
    return found


def _eager(
    model: nn.Module,
    image: Tensor,
    setting: Setting,
    memory_format: torch.memory_format,
    wrap: Callable[[nn.Module], Callable[..., Any]] = lambda model: model,
) -> Run:
    forward = _forward(model, image, setting, memory_format, wrap)

    def run() -> list[Tensor]:
        maps = forward()
        wait_for(setting.device)
        return maps

    return run


def _forward(
    model: nn.Module,
    image: Tensor,
    setting: Setting,
    memory_format: torch.memory_format,
    wrap: Callable[[nn.Module], Callable[..., Any]] = lambda model: model,
) -> Run:
    """A pass that is asked for, not waited for."""
    target: dict[str, Any] = dict(
        device=setting.device, dtype=DTYPES[setting.dtype], memory_format=memory_format
    )
    function = wrap(copy.deepcopy(model).to(**target))
    x = image.to(**target)

    def forward() -> list[Tensor]:
        with torch.inference_mode():
            return list(function(x))

    return forward


def _cuda_graph(model: nn.Module, image: Tensor, setting: Setting) -> Run:
    """Eager kernels without PyTorch's time to launch them: recorded once, then replayed as one."""
    if setting.device != "cuda":
        raise Unavailable("CUDA graphs need a CUDA device: use --device cuda")
    forward = _forward(model, image, setting, torch.channels_last)
    # A capture may neither choose algorithms nor allocate workspaces: both happen before it, on the
    # stream that is captured.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        maps = forward()

    def run(held: Run = forward) -> list[Tensor]:  # with the weights and the image the graph reads
        graph.replay()
        wait_for(setting.device)
        return maps

    return run


def _compile(model: nn.Module, image: Tensor, setting: Setting) -> Run:
    import torch._dynamo as dynamo

    # Every model measured is one more version of the same functions.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 256)
    dynamo.config.accumulated_recompile_limit = max(dynamo.config.accumulated_recompile_limit, 4096)

    options: dict[str, Any] = {"freezing": True, "triton.cudagraphs": setting.device == "cuda"}
    try:
        with quiet():  # about what could be faster elsewhere
            compiled = partial(torch.compile, options=options)
            run = _eager(model, image, setting, torch.channels_last, compiled)
            run()
    except Exception as e:  # no compiler, no such option, no kernel for a dtype
        raise Unavailable(f"torch.compile fails: {first_line(e)}") from e
    return run


def _onnxruntime(model: nn.Module, image: Tensor, setting: Setting) -> Run:
    if setting.dtype == "bfloat16":
        raise Unavailable("ONNX Runtime has no bfloat16 convolution")
    if (setting.device, setting.dtype) == ("cpu", "float16"):
        raise Unavailable("ONNX Runtime on a CPU computes float16 models in float32")
    target: dict[str, Any] = dict(device=setting.device, dtype=DTYPES[setting.dtype])
    model, x = copy.deepcopy(model).to(**target), image.to(**target)
    session = open_onnx(to_onnx(model, x), threads=setting.threads, device=setting.device)
    name = session.get_inputs()[0].name
    if setting.device == "cpu":
        inputs = {name: x.numpy()}
        return lambda: [torch.from_numpy(m) for m in session.run(None, inputs)]
    binding = session.io_binding()  # without it, each run would copy the maps to the CPU
    numpy_dtype = np.float16 if setting.dtype == "float16" else np.float32
    binding.bind_input(name, "cuda", 0, numpy_dtype, tuple(x.shape), x.data_ptr())
    with torch.inference_mode():
        maps = [torch.empty_like(m, memory_format=torch.contiguous_format) for m in model(x)]
    for output, m in zip(session.get_outputs(), maps, strict=True):
        binding.bind_output(output.name, "cuda", 0, numpy_dtype, tuple(m.shape), m.data_ptr())

    def run(x: Tensor = x) -> list[Tensor]:  # the image has to outlive this function
        # ONNX Runtime has a stream of its own: PyTorch's, which wrote the image, has to be done.
        torch.cuda.synchronize()
        session.run_with_iobinding(binding)
        torch.cuda.synchronize()
        return maps

    return run


def _openvino(model: nn.Module, image: Tensor, setting: Setting) -> Run:
    if setting.device == "cuda":
        raise Unavailable("OpenVINO does not run on CUDA devices")
    graph = to_openvino(model, image)
    compiled = open_openvino(graph, threads=setting.threads, dtype=setting.dtype)
    request = compiled.create_infer_request()
    x = image.numpy()
    # Views of what each pass writes.
    maps = [torch.from_numpy(request.get_output_tensor(i).data) for i in range(len(graph.outputs))]

    def run() -> list[Tensor]:
        request.infer([x], share_inputs=True, share_outputs=True)
        return maps

    return run


BACKENDS: dict[str, Callable[[nn.Module, Tensor, Setting], Run]] = {
    "eager": partial(_eager, memory_format=torch.channels_last),  # the faster one
    "eager-nchw": partial(_eager, memory_format=torch.contiguous_format),
    "cuda-graph": _cuda_graph,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
