"""Pictures of textured regions with the class of each pixel, in ADE20K's layout."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .files import check_ranges, new_folder, sample_size, write_jpeg

# name: label value, as in ADE20K's annotations: 1 + the index among its 150 classes.
CLASSES = dict(wall=1, building=2, sky=3, floor=4, tree=5, road=7, grass=10, water=22)
UNLABELLED = 0
# Ranges of OpenCV's hue (0 to 180), saturation and value, and the classes that sample from them: each
# class from two or three, each range for three to five classes.
Range = tuple[int, int]
HUES: dict[str, tuple[Range, Range, Range, tuple[str, ...]]] = {
    "blue": ((96, 116), (70, 160), (130, 215), ("sky", "water", "building")),
    "green": ((32, 84), (70, 150), (100, 180), ("tree", "grass", "water")),
    "clay": ((4, 14), (90, 160), (130, 205), ("wall", "building", "floor", "tree")),
    "sand": ((15, 25), (50, 130), (170, 230), ("wall", "sky", "floor", "road", "grass")),
    "grey": ((0, 180), (5, 35), (110, 205), ("building", "sky", "floor", "road")),
}
_UPRIGHT, _GROUND = ("wall", "building", "tree"), ("floor", "road", "grass", "water")
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
    return rng.random((64, 64), np.float32)[row.astype(int) % 64, column.astype(int) % 64]


def _edge(distance: np.ndarray) -> np.ndarray:
    """0 outside, 1 inside, and in between over a length of 1.6 around distance 0."""
    return np.clip(distance / 1.6 + 0.5, 0, 1)


def _bricks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    high, wide = 8.0, 19.0
    row = np.floor(v / high)
    column = np.floor(u / wide + 0.5 * (row % 2))
    du, dv = (u / wide + 0.5 * (row % 2) - column) * wide, v - row * high
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
    tone = _tone(rng, np.floor(a / np.pi), np.floor(b / np.pi))
    return 0.65 * np.tanh(4 * np.sin(a) * np.sin(b)) + 0.3 * (tone - 0.5)


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


class _Scene:
    """A picture that is painted from the back to the front.

    The outline of a region is a field (H, W), positive inside. Its name is None for what no class is for.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.width, self.height = size
        self.scale = max(size) / 256
        self.y, self.x = np.mgrid[: self.height, : self.width].astype(np.float32) + np.float32(0.5)
        self.image = np.zeros((*self.x.shape, 3), np.float32)
        self.labels = np.zeros(self.x.shape, np.uint8)
        self.horizon = self.height * rng.uniform(0.4, 0.52)
        grid = self.x / self.scale, self.y / self.scale
        self.rough = [
            c + self.scale * (3 * noise(rng, *grid, 22) + 1.2 * noise(rng, *grid, 9))
            for c in (self.x, self.y)
        ]

    def lay(
        self, name: str | None, field: np.ndarray, *, flat: bool = False, shadow: bool = False
    ) -> None:
        """Paint and label a region; `flat`: it lies on the ground, so its texture recedes."""
        slope = np.hypot(*np.gradient(field))
        distance = field / np.maximum(slope, 1e-3)  # to the border, near the border
        alpha = np.clip(distance + 0.5, 0, 1)
        if not (alpha > 0.5).any():
            return
        if shadow:
            soft = cv2.GaussianBlur(alpha, (0, 0), 4 * self.scale)
            self.image *= 1 - 0.4 * soft[..., None]
        rows, columns = (np.flatnonzero(alpha.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        surface = self._surface(name, self.x[box], self.y[box], flat=flat)
        self.image[box] += (surface - self.image[box]) * alpha[box][..., None]
        self.labels[distance > 0] = UNLABELLED if name is None else CLASSES[name]
        if self.rng.random() < 0.4:  # annotators leave gaps between outlines
            self.labels[np.abs(distance) < self.scale * self.rng.uniform(0.8, 1.6)] = UNLABELLED

    def _surface(self, name: str | None, x: np.ndarray, y: np.ndarray, *, flat: bool) -> np.ndarray:
        """(h, w, 3) BGR: what the region would look like at `x`, `y`, both (h, w), if it had no end."""
        rng = self.rng
        u, v = x - float(x.mean()), y - float(y.mean())
        if flat:  # nearer is larger, in both directions alike
            growth = 0.55 / (self.height - self.horizon)
            size = 0.8 + growth * np.maximum(y - self.horizon, 0)
            u, v = u / size, np.log(size) / growth
        tilt = rng.uniform(-0.1, 0.1)
        zoom = self.scale * rng.uniform(0.88, 1.15)
        cos, sin = math.cos(tilt) / zoom, math.sin(tilt) / zoom
        u, v = u * cos + v * sin, v * cos - u * sin
        if name is not None:  # rings stay around the middle
            u, v = u + rng.uniform(0, 500), v + (rng.uniform(0, 500) if name != "sky" else 0)
        t = TEXTURES[name](rng, u, v)[..., None] * rng.uniform(0.75, 1.1)
        ranges = [r[:3] for r in HUES.values() if name is None or name in r[3]]
        hsv = [rng.integers(low, high) for low, high in ranges[rng.integers(len(ranges))]]
        colour = cv2.cvtColor(np.array([[hsv]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(
            np.float32
        )
        light = 0.4 * colour + 0.6 * np.array([235, 248, 255], np.float32)
        dark = 0.42 * colour + np.array([14, 4, 4], np.float32)
        return colour + np.where(t > 0, light - colour, colour - dark) * np.clip(t, -1.2, 1.2)

    def background(self) -> None:
        """Everything that fills the picture: a country, a street or a room, and its ground."""
        rng = self.rng
        back, ground = list(rng.permutation(_UPRIGHT)), list(rng.permutation(_GROUND))
        kind = rng.choice(["country", "street", "room"], p=[0.42, 0.4, 0.18])
        room = kind == "room"
        self.lay("wall" if room else "sky", np.ones_like(self.x))
        if room:
            ground.sort(key=lambda name: name != "floor")
            self._room()
        elif kind == "street":
            self._street()
        else:
            self._country(back)
        self._ground(ground[0], self.horizon, 0.0 if room else 0.02)
        if not room:
            level = self.horizon + rng.uniform(0.42, 0.6) * (self.height - self.horizon)
            self._ground(ground[1], level, 0.05)
        if room or rng.random() < 0.75:
            self._patch(ground[2])

    def _grid(self, name: str) -> list[np.ndarray]:
        """x and y for an outline: what grows or flows has no straight borders."""
        return self.rough if name in ("tree", "grass", "water") else [self.x, self.y]

    def _sines(self, along: np.ndarray) -> np.ndarray:
        """A smooth random curve in about [-1, 1] over x or y."""
        total = np.zeros_like(along)
        for waves, height in ((0.6, 0.6), (1.4, 0.35), (3.1, 0.2)):
            turn = 2 * np.pi * waves * self.rng.uniform(0.8, 1.2) / max(self.width, self.height)
            total += height * np.sin(along * turn + self.rng.uniform(0, 2 * np.pi))
        return total

    def _ground(self, name: str, level: float, swing: float) -> None:
        """Ground from about y = `level` downwards."""
        _, y = self._grid(name)
        self.lay(name, y - level - swing * self.height * self._sines(self.x), flat=True)

    def _country(self, back: list[str]) -> None:
        """Two kinds of hills or walls, the second across a part of the width only."""
        for i, name in enumerate(back[:2]):
            x, y = self._grid(name)
            if name == "tree":
                top = self.horizon - self.rng.uniform(0.2, 0.32) * self.height
                field = y - top - 0.05 * self.height * self._sines(self.x)
            else:  # long roofs
                top = self.horizon - self.rng.uniform(0.16, 0.28) * self.height
                field = y - top - self.rng.uniform(-0.06, 0.06) * (x - self.width / 2)
            if i:
                split = self.rng.uniform(0.35, 0.65) * self.width
                side = self.rng.choice([-1.0, 1.0]).astype(np.float32)
                field = np.minimum(field, (x - split) * side)
            self.lay(name, field, shadow=i > 0)

    def _street(self) -> None:
        """Houses side by side, and trees between them."""
        left, name = -self.rng.uniform(0, 0.2) * self.width, ""
        while left < self.width - 24 * self.scale:
            name = self.rng.choice([n for n in _UPRIGHT if n != name])
            wide = self.rng.uniform(0.24, 0.42) * self.width
            if name == "tree":
                field = self._crown(left + wide / 2, self.horizon - 0.4 * wide, 0.65 * wide)
            else:
                top = self.horizon - self.rng.uniform(0.2, 0.38) * self.height
                field = self._house(left, top, left + wide, self.height)
            self.lay(name, field, shadow=True)
            left += wide * self.rng.uniform(0.95, 1.05)

    def _room(self) -> None:
        """A view through one or two windows."""
        count = 2 if self.width > 0.9 * self.height else 1
        for i, view in enumerate(self.rng.permutation(["sky", "tree", "building"])[:count]):
            wide = self.rng.uniform(0.6, 0.8) * self.width / count
            left = self.width * i / count + self.rng.uniform(0.1, 0.9) * (self.width / count - wide)
            top = self.rng.uniform(0.03, 0.1) * self.height
            low = self.horizon - self.rng.uniform(0.05, 0.12) * self.height
            self.lay(view, self._box(left, top, left + wide, low))

    def _box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        across = np.minimum(self.x - left, right - self.x)
        return np.minimum(across, np.minimum(self.y - top, bottom - self.y))

    def _house(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        """A front with a flat or a pointed top."""
        field = self._box(left, top, right, bottom)
        if self.rng.random() < 0.5:
            slope = self.rng.uniform(0.4, 0.8)
            field = np.minimum(field, self.y - top - slope * np.abs(self.x - (left + right) / 2))
        return field

    def _crown(self, x: float, y: float, radius: float) -> np.ndarray:
        """Foliage: five discs that overlap."""
        field = np.full_like(self.x, -np.inf)
        for theta in self.rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(5) / 5:
            away, r = radius * self.rng.uniform(0.3, 0.5), radius * self.rng.uniform(0.5, 0.7)
            dx = self.rough[0] - x - away * math.cos(theta)
            dy = self.rough[1] - y - away * math.sin(theta)
            field = np.maximum(field, r - np.hypot(dx, dy))
        return field

    def _patch(self, name: str) -> None:
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
            gx, gy = self._grid(name)
            field = 1 - np.hypot((gx - x) / a, (gy - y) / b)
        self.lay(name, field, flat=True)

    def foreground(self) -> None:
        """Up to two things that stand in front, and seldom one that no class is for."""
        names = list(self.rng.permutation(_UPRIGHT)[: self.rng.integers(0, 3)])
        for name in names:
            x, radius = self._place()
            y = self.horizon + (self.height - self.horizon) * self.rng.uniform(0.1, 0.5)
            if name == "tree":
                field = self._crown(x, y, radius)
            else:
                field = self._house(x - radius, y - 1.3 * radius, x + radius, y + 0.8 * radius)
            # Two of a class must not merge.
            if not (self.labels[field > -4 * self.scale] == CLASSES[name]).any():
                self.lay(name, field, shadow=True)
        if self.rng.random() < 0.2:
            x, radius = self._place()
            y = self.height * self.rng.uniform(0.2, 0.8)
            self.lay(None, 0.7 * radius - np.hypot(self.x - x, self.y - y), shadow=True)

    def _place(self) -> tuple[float, float]:
        """The x and the radius of a thing in front."""
        return self.width * self.rng.uniform(0.12, 0.88), self.scale * self.rng.uniform(24, 38)

    def photograph(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture in uneven light, with noise, and without labels on what is too small."""
        rng, image = self.rng, self.image
        theta = rng.uniform(0, 2 * np.pi)
        across = (self.x * math.cos(theta) + self.y * math.sin(theta)) / max(image.shape)
        image *= 1 + rng.uniform(0.1, 0.35) * (across - across.mean())[..., None]
        image += (image.mean() - image) * rng.uniform(-0.1, 0.15)  # contrast
        image += rng.uniform(-8, 8)
        image += rng.uniform(1, 5) * rng.standard_normal(image.shape, np.float32)
        for value in np.unique(self.labels[self.labels != UNLABELLED]):
            one = (self.labels == value).astype(np.uint8)
            _, parts, stats, _ = cv2.connectedComponentsWithStats(one)
            scrap = stats[:, cv2.CC_STAT_AREA] < round((12 * self.scale) ** 2)
            self.labels[scrap[parts] & (one > 0)] = UNLABELLED
        return np.clip(np.round(image), 0, 255).astype(np.uint8), self.labels


def render_picture(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Render a scene of regions that fill the picture.

    Args:
        rng: The only source of randomness.
        size: (width, height) of the image in pixels, the longer side at least 128: at less the
            textures are finer than the pixels.

    Returns:
        The image (H, W, 3) uint8 BGR; and the labels (H, W) uint8, with the values of `CLASSES` and 0
        where nothing is labelled.
    """
    scene = _Scene(rng, size)
    scene.background()
    scene.foreground()
    return scene.photograph()


def write_ade20k(
    out: str | os.PathLike[str],
    *,
    train: int = 240,
    val: int = 60,
    seed: int = 0,
    size: int = 256,
    overwrite: bool = False,
) -> Path:
    """Write an ADE20K-format semantic segmentation data set of rendered, textured regions.

    Layout, as ADEChallengeData2016's: `images/{training,validation}/ADE_{train,val}_%08d.jpg`,
    numbered from 1, and `annotations/{training,validation}/` with a PNG of the same stem for each:
    8 bit, one channel, the values of `CLASSES` (which are ADE20K's) and 0 for unlabelled.
    The same arguments give the same bytes, and image i of a split does not depend on how many
    follow it.

    Args:
        out: Folder to create.
        train: Images to train on, at least 1.
        val: Held-out images, at least 1.
        seed: Non-negative; other seeds give other images.
        size: Longer side of every image in pixels, at least 128. The textures grow with it.
        overwrite: Whether to replace a data set that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: An argument is out of range, or `out` must not be written to.
    """
    check_ranges(train, val, seed, size=(size, 128, 4096))
    splits = (("training", "ADE_train", train), ("validation", "ADE_val", val))
    with new_folder(out, overwrite=overwrite, holds=("images", "annotations")) as folder:
        for number, (split, stem, count) in enumerate(splits):
            images, annotations = folder / "images" / split, folder / "annotations" / split
            images.mkdir(parents=True)
            annotations.mkdir(parents=True)
            for i in tqdm(range(count), desc=split, unit="image", disable=None):
                rng = np.random.default_rng([seed, number, i])
                image, labels = render_picture(rng, sample_size(rng, size))
                write_jpeg(images / f"{stem}_{i + 1:08d}.jpg", image)
                cv2.imwrite(str(annotations / f"{stem}_{i + 1:08d}.png"), labels)
    return Path(out)
