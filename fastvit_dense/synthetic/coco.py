"""Pictures of overlapping shapes with the visible region of each, in COCO's layout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from .files import check_ranges, new_folder, sample_size, write_jpeg

# name: (COCO category id, area of the shape whose outermost point is at distance 1 from its
# centre, corners). The ids have gaps, as COCO's have: a reader that takes them for indices fails on
# this data too.
_STAR_WAIST, _RING_HOLE = 0.5, 0.55
SHAPES: dict[str, tuple[int, float, int]] = {
    "disc": (1, np.pi, 90),
    "square": (3, 2.0, 4),
    "triangle": (4, 0.75 * np.sqrt(3.0), 3),
    "star": (7, 5 * _STAR_WAIST * np.sin(np.pi / 5), 10),
    "ring": (13, np.pi * (1 - _RING_HOLE**2), 90),
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
_INKS = "e4572e f3a712 2e86ab 6a4c93 43aa8b d81159 8ac926 1d3557 ff8fab 7f5539".split()
_PAPERS = "f4f1de e0e7e9 cfd8c0 f2d9c9 3b4252 264653 d8d2e1 4a4e69".split()
_EVERY_EMPTY = 25  # one image in so many has no object


class Shape(NamedTuple):
    """One object of a scene.

    Attributes:
        name: one of `CLASSES`.
        alpha: (H, W) in [0, 1], what it would cover if nothing hid it.
        colour: (H, W, 3) BGR in [0, 255].
        full_area: pixels that it would cover on an endless canvas.
    """

    name: str
    alpha: np.ndarray
    colour: np.ndarray
    full_area: float


def _bgr(colour: str) -> np.ndarray:
    return np.array([*bytes.fromhex(colour)][::-1], np.float32)


def _coverage(
    name: str, *, radius: float, angle: float, centre: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """(H, W) in [0, 1]: the part of each pixel that a shape, upright at angle 0, covers."""
    height, width = shape
    big = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    corner = 0.0 if name in ("disc", "ring") else 0.08 * radius  # corners are rounded
    count = SHAPES[name][2]
    first = (
        np.pi / 4 if name == "square" else -np.pi / 2
    )  # a square lies on a side; others point up
    theta = angle + first + np.arange(count) * 2 * np.pi / count
    reach = (radius - corner) * np.resize((1, _STAR_WAIST) if name == "star" else 1, count)
    outline = np.stack([reach * np.cos(theta), reach * np.sin(theta)], axis=1)  # (count, 2)
    bits = 4  # fractional bits of OpenCV's fixed-point coordinates
    for scale, value in ((1, 255), (_RING_HOLE, 0))[: 2 if name == "ring" else 1]:
        # OpenCV's integer coordinates are pixel centres, ours are pixel corners: hence the half.
        points = ((scale * outline + centre) * _SUPERSAMPLE - 0.5) * 2**bits
        points = np.round(points).astype(np.int32)[None]
        cv2.fillPoly(big, points, value, shift=bits)
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
    pattern: np.ndarray = np.zeros(shape, np.float32)
    if kind == 0:
        pattern = np.tanh(2 * np.sin(u))
    elif kind == 1:
        pattern = np.tanh(3 * (np.sin(u) * np.sin(v) - 0.3))
    elif kind == 2:
        cells = max(2, int(height / period)), max(2, int(width / period))
        grid = rng.standard_normal(cells).astype(np.float32)
        pattern = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    theta = rng.uniform(0, 2 * np.pi)
    slope = (x * np.cos(theta) + y * np.sin(theta)) / max(shape)
    return 0.4 * pattern + 1.2 * (slope - slope.mean())


def _paint(
    rng: np.random.Generator, colour: np.ndarray, shape: tuple[int, int], scale: float
) -> np.ndarray:
    """(H, W, 3): `colour`, lightened and darkened by a texture."""
    t = _texture(rng, shape, scale)[..., None]
    return colour + (np.where(t > 0, 255.0, 0.0) - colour) * 0.15 * np.abs(t)


def _seen(objects: list[Shape], shape: tuple[int, int]) -> np.ndarray:
    """(n + 1, H, W): each pixel's share of background and objects, later ones in front."""
    shares = []
    free = np.ones(shape, np.float32)
    for one in reversed(objects):
        shares.append(one.alpha * free)
        free = free * (1 - one.alpha)
    return np.stack([free, *reversed(shares)])


def _fits(objects: list[Shape]) -> bool:
    """Whether the newest object lies in the image and leaves enough of the others to be seen."""
    newest = objects[-1]
    if newest.alpha.sum() < _MIN_INSIDE * newest.full_area:
        return False
    seen = _seen(objects, newest.alpha.shape)[1:].sum(axis=(1, 2))
    return all(s >= _MIN_VISIBLE * o.full_area for s, o in zip(seen, objects, strict=True))


