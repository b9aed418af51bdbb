"""torchvision's operators under mmcv's name for its compiled ones, ``mmcv._ext``.

mmcv's Python asks the compiled module ``mmcv._ext`` for functions by name. mmcv-lite ships that
Python without the compiled module; this file supplies it, so that detectors train and run without
a compiler. A compiled ``mmcv._ext``, if there is one, is always used instead.

The functions below keep the compiled functions' names, arguments and habit of writing into tensors
the caller allocated. They agree with mmcv 2.1.0 to rounding; differences are noted at their lines.
Operators that are not here raise NotImplementedError when called, not when looked up: mmcv looks
all of them up on import.

Shapes: N images, C channels, (H, W) feature map, R rois, (PH, PW) pooled size, K classes.
"""

import ctypes
import pkgutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
import torchvision
from mmengine.logging import print_log
from torch import Tensor

from .hook import install

__all__ = ["accept_low_precision", "describe", "fill", "install", "require_loadable"]
HINT = (
    "Install mmcv with its compiled operators instead: `pip uninstall mmcv-lite`, then "
    "`MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv==2.1.0`, which needs a C++ compiler "
    "(and nvcc for CUDA), ninja and setuptools<81."
)


# Python 3.14 no longer has it; mmengine 0.10.7 and mmcv 2.1.0 ask it whether ``mmcv._ext`` is there.
if not hasattr(pkgutil, "find_loader"):
    setattr(pkgutil, "find_loader", find_spec)  # noqa: B010


# What the CUDA kernels of mmcv use as the smallest probability, in float64 too.
FLT_MIN = torch.finfo(torch.float32).tiny


def describe() -> str:
    """One line for logs: which implementation of mmcv's operators this process uses."""
    try:
        spec = find_spec("mmcv._ext")
    except ModuleNotFoundError as error:
        if error.name != "mmcv":
            raise
        return "mmcv operators: none, mmcv is not installed"
    if spec is None:
        return "mmcv operators: none, mmcv is installed without them"
    if spec.origin == __name__:
        return (
            f"mmcv operators: torchvision {torchvision.__version__} (fastvit_dense.compat.mmcv_ops)"
        )
    import mmcv

    return f"mmcv operators: compiled, mmcv {mmcv.__version__} ({spec.origin})"


def require_loadable() -> None:
    """Load mmcv's operators, if there are any.

    Raises:
        ImportError: they are compiled, and for another torch than this one. One line.
    """
    if describe().startswith("mmcv operators: compiled"):
        try:
            import_module("mmcv._ext")
        except ImportError as error:
            raise ImportError(
                f"mmcv's compiled operators cannot be loaded with torch {torch.__version__} ({error}): "
                "they were built for another one. Build them again: `MMCV_WITH_OPS=1 pip install "
                "--force-reinstall --no-deps --no-cache-dir --no-build-isolation mmcv==2.1.0`; or do "
                "without: `pip uninstall mmcv`, then `pip install mmcv-lite==2.1.0`"
            ) from error


def accept_low_precision() -> None:
    """Serve NMS and RoIAlign from here though mmcv is compiled: its CPU kernels take float32 only.

    For mixed precision on a CPU, where networks hand them bfloat16. Without compiled operators there
    is nothing to do.
    """
    if not describe().startswith("mmcv operators: compiled"):
        return
    stand_in = ModuleType("mmcv._ext")
    fill(stand_in)
    for name in ("mmcv.ops.nms", "mmcv.ops.roi_align"):
        import_module(name).ext_module = stand_in  # type: ignore[attr-defined]
    print_log(
        "mmcv's compiled NMS and RoIAlign take float32 only on a CPU; torchvision's are used instead",
        logger="current",
    )


def fill(module: ModuleType) -> None:
    """Make ``module`` answer as the compiled ``mmcv._ext`` does."""
    module.__doc__ = "Stand-in for mmcv's compiled operators, see fastvit_dense.compat.mmcv_ops."
    for function in OPERATORS:
        setattr(module, function.__name__, function)
    module.__getattr__ = _missing  # type: ignore[method-assign]


def get_compiler_version() -> str:
    """mmengine's environment report prints this."""
    return f"none, torchvision {torchvision.__version__} through fastvit_dense.compat.mmcv_ops"


def get_compiling_cuda_version() -> str:
    """mmengine's environment report prints this."""
    return torch.version.cuda or "not available"


def _missing(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):  # Python's own questions about the module, such as __path__
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name!r} has no equivalent in torchvision, and mmcv's compiled "
            f"operators are not installed. {HINT}"
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


