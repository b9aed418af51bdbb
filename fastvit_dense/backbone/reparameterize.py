"""Whole models made fast for inference: every FastViT in them fused, and what is around it.

The algebra is in fold.py. Output norms and patch embeddings are rewritten here, since that depends on
what reads them: a neck, or a runtime.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .blocks import PatchEmbed
from .fastvit import FastViT
from .fold import Layer, exact, fold_bn, require_eval

Model = TypeVar("Model", bound=nn.Module)


def reparameterize(
    model: Model, *, inplace: bool = False, conv_modules: bool = True, output_norms: bool = True
) -> Model:
    """Replace every FastViT in a model by its fused, inference-only structure; same function, faster.

    Works on a bare backbone and on whatever contains one: detector, segmentor, hand model. Beside the
    backbones, output norms are folded into the 1x1 lateral convolutions of an FPN that alone reads them,
    and conv + BatchNorm pairs of necks and heads (mmcv's ConvModule) are fused. A model that is fused
    already comes back as it is.

    Args:
        model: in eval mode; dtype, device and memory format are kept.
        inplace: change `model` itself, except for a bare backbone, which is always a new object.
        conv_modules: fuse conv + BatchNorm pairs of necks and heads, too.
        output_norms: fold output norms into the neck, too.

    Returns:
        The fused model: a copy unless `inplace`.

    Raises:
        ValueError: the model is in training mode (BatchNorm then depends on the batch, and folding it
            would freeze what is being learned), or holds no FastViT.
    """
    if not any(isinstance(m, FastViT) for m in model.modules()):
        raise ValueError(
            f"{type(model).__name__} holds no FastViT: there is nothing to reparameterize"
        )
    require_eval(model)
    if isinstance(model, FastViT):
        return model.fused()
    if not inplace:
        model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FastViT) and not child.deploy:
                setattr(parent, name, child.fused())
    if conv_modules:
        _fuse_conv_modules(model)
    for parent in model.modules() if output_norms else ():
        if isinstance(getattr(parent, "backbone", None), FastViT):
            _fold_output_norms(parent.backbone, getattr(parent, "neck", None))
    return model.eval()  # what took the place of BatchNorms is new


def _fuse_conv_modules(model: nn.Module) -> None:
    """Fuse conv + BatchNorm in mmcv's ConvModules, with mmcv's own function."""
    try:
        from mmcv.cnn import ConvModule, fuse_conv_bn
    except ModuleNotFoundError:  # a model without mmcv has none
        return
    for module in list(model.modules()):
        if isinstance(module, ConvModule) and module.with_norm and module.order[0] == "conv":
            if module.order.index("norm") == 1:
                fuse_conv_bn(module)


def _fold_output_norms(backbone: Layer, neck: Layer) -> None:
    """Fold output norms into the lateral convolutions of an FPN.

    Lateral i reads map i + start_level and nothing else does, except that extra levels made "on_input"
    read the last map too: its norm stays.
    """
    laterals = getattr(neck, "lateral_convs", None)
    if laterals is None or type(neck).__name__ != "FPN":
        return
    last_is_shared = getattr(neck, "add_extra_convs", False) == "on_input"
    for level, lateral in enumerate(laterals, start=neck.start_level):
        norm_name = f"norm{backbone.out_indices[level]}"
        norm = getattr(backbone, norm_name)
        conv = lateral.conv
        if not isinstance(norm, nn.BatchNorm2d) or conv.kernel_size != (1, 1) or conv.groups != 1:
            continue
        if last_is_shared and level == len(backbone.out_indices) - 1:
            continue
        with torch.no_grad():
            scale, shift = fold_bn(norm)
            weight = exact(conv.weight)  # (O, I, 1, 1)
            bias = weight.flatten(1) @ shift
            if conv.bias is None:
                conv.bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]))
            conv.bias.copy_(exact(conv.bias) + bias)
            conv.weight.copy_(weight * scale[None, :, None, None])
        setattr(backbone, norm_name, nn.Identity())


class SplitDepthwise(nn.Module):
    """A convolution with one group for each input channel, as several depthwise convolutions.

    Channel ``k * C + c`` of the output is channel ``c * m + k`` of the original's, for C input channels
    and m output channels for each.

    Args:
        conv: the original; its groups are its input channels.

    Raises:
        ValueError: it has other groups.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.groups != conv.in_channels:
            raise ValueError(
                f"expected one group for each of the {conv.in_channels} input channels, got "
                f"{conv.groups} groups: such a convolution has no depthwise parts"
            )
        times = conv.out_channels // conv.in_channels
        self.parts = nn.ModuleList(_depthwise_part(conv, k, times) for k in range(times))
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, m * C, H', W')."""
        return torch.cat([part(x) for part in self.parts], dim=1)


def split_patch_embeddings(model: Model) -> Model:
    """Split the large-kernel convolutions of a fused FastViT into depthwise ones; same function.

    Works on a bare backbone and on whatever contains one. The result is for running and exporting: its
    parameters have names of their own, so that checkpoints are of the fused model before.

    Args:
        model: fused (:func:`fastvit_dense.reparameterize`); it is left as it is. One that is split
            already comes back as a copy.

    Returns:
        A copy with the same outputs up to rounding.

    Raises:
        ValueError: a FastViT in it is not fused.
    """
    model = copy.deepcopy(model)
    for embedding in model.modules():
        if isinstance(embedding, PatchEmbed):
            _split(embedding.proj)
    return model


def _split(proj: Any) -> None:
    if isinstance(proj[0], SplitDepthwise):
        return
    conv, pointwise = (getattr(layer, "reparam_conv", None) for layer in proj)
    if conv is None or pointwise is None:
        raise ValueError(
            "expected a fused FastViT, got one with train-time branches: call reparameterize() first"
        )
    order = torch.arange(conv.out_channels, device=conv.weight.device)
    order = order.reshape(conv.in_channels, -1).T.flatten()
    proj[0] = SplitDepthwise(conv)
    with torch.no_grad():
        pointwise.weight.copy_(pointwise.weight[:, order])


def _depthwise_part(conv: nn.Conv2d, k: int, times: int) -> nn.Conv2d:
    """Output channels k, k + times, k + 2 * times and so on."""
    part: Any = nn.Conv2d(
        conv.in_channels, conv.in_channels, conv.kernel_size, conv.stride, conv.padding,  # type: ignore[arg-type]
        conv.dilation, groups=conv.in_channels, bias=conv.bias is not None,  # type: ignore[arg-type]
    ).to(conv.weight)  # fmt: skip
    if conv.weight.is_contiguous(memory_format=torch.channels_last):
        part = part.to(memory_format=torch.channels_last)
    with torch.no_grad():
        part.weight.copy_(conv.weight[k::times])
        if conv.bias is not None:
            part.bias.copy_(conv.bias[k::times])
    return part.requires_grad_(conv.weight.requires_grad)
