"""The building blocks of FastViT, named as in figure 2 of the paper (arXiv:2303.14189).

Every block has two structures that compute the same function: the train-time one with its parallel
branches, and, built with ``deploy=True``, the inference-time one in which each run of linear layers is
one convolution. Submodule names of the train-time structure are those of timm's FastViT, so that
published weights carry over.

Shape legend: B batch, C channels, H and W height and width of the map, N = H * W tokens,
h attention heads, d channels of one head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .layers import ConvBN, LargeKernelConv, RepConv

LAYER_SCALE_INIT = 1e-5
HEAD_DIM = 32


class LayerScale(nn.Module):
    """A learned factor for each channel.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE_INIT))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.gamma


class ConvStem(nn.Sequential):
    """The convolutional stem (figure 2b): to 1/4 of the resolution in three RepConvs.

    Args:
        in_channels: channels of the image.
        out_channels: width of the first stage.
        deploy: build the fused structure.
    """

    def __init__(self, in_channels: int, out_channels: int, *, deploy: bool = False) -> None:
        c = out_channels
        super().__init__(
            RepConv(in_channels, c, kernel_size=3, stride=2, deploy=deploy),  # (B, c, H/2, W/2)
            RepConv(c, c, kernel_size=3, stride=2, groups=c, deploy=deploy),  # (B, c, H/4, W/4)
            RepConv(c, c, kernel_size=1, deploy=deploy),
        )


class PatchEmbed(nn.Module):
    """Downsampling between stages: large-kernel depthwise convolution, then a 1x1 RepConv.

    Args:
        in_channels: width of the stage before.
        out_channels: width of the stage after.
        deploy: build the fused structure.
    """

    def __init__(self, in_channels: int, out_channels: int, *, deploy: bool = False) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            LargeKernelConv(in_channels, out_channels, deploy=deploy),
            RepConv(out_channels, out_channels, kernel_size=1, deploy=deploy),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H / 2), ceil(W / 2))."""
        return self.proj(x)


class ConditionalPositionEncoding(nn.Module):
    """Adds a 7x7 depthwise convolution of the map to the map (paper section 3.2.1).

    Args:
        channels: channels of the map.
        deploy: build the fused structure, one convolution ``reparam_conv`` without the sum.
    """

    def __init__(self, channels: int, *, deploy: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        if deploy:
            self.reparam_conv = conv
        else:
            self.pos_enc = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if hasattr(self, "reparam_conv"):
            return self.reparam_conv(x)
        return x + self.pos_enc(x)


class IdentityNorm(nn.Module):
    """The BatchNorm of RepMixer, in the nesting (``norm.identity``) that the released weights have.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.identity(x)


class RepMixer(nn.Module):
    """Token mixing by a 3x3 depthwise convolution whose skip folds away (figure 2d).

    Args:
        channels: channels of the map.
        deploy: build the fused structure, one convolution ``reparam_conv``.
    """

    def __init__(self, channels: int, *, deploy: bool = False) -> None:
        super().__init__()
        if deploy:
            self.reparam_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            return
        self.norm = IdentityNorm(channels)
        self.mixer = RepConv(channels, channels, kernel_size=3, groups=channels, act=False)
        self.layer_scale = LayerScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if hasattr(self, "reparam_conv"):
            return self.reparam_conv(x)
        # NOTE: the paper's equation 2 writes DWConv(BN(X) + X); the released code and weights
        # compute this instead.
        return x + self.layer_scale(self.mixer(x) - self.norm(x))


