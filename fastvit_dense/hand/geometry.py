"""Rotations, the camera, the crop: what maps MANO's parameters and the pixels of an image to each other.

Lengths are in metres. The camera frame has x to the right, y down and z forward. Pixels are OpenCV's:
whole numbers are the centres of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 224  # side of FreiHAND's images, in pixels
# The square of them that METRO trains and evaluates on, and the side of what networks see of it.
CROP_CENTER, CROP_SIDE, CROP_SIZE = (112.0, 112.0), 180.0, 224


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Turn axis-angle vectors into matrices, by Rodrigues' formula.

    Args:
        axis_angle: (..., 3), radians, of any length.

    Returns:
        (..., 3, 3). The gradient is exact everywhere, also at zero.
    """
    squared = axis_angle.square().sum(-1)[..., None, None]  # (..., 1, 1)
    # sin(a) / a and (1 - cos(a)) / a^2. At zero both the square root and the quotients have no gradient,
    # and torch.where passes on the NaN of the branch not taken: it must not be computed there at all.
    is_small = squared < torch.finfo(axis_angle.dtype).eps ** 0.5
    angle = torch.where(is_small, 1.0, squared).sqrt()
    first = torch.where(is_small, 1 - squared / 6, angle.sin() / angle)
    second = torch.where(is_small, 0.5, 2 * (angle / 2).sin().square() / angle.square())
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + first * cross + second * (cross @ cross)


def rotation_6d_to_matrix(numbers: Tensor) -> Tensor:
    """Turn six numbers each into a rotation matrix, by Gram-Schmidt (Zhou et al. 2019, section B).

    Args:
        numbers: (..., 6). The first three and the last three are the first two columns of the matrix, but
            for their length and the angle between them.

    Returns:
        (..., 3, 3). A rotation unless the two vectors are parallel or one is zero; finite also then.
    """
    first, second = numbers.split(3, -1)
    first = F.normalize(first, dim=-1)
    second = second - (first * second).sum(-1, keepdim=True) * first
    second = F.normalize(second, dim=-1)
    # The cross product, written out: Core ML's converter has none.
    third = first.roll(-1, -1) * second.roll(1, -1) - first.roll(1, -1) * second.roll(-1, -1)
    return torch.stack([first, second, third], -1)


def project_weak_perspective(points: Tensor, camera: Tensor) -> Tensor:
    """Project points by a weak-perspective camera, ``s * (xy + t)``: no intrinsics are needed.

    Args:
        points: (B, N, 3), metres, camera frame, relative to the root; z has no influence.
        camera: (B, 3), the scale s in 1/m and the translation tx, ty in m.

    Returns:
        (B, N, 2), normalised: -1 and 1 are the edges of the image, see :func:`to_pixels`.
    """
    scale, translation = camera[:, None].split([1, 2], -1)  # (B, 1, 1), (B, 1, 2)
    return scale * (points[..., :2] + translation)


def to_pixels(normalised: Tensor, size: int = CROP_SIZE) -> Tensor:
    """Turn normalised coordinates into pixels of a square image: ``(x + 1) * size / 2``.

    Args:
        normalised: (..., 2).
        size: edge of the image in pixels.

    Returns:
        (..., 2), pixels.
    """
    return (normalised + 1) * (size / 2)


def to_normalised(pixels: Tensor, size: int = CROP_SIZE) -> Tensor:
    """The inverse of :func:`to_pixels`.

    Args:
        pixels: (..., 2).
        size: edge of the image in pixels.

    Returns:
        (..., 2), normalised.
    """
    return pixels * (2 / size) - 1


def project(points: Tensor, K: Tensor) -> Tensor:
    """Project points by a pinhole camera: ``K @ X``, divided by its third number.

    Args:
        points: (B, N, 3), metres, camera frame, with a depth other than zero.
        K: (B, 3, 3), the intrinsics. Any matrix: that of a turned and scaled crop is not triangular.

    Returns:
        (B, N, 2), pixels.
    """
    homogeneous = points @ K.transpose(1, 2)  # (B, N, 3)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def are_intrinsics(K: np.ndarray) -> np.ndarray:
    """Whether matrices (..., 3, 3) are intrinsics: finite, focal lengths above 0, a last row of 0 0 1."""
    finite = np.isfinite(K).all((-2, -1))
    return (
        finite
        & (K[..., 0, 0] > 0)
        & (K[..., 1, 1] > 0)
        & np.isclose(K[..., 2, :], (0, 0, 1)).all(-1)
    )


