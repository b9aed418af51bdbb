"""How far a fused model is from the model it was made of, level by level and head by head.

With random statistics where there are no weights, so that comparing means something.
"""

from __future__ import annotations

import copy
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
        seed: of the random numbers.

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
            if name.endswith("gamma") or "layer_scale" in name:  # ours; timm's peers
                uniform(parameter, 0.1, 0.6)
            elif name.endswith("qkv.weight"):
                parameter.normal_(std=0.05, generator=generator)
    return model


# Largest relative L2 error that passes, of a pyramid level and of a head. Rounding alone gives 0.5e-6 to
# 1.1e-6 in float32, and 2e-15 in float64: all seven variants under Semantic FPN with drawn BatchNorms and
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


class Error(NamedTuple):
    """The difference of one output, or the largest of a head's several outputs.

    Attributes:
        what: the level or the head.
        dtype: that both models computed in.
        absolute: largest absolute difference.
        largest: that, in parts of the output's largest value.
        relative: L2 norm of the difference, in parts of the output's.
        tolerance: greatest `relative` that passes.
    """

    what: str
    dtype: torch.dtype
    absolute: float
    largest: float
    relative: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether the relative error is a number, and small enough."""
        return self.relative <= self.tolerance


def model_outputs(model: Any, inputs: Tensor) -> tuple[Outputs, Outputs, int]:
    """Run a model without pre- and post-processing.

    Args:
        model: in eval mode; a two-stage detector of mmdet, or any model of mmengine that takes
            ``mode='tensor'``. Its attributes ``neck`` or ``backbone`` return the pyramid.
        inputs: (B, C, H, W) images as the backbone takes them.

    Returns:
        The pyramid's levels and the heads' outputs by name, and the number of multiply-accumulates
        (convolutions, linear layers and attention; RoIAlign is not counted).
    """
    maps: list[Tensor] = []
    part = model.neck if getattr(model, "neck", None) is not None else model.backbone
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
    name = "neck" if part is not model.backbone else "backbone"
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
        exact: outputs of `before` in a higher precision. Where `before` itself is so far from them that
            rounding explains more than the usual tolerance, as in a network whose activations grow with
            its depth, the tolerance is that distance and ``FARTHER`` times it for the fused model's.

    Returns:
        The comparison.

    Raises:
        ValueError: the models return other numbers of maps, or maps of other shapes.
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
            absolute, largest, relative = worst_error(tensors, new[name])
            rounding = worst_error(true[name], tensors)[2] if true else 0.0
            allowed = allowed_error(tolerance, rounding)
            errors.append(Error(name, inputs.dtype, absolute, largest, relative, allowed))
    return Comparison(errors, (macs_before, macs_after), (expected[0], expected[1]))


def allowed_error(tolerance: float, rounding: float) -> float:
    """Greatest relative error of a fused model that passes.

    Args:
        tolerance: the usual one.
        rounding: how far the unfused model is from its own outputs in a higher precision: that, and
            ``FARTHER`` times it for the fused model's, where it is more.
    """
    return max(tolerance, (1 + FARTHER) * rounding)


def worst_error(expected: Sequence[Tensor], given: Sequence[Tensor]) -> tuple[float, float, float]:
    """The largest absolute error, that over the largest value, and the relative L2 error.

    Args:
        expected: outputs, any dtype; not none.
        given: as many, of the same shapes.

    Returns:
        The largest of each over all outputs; NaN where one is.
    """
    found = [_error(a, b) for a, b in zip(expected, given, strict=True)]
    # Unlike max(), amax() keeps NaN.
    absolute, largest, relative = torch.tensor(found, dtype=torch.float64).amax(dim=0).tolist()
    return absolute, largest, relative


def table(errors: list[Error]) -> str:
    """A Markdown table of the errors.

    Args:
        errors: as :func:`compare` gives them.
    """
    lines = [
        "| output | dtype | largest absolute error | of the largest value | relative (L2) "
        "| tolerance | |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in errors:
        lines.append(
            f"| {e.what} | {str(e.dtype).removeprefix('torch.')} | {e.absolute:.1e} | {e.largest:.1e} "
            f"| {e.relative:.1e} | {e.tolerance:.0e} | {'ok' if e.passes else 'TOO LARGE'} |"
        )
    return "\n".join(lines)


def _two_stages(model: Any, inputs: Tensor) -> dict[str, Any]:
    """RPN and RoI heads of mmdet, the latter on drawn proposals."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    size = inputs.shape[2], inputs.shape[3]
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), flip=False)
    samples = [DetDataSample(metainfo=meta) for _ in inputs]
    proposals = [InstanceData(bboxes=_drawn_boxes(size).to(inputs)) for _ in inputs]
    maps = model.extract_feat(inputs)
    return dict(
        rpn_head=model.rpn_head(maps), roi_head=model.roi_head.forward(maps, proposals, samples)
    )


