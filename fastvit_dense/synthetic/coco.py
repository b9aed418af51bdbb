"""Pictures of overlapping shapes with the visible region of each, in COCO's layout."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from .files import _check, _draw_size, new_folder, write_jpeg

# name: (COCO category id, area of the shape whose outermost point is at distance 1 from its
# centre). The ids have gaps, as COCO's have: a reader that takes them for indices fails on this
# data too.
_STAR_WAIST, _RING_HOLE = 0.5, 0.55
SHAPES: dict[str, tuple[int, float]] = {
    "disc": (1, np.pi),
    "square": (3, 2.0),
    "triangle": (4, 0.75 * np.sqrt(3.0)),
    "star": (7, 5 * _STAR_WAIST * np.sin(np.pi / 5)),
    "ring": (13, np.pi * (1 - _RING_HOLE**2)),
}
CLASSES = tuple(SHAPES)
# Side of the square of the same area, for images whose longer side is 192: COCO's bins end at 32
# and 96.
_SIDES = {"small": (17.0, 30.0), "medium": (35.0, 85.0), "large": (102.0, 122.0)}
_SIDES_AT = 192
_MIN_INSIDE, _MIN_VISIBLE = 0.9, 0.75  # of the area an object would have alone on an endless canvas
# Shapes stand upright, give or take, as most things in photographs do: in any rotation their classes
# take a network that starts from nothing about twice as long to tell apart.
_TILT = np.deg2rad(25)
_SUPERSAMPLE = 4
_INKS = (
    "#e4572e",
    "#f3a712",
    "#2e86ab",
    "#6a4c93",
    "#43aa8b",
    "#d81159",
    "#8ac926",
    "#1d3557",
    "#ff8fab",
    "#7f5539",
)
_PAPERS = ("#f4f1de", "#e0e7e9", "#cfd8c0", "#f2d9c9", "#3b4252", "#264653", "#d8d2e1", "#4a4e69")


@dataclass
class Drawn:
    """One object of a scene: `alpha` (H, W) in [0, 1] is what it would cover if nothing hid it."""

    name: str
    alpha: np.ndarray
    colour: np.ndarray  # (H, W, 3) BGR in [0, 255]
    full_area: float
    is_crowd: bool = False


@dataclass
class Scene:
    """A picture and what is seen where.

    `image` is (H, W, 3) uint8 BGR; `labels` (H, W) is 0 for background and i + 1 for `objects[i]`.
    """

    image: np.ndarray
    labels: np.ndarray
    objects: list[Drawn]


def _bgr(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (5, 3, 1)], np.float32)


def _outline(name: str, radius: float, angle: float) -> list[np.ndarray]:
    """Polygons (n, 2) around the origin; those after the first are holes. Angle 0 is upright."""

    def around(count: int, *radii: float) -> np.ndarray:
        first = np.pi / 4 if count == 4 else -np.pi / 2  # a square lies on a side; others point up
        theta = angle + first + np.arange(count) * 2 * np.pi / count
        r = np.resize(radii, count)
        return np.stack([r * np.cos(theta), r * np.sin(theta)], axis=1)

    if name == "disc":
        return [around(90, radius)]
    if name == "ring":
        return [around(90, radius), around(90, _RING_HOLE * radius)]
    if name == "star":
        return [around(10, radius, _STAR_WAIST * radius)]
    return [around({"triangle": 3, "square": 4}[name], radius)]


def _coverage(
    name: str, *, radius: float, angle: float, centre: tuple[float, float], shape: tuple[int, int]
) -> np.ndarray:
    """(H, W) in [0, 1]: the part of each pixel that a shape with rounded corners covers."""
    height, width = shape
    big = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    corner = 0.08 * radius if name in ("square", "triangle", "star") else 0.0
    bits = 4  # fractional bits of OpenCV's fixed-point coordinates
    for i, polygon in enumerate(_outline(name, radius - corner, angle)):
        # OpenCV's integer coordinates are pixel centres, ours are pixel corners: hence the half.
        points = ((polygon + centre) * _SUPERSAMPLE - 0.5) * 2**bits
        points = np.round(points).astype(np.int32)[None]
        cv2.fillPoly(big, points, 0 if i else 255, shift=bits)
        if corner * _SUPERSAMPLE >= 1:
            thickness = round(2 * corner * _SUPERSAMPLE)
            cv2.polylines(big, points, True, 255, thickness=thickness, shift=bits)
    return cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _texture(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """(H, W) in about [-1, 1]: stripes, dots, blotches or nothing, plus a slope of brightness."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    theta, period = rng.uniform(0, np.pi), scale * rng.uniform(6, 14)
    u = (x * np.cos(theta) + y * np.sin(theta)) * 2 * np.pi / period
    v = (y * np.cos(theta) - x * np.sin(theta)) * 2 * np.pi / period
    kind = rng.integers(4)
    if kind == 0:
        pattern = np.tanh(2 * np.sin(u))
    elif kind == 1:
        pattern = np.tanh(3 * (np.sin(u) * np.sin(v) - 0.3))
    elif kind == 2:
        grid = rng.standard_normal((max(2, int(height / period)), max(2, int(width / period))))
        pattern = cv2.resize(
            grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    else:
        pattern = np.zeros(shape, np.float32)
    theta = rng.uniform(0, 2 * np.pi)
    slope = (x * np.cos(theta) + y * np.sin(theta)) / max(shape)
    return 0.4 * pattern + 1.2 * (slope - slope.mean())


def _paint(
    rng: np.random.Generator, colour: np.ndarray, shape: tuple[int, int], scale: float
) -> np.ndarray:
    """(H, W, 3): `colour`, lightened and darkened by a texture."""
    t = _texture(rng, shape, scale)[..., None]
    towards = np.where(t > 0, 255.0, 0.0)
    return colour + (towards - colour) * 0.15 * np.abs(t)


def _seen(objects: list[Drawn]) -> np.ndarray:
    """(n + 1, H, W): each pixel's share of background and objects, later ones in front."""
    shares = []
    free = np.ones_like(objects[0].alpha)
    for drawn in reversed(objects):
        shares.append(drawn.alpha * free)
        free = free * (1 - drawn.alpha)
    return np.stack([free, *reversed(shares)])


def _fits(objects: list[Drawn]) -> bool:
    """Whether the newest object lies in the image and leaves enough of the others to be seen."""
    if objects[-1].alpha.sum() < _MIN_INSIDE * objects[-1].full_area:
        return False
    seen = _seen(objects)[1:].sum(axis=(1, 2))
    return all(s >= _MIN_VISIBLE * o.full_area for s, o in zip(seen, objects, strict=True))


def _crowd(
    rng: np.random.Generator, shape: tuple[int, int], scale: float, inks: list[np.ndarray]
) -> Drawn:
    """A dense patch of tiny shapes of one class, each in its own colour."""
    height, width = shape
    name = CLASSES[rng.integers(len(CLASSES))]
    tiny, (a, b) = 6.0 * scale, scale * rng.uniform(22, 36, 2)
    centre = rng.uniform([0.2 * width, 0.2 * height], [0.8 * width, 0.8 * height])
    alpha = np.zeros(shape, np.float32)
    colour = np.zeros((*shape, 3), np.float32)
    for row, gy in enumerate(np.arange(-b, b + tiny, 1.7 * tiny)):
        for gx in np.arange(-a, a + tiny, 1.9 * tiny) + (row % 2) * 0.95 * tiny:
            if (gx / a) ** 2 + (gy / b) ** 2 > 1:
                continue
            x, y = centre + [gx, gy] + rng.uniform(-0.4, 0.4, 2) * tiny
            one = _coverage(
                name, radius=tiny, angle=rng.uniform(-_TILT, _TILT), centre=(x, y), shape=shape
            )
            ink = inks[rng.integers(len(inks))]
            colour += (ink - colour) * one[..., None]
            alpha = np.maximum(alpha, one)
    # Colours were laid over black: undo that at the soft edges.
    colour /= np.maximum(alpha, 1e-3)[..., None]
    return Drawn(name, alpha, np.minimum(colour, 255), full_area=float(alpha.sum()), is_crowd=True)


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], *, count: int, crowd: bool = False
) -> Scene:
    """Draw up to `count` shapes, the larger mostly behind the smaller, and on request a crowd of
    tiny ones.

    Args:
        rng: The only source of randomness.
        size: (width, height) of the image in pixels.
        count: Shapes wanted. One that cannot be placed without leaving the image or hiding most of
            another is left out, of the picture as of the labels: whatever is drawn is labelled.
        crowd: Whether to add the crowd, in front of everything.
    """
    width, height = size
    shape, scale = (height, width), max(size) / _SIDES_AT
    paper = _bgr(_PAPERS[rng.integers(len(_PAPERS))])
    inks = [_bgr(c) for c in rng.permutation(_INKS)]
    inks = [
        ink for ink in inks if np.abs(ink - paper).sum() > 170
    ]  # a shape must stand out from its ground

    # A large shape needs room; two would hide each other.
    wanted = list(rng.choice(["small", "medium"], max(count, 0), p=[0.3, 0.7]))
    if wanted and min(size) >= 0.75 * max(size) and rng.random() < 0.4:
        wanted[0] = "large"
    sides = sorted(
        (rng.uniform(*_SIDES[w]) * scale for w in wanted), key=lambda s: -s * rng.uniform(0.7, 1.4)
    )

    objects: list[Drawn] = []
    for i, side in enumerate(sides):
        name = CLASSES[rng.integers(len(CLASSES))]
        radius, colour = (
            side / np.sqrt(SHAPES[name][1]),
            _paint(rng, inks[i % len(inks)], shape, scale),
        )
        for _ in range(30):
            centre = (rng.uniform(0, width), rng.uniform(0, height))
            alpha = _coverage(
                name, radius=radius, angle=rng.uniform(-_TILT, _TILT), centre=centre, shape=shape
            )
            objects.append(Drawn(name, alpha, colour, full_area=side**2))
            if _fits(objects):
                break
            objects.pop()
    for _ in range(100 if crowd else 0):
        objects.append(_crowd(rng, shape, scale, inks))
        if _fits(objects):
            break
        objects.pop()

    image = _paint(rng, paper, shape, 2 * scale).astype(np.float32)
    shift = np.array([[1, 0, 2.0 * scale], [0, 1, 3.0 * scale]])
    for drawn in objects:
        shadow = cv2.GaussianBlur(cv2.warpAffine(drawn.alpha, shift, size), (0, 0), 2.5 * scale)
        image *= 1 - 0.35 * shadow[..., None]
        image += (drawn.colour - image) * drawn.alpha[..., None]
    image += rng.normal(0, 3.0, image.shape)

    # A pixel belongs to whatever takes the largest share of it, so that masks never overlap.
    labels = _seen(objects).argmax(axis=0) if objects else np.zeros(shape, np.int64)
    for i, drawn in enumerate(objects, start=1):
        if (
            drawn.is_crowd
        ):  # annotators outline a crowd as one region, gaps between its members included
            kernel = np.ones((round(9 * scale) | 1,) * 2, np.uint8)
            closed = cv2.morphologyEx((labels == i).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
            labels[(closed == 1) & (labels == 0)] = i
    return Scene(np.clip(np.round(image), 0, 255).astype(np.uint8), labels, objects)


def trace_outline(mask: np.ndarray) -> list[np.ndarray]:
    """Follow the pixel edges around a mask (H, W) bool: one polygon (n, 2) of corner points for
    each closed line.

    Lines around the outside of a part run clockwise on the screen (positive shoelace area), those
    around holes the other way. Parts that touch only at a corner are separate. Filled, they give
    exactly the mask again.
    """
    m = np.pad(mask.astype(bool), 1)
    inner = m[1:-1, 1:-1]
    after: dict[
        tuple[int, int], list[tuple[int, int]]
    ] = {}  # corner -> directions of the edges that leave it
    # Edges keep the mask at their right hand: (rows, columns shift of the empty neighbour), start
    # corner, direction.
    for outside, (sx, sy), direction in (
        (~m[:-2, 1:-1], (0, 0), (1, 0)),  # empty above: run right along the upper edge
        (~m[1:-1, 2:], (1, 0), (0, 1)),
        (~m[2:, 1:-1], (1, 1), (-1, 0)),
        (~m[1:-1, :-2], (0, 1), (0, -1)),
    ):
        for y, x in np.argwhere(inner & outside).tolist():
            after.setdefault((x + sx, y + sy), []).append(direction)
    loops = []
    while after:
        start = x, y = min(after)
        dx, dy = after[start][0]
        points: list[tuple[int, int]] = []
        while True:
            # Where two parts touch at a corner two edges leave it: the right turn stays with the
            # same part.
            leaving = after[x, y]
            turn = (-dy, dx) if (-dy, dx) in leaving else leaving[0]
            if turn != (dx, dy) or not points:
                points.append((x, y))
            leaving.remove(turn)
            if not leaving:
                del after[x, y]
            dx, dy = turn
            x, y = x + dx, y + dy
            if (x, y) == start:  # the leftmost corner left over: no two parts can touch there
                break
        loops.append(np.array(points))
    return loops


_EVERY_EMPTY, _EVERY_CROWD = 25, 10  # one image in so many has no object; has a crowd region


def _rle_counts(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a mask (H, W): column by column, the first run is of zeros."""
    flat = np.concatenate([[0], mask.astype(np.int8).ravel(order="F")])
    changes = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def _annotation(mask: np.ndarray, drawn: Drawn) -> dict[str, Any]:
    """What COCO stores of a visible region (H, W) bool, without the ids of image and annotation."""
    from pycocotools import mask as mask_api

    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    rle = {"counts": _rle_counts(mask), "size": list(mask.shape)}
    loops = trace_outline(mask)
    clockwise = [
        np.sum(p[:, 0] * np.roll(p[:, 1], -1) - p[:, 1] * np.roll(p[:, 0], -1)) > 0 for p in loops
    ]
    segmentation: Any
    if drawn.is_crowd:
        segmentation = rle  # COCO's crowds are uncompressed
    elif all(clockwise):
        segmentation = [p.ravel().tolist() for p in loops]
    else:  # COCO's polygons know no holes
        packed = mask_api.frPyObjects(rle, *mask.shape)
        segmentation = {"counts": packed["counts"].decode("ascii"), "size": list(mask.shape)}
    return {
        "category_id": SHAPES[drawn.name][0],
        "segmentation": segmentation,
        "area": float(mask.sum()),
        "bbox": [float(x), float(y), float(xs.max() + 1 - x), float(ys.max() + 1 - y)],
        "iscrowd": int(drawn.is_crowd),
    }


def write_coco(
    out: str | os.PathLike[str],
    *,
    train: int = 240,
    val: int = 60,
    seed: int = 0,
    size: int = 192,
    overwrite: bool = False,
) -> Path:
    """Write a COCO-format instance segmentation data set of drawn shapes.

    Layout, as COCO's: `train2017/%012d.jpg`, `val2017/%012d.jpg`,
    `annotations/instances_{train,val}2017.json`. Masks and boxes are of what is visible. Regions
    with holes are compressed RLE, the others polygons, and crowds uncompressed RLE. One image in 25
    has no object, one in 10 has a crowd. The same arguments give the same bytes, and image i of a
    split does not depend on how many follow it.

    Args:
        out: Folder to create.
        train: Images to train on, at least 1.
        val: Held-out images, at least 1.
        seed: Non-negative; other seeds give other images.
        size: Longer side of every image in pixels, at least 64. The shapes grow with it: at 192 all
            of COCO's three area bins are present.
        overwrite: Whether to replace a data set that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: An argument is out of range, or `out` must not be written to.
    """
    _check(train=train, val=val, seed=seed, size=size, smallest=64)
    with new_folder(
        out, overwrite=overwrite, holds=("train2017", "val2017", "annotations")
    ) as folder:
        (folder / "annotations").mkdir()
        for number, (split, images) in enumerate((("train2017", train), ("val2017", val))):
            (folder / split).mkdir()
            data = _coco_split(folder / split, images, seed=seed, size=size, number=number)
            text = json.dumps(data, separators=(",", ":"))
            (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return Path(out)


def _coco_split(folder: Path, count: int, *, seed: int, size: int, number: int) -> dict[str, Any]:
    """Write the images of one split; returns the content of its annotation file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in tqdm(range(count), desc=folder.name, unit="image", disable=None):
        rng = np.random.default_rng([seed, number, i])
        width, height = _draw_size(rng, size)
        empty, crowd = i % _EVERY_EMPTY == 11, i % _EVERY_CROWD == 4
        scene = draw_scene(
            rng, (width, height), count=0 if empty else int(rng.integers(1, 6)), crowd=crowd
        )
        image_id = (
            10 * i + 3 + 4 * number
        )  # with gaps, as COCO's, and never the same in both splits
        name = f"{image_id:012d}.jpg"
        write_jpeg(folder / name, scene.image)
        images.append(
            {"id": image_id, "file_name": name, "width": width, "height": height, "license": 1}
        )
        for k, drawn in enumerate(scene.objects):
            ids = {"id": 100 * image_id + k, "image_id": image_id}
            annotations.append(ids | _annotation(scene.labels == k + 1, drawn))
    return {
        "info": {
            "description": f"Drawn shapes, {folder.name}, seed {seed}",
            "version": "1.0",
            "year": 2017,
        },
        "licenses": [{"id": 1, "name": "Drawn by a program; no rights reserved", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": c, "name": n, "supercategory": "shape"} for n, (c, _) in SHAPES.items()
        ],
    }
