"""What is behind the synthetic hand: a green screen, or a blurred jumble of colours and shapes.

Pictures are (S, S, 3) float32 RGB in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np

_CELLS = (3, 6, 13, 30, 70)  # of the octaves of noise, along the side


def draw_green_screen(rng: np.random.Generator, size: int) -> np.ndarray:
    """A green cloth, unevenly lit and not quite smooth."""
    colour = np.float32(rng.uniform(0.75, 1.25, 3) * (0.22, 0.62, 0.28))
    folds = 0.06 * (_noise(rng, size, 3) + _noise(rng, size, 6)) + 0.01 * _noise(rng, size, 70)
    return np.clip(colour * (1 + folds)[..., None], 0, 1)


def draw_backdrop(rng: np.random.Generator, size: int) -> np.ndarray:
    """Three colours mixed by noise of a random roughness, with shapes before them, out of focus."""
    colours = _colours(rng, 3)
    roughness = float(rng.uniform(0.35, 1.1))
    picture = np.tile(colours[0], (size, size, 1))  # float32
    for colour in colours[1:]:
        octaves = sum(roughness**k * _noise(rng, size, cells) for k, cells in enumerate(_CELLS))
        share = 0.5 + 0.5 * np.tanh(float(rng.uniform(0.4, 2)) * octaves)
        picture += share[..., None] * (colour - picture)
    for colour in _colours(rng, int(rng.integers(0, 7))):
        _draw_shape(rng, picture, colour)
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


def _draw_shape(rng: np.random.Generator, picture: np.ndarray, colour: np.ndarray) -> None:
    """Draw an ellipse or a quadrangle, anywhere, into `picture`."""
    size = len(picture)
    centre, axes = rng.uniform(0, size, 2), rng.uniform(0.04, 0.35, 2) * size
    angle = rng.uniform(0, 360)
    value = tuple(float(c) for c in colour)
    if rng.random() < 0.5:
        box = (tuple(centre), tuple(2 * axes), angle)
        cv2.ellipse(picture, box, value, -1, cv2.LINE_8)
    else:
        corners = cv2.boxPoints((tuple(centre), tuple(2 * axes), angle))
        corners = corners + rng.normal(0, 0.15 * axes.min(), (4, 2))
        cv2.fillPoly(picture, [np.rint(corners).astype(np.int32)], value)
