"""Pictures made of textured regions, with the class of each pixel.

Stylised landscapes, streets and rooms. Colours are shared between the classes, so that it takes the
texture to tell them apart. Frames and units: pixels, x to the right, y down, the origin at the upper
left corner of the upper left pixel. Legend for shapes: H, W image height and width. Lengths in the
code are for images whose longer side is 256; everything grows with the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from .textures import TEXTURES, draw_colour, noise

# name: label value, as in ADE20K's annotations: 1 + the index among its 150 classes.
CLASSES: dict[str, int] = {
    "wall": 1,
    "building": 2,
    "sky": 3,
    "floor": 4,
    "tree": 5,
    "road": 7,
    "grass": 10,
    "water": 22,
}
UNLABELLED = 0

_SCALE_AT = 256
_UPRIGHT, _GROUND = ("wall", "building", "tree"), ("floor", "road", "grass", "water")


@dataclass
class Picture:
    """`image` is (H, W, 3) uint8 BGR; `labels` (H, W) uint8 has the values of `CLASSES` and 0 where
    nothing is labelled.
    """

    image: np.ndarray
    labels: np.ndarray


@dataclass
class _Region:
    """`field` (H, W) is positive inside; `name` is None for what no class is for."""

    name: str | None
    field: np.ndarray
    horizon: float | None = None  # y from which the texture recedes, for what lies on the ground
    shadow: bool = False


def _surface(
    rng: np.random.Generator,
    region: _Region,
    x: np.ndarray,
    y: np.ndarray,
    *,
    scale: float,
    bottom: int,
) -> np.ndarray:
    """(h, w, 3) BGR: what the region would look like at `x`, `y`, both (h, w), if it had no end.

    `bottom` is the lower border of the picture.
    """
    u, v = x - float(x.mean()), y - float(y.mean())
    if region.horizon is not None:  # nearer is larger, in both directions alike
        growth = 0.55 / (bottom - region.horizon)
        size = 0.8 + growth * np.maximum(y - region.horizon, 0)
        u, v = u / size, np.log(size) / growth
    tilt = rng.uniform(-0.1, 0.1)
    zoom = scale * rng.uniform(0.88, 1.15)
    cos, sin = math.cos(tilt) / zoom, math.sin(tilt) / zoom
    u, v = u * cos + v * sin, v * cos - u * sin
    if region.name is not None:  # rings stay around the middle
        u, v = u + rng.uniform(0, 500), v + (rng.uniform(0, 500) if region.name != "sky" else 0)
    t = TEXTURES[region.name](rng, u, v)[..., None] * rng.uniform(0.75, 1.1)
    colour = draw_colour(rng, region.name)
    light = 0.4 * colour + 0.6 * np.array([235, 248, 255], np.float32)
    dark = 0.42 * colour + np.array([14, 4, 4], np.float32)
    return colour + np.where(t > 0, light - colour, colour - dark) * np.clip(t, -1.2, 1.2)


class _Layout:
    """Draws the outlines of a scene's regions, from the back to the front."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = shape
        self.scale = max(shape) / _SCALE_AT
        self.y, self.x = np.mgrid[: self.height, : self.width].astype(np.float32) + np.float32(0.5)
        self.horizon = self.height * rng.uniform(0.4, 0.52)
        # What grows has no straight borders.
        grid = self.x / self.scale, self.y / self.scale
        self.rough_x, self.rough_y = (
            c + self.scale * (3 * noise(rng, *grid, 22) + 1.2 * noise(rng, *grid, 9))
            for c in (self.x, self.y)
        )

    def regions(self) -> Iterator[_Region]:
        rng = self.rng
        back, ground = list(rng.permutation(_UPRIGHT)), list(rng.permutation(_GROUND))
        kind = rng.choice(["country", "street", "room"], p=[0.42, 0.4, 0.18])
        if kind == "room":
            ground = ["floor", *(g for g in ground if g != "floor")]
            yield from self._room()
        else:
            yield _Region("sky", np.ones_like(self.x))
            yield from self._street() if kind == "street" else self._country(back)
        yield self._flat(ground[0], self.horizon, 0.0 if kind == "room" else 0.02)
        if kind != "room":
            level = self.horizon + rng.uniform(0.42, 0.6) * (self.height - self.horizon)
            yield self._flat(ground[1], level, 0.05)
        if kind == "room" or rng.random() < 0.75:
            yield self._patch(ground[2])

    def _sines(self, along: np.ndarray) -> np.ndarray:
        """A smooth random curve in about [-1, 1] over x or y."""
        total = np.zeros_like(along)
        for waves, height in ((0.6, 0.6), (1.4, 0.35), (3.1, 0.2)):
            turn = 2 * np.pi * waves * self.rng.uniform(0.8, 1.2) / max(self.width, self.height)
            total += height * np.sin(along * turn + self.rng.uniform(0, 2 * np.pi))
        return total

    def _flat(self, name: str, level: float, swing: float) -> _Region:
        """Ground from about y = `level` downwards."""
        y = self.rough_y if name in ("grass", "water") else self.y
        field = y - level - swing * self.height * self._sines(self.x)
        return _Region(name, field, horizon=self.horizon)

    def _country(self, back: list[str]) -> Iterator[_Region]:
        """Two kinds of hills or walls, the second across a part of the width only."""
        for i, name in enumerate(back[:2]):
            if name == "tree":
                top = self.horizon - self.rng.uniform(0.2, 0.32) * self.height
                bumps = 0.05 * self.height * self._sines(self.x)
                field = self.rough_y - top - bumps
            else:  # long roofs
                top = self.horizon - self.rng.uniform(0.16, 0.28) * self.height
                field = self.y - top - self.rng.uniform(-0.06, 0.06) * (self.x - self.width / 2)
            if i:
                split = self.rng.uniform(0.35, 0.65) * self.width
                x = self.rough_x if name == "tree" else self.x
                field = np.minimum(
                    field, (x - split) * self.rng.choice([-1.0, 1.0]).astype(np.float32)
                )
            yield _Region(name, field, shadow=i > 0)

    def _street(self) -> Iterator[_Region]:
        """Houses side by side, and trees between them."""
        left, name = -self.rng.uniform(0, 0.2) * self.width, ""
        while left < self.width - 24 * self.scale:
            name = self.rng.choice([n for n in _UPRIGHT if n != name])
            wide = self.rng.uniform(0.24, 0.42) * self.width
            if name == "tree":
                yield self.crown(left + wide / 2, self.horizon - 0.4 * wide, 0.65 * wide)
            else:
                top = self.horizon - self.rng.uniform(0.2, 0.38) * self.height
                yield self.house(name, (left, top, left + wide, self.height))
            left += wide * self.rng.uniform(0.95, 1.05)

    def _room(self) -> Iterator[_Region]:
        """A wall with a view through one or two windows."""
        yield _Region("wall", np.ones_like(self.x))
        count = 2 if self.width > 0.9 * self.height else 1
        for i, view in enumerate(self.rng.permutation(["sky", "tree", "building"])[:count]):
            wide = self.rng.uniform(0.6, 0.8) * self.width / count
            left = self.width * i / count + self.rng.uniform(0.1, 0.9) * (self.width / count - wide)
            top = self.rng.uniform(0.03, 0.1) * self.height
            low = self.horizon - self.rng.uniform(0.05, 0.12) * self.height
            yield _Region(view, self._box(left, top, left + wide, low))

    def _box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        across = np.minimum(self.x - left, right - self.x)
        return np.minimum(across, np.minimum(self.y - top, bottom - self.y))

    def house(self, name: str, box: tuple[float, float, float, float]) -> _Region:
        """A front with a flat or a pointed top; box: left, top, right, bottom."""
        field = self._box(*box)
        if self.rng.random() < 0.5:
            slope = self.rng.uniform(0.4, 0.8)
            middle = (box[0] + box[2]) / 2
            field = np.minimum(field, self.y - box[1] - slope * np.abs(self.x - middle))
        return _Region(name, field, shadow=True)

    def crown(self, x: float, y: float, radius: float) -> _Region:
        """Foliage: discs that overlap."""
        field = np.full_like(self.x, -np.inf)
        first = self.rng.uniform(0, 2 * np.pi)
        for i in range(5):
            theta = first + 2 * np.pi * i / 5
            away, r = radius * self.rng.uniform(0.3, 0.5), radius * self.rng.uniform(0.5, 0.7)
            dx, dy = (
                self.rough_x - x - away * math.cos(theta),
                self.rough_y - y - away * math.sin(theta),
            )
            field = np.maximum(field, r - np.hypot(dx, dy))
        return _Region("tree", field, shadow=True)

    def _patch(self, name: str) -> _Region:
        """On the ground: a way that comes towards us, or a pond, lawn or rug."""
        depth = self.height - self.horizon
        if name == "road" or (name == "water" and self.rng.random() < 0.4):
            near = np.maximum(self.y - self.horizon, 0) / depth  # 0 at the horizon, 1 in front
            middle = self.width * (self.rng.uniform(0.3, 0.7) + 0.2 * self._sines(self.y))
            half = self.width * (0.05 + self.rng.uniform(0.14, 0.2) * near)
            field = np.minimum(half - np.abs(self.x - middle), self.y - self.horizon)
        else:
            x = self.width * self.rng.uniform(0.25, 0.75)
            y = self.horizon + depth * self.rng.uniform(0.5, 0.65)
            a, b = self.width * self.rng.uniform(0.26, 0.38), depth * self.rng.uniform(0.26, 0.36)
            gx, gy = (self.x, self.y) if name == "floor" else (self.rough_x, self.rough_y)
            field = 1 - np.hypot((gx - x) / a, (gy - y) / b)
        return _Region(name, field, horizon=self.horizon)

    def thing(self, name: str | None) -> _Region:
        """Something that stands in front."""
        x = self.width * self.rng.uniform(0.12, 0.88)
        radius = self.scale * self.rng.uniform(24, 38)
        if name is None:
            radius *= 0.7
            y = self.height * self.rng.uniform(0.2, 0.8)
            return _Region(None, radius - np.hypot(self.x - x, self.y - y), shadow=True)
        y = self.horizon + (self.height - self.horizon) * self.rng.uniform(0.1, 0.5)
        if name == "tree":
            return self.crown(x, y, radius)
        return self.house(name, (x - radius, y - 1.3 * radius, x + radius, y + 0.8 * radius))


