"""Square crops of images: one affine map from pixels of the original to those of the crop.

Pixels are (x, y), whole numbers are the centres of pixels, as OpenCV has it. Rotations are in degrees,
clockwise as seen in the image, which is the positive turn about an optical axis that points forward.
"""

import math

import cv2
import numpy as np


def crop_matrix(
    center: tuple[float, float], size: float, out_size: int, *, rotation: float = 0.0
) -> np.ndarray:
    """The map of a crop: turns the image about `center`, then scales `size` pixels to `out_size`.

    As in METRO, `center` comes to lie at ``(out_size / 2, out_size / 2)``, where normalised coordinates
    are zero. The whole of a square image, with `center` at half of its side, is the identity.

    Args:
        center: x, y of the middle of the box, in pixels.
        size: side of the box, in pixels.
        out_size: side of the crop, in pixels.
        rotation: degrees by which the content is turned, clockwise.

    Returns:
        (2, 3) float64, for :func:`map_points` and cv2.warpAffine; :func:`invert_map` gives the way back.

    Raises:
        ValueError: a size is not positive, or a number is not finite.
    """
    numbers = (*center, size, out_size, rotation)
    if not all(map(math.isfinite, numbers)) or size <= 0 or out_size <= 0:
        raise ValueError(
            "a crop needs finite numbers and sizes above zero; got "
            f"center {tuple(center)}, size {size}, out_size {out_size}, rotation {rotation}"
        )
    linear = axis_rotation(rotation)[:2, :2] * (out_size / size)
    shift = out_size / 2 - linear @ np.asarray(center, np.float64)
    return np.column_stack([linear, shift])


def whole_image_box(height: int, width: int) -> tuple[tuple[float, float], float]:
    """Center and size of the smallest square around a whole image, for :func:`crop_matrix`."""
    return (width / 2, height / 2), float(max(height, width))


def map_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points (..., 2) by an affine map (2, 3); in float64."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def invert_map(matrix: np.ndarray) -> np.ndarray:
    """The inverse (2, 3) of an affine map (2, 3): of a crop, from its pixels to the original's."""
    inverse = np.linalg.inv(matrix[:, :2])
    return np.column_stack([inverse, -inverse @ matrix[:, 2]])


def homogeneous(matrix: np.ndarray) -> np.ndarray:
    """An affine map (2, 3) as (3, 3): ``homogeneous(matrix) @ K`` are intrinsics of the crop."""
    return np.vstack([matrix, [0.0, 0.0, 1.0]])


def axis_rotation(degrees: float) -> np.ndarray:
    """(3, 3) rotation about the optical axis, clockwise in the image."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def warp_crop(image: np.ndarray, matrix: np.ndarray, out_size: int) -> np.ndarray:
    """Take a crop out of an image, with bilinear interpolation; what lies outside is black.

    Where the crop makes the image half as large or smaller, areas are averaged first: bilinear
    interpolation looks at four pixels and passes over the others.

    Args:
        image: (H, W, C) uint8.
        matrix: (2, 3), as :func:`crop_matrix` gives it; mirrored is fine, too.
        out_size: S, as given there.

    Returns:
        (S, S, C) uint8.
    """
    shrink = int(1 / math.sqrt(abs(np.linalg.det(matrix[:, :2]))) + 1e-6)
    if shrink > 1:
        image, matrix = _average(image, matrix, out_size, shrink)
    return cv2.warpAffine(
        image, matrix, (out_size, out_size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )


def _average(
    image: np.ndarray, matrix: np.ndarray, out_size: int, shrink: int
) -> tuple[np.ndarray, np.ndarray]:
    """The part of the image that the crop covers, 1 / shrink as large, and the map from there."""
    sides = np.array([-0.5, out_size - 0.5])
    corners = map_points(invert_map(matrix), np.stack(np.meshgrid(sides, sides), -1).reshape(4, 2))
    limits = np.array(image.shape[1::-1])  # width, height
    left, top = np.clip(np.floor(corners.min(0)) - shrink, 0, limits - 1).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(0)) + shrink, (left + 1, top + 1), limits).astype(
        int
    )
    part = image[top:bottom, left:right]
    columns, rows = -(-(right - left) // shrink), -(-(bottom - top) // shrink)
    small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
    # Areas lie between edges of pixels, which are half a pixel from their centres.
    step = np.array([(right - left) / columns, (bottom - top) / rows])
    to_image = np.column_stack([np.diag(step), (step - 1) / 2 + (left, top)])
    return small, (homogeneous(matrix) @ homogeneous(to_image))[:2]