def _working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any is, else float32: torchvision has no half kernels on a CPU, no bfloat16."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (R, 4) as x1, y1, x2, y2.
        scores: (R,).
        iou_threshold: a box goes when its IoU with a better, kept one is greater than this.
        offset: 0, or 1 where a box includes its last pixel, so that its width is x2 - x1 + 1.

    Returns:
        Indices of the kept boxes, int64, by falling score; of equal scores the first one wins
        (mmcv's sort is not stable: which one wins there depends on the processor).
    """
    dtype = _working_dtype(boxes, scores)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        # NOTE: rounds x2 + 1 first, where mmcv rounds x2 - x1 first. They can only differ for an
        # IoU within rounding of the threshold, and not at all for whole-numbered boxes.
        boxes = boxes + boxes.new_tensor((0, 0, offset, offset))
    # mmcv holds the threshold in float32, torchvision in float64: an IoU of exactly 0.3f is
    # greater than 0.3, and not greater than 0.3f.
    iou_threshold = ctypes.c_float(iou_threshold).value
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS on a CPU, in float32: overlapping boxes lose score instead of going.

    Args:
        boxes: (R, 4) as x1, y1, x2, y2.
        scores: (R,).
        dets: (R, 5), written: kept boxes and their decayed scores, in the order of choice.
        iou_threshold: overlap from which methods 0 and 1 act.
        sigma: width of method 2.
        min_score: boxes whose score falls below this go.
        method: 0 removes, 1 decays by 1 - IoU, 2 by exp(-IoU² / sigma).
        offset: as in ``nms``.

    Returns:
        Indices of the kept boxes, int64, in the order of choice.
    """
    table = torch.cat((boxes.float(), scores.float()[:, None]), dim=1).numpy()  # a copy
    index = np.arange(len(table))
    one, keep_from = np.float32(1), np.float32(min_score)
    first, end = 0, len(table)
    while first < end:
        best = first + int(table[first:end, 4].argmax())
        table[[first, best]] = table[[best, first]]
        index[[first, best]] = index[[best, first]]
        x1, y1, x2, y2, _ = table[first]
        first += 1
        rest = table[first:end]  # a view: decays below reach the table
        width = np.minimum(x2, rest[:, 2]) - np.maximum(x1, rest[:, 0]) + offset
        height = np.minimum(y2, rest[:, 3]) - np.maximum(y1, rest[:, 1]) + offset
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        area = (x2 - x1 + offset) * (y2 - y1 + offset)
        areas = (rest[:, 2] - rest[:, 0] + offset) * (rest[:, 3] - rest[:, 1] + offset)
        union = area + areas - inter
        # NOTE: two empty boxes do not overlap; mmcv divides 0 by 0, its method 2 scores them NaN.
        iou = np.divide(inter, union, out=np.zeros_like(inter), where=union != 0)
        if method == 2:
            weight = np.exp(-(iou * iou) / np.float32(sigma))
        else:
            decayed = one - iou if method == 1 else np.float32(0)
            weight = np.where(iou >= np.float32(iou_threshold), decayed, one)
        rest[:, 4] *= weight
        # As mmcv does, fill each gap from the end: the order decides between equal scores.
        alive = ~(rest[:, 4] < keep_from)
        kept = int(alive.sum())
        gaps = np.flatnonzero(~alive[:kept])
        fill_from = kept + np.flatnonzero(alive[kept:])[::-1]
        rest[gaps] = rest[fill_from]
        index[first:end][gaps] = index[first:end][fill_from]
        end = first + kept
    dets[:end] = torch.from_numpy(table[:end]).to(dets)
    return torch.from_numpy(index[:end])


def _average_pooling(
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> tuple[tuple[float, int, int], tuple[int, bool]]:
    """mmcv's keywords of RoIAlign as torchvision's arguments before and after the shape."""
    if pool_mode != 1:
        raise NotImplementedError(
            "RoIAlign with pool_mode='max' has no equivalent in torchvision. Use pool_mode='avg', "
            f"the default and what every config of mmdet uses. {HINT}"
        )
    return (spatial_scale, aligned_height, aligned_width), (sampling_ratio, aligned)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, *argmax: Tensor, **pooling: Any
) -> None:
    """Pool rois (R, 5; image index, then x1, y1, x2, y2 in pixels of the image) from
    ``input`` (N, C, H, W) by averaging bilinear samples; writes ``output`` (R, C, PH, PW)."""
    size, sampling = _average_pooling(**pooling)
    dtype = _working_dtype(input)
    output.copy_(torch.ops.torchvision.roi_align(input.to(dtype), rois.to(dtype), *size, *sampling))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **pooling: Any,
) -> None:
    """Spread ``grad_output`` (R, C, PH, PW) over ``grad_input`` (N, C, H, W), written."""
    size, sampling = _average_pooling(**pooling)
    dtype = _working_dtype(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype), rois.to(dtype), *size, *grad_input.shape, *sampling
        )
    )


