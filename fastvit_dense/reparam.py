"""The reparameterization algebra: every train-time branch of FastViT folded into one layer, exactly.

A convolution followed by BatchNorm in eval mode is again a convolution: BatchNorm multiplies each
channel by ``scale = weight / sqrt(running_var + eps)`` and adds ``shift = bias - running_mean * scale``.
Convolutions with the same input, stride and groups that are added up are one convolution with the sum of
their kernels, smaller kernels padded with zeros; the identity is a kernel with a single one. Everything
below follows from these three sentences (paper section 3.2, appendix B; fold by fold in the docstrings).

Kernels are computed in float64 and rounded once, to the dtype of the model.

Legend: O, I output and input channels of a layer, I/g input channels of a group, K kernel side.
"""

import copy
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import FastViT
from .blocks import (
    Attention,
    AttentionBlock,
    ConditionalPositionEncoding,
    RepMixer,
    RepMixerBlock,
)
from .rep_conv import LargeKernelConv, RepConv

Model = TypeVar("Model", bound=nn.Module)
# What nn.Module's attributes are is more than type checkers know; these have the parameters they need.
Layer = Any


class Kernel(NamedTuple):
    """A convolution in numbers: ``weight`` (O, I/g, K, K) and ``bias`` (O,), both float64 on the CPU."""

    weight: Tensor
    bias: Tensor


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
    if any(m.training for m in model.modules()):
        raise ValueError(
            f"{type(model).__name__} or a part of it is in training mode: its BatchNorms use the "
            "statistics of each batch, which no convolution can stand for. Call model.eval() first."
        )
    if isinstance(model, FastViT):
        return fuse_backbone(model)
    if not inplace:
        model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FastViT) and not child.deploy:
                setattr(parent, name, fuse_backbone(child))
    if conv_modules:
        _fuse_conv_modules(model)
    for parent in model.modules() if output_norms else ():
        if isinstance(getattr(parent, "backbone", None), FastViT):
            _fold_output_norms(parent.backbone, getattr(parent, "neck", None))
    return model.eval()  # what took the place of BatchNorms is new


def fuse_backbone(backbone: FastViT) -> FastViT:
    """A new FastViT of the fused structure that computes what `backbone` computes in eval mode.

    Args:
        backbone: left untouched; one that is fused already is copied.
    """
    if backbone.deploy:
        return copy.deepcopy(backbone)
    first: Layer = backbone.stem[0]
    weight = first.conv_kxk[0].conv.weight
    fused = FastViT(
        backbone.arch,
        backbone.out_indices,
        out_norm=stages_with_norm(backbone),
        drop_path_rate=0.0,
        in_channels=weight.shape[1],
        deploy=True,
    ).to(weight)
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        fused = fused.to(memory_format=torch.channels_last)
    with torch.no_grad():
        _fill(backbone, fused)
    return fused.eval().requires_grad_(False)


def stages_with_norm(backbone: FastViT) -> list[int]:
    """The stages whose maps have an output norm: what FastViT takes as ``out_norm``."""
    return [
        i
        for i in backbone.out_indices
        if not isinstance(getattr(backbone, f"norm{i}"), nn.Identity)
    ]


def exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: Apple's GPU has none. (One after the other: it would convert first.)

    A model on the meta device, which has shapes and no data, stays there.
    """
    return (tensor if tensor.device.type == "meta" else tensor.cpu()).double()


def fold_bn(bn: Layer) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,), float64 on the CPU, that a BatchNorm in eval mode applies to its channels."""
    scale = exact(bn.weight) / torch.sqrt(exact(bn.running_var) + bn.eps)
    return scale, exact(bn.bias) - exact(bn.running_mean) * scale


def fold_conv_bn(branch: Layer) -> Kernel:
    """A convolution and its BatchNorm: scaled kernel, and the shift as bias."""
    scale, shift = fold_bn(branch.bn)
    return Kernel(exact(branch.conv.weight) * scale[:, None, None, None], shift)


