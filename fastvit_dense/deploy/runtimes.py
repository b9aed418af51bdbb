"""The runtimes a backbone can be measured in: each turns a model into a call that returns its maps.

What a machine, a runtime or a dtype cannot do raises `Unavailable` with the reason.
"""

import copy
import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.devices import wait_for
from .report import first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# One forward pass, finished on the device when it returns. The maps may be overwritten by the next one.
Run = Callable[[], list[Tensor]]


class Unavailable(ValueError):
    """A combination of backend, dtype and device that cannot be had here; the message says why."""


class Setting(NamedTuple):
    """What a model is run in.

    Attributes:
        backend: a key of ``BACKENDS``.
        dtype: a key of ``DTYPES``: what the arithmetic is done in. Maps are of this dtype in PyTorch and
            OpenVINO, images in PyTorch; otherwise they are float32, and the runtimes convert inside.
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
        Unavailable: this combination cannot be had; the message says why.
        ValueError: there is no such backend, dtype or device.
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


def relative_error(maps: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of any map over that map's largest value; infinite if shapes or count differ.

    Args:
        maps: of a backend, any dtype and device.
        expected: of eager float32, in the same order.
    """
    if [m.shape for m in maps] != [e.shape for e in expected]:
        return float("inf")
    errors = []
    for m, e in zip(maps, expected, strict=True):
        m, e = m.detach().double().cpu(), e.detach().double().cpu()
        errors.append(float((m - e).abs().max() / e.abs().max()))
    return float("inf") if any(np.isnan(errors)) else max(errors)


def to_onnx(model: nn.Module, image: Tensor) -> bytes:
    """The model as ONNX for the shape of one image, with the maps as outputs.

    Args:
        model: in eval mode.
        image: (B, C, H, W) of the model's dtype.

    Raises:
        Unavailable: the package onnx, which PyTorch's exporter needs, is not installed.
    """
    _need("onnx", "pip install '.[export]' brings it")
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter that replaces this one needs another package, and splits GELU and attention alike.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # checks of the image's size
        # torch documents that a stream may be given, its annotations lack it.
        target: Any = file
        torch.onnx.export(model, (image,), target, dynamo=False, opset_version=20)
    return file.getvalue()


def versions(backends: Sequence[str]) -> dict[str, str]:
    """Version of each package that takes part, by name.

    Args:
        backends: keys of ``BACKENDS``; of runtimes that are not installed nothing is said.
    """
    found = {"torch": str(torch.__version__)}
    for name in ("onnxruntime", "openvino", "tensorrt"):
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


def _cuda_graph(
    model: nn.Module, image: Tensor, setting: Setting, memory_format: torch.memory_format
) -> Run:
    """Eager kernels without PyTorch's time to launch them: recorded once, then replayed as one."""
    if setting.device != "cuda":
        raise Unavailable("CUDA graphs need a CUDA device: use --device cuda")
    forward = _forward(model, image, setting, memory_format)
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
    import torch._inductor.config as inductor

    # Every model measured is one more version of the same functions.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 256)
    dynamo.config.accumulated_recompile_limit = max(dynamo.config.accumulated_recompile_limit, 4096)

    def wrap(model: nn.Module) -> Callable[..., Any]:
        if setting.device == "cuda":
            options: dict[str, Any] = {"triton.cudagraphs": True, "freezing": True}
        else:
            options = {"freezing": True}
        unknown = set(options) - set(inductor.get_config_copy())
        if unknown:
            raise Unavailable(f"this torch.compile has no option {', '.join(sorted(unknown))}")
        return torch.compile(model, options=options)

    run = _eager(model, image, setting, torch.channels_last, wrap)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what could be faster elsewhere
            run()
    except Exception as e:  # no compiler, no kernel for a dtype: a reason in whatever class
        raise Unavailable(f"torch.compile fails: {first_line(e)}") from e
    return run


