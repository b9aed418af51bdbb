"""What can be told of a COCO annotation file before a training starts on it; which masks can be drawn."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log

# Pixels, of a polygon's corners: with much more pycocotools crashes, and needs memory for each.
FURTHEST = 100_000
# Compressed RLE: 5 bits a character from "0" on; a sixth says that the number goes on in the next.
_RLE = re.compile(r"([P-o]{0,6}[0-O])*")


def is_segmentation(value: Any) -> bool:
    """Whether it is a dict (RLE) or a list of polygons, of which each is a list."""
    if isinstance(value, list):
        return all(isinstance(p, list) for p in value)
    return isinstance(value, dict)


def has_mask(segmentation: Any, *, polygons: bool) -> bool:
    """Whether mmdet's LoadAnnotations accepts it; it makes an ignore region of any other."""
    if isinstance(segmentation, list):
        return any(len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)
    return not polygons and all(segmentation.get(k) for k in ("counts", "size"))


def can_be_drawn(segmentation: Any, size: tuple[int, int]) -> bool:
    """Whether pycocotools, which does not look, can draw polygons or an RLE in an image (width, height).

    What mmdet passes over is not looked at either.
    """
    if isinstance(segmentation, list):
        try:
            # By builtins over whole lists: COCO has 40 million coordinates. A sum with NaN is not equal
            # to itself.
            return all(
                -FURTHEST < min(p) and max(p) < FURTHEST and sum(p) == sum(p)
                for p in segmentation
                if len(p) >= 6 and len(p) % 2 == 0
            )
        except TypeError:
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


# What entries are found by.
_NAMES: dict[str, dict[str, Any]] = {
    "images": {"id": (int, str), "file_name": str},
    "categories": {"id": (int, str), "name": str},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": (int, str)},
}
_LARGEST = 2**31  # pixels a side


def some(items: Iterable[Any], limit: int = 5) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(repr(item) for item in items[:limit]) + more


def _lacking(entries: list[Any], keys: Sequence[str], what: str, file: str) -> None:
    """Raise if an entry is no dict or lacks a key."""
    for key in keys:
        bad = [i for i, e in enumerate(entries) if not isinstance(e, dict) or key not in e]
        if bad:
            first = entries[bad[0]]
            name = (
                f"id {first['id']!r}" if isinstance(first, dict) and "id" in first else repr(first)
            )
            raise ValueError(
                f"{file}: {len(bad)} of {len(entries)} {what} have no {key!r}, the first is number "
                f"{bad[0]} ({name[:80]}). {_kind_hint(entries)}".rstrip()
            )


def _kind_hint(annotations: Any) -> str:
    """Which other COCO file this looks like, from its first annotation; empty if none."""
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if not isinstance(first, dict):
        return ""
    if "caption" in first:
        return "This is a captions file; detection needs instances_*.json."
    if "segments_info" in first:
        return "This is a panoptic file; detection needs instances_*.json."
    if "keypoints" in first:
        return "This is a keypoints file, which knows persons only; use instances_*.json."
    if "score" in first and "image_id" in first:
        return "This is a list of detections (results); detection needs instances_*.json."
    return ""


