"""How far a model's outputs are from another's: a fused one from the unfused, a file's from PyTorch's."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..backbone.fastvit import FastViT
from ..backbone.reparameterize import reparameterize


def randomise_statistics(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give BatchNorms, layer scales and attention values that matter, in place.

    With the defaults (mean 0, variance 1, layer scale 1e-5, attention that is nearly the mean) a model
    with half of its branches missing or wired wrongly still passes a comparison.

    Args:
        model: unfused: FastViT, what holds one, or any other with BatchNorms.
        seed: of the random values.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:  # BatchNorms may be without weights, or without statistics
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.5, 0.5)
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") or "layer_scale" in name:  # ours; timm's
                uniform(parameter, 0.1, 0.6)
            elif name.endswith("qkv.weight"):
                parameter.normal_(std=0.05, generator=generator)
    return model


# Largest relative L2 error that passes, of a pyramid level and of a head. Rounding alone gives 0.5e-6 to
# 1.1e-6 in float32, and 2e-15 in float64: all seven variants under Semantic FPN with random BatchNorms and
# layer scales at 512x512, trained T8 under Mask R-CNN at 800x1344.
TOLERANCES = {
    torch.float32: (3e-6, 1e-5),
    torch.float64: (1e-12, 1e-12),
}
# How much farther from float64 than the unfused model the fused one may be in float32: its kernels are
# rounded once more than what they are made of. Measured: up to 2.1 times.
FARTHER = 3.0
PROPOSALS = 100  # as many as StandardRoIHead takes masks of
Outputs = dict[str, list[Tensor]]


class Error(NamedTuple):
    """The difference of one output, or the largest of a head's several outputs.

    Attributes:
        what: the level or the head.
        dtype: that both models computed in.
        absolute: largest absolute difference.
        relative: see :func:`relative_error`.
        tolerance: greatest `relative` that passes.
    """

    what: str
    dtype: torch.dtype
    absolute: float
    relative: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether the relative error is finite, and small enough."""
        return math.isfinite(self.relative) and self.relative <= self.tolerance


class Comparison(NamedTuple):
    """Two models on the same images.

    Attributes:
        errors: of each pyramid level and head.
        macs: multiply-accumulates of the one and the other.
        outputs: of the first one: the pyramid's levels, and the heads.
    """

    errors: list[Error]
    macs: tuple[int, int]
    outputs: tuple[Outputs, Outputs]


