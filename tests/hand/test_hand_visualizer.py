"""Pictures of meshes: what is drawn where, by meshes whose pixels are known."""

import numpy as np
import pytest

from fastvit_dense.hand.mano.topology import BONES, FINGERS
from fastvit_dense.hand.visualization import (
    ANNOTATED,
    FINGER_COLOURS,
    PREDICTED,
    SIDE_VIEW_METRES,
    DrawnHand,
    draw_keypoints,
    draw_overlay,
    draw_side_view,
    hand_picture,
)

GREY = 90
FACES = np.array([[0, 2, 1], [0, 3, 2]])  # of a square, counterclockwise seen from the camera


def grey(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def square(x: float, y: float, side: float, *, z: float = 0.0) -> DrawnHand:
    """A square that faces the camera, with its upper left corner in pixels; 1000 pixels are a metre."""
    pixels = np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)])
    return DrawnHand(np.column_stack([pixels / 1000, np.full(4, z)]), pixels)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=2)


@pytest.mark.parametrize(("x", "y"), [(10, 20), (0, 0), (3, 41), (60, 40)])
def test_overlay_covers_the_pixels_of_the_mesh_and_no_others(x: int, y: int) -> None:
    image = grey()
    drawn = draw_overlay(image, square(x - 0.5, y - 0.5, 16), FACES)  # edges of pixels
    expected = np.zeros((60, 80), bool)
    expected[y : y + 16, x : x + 16] = True
    assert np.array_equal(changed(drawn), expected)
    assert (image == GREY).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_edges_are_smooth(share: float) -> None:
    """A pixel takes on as much of the outline's colour as the mesh covers of it."""
    black = np.zeros((60, 80, 3), np.uint8)
    drawn = draw_overlay(black, square(10.5 - share, 20, 16), FACES)
    outline = 0.35 * np.array(PREDICTED)
    assert drawn[28, 10] == pytest.approx(share * outline, abs=0.2 * outline[0])


@pytest.mark.parametrize("opacity", [0.25, 1.0])
def test_opacity_and_outline(opacity: float) -> None:
    whole = draw_overlay(grey(), square(9.5, 9.5, 40), FACES, opacity=1)[30, 30].astype(float)
    drawn = draw_overlay(grey(), square(9.5, 9.5, 40), FACES, opacity=opacity)
    assert drawn[30, 30] == pytest.approx(opacity * whole + (1 - opacity) * GREY, abs=1)
    # Blue as the colour given, and the outline is opaque.
    assert whole[0] > whole[1] > whole[2]
    assert drawn[30, 10] == pytest.approx(0.35 * np.array(PREDICTED), abs=2)


def test_outlines_alone_leave_the_inside() -> None:
    drawn = draw_overlay(grey(), square(9.5, 9.5, 40), FACES, opacity=0)
    assert not changed(drawn)[13:46, 13:46].any()
    assert changed(drawn)[10, 10:50].all()


def test_bright_surfaces_do_not_overflow() -> None:
    image = np.full((60, 80, 3), 255, np.uint8)
    hand = square(9.5, 9.5, 40)
    hand.vertices[:, 2] = hand.vertices[:, :2] @ (-0.45, -0.7)  # facing up and left, to the light
    drawn = draw_overlay(image, hand, FACES, colour=(255, 255, 255), opacity=0.5)
    assert drawn[15:45, 15:45].min() > 200


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_surface_is_seen_with_its_outline(order: tuple[int, int]) -> None:
    """A small square before a large one, and the same square behind it."""
    parts = [square(9.5, 9.5, 40), square(19.5, 19.5, 16, z=-0.02)]
    drawn = []
    for shift in (0, 0.04):
        two = [parts[0], DrawnHand(parts[1].vertices + (0, 0, shift), parts[1].pixels)]
        hand = DrawnHand(*(np.concatenate([two[i][k] for i in order]) for k in (0, 1)))
        drawn.append(draw_overlay(grey(), hand, np.concatenate([FACES, FACES + 4])))
    before, behind = (d[20, 20:36].astype(int).sum(axis=1) for d in drawn)
    assert (before < behind - 100).all()  # an outline there, none where it is hidden
    assert np.array_equal(drawn[1], draw_overlay(grey(), parts[0], FACES))


