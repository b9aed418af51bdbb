"""From points to pixels and back.

The camera frame has x to the right, y down and z forward, in metres. Pixels are (u, v), to the right and
down; whole numbers are the centres of pixels, as OpenCV has it.

Shape legend: B batch, N points.
"""

import torch
from torch import Tensor


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


def to_pixels(normalised: Tensor, size: int = 224) -> Tensor:
    """Turn normalised coordinates into pixels of a square image: ``(x + 1) * size / 2``.

    Args:
        normalised: (..., 2).
        size: edge of the image in pixels.

    Returns:
        (..., 2), pixels.
    """
    return (normalised + 1) * (size / 2)


def to_normalised(pixels: Tensor, size: int = 224) -> Tensor:
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


def lift_translation(
    points: Tensor, pixels: Tensor, K: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Find where in front of the camera a shape of known size is, from its projection.

    A pixel (u, v) of the point p + t means ``(K1 - u K3) (p + t) = 0 = (K2 - v K3) (p + t)`` with the rows
    of K. These 2 N equations are linear in t. Each is wrong by the error in pixels times the depth, which
    is much the same over a hand, so that their least squares are nearly those of the pixels.

    Args:
        points: (B, N, 3), metres, axes of the camera frame, relative to any origin.
        pixels: (B, N, 2), where they are seen. At least two must differ.
        K: (B, 3, 3), the intrinsics.
        weights: (B, N), not negative; default: all the same.

    Returns:
        (B, 3), metres: ``project(points + t[:, None], K)`` fits the pixels. In the dtype and on the device
        of `points`; computed in float64, because the depth is poorly conditioned, and on the CPU, because
        Apple's GPU has no float64.

    Raises:
        ValueError: the pixels do not determine the translation, because there are fewer than two
            different ones.
    """
    # One after the other: a copy that also converts would convert on the device.
    p, uv, k = (x.cpu().double() for x in (points, pixels, K))
    equations = k[:, None, :2] - uv[..., None] * k[:, None, 2:]  # (B, N, 2, 3)
    right = -(equations @ p[..., None])  # (B, N, 2, 1)
    if weights is None:
        weighted = equations
    else:
        weighted = equations * weights.cpu().double()[..., None, None]
    normal = weighted.flatten(1, 2).mT @ equations.flatten(1, 2)  # (B, 3, 3)
    moment = weighted.flatten(1, 2).mT @ right.flatten(1, 2)  # (B, 3, 1)
    # Of one pixel or none the matrix has no full rank, which rounding hides.
    extremes = torch.linalg.eigvalsh(normal.detach())[:, [0, -1]]
    if (extremes[:, 0] <= 1e-12 * extremes[:, 1]).any():
        raise ValueError(
            f"{points.shape[1]} points do not determine a translation: at least two of different "
            "pixels are needed, with weights above zero"
        )
    return torch.linalg.solve(normal, moment).squeeze(-1).to(points)