def relative_error(given: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """L2 norm of the difference over that of what was expected: the worst output's.

    Args:
        given: outputs, of any dtype and device.
        expected: what they are compared with, in the same order.

    Returns:
        The error; infinite if one is not a number, or if count or shapes differ.
    """
    if [g.shape for g in given] != [e.shape for e in expected]:
        return math.inf
    worst = 0.0
    for g, e in zip(given, expected, strict=True):
        g, e = g.detach().double().cpu(), e.detach().double().cpu()
        # Outputs may be zero everywhere.
        error = float((g - e).norm() / e.norm().clamp_min(torch.finfo(torch.float64).tiny))
        worst = math.inf if math.isnan(error) else max(worst, error)
    return worst


def model_outputs(model: Any, inputs: Tensor) -> tuple[Outputs, Outputs, int]:
    """Run a model without pre- and post-processing.

    Args:
        model: in eval mode; a bare FastViT, a two-stage detector of mmdet, or any model of mmengine that
            takes ``mode='tensor'``. Its attributes ``neck`` or ``backbone`` return the pyramid.
        inputs: (B, C, H, W) images as the backbone takes them.

    Returns:
        The pyramid's levels and the heads' outputs by name, and the number of multiply-accumulates
        (convolutions, linear layers and attention; RoIAlign is not counted).
    """
    maps: list[Tensor] = []
    part = getattr(model, "neck", None) or getattr(model, "backbone", model)
    hook = part.register_forward_hook(lambda module, args, output: maps.extend(output))
    try:
        # In the form of matrix products attention is counted, too.
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            if getattr(model, "rpn_head", None) is not None and hasattr(model, "roi_head"):
                heads = _two_stages(model, inputs)
            elif part is model:  # a bare backbone
                model(inputs)
                heads = {}
            else:
                output = model(inputs, mode="tensor")
                # A named tuple, as hand models return, is compared field by field.
                heads = output._asdict() if hasattr(output, "_asdict") else {"output": output}
            if getattr(model, "auxiliary_head", None) is not None:
                side = model.auxiliary_head
                side = list(side) if isinstance(side, nn.ModuleList) else [side]
                heads["auxiliary_head"] = [head(maps) for head in side]
    finally:
        hook.remove()
    name = "backbone" if isinstance(part, FastViT) else "neck"
    levels = {
        f"{name}, level {i} ({'x'.join(map(str, m.shape[1:]))})": [m] for i, m in enumerate(maps)
    }
    return levels, {k: _tensors(v) for k, v in heads.items()}, counter.get_total_flops() // 2


def compare(
    before: nn.Module,
    after: nn.Module,
    inputs: Tensor,
    *,
    exact: tuple[Outputs, Outputs] | None = None,
) -> Comparison:
    """Run two models on the same images and measure how far their outputs are apart.

    Args:
        before: the unfused model, in eval mode; see :func:`model_outputs`.
        after: the fused one, of the same dtype.
        inputs: (B, C, H, W), of that dtype.
        exact: outputs of `before` in a higher precision. What rounding explains passes then, as in a
            network whose activations grow with its depth: ``1 + FARTHER`` times the distance of `before`
            from them, its own and the fused model's share.

    Returns:
        The comparison.

    Raises:
        ValueError: the models return different numbers of maps, or maps of different shapes.
    """
    *expected, macs_before = model_outputs(before, inputs)
    *given, macs_after = model_outputs(after, inputs)
    truth = exact or (None, None)
    errors = []
    for old, new, true, tolerance in zip(
        expected, given, truth, TOLERANCES[inputs.dtype], strict=True
    ):
        shapes_old, shapes_new = _shapes(old), _shapes(new)
        if shapes_old != shapes_new:
            raise ValueError(
                f"the fused model returns {shapes_new}, the unfused one {shapes_old}: they are not "
                "the same model"
            )
        for name, tensors in old.items():
            pairs = zip(tensors, new[name], strict=True)
            absolute = max(float((a - b).abs().max()) for a, b in pairs)
            rounding = relative_error(tensors, true[name]) if true else 0.0
            allowed = max(tolerance, (1 + FARTHER) * rounding)
            relative = relative_error(new[name], tensors)
            errors.append(Error(name, inputs.dtype, absolute, relative, allowed))
    return Comparison(errors, (macs_before, macs_after), (expected[0], expected[1]))


def compare_precisions(
    before: nn.Module, after: nn.Module, exact_after: nn.Module, inputs: Tensor
) -> Comparison:
    """Compare two models in float32, then in float64.

    Args:
        before: the unfused model, float32, in eval mode.
        after: the fused one.
        exact_after: fused from `before` in float64.
        inputs: (B, C, H, W), float64.

    Returns:
        The comparison in float32 with the errors in float64 at the end.
    """
    exact = compare(copy.deepcopy(before).double(), exact_after, inputs)
    single = compare(before, after, inputs.float(), exact=exact.outputs)
    return single._replace(errors=single.errors + exact.errors)


def table(errors: list[Error]) -> str:
    """A Markdown table of the errors.

    Args:
        errors: as :func:`compare` gives them.
    """
    lines = [
        "| output | dtype | largest absolute error | relative (L2) | tolerance | |",
        "|---|---|---|---|---|---|",
    ]
    for e in errors:
        dtype = str(e.dtype).removeprefix("torch.")
        lines.append(
            f"| {e.what} | {dtype} | {e.absolute:.1e} | {e.relative:.1e} | {e.tolerance:.0e} "
            f"| {'ok' if e.passes else 'TOO LARGE'} |"
        )
    return "\n".join(lines)


def _two_stages(model: Any, inputs: Tensor) -> dict[str, Any]:
    """RPN and RoI heads of mmdet, the latter on random proposals."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    size = inputs.shape[2], inputs.shape[3]
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), flip=False)
    samples = [DetDataSample(metainfo=meta) for _ in inputs]
    proposals = [InstanceData(bboxes=_random_boxes(size).to(inputs)) for _ in inputs]
    maps = model.extract_feat(inputs)
    return dict(
        rpn_head=model.rpn_head(maps), roi_head=model.roi_head.forward(maps, proposals, samples)
    )


def _random_boxes(size: tuple[int, int]) -> Tensor:
    """(PROPOSALS, 4) corners x1, y1, x2, y2 in pixels: sides from 16 pixels to those of the image, so
    that every pyramid level has some.
    """
    generator = torch.Generator().manual_seed(0)
    side = torch.tensor([size[1], size[0]])
    exponents, places = torch.rand(2, PROPOSALS, 2, generator=generator)
    extent = 16 * (side / 16) ** exponents
    corner = places * (side - extent)
    return torch.cat([corner, corner + extent], dim=1)


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return (
        [t for branch in tree for t in _tensors(branch)] if isinstance(tree, list | tuple) else []
    )


def _shapes(outputs: Outputs) -> dict[str, list[tuple[int, ...]]]:
    return {name: [tuple(t.shape) for t in tensors] for name, tensors in outputs.items()}


def check_fusion(arch: str, shape: tuple[int, int], *, seed: int = 0) -> list[Error]:
    """Compare a backbone with random BatchNorm statistics and layer scales before and after fusing.

    Args:
        arch: key of ``ARCHS``.
        shape: height and width of the random image in pixels.
        seed: of weights and statistics.

    Returns:
        The errors of the maps in float32, then in float64.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomise_statistics(FastViT(arch), seed=seed).eval()
    x = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = reparameterize(copy.deepcopy(model).double())
    return compare_precisions(model, reparameterize(model), exact, x).errors
