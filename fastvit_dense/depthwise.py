"""Patch embeddings as convolutions that every runtime has fast kernels for.

The 7x7 convolution of a patch embedding gives two output channels for each input channel. Runtimes have
kernels for depthwise convolutions, one output channel for each input channel, and run this one through
their kernels for general groups, at a fraction of the speed. Two depthwise convolutions compute the same:
one gives the even channels, one the odd. What follows is a 1x1 convolution, whose input channels can be
reordered for nothing, so that the two results are put one behind the other and nothing is shuffled.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .blocks import PatchEmbed

Model = TypeVar("Model", bound=nn.Module)


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