def render_scene(
    rng: np.random.Generator, size: tuple[int, int], *, count: int
) -> tuple[np.ndarray, np.ndarray, list[Shape]]:
    """Render up to `count` shapes, the larger mostly behind the smaller.

    Args:
        rng: The only source of randomness.
        size: (width, height) of the image in pixels.
        count: Shapes wanted. One that cannot be placed without leaving the image or hiding most of
            another is left out, of the picture as of the labels: whatever is rendered is labelled.

    Returns:
        The image (H, W, 3) uint8 BGR; the labels (H, W), 0 for background and i + 1 for object i; and
        the objects, from the back to the front.
    """
    width, height = size
    shape, scale = (height, width), max(size) / _SIDES_AT
    paper = _bgr(_PAPERS[rng.integers(len(_PAPERS))])
    inks = [_bgr(c) for c in rng.permutation(_INKS)]
    inks = [ink for ink in inks if np.abs(ink - paper).sum() > 170]  # a shape must stand out

    # A large shape needs room; two would hide each other.
    wanted = list(rng.choice(["small", "medium"], count, p=[0.3, 0.7]))
    if wanted and min(size) >= 0.75 * max(size) and rng.random() < 0.4:
        wanted[0] = "large"
    sides = [rng.uniform(*_SIDES[w]) * scale for w in wanted]
    sides.sort(key=lambda s: -s * rng.uniform(0.7, 1.4))

    objects: list[Shape] = []
    for i, side in enumerate(sides):
        name = CLASSES[rng.integers(len(CLASSES))]
        radius = side / np.sqrt(SHAPES[name][1])
        colour = _paint(rng, inks[i % len(inks)], shape, scale)
        for _ in range(30):
            centre, angle = rng.uniform(0, size), rng.uniform(-_TILT, _TILT)
            alpha = _coverage(name, radius=radius, angle=angle, centre=centre, shape=shape)
            if _fits([*objects, new := Shape(name, alpha, colour, full_area=side**2)]):
                objects.append(new)
                break

    image = _paint(rng, paper, shape, 2 * scale).astype(np.float32)
    shift = np.array([[1, 0, 2.0 * scale], [0, 1, 3.0 * scale]])
    for one in objects:
        shadow = cv2.GaussianBlur(cv2.warpAffine(one.alpha, shift, size), (0, 0), 2.5 * scale)
        image *= 1 - 0.35 * shadow[..., None]
        image += (one.colour - image) * one.alpha[..., None]
    image += rng.normal(0, 3.0, image.shape)
    # A pixel belongs to whatever takes the largest share of it, so that masks never overlap.
    labels = _seen(objects, shape).argmax(axis=0)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), labels, objects


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines (n, 2) of a mask (H, W) along its pixels' edges; none if it has holes."""
    # OpenCV's contours run through the centres of pixels. In twice the size, those of the first and
    # the second half of a pixel round to its two edges.
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (tree[..., 3] >= 0).any():
        return []
    corners = [(contour[:, 0] + 1) // 2 for contour in contours]
    return [c[(c != np.roll(c, 1, axis=0)).any(axis=1)] for c in corners]


def _annotation(mask: np.ndarray, name: str) -> dict[str, Any]:
    """What COCO stores of a visible region (H, W) bool, without the ids of image and annotation."""
    from pycocotools import mask as mask_api

    rle = mask_api.encode(np.asfortranarray(mask, np.uint8))
    segmentation: Any = rle | {"counts": rle["counts"].decode("ascii")}
    if outlines := polygons(mask):
        segmentation = [outline.ravel().tolist() for outline in outlines]
    return {
        "category_id": SHAPES[name][0],
        "segmentation": segmentation,
        "area": float(mask.sum()),
        "bbox": mask_api.toBbox(rle).tolist(),
        "iscrowd": 0,
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
    """Write a COCO-format instance segmentation data set of rendered shapes.

    Layout, as COCO's: `train2017/%012d.jpg`, `val2017/%012d.jpg`,
    `annotations/instances_{train,val}2017.json`. Masks and boxes are of what is visible. Regions
    with holes are compressed RLE, the others polygons. One image in 25 has no object. The same
    arguments give the same bytes, and image i of a split does not depend on how many follow it.

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
    check_ranges(train, val, seed, size=(size, 64, 4096))
    splits = {"train2017": train, "val2017": val}
    with new_folder(out, overwrite=overwrite, holds=(*splits, "annotations")) as folder:
        (folder / "annotations").mkdir()
        for number, (split, count) in enumerate(splits.items()):
            (folder / split).mkdir()
            data: dict[str, Any] = {
                "info": {"description": f"Rendered shapes, {split}, seed {seed}"},
                "images": [],
                "annotations": [],
                "categories": [{"id": c, "name": n} for n, (c, *_) in SHAPES.items()],
            }
            for i in tqdm(range(count), desc=split, unit="image", disable=None):
                rng = np.random.default_rng([seed, number, i])
                width, height = sample_size(rng, size)
                wanted = 0 if i % _EVERY_EMPTY == 11 else int(rng.integers(1, 6))
                image, labels, objects = render_scene(rng, (width, height), count=wanted)
                image_id = 10 * i + 3 + 4 * number  # with gaps, and never the same in both splits
                name = f"{image_id:012d}.jpg"
                write_jpeg(folder / split / name, image)
                data["images"].append(dict(id=image_id, file_name=name, width=width, height=height))
                for k, one in enumerate(objects):
                    ids = {"id": 100 * image_id + k, "image_id": image_id}
                    data["annotations"].append(ids | _annotation(labels == k + 1, one.name))
            text = json.dumps(data, separators=(",", ":"))
            (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return Path(out)
