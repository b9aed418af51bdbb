"""The rasteriser, against a plain loop over pixels and against cases computed by hand."""

import math

import numpy as np
import pytest

from fastvit_dense.hand.render import rasterize, shade, unit, vertex_normals

TRIANGLE = np.array([[0, 1, 2]])


def plain(
    points: np.ndarray, faces: np.ndarray, size: tuple[int, int], cull: bool
) -> list[np.ndarray]:
    """Pixel by pixel, face by face: face, weights, depth."""
    face = np.full(size, -1)
    weights, depth = np.zeros((*size, 3)), np.full(size, np.inf)
    for y in range(size[0]):
        for x in range(size[1]):
            for number, corners in enumerate(points[faces]):
                system = np.vstack([corners[:, :2].T, np.ones(3)])
                area = np.linalg.det(system)
                if area == 0 or (cull and area > 0):
                    continue
                w = np.linalg.solve(system, [x, y, 1])
                if w.min() >= 0 and w @ corners[:, 2] < depth[y, x]:
                    face[y, x], weights[y, x], depth[y, x] = number, w, w @ corners[:, 2]
    return [face, weights, depth]


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_like_a_loop_over_pixels(seed: int, cull: bool) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform((-8, -8, 1), (30, 22, 2), (40, 3))  # some outside of the picture
    faces = rng.permuted(np.tile(np.arange(40), (25, 1)), axis=1)[:, :3]
    found = rasterize(points, faces, (15, 22), cull=cull)
    face, weights, depth = plain(points, faces, (15, 22), cull)
    assert (face >= 0).mean() > 0.5 and len(np.unique(face)) > 5
    assert np.array_equal(found.face, face)
    assert np.allclose(found.barycentric, weights, atol=1e-6)
    assert np.allclose(found.depth, depth, atol=1e-12)


def test_pixels_of_a_triangle_by_hand() -> None:
    points = np.array([(1.0, 1, 5), (4, 1, 5), (1, 4, 8)])
    found = rasterize(points, TRIANGLE, (6, 6))
    wanted = np.full((6, 6), -1)
    for y, columns in ((1, (1, 2, 3, 4)), (2, (1, 2, 3)), (3, (1, 2)), (4, (1,))):
        wanted[y, list(columns)] = 0  # edges and corners count
    assert np.array_equal(found.face, wanted)
    assert found.barycentric[2, 2] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert found.barycentric[4, 1] == pytest.approx([0, 0, 1])
    assert found.depth[2, 2] == pytest.approx(6) and found.depth[0, 0] == np.inf
    assert (found.barycentric[wanted < 0] == 0).all()


def test_the_nearer_triangle_is_seen_and_the_first_of_equals() -> None:
    square = np.array([(0.0, 0), (9, 0), (0, 9)])
    points = np.concatenate([np.insert(square, 2, z, axis=1) for z in (3, 2, 2)])
    faces = np.arange(9).reshape(3, 3)
    assert set(rasterize(points, faces, (9, 9)).face.ravel()) == {-1, 1}
    # Through each other: nearer on the left, farther on the right.
    points[:3, 2] = (1, 3, 1)
    found = rasterize(points, faces, (9, 9)).face
    assert found[0, 0] == found[0, 4] == 0 and found[0, 5] == found[0, 9 - 1] == 1


def test_faces_from_behind() -> None:
    points = np.array([(1.0, 1, 5), (4, 1, 5), (1, 4, 5)])  # clockwise on the screen: y is down
    assert (rasterize(points, TRIANGLE, (6, 6), cull=True).face == -1).all()
    front = rasterize(points, TRIANGLE[:, ::-1], (6, 6), cull=True)
    both = rasterize(points, TRIANGLE, (6, 6))
    assert np.array_equal(front.face, both.face) and (front.face == 0).any()


@pytest.mark.parametrize(
    "corners",
    [
        [(1, 1), (3, 3), (5, 5)],  # no area
        [(2, 2), (2, 2), (2, 2)],
        [(20, 1), (25, 1), (20, 5)],  # outside
        [(-9, -9), (-5, -9), (-9, -5)],
        [(1, 9.1), (5, 9.1), (3, 14)],
        [(np.nan, 1), (5, 1), (1, 5)],
        [(np.inf, 1), (5, 1), (1, 5)],
        [(1.1, 1.1), (1.9, 1.2), (1.5, 1.9)],  # between the centres
    ],
)
def test_nothing_to_see(corners: list[tuple[float, float]]) -> None:
    points = np.insert(np.array(corners, float), 2, 1, axis=1)
    found = rasterize(points, TRIANGLE, (10, 10))
    assert (found.face == -1).all() and np.isinf(found.depth).all()
    assert found.interpolate(points, TRIANGLE).shape == (0, 3)


