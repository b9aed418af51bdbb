"""Data sets of drawn pictures in the layouts of the real ones, to train on without a download."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from .regions import draw_picture
from .shapes import SHAPES, Drawn, draw_scene, trace_outline

_ASPECTS = ((1, 1), (1, 1), (4, 5), (5, 4), (3, 4), (4, 3), (2, 3), (3, 2))  # width : height
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


def check_ranges(**limits: tuple[float, float, float]) -> None:
    """Raise a ValueError for an argument of a writer that is out of range: name=(value, low, high)."""
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def _check(*, train: int, val: int, seed: int, size: int, smallest: int) -> None:
    check_ranges(
        train=(train, 1, 10**6),
        val=(val, 1, 10**6),
        seed=(seed, 0, 2**63),
        size=(size, smallest, 4096),
    )


def _draw_size(rng: np.random.Generator, longer: int) -> tuple[int, int]:
    """Width and height of an image with one of `_ASPECTS`, in pixels."""
    a, b = _ASPECTS[rng.integers(len(_ASPECTS))]
    return longer * a // max(a, b), longer * b // max(a, b)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) BGR or (H, W), uint8."""
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    path.write_bytes(encoded.tobytes())


@contextlib.contextmanager
def new_folder(
    out: str | os.PathLike[str], *, overwrite: bool, holds: tuple[str, ...]
) -> Iterator[Path]:
    """A folder to write a data set into, which becomes `out` only when the block ends well.

    An interrupted run leaves nothing that could be taken for a complete data set.

    Args:
        out: Where the data set is to be. May exist if it is empty.
        overwrite: Whether an older data set there may be replaced.
        holds: The names at the top of such a data set, with wildcards. A folder with anything else in
            it is never replaced.

    Raises:
        ValueError: `out` is a file, is not empty, or is not a data set that may be replaced.
    """
    target = Path(out).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{out} is a file; expected a folder that is empty or does not exist yet")
    found = sorted(p.name for p in target.iterdir()) if target.exists() else []
    if found and not overwrite:
        raise ValueError(
            f"{out} is not empty (it holds {', '.join(found[:5])}); choose another "
            "folder, or pass --force (overwrite=True) to replace the data set there"
        )
    if strange := [f for f in found if not any(fnmatch(f, name) for name in holds)]:
        raise ValueError(
            f"{out} holds {', '.join(strange[:5])}, which is no part of a sample data set "
            f"({', '.join(holds)}); it is not replaced: remove it yourself or choose another folder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had the same number
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def write_ade20k(
    out: str | os.PathLike[str],
    *,
    train: int = 240,
    val: int = 60,
    seed: int = 0,
    size: int = 256,
    overwrite: bool = False,
) -> Path:
    """Write an ADE20K-format semantic segmentation data set of drawn, textured regions.

    Layout, as ADEChallengeData2016's: `images/{training,validation}/ADE_{train,val}_%08d.jpg`,
    numbered from 1, and `annotations/{training,validation}/` with a PNG of the same stem for each:
    8 bit, one channel, the values of `regions.CLASSES` (which are ADE20K's) and 0 for unlabelled.
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
    _check(train=train, val=val, seed=seed, size=size, smallest=128)
    with new_folder(out, overwrite=overwrite, holds=("images", "annotations")) as folder:
        splits = (("training", "train", train), ("validation", "val", val))
        for number, (split, short, count) in enumerate(splits):
            images, annotations = folder / "images" / split, folder / "annotations" / split
            images.mkdir(parents=True)
            annotations.mkdir(parents=True)
            for i in tqdm(range(count), desc=split, unit="image", disable=None):
                rng = np.random.default_rng([seed, number, i])
                picture = draw_picture(rng, _draw_size(rng, size))
                stem = f"ADE_{short}_{i + 1:08d}"
                write_jpeg(images / f"{stem}.jpg", picture.image)
                encoded = cv2.imencode(".png", picture.labels)[1]
                (annotations / f"{stem}.png").write_bytes(encoded.tobytes())
    return Path(out)