def draw_picture(rng: np.random.Generator, size: tuple[int, int]) -> Picture:
    """Draw a scene of regions that fill the picture.

    Args:
        rng: The only source of randomness.
        size: (width, height) of the image in pixels, the longer side at least 128: at less the
            textures are finer than the pixels.

    Raises:
        ValueError: The size is less.
    """
    if max(size) < 128 or min(size) < 64:
        raise ValueError(
            f"size must be at least 128 on the longer and 64 on the shorter side, got {size}; "
            "draw a larger picture and scale it down"
        )
    shape = (size[1], size[0])
    layout = _Layout(rng, shape)
    scale = layout.scale
    image = np.zeros((*shape, 3), np.float32)
    labels = np.zeros(shape, np.uint8)

    def lay(region: _Region) -> None:
        slope = np.hypot(*np.gradient(region.field))
        distance = region.field / np.maximum(slope, 1e-3)  # to the border, near the border
        alpha = np.clip(distance + 0.5, 0, 1)
        if not (alpha > 0.5).any():
            return
        if region.shadow:
            soft = cv2.GaussianBlur(alpha, (0, 0), 4 * scale)
            image[:] *= 1 - 0.4 * soft[..., None]
        rows, columns = (np.flatnonzero(alpha.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        surface = _surface(
            rng, region, layout.x[box], layout.y[box], scale=scale, bottom=layout.height
        )
        image[box] += (surface - image[box]) * alpha[box][..., None]
        labels[distance > 0] = UNLABELLED if region.name is None else CLASSES[region.name]
        if rng.random() < 0.4:  # annotators leave gaps between outlines
            labels[np.abs(distance) < scale * rng.uniform(0.8, 1.6)] = UNLABELLED

    for region in layout.regions():
        lay(region)
    for name in rng.permutation(_UPRIGHT)[: rng.integers(0, 3)]:
        thing = layout.thing(name)
        # Two of a class must not merge.
        if not (labels[thing.field > -4 * scale] == CLASSES[name]).any():
            lay(thing)
    if rng.random() < 0.2:
        lay(layout.thing(None))

    theta = rng.uniform(0, 2 * np.pi)
    across = (layout.x * math.cos(theta) + layout.y * math.sin(theta)) / max(shape)
    image *= 1 + rng.uniform(0.1, 0.35) * (across - across.mean())[..., None]
    image += (image.mean() - image) * rng.uniform(-0.1, 0.15)  # contrast
    image += rng.uniform(-8, 8)
    image += rng.uniform(1, 5) * rng.standard_normal(image.shape, np.float32)
    _drop_scraps(labels, round((12 * scale) ** 2))
    return Picture(np.clip(np.round(image), 0, 255).astype(np.uint8), labels)


def _drop_scraps(labels: np.ndarray, least: int) -> None:
    """Unlabel, in place, connected parts of a class of fewer than `least` pixels."""
    for value in np.unique(labels[labels != UNLABELLED]):
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8))
        scrap = stats[:, cv2.CC_STAT_AREA] < least
        scrap[0] = False
        labels[scrap[parts]] = UNLABELLED