def test_numbers_of_faces_are_kept_when_others_are_left_out() -> None:
    points = np.array([(0.0, 0, 1), (0, 0, 1), (np.nan, 0, 1), (0, 0, 1), (9, 0, 1), (0, 9, 1)])
    assert set(rasterize(points, np.arange(6).reshape(2, 3), (8, 8)).face.ravel()) == {-1, 1}


@pytest.mark.parametrize("spacing", [1.0, 1.7, 0.37])
def test_no_gaps_between_faces(spacing: float) -> None:
    """A sheet of triangles, whose corners and edges partly run through the centres of pixels."""
    n = 40
    y, x = np.mgrid[:n, :n]
    points = np.stack([x * spacing, y * spacing, np.ones_like(x)], 2).reshape(-1, 3).astype(float)
    if spacing == 1.7:
        inner = ((x > 0) & (x < n - 1) & (y > 0) & (y < n - 1)).ravel()
        points[inner, :2] += np.random.default_rng(0).uniform(-0.4, 0.4, (inner.sum(), 2))
    corner = (y * n + x)[:-1, :-1].reshape(-1, 1)
    faces = np.concatenate([corner + (0, 1, n), corner + (1, n + 1, n)])
    side = math.floor((n - 1) * spacing + 1e-9) + 1
    assert (rasterize(points, faces, (side, side)).face >= 0).all()


def test_values_between_vertices() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 30, (12, 3))
    faces = np.arange(12).reshape(4, 3)
    found = rasterize(points, faces, (30, 30))
    y, x = np.nonzero(found.face >= 0)
    at = found.interpolate(points, faces)
    assert len(at) > 100
    assert np.allclose(at, np.stack([x, y, found.depth[y, x]], 1), atol=1e-4)


def test_exact_depth_of_a_pinhole_camera() -> None:
    corners = np.array([(-0.2, -0.2, 0.5), (0.3, -0.2, 1.5), (-0.2, 0.4, 0.9)])
    focal, centre = 100.0, 40
    pixels = corners[:, :2] / corners[:, 2:] * focal + centre
    found = rasterize(np.column_stack([pixels, -1 / corners[:, 2]]), TRIANGLE, (81, 81))
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    y, x = np.nonzero(found.face >= 0)
    rays = np.stack([(x - centre) / focal, (y - centre) / focal, np.ones(len(x))], 1)
    z = normal @ corners[0] / (rays @ normal)
    assert len(z) > 100 and np.ptp(z) > 0.5
    assert np.allclose(-1 / found.depth[y, x], z)


def test_normals_point_outwards() -> None:
    octahedron = np.array([(1.0, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)])
    faces = np.array(
        [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    )
    assert np.allclose(vertex_normals(octahedron, faces), octahedron)
    # Two walls and a floor of other areas: weighted by them.
    corner = np.array([(0.0, 0, 0), (2, 0, 0), (0, 1, 0), (0, 0, 1)])
    found = vertex_normals(corner, np.array([(0, 1, 2), (0, 2, 3)]))
    assert np.allclose(found[0], unit(np.array([1.0, 0, 2])))


def test_light_by_hand() -> None:
    normals = np.array([(0, 0, -1), (0, math.sin(1), -math.cos(1)), (0, 0, 1.0)])
    albedo = np.array([(1.0, 0.5, 0.2)] * 3)
    lit = shade(normals, albedo, to_light=np.array([0, 0, -1.0]), diffuse=0.8, ambient=0.3)
    wanted = albedo * np.array([[1.1], [0.3 + 0.8 * math.cos(1)], [0.3]])
    assert np.allclose(lit, wanted)
    # The highlight is where the normal is halfway between light and viewer.
    to_light = np.array([0, -math.sin(1), -math.cos(1)])
    normals = np.array([(0, -math.sin(a), -math.cos(a)) for a in (0.5, 0.2)])
    black = np.zeros((2, 3))
    lit = shade(normals, black, to_light=to_light, diffuse=1.0, specular=0.5, shininess=10)
    assert np.allclose(lit, [[0.5] * 3, [0.5 * math.cos(0.3) ** 10] * 3])