def lift_translation(points: Tensor, pixels: Tensor, K: Tensor) -> Tensor:
    """Find where in front of the camera a shape of known size is, from its projection.

    A pixel (u, v) of the point p + t means ``(K1 - u K3) (p + t) = 0 = (K2 - v K3) (p + t)`` with the rows
    of K. These 2 N equations are linear in t. Each is wrong by the error in pixels times the depth, which
    is much the same over a hand, so that their least squares are nearly those of the pixels.

    Args:
        points: (B, N, 3), metres, axes of the camera frame, relative to any origin.
        pixels: (B, N, 2), where they are seen. At least two must differ.
        K: (B, 3, 3), the intrinsics.

    Returns:
        (B, 3), metres: ``project(points + t[:, None], K)`` fits the pixels. In the dtype and on the device
        of `points`; computed in float64, because the depth is poorly conditioned, and on the CPU, because
        Apple's GPU has no float64.

    Raises:
        ValueError: the pixels do not determine the translation: fewer than two are different.
    """
    # One after the other: a copy that also converts would convert on the device.
    p, uv, k = (x.cpu().double() for x in (points, pixels, K))
    equations = k[:, None, :2] - uv[..., None] * k[:, None, 2:]  # (B, N, 2, 3)
    right = -(equations @ p[..., None])  # (B, N, 2, 1)
    equations = equations.flatten(1, 2)  # (B, 2 N, 3)
    normal = equations.mT @ equations  # (B, 3, 3)
    moment = equations.mT @ right.flatten(1, 2)  # (B, 3, 1)
    # Of one pixel or none the matrix has no full rank, which rounding hides.
    extremes = torch.linalg.eigvalsh(normal.detach())[:, [0, -1]]
    if (extremes[:, 0] <= 1e-12 * extremes[:, 1]).any():
        raise ValueError(
            f"{points.shape[1]} points do not determine a translation: at least two of different "
            "pixels are needed"
        )
    return torch.linalg.solve(normal, moment).squeeze(-1).to(points)


def place_before_camera(
    vertices: Tensor, keypoints: Tensor, pixels: Tensor, K: Tensor
) -> tuple[Tensor, Tensor]:
    """Move hands to where their 2D keypoints are seen, in the least squares.

    Args:
        vertices: (B, V, 3), metres, axes of the camera frame, relative to any origin.
        keypoints: (B, N, 3), likewise.
        pixels: (B, N, 2), where the keypoints are seen.
        K: (B, 3, 3), the intrinsics.

    Returns:
        Vertices and keypoints in the camera frame.
    """
    translation = lift_translation(keypoints, pixels, K)[:, None]  # (B, 1, 3)
    return vertices + translation, keypoints + translation


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
    """
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

    If the crop makes the image half as large or smaller, areas are averaged first: bilinear
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


# How much larger than a box tight around the hand the square is, so that the hand fills it as hands fill
# the crops of training: of those 180 pixels, its box takes 123 (median of the synthetic hands, 1.46; from
# 1.1 to 2.0 for nine in ten, and training scales by 0.75 to 1.25).
BOX_FACTOR = 1.5


def crop_from_box(
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
        :func:`fastvit_dense.hand.geometry.warp_crop`.

    Raises:
        ValueError: the box is not four finite numbers, is empty, or lies outside of the image.
    """
    height, width = size
    if bbox is not None:
        x, y, w, h = map(float, bbox) if len(bbox) == 4 else [math.nan] * 4
        if not (0 < w < math.inf and 0 < h < math.inf and -w < x < width and -h < y < height):
            raise ValueError(
                f"bbox {tuple(bbox)}: expected x y width height in pixels, neither empty nor outside of "
                f"the image, which is {width}x{height} pixels (width x height)"
            )
        center, side = (width - x - w / 2 if left else x + w / 2, y + h / 2), BOX_FACTOR * max(w, h)
    elif (height, width) == (IMAGE_SIZE, IMAGE_SIZE):
        center, side = CROP_CENTER, CROP_SIDE
    else:
        center, side = whole_image_box(height, width)
    matrix = crop_matrix(center, side, out_size)
    if left:
        matrix = matrix @ homogeneous(np.array([[-1.0, 0, width - 1], [0, 1, 0]]))
    return matrix
