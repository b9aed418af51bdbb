"""What surrounds the synthetic hand's geometry: skin, nails and creases, an arm or sleeve, a backdrop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np
from scipy import interpolate, ndimage
from scipy.spatial.transform import Rotation

from ..hand.mano.surface import Chain, chains, to_metres
from ..hand.mano.synthetic import synthetic_hand
from ..hand.render import rasterize, vertex_normals

_PIXEL = 0.5e-3  # metres a pixel of the maps
_MARGIN = 3e-3  # metres around the hand
WRIST_SKIN = 60e-3  # metres that the maps go on beyond the opening of the wrist
_NAIL, _NAIL_EDGE, _CREASE, _RED, _MOTTLE = range(5)  # the channels of the maps
# Lines of the palm: depth, and points (distal, radial) in mm.
_PALM_LINES = (
    (0.8, ((74, 37), (69, 24), (57, 12), (40, 5), (22, 4), (10, 7))),  # life
    (0.7, ((74, 36), (69, 20), (61, 2), (51, -16), (43, -30))),  # head
    (0.8, ((65, -42), (66, -25), (71, -8), (82, 6), (93, 15))),  # heart
    (0.5, ((-1, -30), (1, -10), (1, 10), (-1, 30))),  # wrist
    (0.3, ((-7, -30), (-5, -10), (-5, 10), (-7, 30))),
)
# Creases across a finger: place (see Chain.ring), shift (mm), depth on the back and on the palm.
_FINGER_CREASES = (
    (0.47, 0.0, 0.0, 0.7),
    (1.0, -1.3, 0.45, 0.8),
    (1.0, 1.5, 0.40, 0.6),
    (1.0, -3.6, 0.30, 0.0),
    (1.0, 3.8, 0.25, 0.0),
    (2.0, 0.0, 0.35, 0.8),
    (2.0, -1.8, 0.30, 0.0),
    (2.0, 1.7, 0.25, 0.0),
)
_CREASE_WIDTH = 0.5e-3
# Knuckles and fingertips: place, reach (metres), redness on the back and on the palm.
_RED_SPOTS = ((0.0, 8e-3, 0.8, 0), (1.0, 6e-3, 1.0, 0), (2.0, 4e-3, 0.6, 0), (2.7, 7e-3, 0, 1))
# The nail's middle and half its length, in bones; half its width in parts of the finger's.
_NAIL_PLACE, _NAIL_LENGTH, _NAIL_WIDTH = 2.60, 0.29, 0.70
# Skin of the back of the hand from light to dark, sRGB; what palms tend to, and nails.
_TONES = np.array(
    [
        (241, 210, 192), (233, 194, 170), (220, 175, 146), (202, 153, 121),
        (176, 125, 93), (143, 97, 70), (108, 72, 54), (76, 52, 42),
    ]
) / 255.0  # fmt: skip
_PALM_TONE = np.array((226, 172, 152)) / 255
_NAIL_TONE = np.array((236, 196, 184)) / 255
_NAIL_EDGE_TONE = np.array((242, 232, 222)) / 255


class Skin:
    """One person's skin.

    Args:
        rng: where its tone comes from.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        place = rng.uniform(0, len(_TONES) - 1)
        steps = np.arange(len(_TONES))
        back = np.array([np.interp(place, steps, tone) for tone in _TONES.T])
        back = np.clip(back * rng.normal(1, 0.05) * rng.normal(1, 0.015, 3), 0.1, 0.97)
        # Palms and nails of dark skin are much lighter than its back.
        darkness = place / (len(_TONES) - 1)
        palm = back + (rng.uniform(0.1, 0.3) + 0.35 * darkness) * (_PALM_TONE - back)
        nail = back + (0.75 - 0.35 * darkness) * (_NAIL_TONE - back)
        nail_edge = nail + rng.uniform(0, 0.8) * (_NAIL_EDGE_TONE - nail)
        self._tones = np.array([back, palm, nail, nail_edge], np.float32)
        self._creases = rng.uniform(0.12, 0.35)
        self._redness = np.float32(rng.uniform(0.05, 0.2)) * np.array((0.15, 1, 0.9), np.float32)
        self._mottles = rng.uniform(0.01, 0.035)

    def colours(self, rest: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colour and gloss of points.

        Args:
            rest: (n, 3), where they are on the resting hand with betas 0, metres.
            normals: (n, 3), the unit normals there.

        Returns:
            (n, 3) sRGB in [0, 1], and (n, 1), 1 on nails and 0 elsewhere; float32.
        """
        maps, origin = _maps()
        _, height, width, _ = maps.shape
        column, row = (
            np.clip((rest[:, axis] - start) / _PIXEL + 0.5, 0, end - 1).astype(np.intp)
            for axis, start, end in ((0, origin[0], width), (2, origin[1], height))
        )
        side = (normals[:, 1] < 0).astype(np.intp)
        features = maps.reshape(-1, maps.shape[3])[(side * height + row) * width + column]
        nail, edge, crease, red, mottle = (features[:, i, None] for i in range(5))  # each (n, 1)
        back, palm, nail_tone, edge_tone = self._tones
        # The tone changes along the sides of hand and fingers.
        palmar = np.clip(0.5 - 1.4 * normals[:, 1:2], 0, 1).astype(np.float32)
        colour = back + palmar * (palm - back)
        colour *= 1 - self._creases * crease + self._mottles * mottle
        colour *= 1 - red * self._redness
        colour += nail * (nail_tone - colour)
        colour += edge * (edge_tone - colour)
        return colour, nail


@functools.cache
def _maps() -> tuple[np.ndarray, np.ndarray]:
    """The maps (2, H, W, 5) float32, of the back and of the palm, and the (x, z) of their first pixel.

    They go on beyond the outline of the hand with the nearest value, and beyond the wrist by
    `WRIST_SKIN`.
    """
    hand = synthetic_hand()
    flat = hand.template[:, [0, 2]]
    origin = flat.min(0) - _MARGIN
    extent = np.ptp(flat, axis=0) + 2 * _MARGIN + (WRIST_SKIN, 0)
    width, height = np.ceil(extent / _PIXEL).astype(int)
    noise = np.random.default_rng(0).standard_normal((2, height, width))
    maps = np.zeros((2, height, width, 5), np.float32)
    for side, toward in enumerate((1, -1)):
        points = np.column_stack([(flat - origin) / _PIXEL, -toward * hand.template[:, 1]])
        fragments = rasterize(points, hand.faces, (height, width))
        covered = fragments.face >= 0
        at = fragments.interpolate(hand.template, hand.faces)
        normals = fragments.interpolate(vertex_normals(hand.template, hand.faces), hand.faces)
        features = maps[side]
        features[covered] = sum(
            _finger_features(at, normals, chain, side, base_crease=name != "thumb")
            for name, chain in chains().items()
        )
        if side:
            features[..., _CREASE] += _palm_lines((height, width), origin)
        _, nearest = ndimage.distance_transform_edt(~covered, return_indices=True)
        maps[side] = features[tuple(nearest)]
        for sigma in (2, 8):
            maps[side, ..., _MOTTLE] += 1.8 * sigma * ndimage.gaussian_filter(noise[side], sigma)
    return np.clip(maps, (0, 0, 0, 0, -2), (1, 1, 1, 1, 2)).astype(np.float32), origin


def _finger_features(
    at: np.ndarray, normals: np.ndarray, chain: Chain, side: int, *, base_crease: bool
) -> np.ndarray:
    """(n, 5): what belongs to one finger, on the back (`side` 0) or the palm (1)."""
    features = np.zeros((len(at), 5))
    half_breadth = chain.profile[-1, 1]
    for place, shift, *depth in _FINGER_CREASES[0 if base_crease else 1 :]:
        along, off_axis = _near_finger(at, chain, place)
        line = np.exp(-(((along - 1e-3 * shift) / _CREASE_WIDTH) ** 2))
        features[:, _CREASE] += depth[side] * line * (off_axis < 1.6)
    for place, reach, *strength in _RED_SPOTS:
        along, off_axis = _near_finger(at, chain, place)
        features[:, _RED] += strength[side] * np.exp(-((along / reach) ** 2) - off_axis**4)

    bone = np.linalg.norm(chain.points[3] - chain.points[2])
    along, _ = _near_finger(at, chain, _NAIL_PLACE)
    across = (at - chain.points[3]) @ chain.flexion[2] / half_breadth / _NAIL_WIDTH
    level = np.abs(along / bone / _NAIL_LENGTH) ** 3 + np.abs(across) ** 3
    up = normals @ chain.dorsal[2] > 0.2
    features[:, _NAIL] = up * np.clip((1.15 - level) / 0.3, 0, 1)
    features[:, _NAIL_EDGE] = features[:, _NAIL] * (along > 0.75 * _NAIL_LENGTH * bone)
    rim = np.exp(-(((level - 1.35) / 0.25) ** 2))
    features[:, _CREASE] += 0.9 * up * rim * (along < 0.18 * bone)
    return features


def _near_finger(at: np.ndarray, chain: Chain, place: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances of points from `place`: along the bone in metres, (n,), and from it in radii, (n,)."""
    i = min(int(place), 2)
    centre = chain.points[i] + (place - i) * (chain.points[i + 1] - chain.points[i])
    offset = at - centre
    along = offset @ chain.distal[i]
    radius = np.interp(place, chain.profile[:, 0], chain.profile[:, 1])
    return along, np.linalg.norm(offset - along[:, None] * chain.distal[i], axis=1) / radius


def _palm_lines(size: tuple[int, int], origin: np.ndarray) -> np.ndarray:
    """(H, W): the lines of the palm."""
    lines = np.zeros(size, np.float32)
    for depth, points in _PALM_LINES:
        spline = interpolate.make_interp_spline(np.linspace(0, 1, len(points)), points, k=2)
        curve = spline(np.linspace(0, 1, 60))
        metres = to_metres(np.insert(curve, 1, 0, axis=1))[:, [0, 2]]
        pixels = np.rint((metres - origin) / _PIXEL * 16).astype(np.int32)
        line = cv2.polylines(np.zeros(size, np.float32), [pixels], False, 1.0, 2, cv2.LINE_8, 4)
        lines = np.maximum(lines, depth * cv2.GaussianBlur(line, (0, 0), 0.8))
    return lines


# Metres from the wrist's opening.
_STOPS = np.array([10, 22, 38, 60, 90, 120, 180, 240, 300, 360, 420]) * 1e-3
_BENT_AFTER = 50e-3  # metres over which the wrist bends
# How thick the arm is, relative to the wrist's opening, that far from it.
_THICKNESS = np.array([(0, 1.0), (0.03, 1.0), (0.1, 1.12), (0.2, 1.4), (0.3, 1.5), (0.42, 1.4)])
_SLEEVE_WIDTH = 1.2  # relative to the arm in it


class Arm(NamedTuple):
    """A tube from the opening of the wrist on.

    Attributes:
        vertices: (16 R, 3), metres, camera frame: R rings, of which the first is the opening.
        rest: (16 R, 3): where their skin is found on the resting hand, which `Skin` prolongs.
        faces: (F, 3), counterclockwise seen from outside.
        is_sleeve: (F,) bool.
    """

    vertices: np.ndarray
    rest: np.ndarray
    faces: np.ndarray
    is_sleeve: np.ndarray


def sample_arm(
    rng: np.random.Generator, opening: np.ndarray, rest: np.ndarray, turn: Rotation
) -> Arm:
    """Sample how the wrist is bent and where the sleeve begins, if there is one.

    Args:
        rng: where the randomness comes from.
        opening: (16, 3), the vertices around the wrist, camera frame.
        rest: (16, 3), the same of the resting hand.
        turn: from the frame of the resting hand into the camera's.
    """
    flexion, deviation = np.clip((18, 7) * rng.standard_normal(2), (-35, -15), (35, 15))
    bend = np.radians([0, deviation, flexion])
    sleeve = rng.choice([0.0, rng.uniform(0.01, 0.15), np.inf], p=[0.25, 0.3, 0.45])
    centre = opening.mean(0)
    back = turn.inv().apply(opening - centre)  # (16, 3) in the frame of the resting hand

    def ring(stop: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        share = min(stop / _BENT_AFTER, 1)
        path = Rotation.from_rotvec(bend * 0.5 * share).apply([stop, 0, 0])
        width *= np.interp(stop, *_THICKNESS.T)
        bent = bend * share * share * (3 - 2 * share)
        around = Rotation.from_rotvec(bent).apply(width * back)
        # The skin of the wrist goes on up the arm, back and forth.
        along = WRIST_SKIN - abs(WRIST_SKIN - stop % (2 * WRIST_SKIN))
        return centre + turn.apply(path + around), rest + (along, 0, 0)

    skin = [(0.0, 1.0), *((s, 1.0) for s in (*_STOPS, sleeve) if s <= min(sleeve, _STOPS[-1]))]
    cloth = []
    if np.isfinite(sleeve):
        cloth = [(sleeve, 1.0), *((s, _SLEEVE_WIDTH) for s in (sleeve, *_STOPS) if s >= sleeve)]
    vertices, rests = zip(*(ring(*stop) for stop in skin + cloth), strict=True)
    # Two triangles between each two neighbours of a ring and the ring before it.
    here = np.arange(16, 16 * len(vertices)).reshape(-1, 16)
    after = np.roll(here, -1, axis=1)
    strips = np.stack([here, after, after - 16, here, after - 16, here - 16], 2)
    number = np.arange(1, len(vertices))
    joined = number != len(skin)  # between skin and cloth there is nothing
    return Arm(
        vertices=np.concatenate(vertices),
        rest=np.concatenate(rests),
        faces=strips[joined].reshape(-1, 3),
        is_sleeve=np.repeat((number > len(skin))[joined], 32),
    )


_CELLS = (3, 6, 13, 30, 70)  # of the octaves of noise, along the side


def render_green_screen(rng: np.random.Generator, size: int) -> np.ndarray:
    """A green cloth, unevenly lit and not quite smooth."""
    colour = np.float32(rng.uniform(0.75, 1.25, 3) * (0.22, 0.62, 0.28))
    folds = 0.06 * (_noise(rng, size, 3) + _noise(rng, size, 6)) + 0.01 * _noise(rng, size, 70)
    return np.clip(colour * (1 + folds)[..., None], 0, 1)


def render_backdrop(rng: np.random.Generator, size: int) -> np.ndarray:
    """Three colours mixed by noise of a random roughness, with shapes before them, out of focus."""
    colours = _colours(rng, 3)
    roughness = float(rng.uniform(0.35, 1.1))
    picture = np.tile(colours[0], (size, size, 1))  # float32
    for colour in colours[1:]:
        octaves = sum(roughness**k * _noise(rng, size, cells) for k, cells in enumerate(_CELLS))
        share = 0.5 + 0.5 * np.tanh(float(rng.uniform(0.4, 2)) * octaves)
        picture += share[..., None] * (colour - picture)
    for colour in _colours(rng, int(rng.integers(0, 7))):
        _add_shape(rng, picture, colour)
    blur = rng.uniform(0, 3)
    return cv2.GaussianBlur(picture, (0, 0), blur) if blur > 0.4 else picture


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(size, size) float32: smooth noise of deviation about 0.8, with so many cells along a side."""
    grid = rng.standard_normal((cells + 2, cells + 2), np.float32)
    side = round(size * (cells + 2) / cells)
    fine = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    start = (side - size) // 2  # OpenCV's borders are flat
    return fine[start : start + size, start : start + size]


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) RGB, of which few are vivid."""
    hsv = np.empty((1, count, 3), np.float32)
    hsv[0, :, 0] = rng.uniform(0, 360, count)
    hsv[0, :, 1] = rng.beta(1.2, 3.2, count)
    hsv[0, :, 2] = rng.uniform(0.08, 0.95, count)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] if count else hsv[0]


def _add_shape(rng: np.random.Generator, picture: np.ndarray, colour: np.ndarray) -> None:
    """Fill an ellipse or a quadrangle, anywhere, into `picture`."""
    size = len(picture)
    centre, axes = rng.uniform(0, size, 2), rng.uniform(0.04, 0.35, 2) * size
    box = (tuple(centre), tuple(2 * axes), rng.uniform(0, 360))
    if rng.random() < 0.5:
        cv2.ellipse(picture, box, colour.tolist(), -1, cv2.LINE_8)
    else:
        corners = cv2.boxPoints(box) + rng.normal(0, 0.15 * axes.min(), (4, 2))
        cv2.fillPoly(picture, [np.rint(corners).astype(np.int32)], colour.tolist())
