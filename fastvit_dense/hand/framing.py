"""Which square of an image the network sees, where the user names a box around the hand or none.

Boxes (x, y, width, height) are COCO's: from the left and upper edge of the image, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .crop import crop_matrix, homogeneous, whole_image_box

CROP_SIZE = 224  # side of what networks see unless their config says otherwise, in pixels
# FreiHAND's images are of this size, and evaluated on this square of them (transforms.HandCrop).
FREIHAND_IMAGE = (224, 224)
FREIHAND_CENTER, FREIHAND_SIDE = (112.0, 112.0), 180.0
# How much larger than a box tight around the hand the square is, so that the hand fills it as hands fill
# the crops of training: of those 180 pixels, its box takes 123 (median of the synthetic hands, 1.46; from
# 1.1 to 2.0 for nine in ten, and training scales by 0.75 to 1.25).
BOX_FACTOR = 1.5


def frame_hand(
    size: tuple[int, int],
    bbox: Sequence[float] | None = None,
    *,
    left: bool = False,
    out_size: int = CROP_SIZE,
) -> np.ndarray:
    """Find the square that the network sees.

    - With a box: the square about its centre with 1.5 times its longer side.
    - Without, in an image of 224x224: FreiHAND's evaluation crop, 180 pixels about (112, 112).
    - Without, in any other image: the square around the whole image.

    Args:
        size: height and width of the image.
        bbox: x, y, width, height in pixels, tight around the hand; it may reach out of the image.
        left: the hand is a left one: take the square out of the mirrored image, where it is a right one.
        out_size: side of what the network sees.

    Returns:
        (2, 3) float64, from pixels of the image to those of the square, for
        :func:`fastvit_dense.hand.crop.warp_crop`.

    Raises:
        ValueError: the box is no box, is empty, or lies outside of the image.
    """
    height, width = size
    if bbox is not None:
        x, y, w, h = check_box(bbox, size)
        center, side = (width - x - w / 2 if left else x + w / 2, y + h / 2), BOX_FACTOR * max(w, h)
    elif (height, width) == FREIHAND_IMAGE:
        center, side = FREIHAND_CENTER, FREIHAND_SIDE
    else:
        center, side = whole_image_box(height, width)
    matrix = crop_matrix(center, side, out_size)
    if left:
        matrix = matrix @ homogeneous(np.array([[-1.0, 0, width - 1], [0, 1, 0]]))
    return matrix


def check_box(bbox: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Refuse what is no box around a hand in the image.

    Args:
        bbox: x, y, width, height in pixels.
        size: height and width of the image.

    Returns:
        The box.

    Raises:
        ValueError: these are not four numbers, the box is empty, or it lies outside of the image.
    """
    height, width = size
    if len(bbox) != 4 or not all(math.isfinite(v) for v in bbox):
        raise ValueError(f"bbox is {bbox}: expected four numbers, x y width height in pixels")
    x, y, w, h = map(float, bbox)
    box = f"bbox x={x:g} y={y:g} width={w:g} height={h:g}"
    if w <= 0 or h <= 0:
        raise ValueError(
            f"{box} is empty: expected width and height above 0 behind the upper left corner"
        )
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(
            f"{box} lies outside of the image, which is {width}x{height} pixels (width x height)"
        )
    return x, y, w, h