def _focal_terms(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = input.to(_working_dtype(input))
    p = x.sigmoid()  # (R, K)
    # Background is class K (or any other number outside 0..K-1): no column is positive.
    positive = target[:, None] == torch.arange(x.size(1), device=x.device)
    return p, 1 - p, p.clamp(min=FLT_MIN).log(), (1 - p).clamp(min=FLT_MIN).log(), positive


def _weigh_rows(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Multiply each row by the weight of its target class; weight (K,), or (0,) for none."""
    if weight.numel() == 0:
        return values
    # NOTE: mmcv reads past the end of ``weight`` for background; here background weighs 1.
    inside = (target >= 0) & (target < weight.numel())
    rows = weight.to(values.dtype)[target.clamp(0, weight.numel() - 1)]
    return values * torch.where(inside, rows, 1)[:, None]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of logits ``input`` (R, K) with ``target`` (R,) in 0..K, K for background;
    writes ``output`` (R, K)."""
    p, q, log_p, log_q, positive = _focal_terms(input, target)
    loss = torch.where(positive, -alpha * q**gamma * log_p, (alpha - 1) * p**gamma * log_q)
    output.copy_(_weigh_rows(loss, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each element of the focal loss by its logit; writes ``grad_input`` (R, K)."""
    p, q, log_p, log_q, positive = _focal_terms(input, target)
    grad = torch.where(
        positive,
        -alpha * q**gamma * (q - gamma * p * log_p),
        (alpha - 1) * p**gamma * (gamma * q * log_q - p),
    )
    grad_input.copy_(_weigh_rows(grad, target, weight))


def _geometry(sizes: dict[str, int]) -> tuple[int, ...]:
    """mmcv's keywords, of its deformable convolution 1 or 2, in torchvision's order."""
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    if "stride_h" in sizes:
        names = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    return tuple(sizes[name] for name in (*names, "group", "deformable_group"))


def _no_mask(x: Tensor) -> Tensor:
    return x.new_zeros((x.size(0), 1))


def _no_bias(weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.size(0))


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *buffers: Tensor, **sizes: int
) -> None:
    """Deformable convolution, version 1; writes ``output``."""
    zeros = _no_mask(input), _no_bias(weight)
    output.copy_(
        torch.ops.torchvision.deform_conv2d(input, weight, offset, *zeros, *_geometry(sizes), False)
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *buffers: Tensor,
    **sizes: int,
) -> None:
    """Writes ``grad_input`` and ``grad_offset``."""
    zeros = _no_mask(input), _no_bias(weight)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, *zeros, *_geometry(sizes), False
    )
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    *buffers: Tensor,
    scale: float,
    **sizes: int,
) -> None:
    """Adds ``scale`` times the gradient to ``grad_weight``."""
    zeros = _no_mask(input), _no_bias(grad_weight)
    # The values of the weight, which this function is not given, do not enter its gradient.
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, grad_weight, offset, *zeros, *_geometry(sizes), False
    )
    grad_weight.add_(grads[1], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Deformable convolution, version 2; writes ``output``."""
    bias = bias if with_bias else _no_bias(weight)
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            input, weight, offset, mask, bias, *_geometry(sizes), True
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Writes the five gradients; ``grad_bias`` only ``with_bias``."""
    bias = bias if with_bias else _no_bias(weight)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, mask, bias, *_geometry(sizes), True
    )
    written = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for out, grad in zip(written[: 4 + with_bias], grads, strict=False):
        out.copy_(grad)


def _attend(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable attention as mmcv computes it on a CPU, in float32 at least: (N, Q, M * D)."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    dtype = _working_dtype(value, locations, weights)
    # Numbers, not a tensor: on CUDA the function would wait for the device at each of them, here once.
    sizes = shapes.tolist()
    return multi_scale_deformable_attn_pytorch(
        value.to(dtype), sizes, locations.to(dtype), weights.to(dtype)
    )


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention: sums of maps sampled bilinearly, zero outside of them.

    With M heads of D channels, Q queries, L levels, P points a level, and S cells in all levels. One
    PyTorch function serves all devices: slower than mmcv's CUDA kernel, and with larger intermediate
    tensors, (N * M, D, Q, L * P). It waits for the device once, to read the sizes of the levels.

    Args:
        value: (N, S, M, D), the levels one after the other, each row by row.
        value_spatial_shapes: (L, 2), height and width of each level.
        value_level_start_index: (L,), not used: it follows from the sizes.
        sampling_locations: (N, Q, M, L, P, 2) as x, y; 0 to 1 over the level.
        attention_weights: (N, Q, M, L, P).
        im2col_step: images that mmcv's kernel takes at once; not used.

    Returns:
        (N, Q, M * D) of the dtype of ``value``.
    """
    return _attend(value, value_spatial_shapes, sampling_locations, attention_weights).to(value)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Differentiates the forward pass, done once more; writes the three gradients."""
    with torch.enable_grad():
        inputs = [
            x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)
        ]
        out = _attend(inputs[0], value_spatial_shapes, *inputs[1:])
        grads = torch.autograd.grad(out, inputs, grad_output.to(out))
    written = (grad_value, grad_sampling_loc, grad_attn_weight)
    for out, grad in zip(written, grads, strict=True):
        out.copy_(grad)


# NOTE: roi_pool is not among them. torchvision's rounds a roi to whole cells before it splits it,
# mmcv's does not, so they differ.
OPERATORS: tuple[Callable[..., Any], ...] = (
    get_compiler_version,
    get_compiling_cuda_version,
    nms,
    softnms,
    roi_align_forward,
    roi_align_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    ms_deform_attn_forward,
    ms_deform_attn_backward,
)