def test_insides_are_darker() -> None:
    outside = draw_overlay(grey(), square(9.5, 9.5, 40), FACES, opacity=1)[30, 30]
    inside = draw_overlay(grey(), square(9.5, 9.5, 40), FACES[:, ::-1], opacity=1)[30, 30]
    assert (inside < 0.6 * outside).all()


@pytest.mark.parametrize("at", [(-100, 0), (0, 500), (79.6, 0), (np.nan, 0)])
def test_mesh_outside_of_the_image(at: tuple[float, float]) -> None:
    assert not changed(draw_overlay(grey(), square(*at, 20), FACES)).any()


def test_mesh_partly_outside_and_large_images() -> None:
    drawn = draw_overlay(grey(), square(-20.5, -20.5, 40), FACES)
    assert changed(drawn)[:19, :19].all() and not changed(drawn)[:, 21:].any()
    large = draw_overlay(grey(1200, 1600), square(199.5, 99.5, 1000), FACES)
    assert changed(large)[102:1098, 202:1198].all()
    assert not changed(large)[:, :197].any() and not changed(large)[:, 1203:].any()


def test_skeleton_has_a_colour_a_finger() -> None:
    keypoints = np.array([(10 + 6 * (i % 5), 5 + 11 * (i // 5)) for i in range(21)], float)
    drawn = draw_keypoints(grey(), keypoints)
    for name, indices in FINGERS.items():
        for i in indices:
            x, y = keypoints[i].astype(int)
            if i == indices[-1]:  # others may lie under the bone to the next finger's base
                assert tuple(drawn[y, x]) == FINGER_COLOURS[name], name
    assert len(BONES) == 20
    off = draw_keypoints(grey(), keypoints + 1000)
    assert not changed(off).any()


@pytest.mark.parametrize(
    ("offset", "moves"),
    [((0.05, 0, 0), (0, 0)), ((0, 0.05, 0), (0, 1)), ((0, 0, 0.05), (1, 0))],
)
def test_side_view_shows_depth_to_the_right(offset: tuple, moves: tuple[int, int]) -> None:
    """From the camera's right: y stays down, what is farther away is farther right."""
    around = np.array([(0, -1, -1), (0, -1, 1), (0, 1, 1), (0, 1, -1)]) * 0.02
    size = (280, 350)  # 1000 pixels a metre

    def centre(vertices: np.ndarray) -> np.ndarray:
        empty = draw_side_view([], FACES, size=size)
        picture = draw_side_view([(vertices, PREDICTED)], FACES, size=size)
        ys, xs = np.nonzero((picture != empty).any(axis=2))
        return np.array([xs.mean(), ys.mean()])

    assert SIDE_VIEW_METRES == 0.28
    assert centre(around) == pytest.approx((174.5, 139.5), abs=0.6)
    moved = centre(around + offset) - centre(around)
    assert moved == pytest.approx(50 * np.array(moves), abs=0.6)


def test_picture_of_truth_prediction_and_side() -> None:
    predicted, truth = square(9.5, 9.5, 20), square(39.5, 29.5, 20)
    picture = hand_picture(grey(), predicted, FACES)
    assert picture.shape == (60, 80 + 60, 3)
    assert np.array_equal(picture[:, :80], draw_overlay(grey(), predicted, FACES))
    both = hand_picture(grey(), predicted, FACES, annotated=truth)
    assert both.shape == (60, 2 * 80 + 60, 3)
    left = draw_overlay(grey(), truth, FACES, colour=ANNOTATED)
    assert np.array_equal(both[:, :80], left)
    assert np.array_equal(both[:, 80:160], picture[:, :80])
