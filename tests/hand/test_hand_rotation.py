"""Rotations, against scipy and cases computed by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from fastvit_dense.hand.geometry import (
    axis_angle_to_matrix,
    rotation_6d_to_matrix,
)

ANGLES = [0.0, 1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 0.02, 0.5, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-7]
BEYOND = [math.pi, 4.0, 2 * math.pi, 11.0]


def vectors(angles: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """(angles * 20, 3): axis-angle vectors, also along the axes."""
    axes = np.random.default_rng(0).normal(size=(20, 3))
    axes[:6] = [*np.eye(3), *-np.eye(3)]
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return torch.tensor(np.array(angles)[:, None, None] * axes, dtype=dtype).flatten(0, 1)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-14), (torch.float32, 3e-6)])
def test_axis_angle_to_matrix(dtype: torch.dtype, atol: float) -> None:
    given = vectors(ANGLES + BEYOND, dtype)
    found = axis_angle_to_matrix(given)
    assert found.dtype == dtype
    wanted = Rotation.from_rotvec(given.double().numpy()).as_matrix()
    np.testing.assert_allclose(found.numpy(), wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.3, 2.5, math.pi - 1e-3])
def test_gradients(angle: float) -> None:
    given = vectors([angle]).requires_grad_()
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (given,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(dtype: torch.dtype) -> None:
    given = vectors(ANGLES + BEYOND, dtype).requires_grad_()
    found = axis_angle_to_matrix(given)
    found.square().sum().backward()
    assert found.isfinite().all() and given.grad.isfinite().all()


def test_6d_by_hand() -> None:
    """The first three numbers are a column. A quarter turn about z takes x to y, and y to -x."""
    found = rotation_6d_to_matrix(torch.tensor([0.0, 2.0, 0.0, -3.0, 5.0, 0.0]))
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(found, quarter)


def test_6d_of_any_numbers_is_a_rotation() -> None:
    numbers = torch.randn(4, 50, 6, dtype=torch.float64)
    matrix = rotation_6d_to_matrix(numbers)
    assert matrix.shape == (4, 50, 3, 3)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).double().expand_as(matrix))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(4, 50).double())
    # Lengths, and what the second has of the first, have no influence.
    first, second = numbers.split(3, -1)
    same = rotation_6d_to_matrix(torch.cat([3 * first, 2 * second - first], -1))
    torch.testing.assert_close(same, matrix)
    assert torch.autograd.gradcheck(rotation_6d_to_matrix, (numbers[0, :5].requires_grad_(),))


@pytest.mark.parametrize(
    "numbers", [[0.0] * 6, [1.0, 0.0, 0.0, 2.0, 0.0, 0.0], [0.0] * 3 + [1.0] * 3]
)
def test_6d_of_degenerate_numbers_is_finite(numbers: list[float]) -> None:
    given = torch.tensor(numbers, requires_grad=True)
    matrix = rotation_6d_to_matrix(given)
    matrix.sum().backward()
    assert matrix.isfinite().all() and given.grad.isfinite().all()