def identity_kernel(channels: int, groups: int, side: int, like: Tensor) -> Tensor:
    """(C, C/g, K, K): the convolution that changes nothing, a single one in the middle."""
    per_group = channels // groups
    kernel = like.new_zeros((channels, per_group, side, side), dtype=torch.float64)
    index = torch.arange(channels, device=like.device)
    kernel[index, index % per_group, side // 2, side // 2] = 1
    return kernel


def pad_kernel(weight: Tensor, side: int) -> Tensor:
    """(O, I/g, k, k) -> (O, I/g, K, K), zeros around; both sides are odd."""
    return F.pad(weight, [(side - weight.shape[-1]) // 2] * 4)


def fold_rep_conv(block: RepConv) -> Kernel:
    """The k x k branch, the 1x1 scale branch in its middle, and the BatchNorm of the identity."""
    branch: Layer = block.conv_kxk[0]
    side, groups = branch.conv.kernel_size[0], branch.conv.groups
    weight, bias = fold_conv_bn(branch)
    if block.conv_scale is not None:
        small = fold_conv_bn(block.conv_scale)
        weight, bias = weight + pad_kernel(small.weight, side), bias + small.bias
    if block.identity is not None:
        scale, shift = fold_bn(block.identity)
        one = identity_kernel(len(scale), groups, side, weight)
        weight, bias = weight + one * scale[:, None, None, None], bias + shift
    return Kernel(weight, bias)


def fold_large_kernel(block: LargeKernelConv) -> Kernel:
    """The 7x7 and the 3x3 branch."""
    large, small = fold_conv_bn(block.large_conv), fold_conv_bn(block.small_conv)
    return Kernel(large.weight + pad_kernel(small.weight, 7), large.bias + small.bias)


def fold_rep_mixer(block: RepMixer) -> Kernel:
    """x + gamma (mixer(x) - norm(x)): skip and norm are depthwise kernels with one entry."""
    mixer = fold_rep_conv(block.mixer)
    scale, shift = fold_bn(block.norm.identity)
    gamma = exact(block.layer_scale.gamma).flatten()
    one = identity_kernel(len(gamma), len(gamma), 3, mixer.weight)
    inner = mixer.weight - one * scale[:, None, None, None]
    return Kernel(one + inner * gamma[:, None, None, None], gamma * (mixer.bias - shift))


def fold_position_encoding(block: ConditionalPositionEncoding) -> Kernel:
    """x + conv(x)."""
    conv: Layer = block.pos_enc
    weight, bias = exact(conv.weight), exact(conv.bias)
    return Kernel(weight + identity_kernel(len(bias), len(bias), 7, weight), bias)


def _store(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _fill(train: Layer, fused: Layer) -> None:
    """Give `fused` the weights that make it compute what `train` does. Both have the same tree, down to
    the blocks below.
    """
    if isinstance(train, RepConv):
        _store(fused.reparam_conv, *fold_rep_conv(train))
    elif isinstance(train, LargeKernelConv):
        _store(fused.reparam_conv, *fold_large_kernel(train))
    elif isinstance(train, RepMixer):
        _store(fused.reparam_conv, *fold_rep_mixer(train))
    elif isinstance(train, ConditionalPositionEncoding):
        _store(fused.reparam_conv, *fold_position_encoding(train))
    elif isinstance(train, RepMixerBlock) and isinstance(fused, RepMixerBlock):
        _fill(train.token_mixer, fused.token_mixer)
        _fill_ffn(train.mlp, fused.mlp, train.layer_scale)
    elif isinstance(train, AttentionBlock) and isinstance(fused, AttentionBlock):
        _fill_attention(train.token_mixer, fused.token_mixer, train.norm, train.layer_scale_1)
        _fill_ffn(train.mlp, fused.mlp, train.layer_scale_2)
    elif next(train.children(), None) is None:  # an output norm
        fused.load_state_dict(train.state_dict())
    else:
        for name, child in train.named_children():
            _fill(child, fused.get_submodule(name))


def _fill_ffn(train: Layer, fused: Layer, layer_scale: Layer) -> None:
    """conv + BatchNorm; the layer scale behind the FFN into its second 1x1 convolution."""
    _store(fused.conv, *fold_conv_bn(train.conv))
    _store(fused.fc1, train.fc1.weight, train.fc1.bias)
    _scale_output(train.fc2, fused.fc2, layer_scale)


def _fill_attention(train: Attention, fused: Attention, norm: Layer, layer_scale: Layer) -> None:
    """W (scale x + shift) = (W scale) x + W shift; the layer scale behind into the projection."""
    scale, shift = fold_bn(norm)
    weight = exact(train.qkv.weight)  # (O, I)
    _store(fused.qkv, weight * scale, weight @ shift)
    _scale_output(train.proj, fused.proj, layer_scale)


def _scale_output(train: Layer, fused: Layer, layer_scale: Layer) -> None:
    gamma = exact(layer_scale.gamma).flatten()
    weight, bias = exact(train.weight), exact(train.bias)
    _store(fused, weight * gamma.view(-1, *[1] * (weight.dim() - 1)), bias * gamma)


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
