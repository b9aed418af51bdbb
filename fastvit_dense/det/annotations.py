"""Checks of a COCO annotation file, made before a training starts on it.

mmdet and pycocotools skip what they do not understand, or crash on it. An error says how many entries
are wrong, and the ids of the first.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log

# Pixels, of a polygon's corners: with much more pycocotools crashes, and needs memory for each.
FURTHEST = 100_000
# Compressed RLE: 5 bits a character from "0" on; a sixth says that the number goes on in the next.
_RLE = re.compile(r"([P-o]{0,6}[0-O])*")


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e38 < value < 1e38  # mmdet keeps boxes in float32


def _is_length(value: Any) -> bool:
    return _is_number(value) and 1 <= value < 2**31


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


# What mmdet reads of each entry: (key, whether a value will do, what will).
_FIELDS: dict[str, list[tuple[str, Callable[[Any], bool], str]]] = {
    "images": [
        ("id", _is_id, "a number or text"),
        ("file_name", _is_text, "text"),
        ("height", _is_length, "pixels"),
        ("width", _is_length, "pixels"),
    ],
    "categories": [("id", _is_id, "a number or text"), ("name", _is_text, "text")],
    "annotations": [
        ("id", _is_id, "a number or text"),
        ("image_id", _is_id, "a number or text"),
        ("category_id", _is_id, "a number or text"),
        ("bbox", _is_box, "four finite numbers: x, y, width, height"),
        ("area", _is_number, "a finite number"),
    ],
}


def read_annotations(path: str, *, name: str | None = None, need_annotations: bool = True) -> dict:
    """Read a COCO annotation file and check that each entry has what mmdet reads.

    Args:
        path: The file.
        name: What to call it in messages, if not `path`.
        need_annotations: False accepts a list of images without annotations, as of COCO's test-dev.

    Returns:
        The content, with an `annotations` list in any case.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not JSON, not COCO's structure, or entries lack a valid value; ids are given
            twice or point nowhere.
    """
    file = name or path
    if not file or not os.path.isfile(path):
        raise FileNotFoundError(
            f"annotation file {file!r} does not exist (working directory {os.getcwd()}); set "
            "data_root and ann_file of the dataset in the config, or move all data with --data-root FOLDER"
        )
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except (
        ValueError,
        RecursionError,
    ) as error:  # also numbers of thousands of digits, lists in lists
        raise ValueError(
            f"{file} ({os.path.getsize(path)} bytes) is not valid JSON, it may be truncated: {error}"
        ) from error
    if isinstance(data, dict) and not need_annotations:
        data.setdefault("annotations", [])
    for what, fields in _FIELDS.items():
        if not isinstance(data, dict) or not isinstance(data.get(what), list):
            raise ValueError(
                f"{file} has no list {what!r}: expected COCO's instances_*.json, a dict with the lists "
                f"'images', 'annotations' and 'categories', got "
                + (f"one of {some(data)}" if isinstance(data, dict) else f"a {type(data).__name__}")
            )
        for key, is_valid, expected in fields:
            refuse(
                [e for e in data[what] if not (isinstance(e, dict) and is_valid(e.get(key)))],
                f"of {len(data[what])} {what} have no valid {key!r} ({expected})",
                file=file,
            )
    _check_ids(data, file=file)
    return data


def _check_ids(data: dict, *, file: str) -> None:
    ids = {what: Counter(entry["id"] for entry in data[what]) for what in _FIELDS}
    for what, counts in ids.items():
        refuse([i for i, n in counts.items() if n > 1], f"ids of {what} are given twice", file=file)
    for key, what in (("image_id", "images"), ("category_id", "categories")):
        refuse(
            [a for a in data["annotations"] if a[key] not in ids[what]],
            f"annotations have a value of {key!r} that is not among the {what}",
            file=file,
        )


def refuse(bad: Sequence[Any], what: str, *, file: str, hint: str = "") -> None:
    """Raise ValueError if there are bad entries; their ids are named."""
    if bad:
        ids = [e.get("id", e) if isinstance(e, dict) else e for e in bad]
        raise ValueError(f"{file}: {len(bad)} {what}: {some(ids)}. {hint}".rstrip())


def some(items: Iterable[Any], limit: int = 5) -> str:
    """The first few, each cut to 80 characters."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(f"{item!r:.80}" for item in items[:limit]) + more


def check_classes(data: dict, classes: Sequence[str], *, file: str) -> None:
    """Raise ValueError unless every class is a category of the file, in the file's order.

    mmdet looks the classes up by name, skips those it does not find, and numbers the rest in the
    file's order: the result is a model with zero AP, or one whose labels bear wrong names.
    Categories that are no class are logged.
    """
    names = [c["name"] for c in data["categories"]]
    refuse(
        [n for n, count in Counter(names).items() if count > 1],
        "category names occur twice",
        file=file,
    )
    refuse(
        [c for c in classes if c not in names],
        f"of the {len(classes)} classes are not among its categories",
        file=file,
        hint=f"The file has {some(names, 20)}. Set metainfo=dict(classes=(...,)) of the dataset in the "
        "config; without it they are COCO's 80 classes",
    )
    in_order = tuple(n for n in names if n in set(classes))
    if not classes or in_order != tuple(classes):
        raise ValueError(
            f"{file} lists the categories in another order than metainfo['classes'], and mmdet "
            f"numbers them in the file's: predictions would bear wrong names. Write "
            f"metainfo=dict(classes={in_order or tuple(names)!r}) in the config, and num_classes to match"
        )
    unused = {c["id"]: c["name"] for c in data["categories"] if c["name"] not in set(classes)}
    if unused:
        count = sum(a["category_id"] in unused for a in data["annotations"])
        log(
            f"{file}: {len(unused)} categories are not in metainfo['classes'], their {count} "
            f"annotations are left out: {some(unused.values(), 10)}",
            warn=True,
        )