def _drawn_boxes(size: tuple[int, int]) -> Tensor:
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


def _error(expected: Tensor, given: Tensor) -> tuple[float, float, float]:
    """Largest absolute error, that over the largest value, and the relative L2 error."""
    expected, given = expected.double(), given.double()
    difference = expected - given
    absolute, norm = float(difference.abs().max()), float(difference.norm())
    tiny = torch.finfo(torch.float64).tiny  # outputs that are zero everywhere
    return (
        absolute,
        absolute / max(float(expected.abs().max()), tiny),
        norm / max(float(expected.norm()), tiny),
    )


# Greatest relative L2 errors: fused to unfused in float64 and float32. Measured: 2e-15; 0.5e-6 to 1.1e-6.
# In float32 it may be more where rounding explains more: equivalence.FARTHER.
FLOAT64, FLOAT32 = 1e-12, 4e-6


class FusionRow(NamedTuple):
    """Relative L2 errors of a backbone's worst map.

    Attributes:
        arch: key of ``ARCHS``.
        shape: height and width of the image in pixels.
        float64: fused to unfused, both computed in float64.
        float32: fused to unfused, both computed in float32.
        unfused: unfused in float32 to unfused in float64.
        fused: fused in float32 to unfused in float64.
    """

    arch: str
    shape: tuple[int, int]
    float64: float
    float32: float
    unfused: float
    fused: float

    @property
    def passes(self) -> bool:
        """Whether the fold is right up to rounding."""
        return (
            self.float64 <= FLOAT64
            and self.float32 <= allowed_error(FLOAT32, self.unfused)
            and self.fused <= FARTHER * self.unfused
        )


@torch.no_grad()
def check_fusion(arch: str, shape: tuple[int, int], *, seed: int = 0) -> FusionRow:
    """Compare a backbone with drawn BatchNorm statistics and layer scales before and after fusing.

    Args:
        arch: key of ``ARCHS``.
        shape: height and width of the drawn image in pixels.
        seed: of weights and statistics.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomise_statistics(FastViT(arch), seed=seed).eval()
    exact = copy.deepcopy(model).double()
    x = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    truth, fused_exact = exact(x.double()), reparameterize(exact)(x.double())
    unfused, fused = model(x), reparameterize(model)(x)
    return FusionRow(
        arch,
        shape,
        worst_error(truth, fused_exact)[2],
        worst_error(unfused, fused)[2],
        worst_error(truth, unfused)[2],
        worst_error(truth, fused)[2],
    )


def fusion_table(rows: list[FusionRow]) -> str:
    """A Markdown table."""
    lines = [
        "| variant | image | float64 | float32 | unfused float32 to float64 | fused float32 to float64 | |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        errors = " | ".join(f"{e:.1e}" for e in (r.float64, r.float32, r.unfused, r.fused))
        verdict = "ok" if r.passes else "OFF"
        lines.append(f"| {r.arch} | {r.shape[0]}x{r.shape[1]} | {errors} | {verdict} |")
    return "\n".join(lines)