class ConvFFN(nn.Module):
    """Feed-forward network that opens with a 7x7 depthwise convolution (figure 2c).

    Args:
        channels: channels of the map.
        ratio: hidden channels over ``channels``.
        deploy: build the fused structure; the convolution then carries its BatchNorm, and the second
            1x1 the layer scale of the block around.
    """

    def __init__(self, channels: int, ratio: int, *, deploy: bool = False) -> None:
        super().__init__()
        self.conv: nn.Module
        if deploy:
            self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        else:
            self.conv = ConvBN(channels, channels, kernel_size=7, groups=channels)
        self.fc1 = nn.Conv2d(channels, ratio * channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(ratio * channels, channels, 1)
        for fc in (self.fc1, self.fc2):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fc2(self.act(self.fc1(self.conv(x))))


class Attention(nn.Module):
    """Multi-head self-attention over all positions of the map, heads of 32 channels.

    Args:
        channels: channels of the map, a multiple of 32.
        deploy: build the fused structure, in which ``qkv`` has the bias that BatchNorm leaves.
    """

    def __init__(self, channels: int, *, deploy: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=deploy)
        self.proj = nn.Linear(channels, channels)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        b, c, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)  # (B, N, C)
        qkv = self.qkv(x).unflatten(2, (3, c // HEAD_DIM, HEAD_DIM))  # (B, N, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, N, d)
        x = F.scaled_dot_product_attention(q, k, v)  # (B, h, N, d)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, N, C)
        return x.transpose(1, 2).reshape(b, c, height, width)


class RepMixerBlock(nn.Module):
    """RepMixer, then ConvFFN with a skip: the block of stages 1 to 3, and of stage 4 in T and S.

    Args:
        channels: channels of the map.
        ffn_ratio: hidden channels of the FFN over ``channels``.
        drop_path: probability of dropping the FFN branch of a sample in training.
        deploy: build the fused structure.
    """

    def __init__(
        self, channels: int, ffn_ratio: int, *, drop_path: float = 0.0, deploy: bool = False
    ) -> None:
        super().__init__()
        self.token_mixer = RepMixer(channels, deploy=deploy)
        self.mlp = ConvFFN(channels, ffn_ratio, deploy=deploy)
        self.layer_scale = nn.Identity() if deploy else LayerScale(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        # Stochastic depth reaches the FFN alone: RepMixer's skip is inside the mixer.
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale(self.mlp(x)))


class AttentionBlock(nn.Module):
    """BatchNorm and attention with a skip, then ConvFFN with a skip: stage 4 of SA and MA.

    Args:
        channels: channels of the map.
        ffn_ratio: hidden channels of the FFN over ``channels``.
        drop_path: probability of dropping a branch of a sample in training.
        deploy: build the fused structure.
    """

    def __init__(
        self, channels: int, ffn_ratio: int, *, drop_path: float = 0.0, deploy: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.Identity() if deploy else nn.BatchNorm2d(channels)
        self.token_mixer = Attention(channels, deploy=deploy)
        self.layer_scale_1 = nn.Identity() if deploy else LayerScale(channels)
        self.mlp = ConvFFN(channels, ffn_ratio, deploy=deploy)
        self.layer_scale_2 = nn.Identity() if deploy else LayerScale(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.drop_path(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path(self.layer_scale_2(self.mlp(x)))


class Stage(nn.Module):
    """One of the four stages: downsampling, position encoding if there is one, blocks.

    Args:
        in_channels: width of the stage before; equal to ``channels`` for the first stage, which does
            not downsample.
        channels: width of this stage.
        ffn_ratio: hidden channels of the FFN over ``channels``.
        drop_paths: stochastic depth rate of each block; its length is the depth.
        attention: use attention blocks after a conditional position encoding.
        deploy: build the fused structure.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        ffn_ratio: int,
        drop_paths: Sequence[float],
        attention: bool,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.downsample = (
            PatchEmbed(in_channels, channels, deploy=deploy)
            if in_channels != channels
            else nn.Identity()
        )
        self.pos_emb = (
            ConditionalPositionEncoding(channels, deploy=deploy) if attention else nn.Identity()
        )
        block = AttentionBlock if attention else RepMixerBlock
        self.blocks = nn.Sequential(
            *(block(channels, ffn_ratio, drop_path=rate, deploy=deploy) for rate in drop_paths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W'), halved where the stage downsamples."""
        return self.blocks(self.pos_emb(self.downsample(x)))
