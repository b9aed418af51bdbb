"""Train-time overparameterised convolutions (paper section 3.2.2): branches that fold into one.

Shape legend: B batch, C channels, H and W height and width of the map.
"""

from torch import Tensor, nn


class ConvBN(nn.Module):
    """A convolution without bias, "same" padding, and its BatchNorm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel, odd.
        stride: 1 or 2.
        groups: groups of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        # NOTE: a strided 1x1 convolution reads every stride-th pixel. Slicing first and convolving
        # with stride 1 is the same function; the strided form corrupts the heap in the backward pass
        # of PyTorch 2.11 to 2.13 on CPU in channels_last with 3 input channels (the stem).
        self.subsample = stride if kernel_size == 1 else 1
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=1 if kernel_size == 1 else stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        if self.subsample > 1:
            x = x[:, :, :: self.subsample, :: self.subsample]
        return self.bn(self.conv(x))


class RepConv(nn.Module):
    """Train-time overparameterised convolution (paper section 3.2.2, after MobileOne).

    Sums up to three branches, each with its own BatchNorm: the k x k convolution, a 1x1 "scale"
    convolution when k > 1, and the identity when shape and stride allow one. At inference it is one
    convolution with bias, ``reparam_conv``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel, odd.
        stride: 1 or 2.
        groups: groups of the convolution.
        act: follow the sum with GELU.
        deploy: build the fused structure.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.act = nn.GELU() if act else nn.Identity()
        if deploy:
            self.reparam_conv = nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups
            )
            return
        self.identity = (
            nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None
        )
        self.conv_scale = (
            ConvBN(in_channels, out_channels, kernel_size=1, stride=stride, groups=groups)
            if kernel_size > 1
            else None
        )
        # A list of one: the layout of the published weights allows several k x k branches.
        self.conv_kxk = nn.ModuleList(
            [
                ConvBN(
                    in_channels, out_channels, kernel_size=kernel_size, stride=stride, groups=groups
                )
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        if hasattr(self, "reparam_conv"):
            return self.act(self.reparam_conv(x))
        out = self.conv_kxk[0](x)
        if self.conv_scale is not None:
            out = out + self.conv_scale(x)
        if self.identity is not None:
            out = out + self.identity(x)
        return self.act(out)


class LargeKernelConv(nn.Module):
    """7x7 depthwise convolution of stride 2 with a parallel 3x3 (paper section 3.2.3).

    Args:
        in_channels: channels of the input, also the groups.
        out_channels: channels of the output, a multiple of ``in_channels``.
        deploy: build the fused structure, ``reparam_conv``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, deploy: bool = False) -> None:
        super().__init__()
        if deploy:
            self.reparam_conv = nn.Conv2d(
                in_channels, out_channels, 7, stride=2, padding=3, groups=in_channels
            )
            return
        self.large_conv = ConvBN(
            in_channels, out_channels, kernel_size=7, stride=2, groups=in_channels
        )
        self.small_conv = ConvBN(
            in_channels, out_channels, kernel_size=3, stride=2, groups=in_channels
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2))."""
        # NOTE: no activation follows. The released code defines one and never calls it, and the
        # released weights were trained so.
        if hasattr(self, "reparam_conv"):
            return self.reparam_conv(x)
        return self.large_conv(x) + self.small_conv(x)