def _onnxruntime(model: nn.Module, image: Tensor, setting: Setting) -> Run:
    ort = _need("onnxruntime", "pip install '.[export]' brings it")
    if setting.dtype == "bfloat16":
        raise Unavailable("ONNX Runtime has no bfloat16 convolution")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if setting.device == "cuda":
        provider, dtype = "CUDAExecutionProvider", DTYPES[setting.dtype]
        if provider not in ort.get_available_providers():
            raise Unavailable("this ONNX Runtime is the one for CPUs: onnxruntime-gpu has CUDA")
        providers: list[Any] = [(provider, {"use_tf32": "0"})]  # float32 in full, as in PyTorch
    else:
        provider, dtype = "CPUExecutionProvider", torch.float32
        providers = [provider]
        if setting.dtype == "float16":
            raise Unavailable("ONNX Runtime on a CPU computes float16 models in float32")
        options.intra_op_num_threads = setting.threads
        # Its threads wait for work by spinning, also after the run, where they would slow down whatever
        # is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    model = copy.deepcopy(model).to(device=setting.device, dtype=dtype)
    x = image.to(device=setting.device, dtype=dtype)
    session = ort.InferenceSession(to_onnx(model, x), options, providers=providers)
    if session.get_providers()[0] != provider:  # a library is missing: it goes on with the CPU
        raise Unavailable(f"ONNX Runtime cannot load its {provider}: see what it logged")
    name = session.get_inputs()[0].name
    if setting.device == "cpu":
        inputs = {name: x.numpy()}
        return lambda: [torch.from_numpy(m) for m in session.run(None, inputs)]
    binding = session.io_binding()  # without it, each run would copy the maps to the CPU
    numpy_dtype = np.float16 if dtype == torch.float16 else np.float32
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
    ov = _need("openvino", "pip install '.[export]' brings it")
    importlib.import_module("openvino.preprocess")
    if setting.device == "cuda":
        raise Unavailable("OpenVINO does not run on CUDA devices")
    core = ov.Core()
    hint = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[setting.dtype]
    wanted = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}[setting.dtype]
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if wanted not in able:
        raise Unavailable(f"OpenVINO computes in {', '.join(able)} on this processor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about checks of the image's size
        graph = ov.convert_model(copy.deepcopy(model), example_input=image)
    graph.reshape(list(image.shape))  # kernels for this shape alone
    # Its convolutions compute in this order. Reordering float32 maps costs 2 to 5 % of a pass; here the
    # image comes and the maps go as they do in channels_last eager.
    order = ov.preprocess.PrePostProcessor(graph)
    for end in (order.input(), *(order.output(i) for i in range(len(graph.outputs)))):
        end.model().set_layout(ov.Layout("NCHW"))
        end.tensor().set_layout(ov.Layout("NHWC"))
    for i in range(len(graph.outputs)):  # maps of the arithmetic's dtype, as PyTorch's are
        order.output(i).tensor().set_element_type(getattr(ov.Type, hint))
    graph = order.build()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setting.threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    request = core.compile_model(graph, "CPU", options).create_infer_request()
    x = image.permute(0, 2, 3, 1).contiguous().numpy()
    maps = []
    for i in range(len(graph.outputs)):
        data = request.get_output_tensor(i).data  # a view of what each pass writes
        map_ = torch.from_numpy(
            data.view(np.int16) if hint == "bf16" else data
        )  # numpy has no bf16
        maps.append(map_.view(DTYPES[setting.dtype]).permute(0, 3, 1, 2))

    def run() -> list[Tensor]:
        request.infer([x], share_inputs=True, share_outputs=True)
        return maps

    return run


def _tensorrt(model: nn.Module, image: Tensor, setting: Setting) -> Run:
    if setting.device != "cuda":
        raise Unavailable("TensorRT runs on CUDA devices: use --device cuda")
    trt = _need("tensorrt", "pip install tensorrt, version 10 or later")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(to_onnx(copy.deepcopy(model), image)):
        raise Unavailable(f"TensorRT cannot read the model: {parser.get_error(0)}")
    config = builder.create_builder_config()
    if setting.dtype == "float32":
        config.clear_flag(trt.BuilderFlag.TF32)
    else:
        flag = {"float16": "FP16", "bfloat16": "BF16"}[setting.dtype]
        config.set_flag(getattr(trt.BuilderFlag, flag))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Unavailable("TensorRT could not build an engine for this model")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    tensors = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            # The caller's own tensor, if it is there already: what is written to it later is read.
            tensors[name] = image.to("cuda").contiguous()
        else:
            tensors[name] = torch.empty(tuple(engine.get_tensor_shape(name)), device="cuda")
        context.set_tensor_address(name, tensors[name].data_ptr())
    maps = list(tensors.values())[1:]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which brings the image
    context.execute_async_v3(stream.cuda_stream)  # the first run allocates, which a graph may not
    stream.synchronize()
    cuda_graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(cuda_graph, stream=stream):
        context.execute_async_v3(stream.cuda_stream)

    def run(held: Any = (engine, context, tensors)) -> list[Tensor]:  # what the graph refers to
        cuda_graph.replay()
        torch.cuda.synchronize()
        return maps

    return run


BACKENDS: dict[str, Callable[[nn.Module, Tensor, Setting], Run]] = {
    "eager": partial(_eager, memory_format=torch.channels_last),  # the faster one
    "eager-nchw": partial(_eager, memory_format=torch.contiguous_format),
    "cuda-graph": partial(
        _cuda_graph, memory_format=torch.channels_last
    ),  # eager's kernels, replayed
    "cuda-graph-nchw": partial(_cuda_graph, memory_format=torch.contiguous_format),
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}
SLOW_TO_PREPARE = ("compile", "tensorrt")


def _need(package: str, cure: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        raise Unavailable(f"{package} is not installed: {cure}") from e