def read_annotations(path: str, *, name: str | None = None, need_annotations: bool = True) -> dict:
    """Read a COCO annotation file and check that it is one.

    Args:
        path: The file.
        name: What to call it in messages, if not `path`.
        need_annotations: False accepts a list of images without annotations, as of COCO's test-dev.

    Returns:
        The content, with an `annotations` list in any case.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, not COCO's structure, or entries lack keys that mmdet reads.
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
    except json.JSONDecodeError as error:
        size = os.path.getsize(path)
        at_end = error.pos >= len(error.doc.rstrip()) - 1 or error.msg.startswith("Unterminated")
        cause = "it seems cut off" if at_end else "it is damaged"
        raise ValueError(
            f"{file} ({size} bytes) is not valid JSON: {error.msg} at line {error.lineno} column "
            f"{error.colno} (character {error.pos}); {cause}: get it again or write it anew"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no JSON text (byte {error.start}: {error.reason})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists
        raise ValueError(f"{file} is no annotation file: {error}") from error

    expected = "expected a dict with the lists 'images', 'annotations' and 'categories'"
    if not isinstance(data, dict):
        raise ValueError(
            f"{file} holds a {type(data).__name__}; {expected}. {_kind_hint(data)}".rstrip()
        )
    if not need_annotations:
        data.setdefault("annotations", [])
    bad = [k for k in ("images", "annotations", "categories") if not isinstance(data.get(k), list)]
    if bad:
        hint = _kind_hint(data.get("annotations"))
        if "data_list" in data:
            hint = "This is OpenMMLab's own format, for BaseDetDataset."
        raise ValueError(
            f"{file}: {some(bad)} missing or no list; {expected}, got {some(data)}. {hint}".rstrip()
        )
    _lacking(data["images"], ("id", "file_name", "height", "width"), "images", file)
    _lacking(data["categories"], ("id", "name"), "categories", file)
    keys = ("id", "image_id", "category_id", "bbox", "area")
    _lacking(data["annotations"], keys, "annotations", file)
    for what, names in _NAMES.items():
        for name, kinds in names.items():
            wrong = [i for i, e in enumerate(data[what]) if not isinstance(e[name], kinds)]
            if wrong:
                expected = "text" if kinds is str else "a number or text"
                raise ValueError(
                    f"{file}: {len(wrong)} of {len(data[what])} {what} have a {name!r} that is not "
                    f"{expected}, the first is number {wrong[0]} ({data[what][wrong[0]][name]!r:.80})"
                )
    return data


def check_references(data: dict, *, file: str) -> None:
    """Raise ValueError for ids that are given twice or point nowhere."""
    ids = {}
    for what in ("images", "annotations", "categories"):
        counts = Counter(entry["id"] for entry in data[what])
        twice = [i for i, n in counts.items() if n > 1]
        if twice:
            raise ValueError(f"{file}: {len(twice)} ids of {what} are given twice: {some(twice)}")
        ids[what] = counts
    for key, what in (("image_id", "images"), ("category_id", "categories")):
        lost = [a["id"] for a in data["annotations"] if a[key] not in ids[what]]
        if lost:
            raise ValueError(
                f"{file}: {len(lost)} of {len(data['annotations'])} annotations have a {key} that "
                f"is not among the {what}: annotation ids {some(lost)}"
            )
    wrong = [
        i["id"]
        for i in data["images"]
        if not all(_is_number(i[k]) and 1 <= i[k] < _LARGEST for k in ("height", "width"))
    ]
    if wrong:
        raise ValueError(f"{file}: {len(wrong)} images without a positive size: ids {some(wrong)}")


def check_classes(data: dict, classes: Sequence[str], *, file: str) -> None:
    """Raise ValueError unless every class is a category of the file, in the file's order.

    mmdet looks the classes up by name, skips those it does not find, and numbers the rest in the
    file's order: the result is a model with zero AP, or one whose labels bear wrong names.
    Categories that are no class are logged.
    """
    names = [c["name"] for c in data["categories"]]
    twice = [n for n, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: several categories are called {some(twice)}")
    cure = "set metainfo=dict(classes=(...)) of the dataset in the config"
    missing = [c for c in classes if c not in names]
    if missing:
        lower = {str(n).lower(): n for n in names}
        guesses = []
        for name in missing[:5]:
            near = difflib.get_close_matches(str(name).lower(), lower, n=1)
            guesses.append(f"{name!r}" + (f" (did you mean {lower[near[0]]!r}?)" if near else ""))
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(
            f"{file}: {len(missing)} of the {len(classes)} classes are not among its categories: "
            f"{', '.join(guesses)}{more}. The file has {some(names, 20)}. "
            f"{cure}; without it they are COCO's 80 classes"
        )
    in_order = tuple(n for n in names if n in set(classes))
    if in_order != tuple(classes):
        raise ValueError(
            f"{file} lists the categories in another order than metainfo['classes'], and mmdet "
            f"numbers them in the file's: predictions would bear wrong names. Write "
            f"metainfo=dict(classes={in_order!r}) in the config, and num_classes={len(in_order)}"
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
    """Raise ValueError for annotations nobody can use; count, in one line of the log, the odd ones.

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
    if evaluates:
        _lacking(used, ("iscrowd",), "annotations", file)
    try:
        boxes = _numbers([a["bbox"] for a in used]).reshape(len(used), 4)  # (n, 4)
        areas = _numbers([a["area"] for a in used]).reshape(len(used))  # (n,)
    except (ValueError, TypeError):
        wrong = [a["id"] for a in used if not _is_box(a["bbox"]) or not _is_number(a["area"])]
        raise ValueError(
            f"{file}: {len(wrong)} annotations whose bbox is not four numbers (x, y, width, "
            f"height) or whose area is not a number: ids {some(wrong)}"
        ) from None
    with np.errstate(over="ignore"):  # mmdet keeps them in float32
        unreal = ~(np.isfinite(boxes.astype(np.float32)).all(axis=1) & np.isfinite(areas))
    if unreal.any():
        wrong = [used[i]["id"] for i in np.flatnonzero(unreal)]
        raise ValueError(
            f"{file}: {len(wrong)} annotations with NaN or infinity in bbox or area, one of which "
            f"would make the loss NaN: ids {some(wrong)}; correct or remove them"
        )
    without = [a["id"] for a in used if not a.get("segmentation")]
    if masks and without:
        raise ValueError(
            f"{file}: {len(without)} of {len(used)} annotations have no segmentation, which "
            f"LoadAnnotations(with_mask=True) needs: ids {some(without)}. Add them, or train a "
            "detector without masks (with_mask=False)"
        )
    wrong = [a["id"] for a in used if masks and not is_segmentation(a["segmentation"])]
    if wrong:
        raise ValueError(
            f"{file}: {len(wrong)} annotations whose segmentation is neither RLE, a dict of counts "
            f"and size, nor a list of polygons [[x1, y1, x2, y2, ...], ...]: ids {some(wrong)}"
        )
    sizes = {i["id"]: (i["width"], i["height"]) for i in data["images"]}
    wrong = [
        a["id"] for a in used if masks and not can_be_drawn(a["segmentation"], sizes[a["image_id"]])
    ]
    if wrong:
        raise ValueError(
            f"{file}: {len(wrong)} annotations whose segmentation would make pycocotools fail or crash: a "
            f"polygon with other than numbers within {FURTHEST} pixels, or an RLE that is not one of the "
            f"image's size: ids {some(wrong)}; correct or remove them"
        )

    limits = np.array([sizes[a["image_id"]] for a in used], np.float64).reshape(-1, 2)  # (n, 2)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    # What mmdet's CocoDataset.parse_data_info drops, in its order.
    flagged = np.array([bool(a.get("ignore", False)) for a in used], bool)
    flat = (boxes[:, 2:] < 1).any(axis=1) | (areas <= 0)
    beyond = ((np.minimum(high, limits) - np.maximum(low, 0)) <= 0).any(axis=1) & ~flat
    dropped = flagged | flat | beyond
    reaching = ((low < -1) | (high > limits + 1)).any(axis=1) & ~dropped  # COCO rounds outwards
    crowds = np.array([bool(a.get("iscrowd", 0)) for a in used], bool) & ~dropped
    kept = {used[i]["image_id"] for i in np.flatnonzero(~dropped)}

    bad_masks = 0
    if masks:
        segmentations = [used[i]["segmentation"] for i in np.flatnonzero(~dropped & ~crowds)]
        bad_masks = sum(not has_mask(s, polygons=polygons) for s in segmentations)
    notes = [
        (flagged.sum(), "flagged 'ignore': dropped"),
        ((flat & ~flagged).sum(), "with a side below 1 pixel, negative or no area: dropped"),
        ((beyond & ~flagged).sum(), "wholly outside of their image: dropped"),
        (bad_masks, "with a mask mmdet cannot use: their boxes become ignore regions"),
        (reaching.sum(), "reaching out of their image: kept"),
        (0 if masks else len(without), "without a segmentation: kept, no masks are loaded"),
    ]
    odd = [f"{n} {text}" for n, text in notes if n]
    log(
        f"{file}: {len(data['images'])} images, {len(data['images']) - len(kept)} of them without "
        f"a usable annotation; {len(used)} annotations of {len(classes)} classes, {dropped.sum()} "
        f"dropped, {crowds.sum()} crowds" + ("; " + "; ".join(odd) if odd else ""),
        warn=bool(odd),
    )


def _numbers(values: list[Any]) -> np.ndarray:
    """As float64; ValueError where there is something else, also where numpy would convert it."""
    array = np.array(values)
    if array.dtype.kind not in "iuf" and array.size:
        raise ValueError(f"{array.dtype} among numbers")
    return array.astype(np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def log(message: str, *, warn: bool) -> None:
    print_log(message, logger="current", level=logging.WARNING if warn else logging.INFO)