def check_annotations(
    data: dict, classes: Sequence[str], *, file: str, masks: bool, polygons: bool, evaluates: bool
) -> None:
    """Raise ValueError for annotations nobody can use; log a warning for each kind that mmdet drops.

    Args:
        data: What `read_annotations` gave.
        classes: The classes in use; annotations of others are not looked at.
        file: What to call the file in messages.
        masks: Whether the pipeline loads masks, so that a `segmentation` is needed.
        polygons: Whether it loads them with `poly2mask=False`, which knows no RLE.
        evaluates: Whether pycocotools will evaluate on this file; it needs `iscrowd`.
    """
    used_ids = {c["id"] for c in data["categories"] if c["name"] in set(classes)}
    used = [a for a in data["annotations"] if a["category_id"] in used_ids]
    sizes = {i["id"]: (i["width"], i["height"]) for i in data["images"]}
    if evaluates:
        refuse([a for a in used if "iscrowd" not in a], "annotations have no 'iscrowd'", file=file)
    if masks:
        refuse(
            [a for a in used if not a.get("segmentation")],
            f"of {len(used)} annotations have no 'segmentation'",
            file=file,
            hint="Add them, or train a detector without masks (with_mask=False)",
        )
        refuse(
            [a for a in used if not can_be_rasterized(a["segmentation"], sizes[a["image_id"]])],
            "annotations have a segmentation on which pycocotools would fail or crash",
            file=file,
            hint="Expected polygons [[x1, y1, x2, y2, ...], ...] of numbers within "
            f"{FURTHEST} pixels, or an RLE, a dict of counts and size, of the image's size",
        )

    boxes = np.array([a["bbox"] for a in used], np.float64).reshape(-1, 4)
    areas = np.array([a["area"] for a in used], np.float64)
    limits = np.array([sizes[a["image_id"]] for a in used], np.float64).reshape(-1, 2)  # (n, 2)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    # What mmdet's CocoDataset.parse_data_info drops.
    flagged = np.array([bool(a.get("ignore")) for a in used], bool)
    flat = ((boxes[:, 2:] < 1).any(axis=1) | (areas <= 0)) & ~flagged
    outside = (np.minimum(high, limits) <= np.maximum(low, 0)).any(axis=1) & ~flat & ~flagged
    dropped = flagged | flat | outside
    beyond = ((low < -1) | (high > limits + 1)).any(axis=1) & ~dropped  # COCO rounds outwards
    crowds = np.array([bool(a.get("iscrowd")) for a in used], bool) & ~dropped
    no_mask = np.array(
        [masks and not has_mask(a["segmentation"], polygons=polygons) for a in used], bool
    )
    for which, text in (
        (flagged, "flagged 'ignore': dropped"),
        (flat, "with a side below 1 pixel, negative or no area: dropped"),
        (outside, "wholly outside of their image: dropped"),
        (beyond, "reaching out of their image: kept"),
        (no_mask & ~dropped & ~crowds, "with a mask mmdet cannot use: ignored in training"),
    ):
        if which.any():
            ids = [used[i]["id"] for i in np.flatnonzero(which)]
            log(f"{file}: {len(ids)} annotations {text}: {some(ids)}", warn=True)
    kept = {used[i]["image_id"] for i in np.flatnonzero(~dropped)}
    log(
        f"{file}: {len(data['images'])} images, {len(data['images']) - len(kept)} of them without "
        f"a usable annotation; {len(used)} annotations of {len(classes)} classes, {dropped.sum()} "
        f"dropped, {crowds.sum()} crowds",
        warn=False,
    )


def can_be_rasterized(segmentation: Any, size: tuple[int, int]) -> bool:
    """Whether pycocotools, which does not look, can make a mask of polygons or an RLE.

    Args:
        segmentation: As in the file. What mmdet passes over is not looked at.
        size: Width and height of the image.
    """
    if isinstance(segmentation, list):
        try:
            # By builtins over whole lists: COCO has 40 million coordinates. A sum with NaN is not equal
            # to itself.
            return all(isinstance(p, list) for p in segmentation) and all(
                -FURTHEST < min(p) and max(p) < FURTHEST and sum(p) == sum(p)
                for p in segmentation
                if len(p) >= 6 and len(p) % 2 == 0
            )
        except TypeError:
            return False
    if not isinstance(segmentation, dict):
        return False
    counts, found = segmentation.get("counts"), segmentation.get("size")
    if counts is None or found is None:
        return True
    width, height = size
    if found != [height, width]:
        return False
    if isinstance(counts, list):
        is_whole = all(type(n) is int and n >= 0 for n in counts)
        return is_whole and sum(counts) == height * width
    return isinstance(counts, str) and _RLE.fullmatch(counts) is not None


def has_mask(segmentation: Any, *, polygons: bool) -> bool:
    """Whether mmdet's LoadAnnotations accepts it; it makes an ignore region of any other."""
    if isinstance(segmentation, list):
        return any(len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)
    return not polygons and all(segmentation.get(k) for k in ("counts", "size"))


def log(message: str, *, warn: bool) -> None:
    print_log(message, logger="current", level=logging.WARNING if warn else logging.INFO)
