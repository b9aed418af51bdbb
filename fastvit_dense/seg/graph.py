"""What an exported segmentor computes: logits."""

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import Upsample
from torch import Tensor, nn

_AFTER_LOGITS = (
    "labels (the argmax over the classes) and their resizing to the original image; sliding windows"
)


def segmentor_graph(model: Any, *, full_size: bool) -> tuple[nn.Module, list[str], str]:
    """The traceable part of mmseg's EncoderDecoder.

    Args:
        model: the segmentor.
        full_size: resize the logits to the image; otherwise they keep the head's resolution.

    Returns:
        A module from the normalised image to a tuple of maps, their names, and in words what of the
        model it leaves out.

    Raises:
        ValueError: the head predicts in another way than by its forward() and a resizing.
    """
    head = model.decode_head
    if not isinstance(head, BaseDecodeHead) or any(
        getattr(type(head), method) is not getattr(BaseDecodeHead, method)
        for method in ("predict", "predict_by_feat")
    ):
        raise ValueError(
            f"a segmentor with {type(head).__name__} cannot be exported as a whole: its predictions are "
            "more than logits of one forward pass. --part backbone exports the backbone alone."
        )
    return _Segmentor(model, full_size=full_size), ["logits"], _AFTER_LOGITS


class _Segmentor(nn.Module):
    """Logits as ``encode_decode`` returns them in mode "whole"."""

    def __init__(self, model: Any, *, full_size: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.full_size = full_size

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        head: Any = self.model.decode_head
        logits = head(self.model.extract_feat(x))
        if self.full_size:
            logits = F.interpolate(
                logits, size=x.shape[2:], mode="bilinear", align_corners=head.align_corners
            )
        return (logits,)


def make_traceable(model: nn.Module) -> nn.Module:
    """Replace layers that do not export for maps of any size, in place; returns the model.

    mmseg's Upsample computes the output's size with int(), which a trace records as a constant. ONNX
    has no pooling to a fixed grid, which UPerHead and PSPHead use.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            layer: Any = child
            if isinstance(child, Upsample) and not layer.size and layer.scale_factor:
                options = dict(mode=layer.mode, align_corners=layer.align_corners)
                setattr(parent, name, nn.Upsample(scale_factor=layer.scale_factor, **options))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                if isinstance(layer.output_size, int) and layer.output_size > 1:
                    setattr(parent, name, GridPool(layer.output_size))
    return model


class GridPool(nn.Module):
    """nn.AdaptiveAvgPool2d(side) as two matrix products, for maps of any size.

    Args:
        side: K, of the pooled map.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, K, K)."""
        rows, columns = self._weights(x, x.shape[2]), self._weights(x, x.shape[3])
        return rows @ x @ columns.transpose(0, 1)

    def _weights(self, x: Tensor, length: int) -> Tensor:
        """(K, length): row i averages floor(i length / K) to ceil((i + 1) length / K), without the last."""
        cell = torch.arange(self.side, device=x.device)[:, None]
        begin = cell * length // self.side
        end = ((cell + 1) * length + self.side - 1) // self.side
        place = torch.arange(length, device=x.device)[None]
        # A product instead of a logical and, which coremltools does not convert.
        inside = (place >= begin).to(x.dtype) * (place < end).to(x.dtype)
        return inside / (end - begin).to(x.dtype)
