"""The reparameterization algebra: every train-time branch of FastViT folded into one layer, exactly.

A convolution followed by BatchNorm in eval mode is again a convolution: BatchNorm multiplies each
channel by ``scale = weight / sqrt(running_var + eps)`` and adds ``shift = bias - running_mean * scale``.
Convolutions with the same input, stride and groups that are added up are one convolution with the sum of
their kernels, smaller kernels padded with zeros; the identity is a kernel with a single one. Everything
below follows from these three sentences (paper section 3.2, appendix B; fold by fold in the docstrings).

Kernels are computed in float64 and rounded once, to the dtype of the model.

Legend: O, I output and input channels of a layer, I/g input channels of a group, K kernel side.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Attention, AttentionBlock, ConditionalPositionEncoding, RepMixer, RepMixerBlock
from .layers import LargeKernelConv, RepConv

# What nn.Module's attributes are is more than type checkers know; these have the parameters they need.
Layer = Any


class Kernel(NamedTuple):
    """A convolution in numbers: ``weight`` (O, I/g, K, K) and ``bias`` (O,), both float64 on the CPU."""

    weight: Tensor
    bias: Tensor


def exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: Apple's GPU has none. (One after the other: it would convert first.)

    A model on the meta device, which has shapes and no data, stays there.
    """
    return (tensor if tensor.device.type == "meta" else tensor.cpu()).double()


def require_eval(model: nn.Module) -> None:
    """Raise ValueError if a model, or a part of it, is in training mode."""
    if any(m.training for m in model.modules()):
        raise ValueError(
            f"{type(model).__name__} or a part of it is in training mode: its BatchNorms use the "
            "statistics of each batch, which no convolution can stand for. Call model.eval() first."
        )


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


def fold_into(train: Layer, fused: Layer) -> None:
    """Give `fused` the weights that make it compute what `train` does in eval mode.

    Args:
        train: a module with train-time branches.
        fused: the same module built with ``deploy=True``: the same tree, down to the blocks below.
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
        fold_into(train.token_mixer, fused.token_mixer)
        _fill_ffn(train.mlp, fused.mlp, train.layer_scale)
    elif isinstance(train, AttentionBlock) and isinstance(fused, AttentionBlock):
        _fill_attention(train.token_mixer, fused.token_mixer, train.norm, train.layer_scale_1)
        _fill_ffn(train.mlp, fused.mlp, train.layer_scale_2)
    elif next(train.children(), None) is None:  # an output norm
        fused.load_state_dict(train.state_dict())
    else:
        for name, child in train.named_children():
            fold_into(child, fused.get_submodule(name))


def _fill_ffn(train: Layer, fused: Layer, layer_scale: Layer) -> None:
    """conv + BatchNorm; the layer scale after the FFN into its second 1x1 convolution."""
    _store(fused.conv, *fold_conv_bn(train.conv))
    _store(fused.fc1, train.fc1.weight, train.fc1.bias)
    _scale_output(train.fc2, fused.fc2, layer_scale)


def _fill_attention(train: Attention, fused: Attention, norm: Layer, layer_scale: Layer) -> None:
    """W (scale x + shift) = (W scale) x + W shift; the layer scale after it into the projection."""
    scale, shift = fold_bn(norm)
    weight = exact(train.qkv.weight)  # (O, I)
    _store(fused.qkv, weight * scale, weight @ shift)
    _scale_output(train.proj, fused.proj, layer_scale)


def _scale_output(train: Layer, fused: Layer, layer_scale: Layer) -> None:
    gamma = exact(layer_scale.gamma).flatten()
    weight, bias = exact(train.weight), exact(train.bias)
    _store(fused, weight * gamma.view(-1, *[1] * (weight.dim() - 1)), bias * gamma)
