"""What an exported detector computes: the maps that its head's boxes are decoded from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_AFTER_RPN = (
    "anchors, decoding and choice of proposals (top-k, NMS), RoI align, the box and mask heads, and the "
    "final NMS: they read the maps p and rpn"
)
_AFTER_HEAD = "anchors, sigmoid, decoding of boxes, top-k and NMS"


def detector_graph(model: Any) -> tuple[nn.Module, list[str], str]:
    """The traceable part of a detector of mmdet.

    Args:
        model: a detector with one stage, or with an RPN and two stages, over a pyramid.

    Returns:
        A module from the normalised image to a tuple of maps, their names, such as ``p2`` and
        ``rpn_cls_2`` (2 is the level: stride 4), and in words what of the model it leaves out.

    Raises:
        ValueError: the head has no maps of a pyramid.
    """
    two_stage = getattr(model, "rpn_head", None) is not None
    head: Any = model.rpn_head if two_stage else model.bbox_head
    strides = getattr(getattr(head, "prior_generator", None), "strides", None)
    if strides is None:
        raise ValueError(
            f"{type(model).__name__} with {type(head).__name__} cannot be exported: its head gives no "
            "maps of a pyramid. --part backbone exports the backbone alone."
        )
    strides = [s[0] if isinstance(s, Sequence) else s for s in strides]
    levels = [int(s).bit_length() - 1 for s in strides]
    body = _Heads(model, head, with_maps=two_stage)
    if two_stage:
        kinds, absent = ["p", "rpn_cls_", "rpn_reg_"], _AFTER_RPN
    else:
        first = next(model.parameters())
        with torch.no_grad():
            count = len(body(first.new_zeros(1, 3, 64, 64))) // len(levels)
        kinds, absent = ["cls_", "reg_", "extra_"][:count], _AFTER_HEAD
    return body, [f"{kind}{level}" for kind in kinds for level in levels], absent


class _Heads(nn.Module):
    """The raw maps of a dense head, kind by kind and level by level, after the pyramid's own."""

    def __init__(self, model: nn.Module, head: nn.Module, *, with_maps: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.head = head
        self.with_maps = with_maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(x)
        kinds = [maps] if self.with_maps else []
        return tuple(m for kind in (*kinds, *self.head(maps)) for m in kind)
