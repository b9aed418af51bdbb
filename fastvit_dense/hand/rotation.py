"""Rotations as axis-angle vectors, matrices and six numbers: batched, differentiable, in any dtype.

Matrices turn column vectors: ``y = R @ x``. An axis-angle vector points along the axis, by the right-hand
rule; its length is the angle in radians.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Turn rotation matrices into axis-angle vectors, by way of unit quaternions.

    Args:
        matrix: (..., 3, 3), rotations.

    Returns:
        (..., 3), radians, of a length up to pi. Values are accurate to rounding and gradients finite at
        every angle; at pi, where two vectors are one rotation, it is one of them.
    """
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    x, y, z = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = (
        m[..., 1, 0] + m[..., 0, 1],
        m[..., 2, 0] + m[..., 0, 2],
        m[..., 2, 1] + m[..., 1, 2],
    )
    # 4 q q^T of the quaternion q = (w, x, y, z): each row is q times four times one of its numbers.
    rows = torch.stack(
        [
            1 + xx + yy + zz, x, y, z,
            x, 1 + xx - yy - zz, xy, xz,
            y, xy, 1 - xx + yy - zz, yz,
            z, xz, yz, 1 - xx - yy + zz,
        ],
        -1,
    ).unflatten(-1, (4, 4))  # fmt: skip
    # The row of the largest number, which is 1/2 at least, is far from zero at every angle.
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)  # (...)
    row = rows.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quaternion = F.normalize(row, dim=-1)
    w, vector = quaternion.split([1, 3], -1)
    vector = torch.where(w < 0, -vector, vector)
    w = w.abs()
    # angle / sin(angle / 2) with the same care at zero as above.
    squared = vector.square().sum(-1, keepdim=True)
    is_small = squared < torch.finfo(matrix.dtype).eps ** 0.5
    sine = torch.where(is_small, 1.0, squared).sqrt()
    factor = torch.where(is_small, 2 + squared / 3, 2 * torch.atan2(sine, w) / sine)
    return factor * vector


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


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """Turn matrices into six numbers each: the first column, then the second.

    Args:
        matrix: (..., 3, 3), rotations.

    Returns:
        (..., 6), of which :func:`rotation_6d_to_matrix` makes `matrix` again.
    """
    return matrix[..., :2].mT.flatten(-2)
