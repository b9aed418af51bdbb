"""Projections, by cases computed by hand, and where a hand is before the camera."""

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from fastvit_dense.hand.geometry import (
    lift_translation,
    project,
    project_weak_perspective,
    to_normalised,
    to_pixels,
)

K = torch.tensor([[480.0, 0.0, 112.0], [0.0, 500.0, 100.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def turned(degrees: float) -> torch.Tensor:
    """(1, 3, 3): K of an image that is turned, scaled and moved; rows of no triangle."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    crop = torch.tensor([[1.2 * c, -1.2 * s, 30.0], [1.2 * s, 1.2 * c, -8.0], [0.0, 0.0, 1.0]])
    turn_back = torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return (crop.double() @ K @ turn_back)[None]


def hand(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (B, 21, 3) of the size of a hand about the origin, and where it is (B, 3)."""
    points = torch.randn(batch, 21, 3, dtype=torch.float64) * 0.05
    place = torch.rand(batch, 3, dtype=torch.float64) * torch.tensor([0.2, 0.2, 0.4]).double()
    return points, place + torch.tensor([-0.1, -0.1, 0.5]).double()


def test_weak_perspective_by_hand() -> None:
    points = torch.tensor(
        [[[0.05, 0.04, 9.0], [-0.3, 0.02, 0.0]], [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]]
    )
    camera = torch.tensor([[5.0, 0.1, -0.02], [2.0, -1.0, 0.25]])
    found = project_weak_perspective(points, camera)
    wanted = torch.tensor([[[0.75, 0.1], [-1.0, 0.0]], [[0.0, 4.5], [-2.0, 0.5]]])
    torch.testing.assert_close(found, wanted)
    pixels = torch.tensor([[196.0, 123.2], [0.0, 112.0]])
    torch.testing.assert_close(to_pixels(found[0]), pixels, atol=1e-4, rtol=0)
    torch.testing.assert_close(to_normalised(pixels), found[0], atol=1e-6, rtol=0)


def test_other_sizes() -> None:
    edges = torch.tensor([-1.0, 0.0, 1.0])
    assert to_pixels(edges, 100).tolist() == [0.0, 50.0, 100.0]
    assert to_normalised(to_pixels(edges, 100), 100).tolist() == edges.tolist()


def test_perspective_by_hand() -> None:
    points = torch.tensor([[[0.1, -0.05, 0.5], [0.0, 0.0, 2.0]]], dtype=torch.float64)
    found = project(points, K[None])
    assert found.tolist() == [[[480 * 0.2 + 112, 500 * -0.1 + 100], [112.0, 100.0]]]
    general = torch.tensor([[[100.0, 0.0, 50.0], [0.0, 100.0, 50.0], [1.0, 0.0, 2.0]]])
    found = project(torch.tensor([[[0.1, 0.2, 0.3]]]), general)  # (25, 35, 0.7)
    torch.testing.assert_close(found, torch.tensor([[[25 / 0.7, 50.0]]]))


def test_perspective_is_opencvs() -> None:
    points, place = hand(2)
    found = project(points + place[:, None], K.expand(2, 3, 3))
    for i in range(2):
        wanted, _ = cv2.projectPoints(
            points[i].numpy(), np.zeros(3), place[i].numpy(), K.numpy(), None
        )
        np.testing.assert_allclose(found[i], wanted[:, 0])


def test_intrinsics_of_a_turned_crop() -> None:
    """Turning the points and projecting is projecting and turning the image."""
    points, place = hand()
    points = points + place[:, None]
    angle = np.deg2rad(40)
    turn = torch.tensor(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    pixels = project(points, K[None])[0]
    crop = turned(40)[0] @ turn @ torch.linalg.inv(K)  # the image's own transformation
    wanted = pixels @ crop[:2, :2].T + crop[:2, 2]
    torch.testing.assert_close(project(points @ turn.T, turned(40))[0], wanted)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("last_row", [(0.0, 0.0, 1.0), (0.2, -0.1, 1.1)])
def test_lifts_to_where_the_hand_was(
    dtype: torch.dtype, atol: float, last_row: tuple[float, ...]
) -> None:
    points, place = hand(5)
    intrinsics = torch.cat([turned(0), turned(130)])[[0, 1, 0, 1, 0]]
    intrinsics[:, 2] = torch.tensor(last_row)
    pixels = project(points + place[:, None], intrinsics)
    found = lift_translation(points.to(dtype), pixels.to(dtype), intrinsics.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, place.to(dtype), atol=atol, rtol=0)


def test_lifts_to_the_least_error_in_pixels() -> None:
    """Of pixels that fit no place exactly, against an iterative fit of the projection itself."""
    points, place = hand()
    pixels = project(points + place[:, None], K[None]) + torch.randn(1, 21, 2)

    def error(translation: np.ndarray) -> np.ndarray:
        seen = project(points + torch.tensor(translation), K[None])
        return (seen - pixels).numpy().ravel()

    wanted = least_squares(error, place[0].numpy()).x
    found = lift_translation(points, pixels, K[None])[0].numpy()
    # The error is weighted by the depth, which differs by a tenth or two over the hand.
    np.testing.assert_allclose(found, wanted, atol=0.004)
    assert np.square(error(found)).sum() < 1.01 * np.square(error(wanted)).sum()


def test_lifting_is_differentiable() -> None:
    points, place = hand(2)
    pixels = project(points + place[:, None], K.expand(2, 3, 3)) + torch.randn(2, 21, 2)
    inputs = points.requires_grad_(), pixels.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, x: lift_translation(p, x, K.expand(2, 3, 3)), inputs, fast_mode=True
    )


def test_too_few_points() -> None:
    points, place = hand(2)
    pixels = project(points + place[:, None], K.expand(2, 3, 3))
    with pytest.raises(ValueError, match="1 points do not determine a translation: at least two"):
        lift_translation(points[:, :1], pixels[:, :1], K.expand(2, 3, 3))
    pixels[1] = pixels[1, :1]
    with pytest.raises(ValueError, match="21 points do not determine a translation"):
        lift_translation(points, pixels, K.expand(2, 3, 3))
