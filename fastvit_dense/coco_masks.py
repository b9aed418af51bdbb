"""Segmentations as COCO's files hold them, polygons or run lengths (RLE): which of them can be drawn.

pycocotools, which draws them, does not look: with some it crashes, with others it writes where it must not.
"""

from __future__ import annotations

import re
from typing import Any

# Pixels, of a polygon's corners: with much more pycocotools crashes, and needs memory for each.
FURTHEST = 100_000
# Compressed RLE: 5 bits a character from "0" on; a sixth says that the number goes on in the next.
_RLE = re.compile(r"([P-o]{0,6}[0-O])*")


def is_segmentation(value: Any) -> bool:
    """Whether it is a dict (RLE) or a list of polygons, of which each is a list."""
    if isinstance(value, list):
        return all(isinstance(p, list) for p in value)
    return isinstance(value, dict)


def has_mask(segmentation: Any, *, polygons: bool) -> bool:
    """Whether mmdet's LoadAnnotations accepts it; it makes an ignore region of any other."""
    if isinstance(segmentation, list):
        return any(len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)
    return not polygons and all(segmentation.get(k) for k in ("counts", "size"))


def can_be_drawn(segmentation: Any, size: tuple[int, int]) -> bool:
    """Whether pycocotools, which does not look, can draw polygons or an RLE in an image (width, height).

    What mmdet passes over is not looked at either.
    """
    if isinstance(segmentation, list):
        try:
            # By builtins over whole lists: COCO has 40 million coordinates. A sum with NaN is not equal
            # to itself.
            return all(
                -FURTHEST < min(p) and max(p) < FURTHEST and sum(p) == sum(p)
                for p in segmentation
                if len(p) >= 6 and len(p) % 2 == 0
            )
        except TypeError:
            return False
    counts, found = segmentation.get("counts"), segmentation.get("size")
    if counts is None or found is None:
        return True
    width, height = size
    if found != [height, width]:
        return False
    if isinstance(counts, list):
        is_whole = all(type(n) is int and n >= 0 for n in counts)
        return is_whole and sum(counts) == height * width
    return isinstance(counts, str) and _RLE.fullmatch(counts) is not None
