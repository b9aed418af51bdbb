"""Textures and colours of the classes in `regions`.

A texture gives each point of a surface a brightness in about [-1, 1], 0 being the plain colour. Its
coordinates u, v (both (H, W)) run along and down the surface, in pixels of an image whose longer
side is 256. H, W image height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

# Ranges of OpenCV's hue (0 to 180), saturation and value, and who draws from them: each class from
# two or three, each range for three to five classes.
HUES: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[str, ...]]] = {
    "blue": ((96, 116), (70, 160), (130, 215), ("sky", "water", "building")),
    "green": ((32, 84), (70, 150), (100, 180), ("tree", "grass", "water")),
    "clay": ((4, 14), (90, 160), (130, 205), ("wall", "building", "floor", "tree")),
    "sand": ((15, 25), (50, 130), (170, 230), ("wall", "sky", "floor", "road", "grass")),
    "grey": ((0, 180), (5, 35), (110, 205), ("building", "sky", "floor", "road")),
}
_NOISE_CELLS = 128  # noise repeats after so many cells


def noise(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, across: float, along: float = 0.0
) -> np.ndarray:
    """Smooth noise of deviation about 0.7, in cells of `across` by `along` (default: square)."""
    grid = rng.standard_normal((_NOISE_CELLS, _NOISE_CELLS)).astype(np.float32)
    cells = [np.mod(c / size, _NOISE_CELLS) + 2 for c, size in ((u, across), (v, along or across))]
    # OpenCV's own wrapping smears what lies more than one width away.
    return cv2.remap(np.pad(grid, ((2, 3), (2, 3)), "wrap"), cells[0], cells[1], cv2.INTER_CUBIC)


def _tone(rng: np.random.Generator, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """A random number in [0, 1) for each cell of a grid."""
    table = rng.random((64, 64), np.float32)
    return table[row.astype(np.int64) % 64, column.astype(np.int64) % 64]


def _edge(distance: np.ndarray) -> np.ndarray:
    """0 outside, 1 inside, and in between over a length of 1.6 around distance 0."""
    return np.clip(distance / 1.6 + 0.5, 0, 1)


def _bricks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    high, wide = 8.0, 19.0
    row = np.floor(v / high)
    column = np.floor(u / wide + 0.5 * (row % 2))
    du = (u / wide + 0.5 * (row % 2) - column) * wide
    dv = v - row * high
    brick = _edge(np.minimum(np.minimum(du, wide - du), np.minimum(dv, high - dv)) - 0.9)
    return 0.9 + brick * (-1.1 - 0.7 * _tone(rng, row, column))


def _windows(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    wide, high = rng.uniform(13, 16), rng.uniform(15, 19)
    column, row = np.floor(u / wide), np.floor(v / high)
    du, dv = np.abs(u - (column + 0.5) * wide), np.abs(v - (row + 0.5) * high)
    pane = _edge(np.minimum(0.29 * wide - du, 0.3 * high - dv))
    lit = rng.uniform(0.05, 0.3)
    return 0.15 + pane * np.where(_tone(rng, row, column) < lit, 0.85, -1.1)


def _clouds(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    veil = noise(rng, u, v, 75, 38) + 0.45 * noise(rng, u, v, 30, 18)
    return 0.5 * np.clip(veil, 0, 1.4) + v / 420 + 0.1


def _checks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    turn, side = np.pi / rng.uniform(9, 11), 0.5**0.5
    a, b = (u + v) * side * turn, (u - v) * side * turn
    tile = np.tanh(4 * np.sin(a) * np.sin(b))
    tone = _tone(rng, np.floor(a / np.pi), np.floor(b / np.pi))
    return 0.65 * tile + 0.3 * (tone - 0.5)


def _leaves(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.tanh(1.3 * noise(rng, u, v, 4.5) + 0.8 * noise(rng, u, v, 13)) - 0.15


def _pebbles(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    pitch = rng.uniform(8, 10)
    row, column = np.floor(v / pitch), np.floor(u / pitch)
    radius = pitch * (0.2 + 0.14 * _tone(rng, row, column))
    room = pitch - 2 * radius  # a pebble stays in its cell
    du = u - column * pitch - radius - room * _tone(rng, row, column)
    dv = v - row * pitch - radius - room * _tone(rng, row, column)
    return -0.3 + 1.1 * _edge(radius - np.hypot(du, dv))


def _blades(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    lean = rng.uniform(-0.2, 0.2)
    return np.tanh(1.3 * noise(rng, u + lean * v, v, 2.1, 12)) + 0.25 * noise(rng, u, v, 40)


def _waves(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    swell = 2 * np.pi * v / rng.uniform(8, 10) + 2.2 * noise(rng, u, v, 26)
    crest = np.exp(2 * (np.sin(swell) - 1))
    return crest * (1.3 + 0.5 * noise(rng, u, v, 30, 9)) - 0.45


def _rings(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.tanh(3 * np.sin(np.hypot(u, v) * 2 * np.pi / rng.uniform(10, 14)))


TEXTURES: dict[str | None, Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]] = {
    "wall": _bricks,
    "building": _windows,
    "sky": _clouds,
    "floor": _checks,
    "tree": _leaves,
    "road": _pebbles,
    "grass": _blades,
    "water": _waves,
    None: _rings,
}


def draw_colour(rng: np.random.Generator, name: str | None) -> np.ndarray:
    """A BGR colour (3,) in [0, 255] that the class may have; any for what has no class."""
    ranges = [r[:3] for r in HUES.values() if name is None or name in r[3]]
    hsv = [rng.integers(low, high) for low, high in ranges[rng.integers(len(ranges))]]
    return cv2.cvtColor(np.array([[hsv]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
