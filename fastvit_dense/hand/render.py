"""Drawing meshes without a screen: a z-buffer and Lambert's law, in numpy.

Pixels are OpenCV's: whole numbers are the centres of pixels, x to the right, y down.

Shape legend: V vertices, F faces, H and W height and width, P pairs of a face and a pixel in it, n
covered pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TOLERANCE = 1e-6  # pixels: a centre so near an edge is inside of both faces that meet there


@dataclass(frozen=True)
class Fragments:
    """What is seen at each pixel.

    Args:
        face: (H, W) int64, the nearest face, -1 if there is none.
        barycentric: (H, W, 3) float32, weights of that face's three vertices; 0 if there is none.
        depth: (H, W) float64, infinite if there is none.
    """

    face: np.ndarray
    barycentric: np.ndarray
    depth: np.ndarray

    def interpolate(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Values of vertices (V, C) at the n covered pixels, row by row: (n, C) float32."""
        covered = self.face >= 0
        corners = np.asarray(values, np.float32)[faces[self.face[covered]]]  # (n, 3, C)
        return np.einsum("nkc,nk->nc", corners, self.barycentric[covered])


def rasterize(
    points: np.ndarray, faces: np.ndarray, size: tuple[int, int], *, cull: bool = False
) -> Fragments:
    """Find the nearest face at the centre of each pixel.

    A centre on an edge, or within 1e-6 pixels of it, is inside of the faces on both sides, so that
    closed meshes have no pinholes. Of faces at the same depth the first is taken. Depth and barycentric
    weights are linear in the image. That is exact for weak perspective; for a pinhole camera pass
    -1 / z as depth to have exact visibility, and the weights are off by the share by which z differs
    within a face.

    Args:
        points: (V, 3): x and y in pixels, and depth, smaller is nearer. Parts outside of the picture
            are cut off.
        faces: (F, 3), vertices of each triangle. Those without an area, or with a vertex that is not
            finite, are left out.
        size: height and width.
        cull: leave out faces seen from behind: those whose vertices run clockwise when seen from
            outside, that is, the front has a negative area in pixels where y points down.

    Returns:
        The fragments.
    """
    height, width = size
    corners = np.asarray(points, np.float64)[faces]  # (F, 3, 3)
    with np.errstate(invalid="ignore", over="ignore"):
        edges = np.roll(corners, -1, axis=1)[..., :2] - corners[..., :2]
        area = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]  # twice
        drawn = np.isfinite(corners).all((1, 2)) & ((area < 0) if cull else (area != 0))
    numbers = np.flatnonzero(drawn)
    corners, area = corners[numbers], area[numbers]

    weights = _weight_planes(corners, area)
    depth = np.einsum("fkp,fk->fp", weights, corners[..., 2])  # (F, 3): its plane likewise
    face, row = _rows(corners[..., 1], height)
    first, last = _columns(weights, face, row, width)
    pair, column = _ranges(first, last)  # (P,) each
    face, row = face[pair], row[pair]

    pixel = row * width + column
    z = depth[face, 0] * column + depth[face, 1] * row + depth[face, 2]
    nearest = np.full(height * width, np.inf)
    np.minimum.at(nearest, pixel, z)
    seen = np.flatnonzero(z == nearest[pixel])[::-1]  # backwards: the first face is written last
    winner = np.full(height * width, -1)
    winner[pixel[seen]] = face[seen]

    covered = np.flatnonzero(winner >= 0)
    plane = weights[winner[covered]]  # (n, 3, 3)
    y, x = np.divmod(covered, width)
    barycentric = np.zeros((height * width, 3), np.float32)
    barycentric[covered] = plane[..., 0] * x[:, None] + plane[..., 1] * y[:, None] + plane[..., 2]
    winner[covered] = numbers[winner[covered]]
    return Fragments(
        winner.reshape(size), barycentric.reshape(height, width, 3), nearest.reshape(size)
    )


def _weight_planes(corners: np.ndarray, area: np.ndarray) -> np.ndarray:
    """(F, 3, 3): a, b, c of each corner's barycentric weight a x + b y + c; `corners` (F, 3, 3)."""
    x, y = corners[..., 0], corners[..., 1]
    after, before = [1, 2, 0], [2, 0, 1]  # the edge opposite to each corner
    a = (y[:, after] - y[:, before]) / area[:, None]
    b = (x[:, before] - x[:, after]) / area[:, None]
    return np.stack([a, b, -a * x[:, after] - b * y[:, after]], axis=2)


def _rows(y: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Each face, `y` (F, 3), with each row of the picture that crosses it."""
    top = np.clip(np.ceil(y.min(1) - _TOLERANCE), 0, height)
    bottom = np.clip(np.floor(y.max(1) + _TOLERANCE), -1, height - 1)
    return _ranges(top, bottom)


def _columns(
    planes: np.ndarray, face: np.ndarray, row: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first and last column inside `face` in `row`, where all three weights are positive."""
    a, b, c = planes.transpose(2, 1, 0)  # each (3, F)
    margin = _TOLERANCE * np.hypot(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A horizontal edge, a = 0, bounds the rows and not the columns.
        border = (-(c + margin) / a)[:, face] - (b / a)[:, face] * row  # (3, rows)
    rising, falling = (a > 0)[:, face], (a < 0)[:, face]
    first = np.where(rising, border, -1.0).max(0)
    last = np.where(falling, border, width).min(0)
    return np.ceil(first.clip(0, width)), np.floor(last.clip(-1, width - 1))


def _ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers from each `first` to its `last`, after the number of their range."""
    first = first.astype(np.int64)
    counts = np.maximum(last.astype(np.int64) - first + 1, 0)
    number = np.repeat(np.arange(len(counts)), counts)
    begin = np.cumsum(counts) - counts
    return number, np.arange(len(number)) + (first - begin)[number]


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit vectors outwards: means of the faces around each vertex, weighted by their areas."""
    a, b, c = vertices[faces].transpose(1, 0, 2)  # each (F, 3)
    across = np.cross(b - a, c - a)
    at = faces.T.ravel()
    sums = [np.bincount(at, np.tile(v, 3), minlength=len(vertices)) for v in across.T]
    return unit(np.stack(sums, axis=1))


def unit(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) vectors of length 1; zeros stay."""
    length = np.sqrt((vectors * vectors).sum(-1, keepdims=True))
    return vectors / np.maximum(length, 1e-30)


def shade(
    normals: np.ndarray,
    albedo: np.ndarray,
    *,
    to_light: np.ndarray,
    diffuse: np.ndarray | float = 0.8,
    ambient: np.ndarray | float = 0.3,
    specular: np.ndarray | float = 0.0,
    shininess: float = 30.0,
) -> np.ndarray:
    """Light a surface: Lambert's law, with a constant and a highlight (Blinn and Phong).

    Args:
        normals: (n, 3), unit vectors, camera frame.
        albedo: (n, 3), the share of each channel that is reflected.
        to_light: (3,), unit vector towards a light that is far away.
        diffuse: strength of the light, or (3,) for that of each channel.
        ambient: strength of the light from everywhere, or (..., 3).
        specular: strength of the highlight, or (n, 1).
        shininess: larger makes the highlight smaller.

    Returns:
        (n, 3), not clipped.
    """
    cosine = np.maximum(normals @ to_light.astype(normals.dtype), 0)[:, None]  # (n, 1)
    halfway = unit(to_light - (0, 0, 1)).astype(normals.dtype)  # the viewer is far away, at -z
    highlight = np.maximum(normals @ halfway, 0)[:, None] ** shininess
    return albedo * (ambient + diffuse * cosine) + specular * diffuse * highlight
