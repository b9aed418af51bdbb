"""Layers that exporters cannot express for every size, replaced by others that compute the same.

Shape legend: B batch, C channels, H and W height and width of the map, K side of a pooled map.
"""

from typing import Any

import torch
from torch import Tensor, nn


def make_traceable(model: nn.Module) -> nn.Module:
    """Replace such layers in place; returns the model.

    mmseg's Upsample computes the output's size with int(), which a trace records as a constant. ONNX
    has no pooling to a fixed grid, which UPerHead and PSPHead use.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            layer: Any = child
            if type(child).__module__.startswith("mmseg.") and type(child).__name__ == "Upsample":
                if not layer.size and layer.scale_factor:
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
