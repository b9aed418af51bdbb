"""Every image and label of the datasets, opened by the datasets' own loading steps; hands' keypoints."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from tqdm import tqdm

from ..engine.devices import usable_cores
from .datasets import build, check_metainfo, dataset_cfgs
from .findings import ERROR, OK, WARNING, Finding, guarded, in_one_line
from .reading import Unread, read_all
from .training import check_iterations

_SHOWN = 3  # examples of each kind of mistake
_COMPARED_HANDS = 256  # more would read more of a file of 300 MB
_SAME_KEYPOINT = 0.1  # mm; what rounding to four decimals of a metre explains
_PATH = re.compile(r"\S*[/\\]\S*")


class Item(NamedTuple):
    """What reading an image with its labels gave.

    Attributes:
        path: of the image.
        error: what is wrong; empty where nothing is.
        classes: instances of each class; in segmentation those that occur, once.
    """

    path: str
    error: str = ""
    classes: tuple[tuple[int, int], ...] = ()


class ReadItem:
    """Reads an item of a dataset; an object, so that it can be sent to a process.

    Args:
        dataset: one of mmengine's.
        size: height and width that all images must have; None: any.
    """

    def __init__(self, dataset: Any, size: tuple[int, int] | None = None) -> None:
        self.dataset, self.size = dataset, size

    def __call__(self, index: int) -> Item:
        """Prepare an item; an exception becomes its text."""
        path = ""
        try:
            path = str(self.dataset.get_data_info(index).get("img_path", ""))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = self.dataset.prepare_data(index)
        except Exception as error:
            plain = isinstance(error, ValueError | FileNotFoundError)
            text = str(error) if plain else in_one_line(error)
            return Item(path, text if path in text else f"{path}: {text}")
        if results is None:
            return Item(path, f"{path}: the loading steps return nothing for it")
        found = tuple(results.get("ori_shape", ())[:2])
        if self.size and found != self.size:
            expected = f"{self.size[1]}x{self.size[0]}"
            return Item(
                path,
                f"{path} is {found[1]}x{found[0]} pixels (width x height), expected {expected}: is it the "
                "image that was annotated?",
            )
        return Item(path, "", _classes_in(results))


def _classes_in(results: Mapping) -> tuple[tuple[int, int], ...]:
    labels = results.get("gt_seg_map")
    if labels is not None:
        occurs = np.zeros(256, bool)  # and no counts: numpy makes int64 of all labels for those
        occurs[np.asarray(labels, np.uint8).ravel()] = True
        return tuple((int(c), 1) for c in np.flatnonzero(occurs[:255]))  # 255: none
    labels = results.get("gt_bboxes_labels")
    if labels is None:
        return ()
    ignored = np.asarray(results.get("gt_ignore_flags", np.zeros(len(labels))), bool)
    return tuple(Counter(np.asarray(labels)[~ignored].tolist()).items())


def check_data(
    cfg: Config,
    *,
    workers: int | None = None,
    images: int | None = None,
    bad_files: str | Path | None = None,
) -> Iterator[Finding]:
    """Open every image and label of every dataset of a config.

    Args:
        cfg: the config; its modules are imported.
        workers: processes; None: as many as there are cores.
        images: of each dataset, evenly spread; None: all.
        bad_files: file to write, with a line for each image that something is wrong with; None: none.
    """
    options = dict(workers=workers or usable_cores(), images=images)
    paths: dict[str, set[str]] = {}
    errors: list[str] = []
    done: list[tuple[str, Mapping]] = []
    for where, dataset_cfg in dataset_cfgs(cfg):
        yield from check_metainfo(where, dataset_cfg)
        same = [other for other, seen in done if seen == dataset_cfg]
        if same:
            yield Finding(OK, where, f"the same as {same[0]}")
            continue
        done.append((where, dataset_cfg))
        dataset, findings = build(where, dataset_cfg)
        yield from findings
        if dataset is None:
            continue
        if where == "train_dataloader.dataset":
            yield from guarded(check_iterations, cfg, len(dataset))
        yield from guarded(_read, where, dataset, paths.setdefault(where, set()), errors, **options)
        head = (cfg.get("model") or {}).get("head")
        if _is_of_hands(dataset) and isinstance(head, Mapping):
            mano = head.get("mano", "synthetic")
            yield from guarded(_check_keypoints, where, dataset.annotations, mano)
    yield from _check_overlap(paths)
    if bad_files is not None:
        Path(bad_files).write_text("".join(f"{line}\n" for line in errors), encoding="utf-8")
        yield Finding(OK, str(bad_files), f"written: {len(errors)} lines, one for each image above")


def _read(
    where: str,
    dataset: Any,
    paths: set[str],
    errors: list[str],
    *,
    workers: int,
    images: int | None,
) -> Iterator[Finding]:
    """Read a dataset; adds to the `paths` of its images and to the `errors`."""
    count = len(dataset)
    some = images is not None and images < count
    indices = np.linspace(0, count - 1, images or 0).astype(int).tolist() if some else range(count)
    wrong: dict[str, list[str]] = defaultdict(list)
    classes: Counter[int] = Counter()
    began = time.perf_counter()
    bar = tqdm(total=len(indices), desc=where.partition("_")[0], unit=" images", disable=None)
    with bar:
        for index, item in read_all(ReadItem(dataset, _size(dataset)), indices, workers=workers):
            if isinstance(item, Unread):
                path = str(dataset.get_data_info(index).get("img_path", f"number {index}"))
                item = Item(path, f"{path}: {item}")
            paths.add(item.path)
            if item.error:
                wrong[re.sub(r"\d+", "#", _PATH.sub("", item.error))].append(item.error)
            classes.update(dict(item.classes))
            bar.update()
    rate = len(indices) / max(time.perf_counter() - began, 1e-9)
    for kind in sorted(wrong.values(), key=len, reverse=True):
        yield _summarise(where, sorted(kind), len(indices))
        errors += [f"{where}\t{error}" for error in sorted(kind)]
    good = len(indices) - sum(map(len, wrong.values()))
    what = (
        f"{good} of {count} images and their labels can be read"
        + " (the others were left out)" * some
    )
    yield Finding(
        ERROR if not good else OK, where, f"{what}; {rate:.0f} images/s with {workers} workers"
    )
    if not some:
        yield from _check_occurring(where, dataset, classes)


def _size(dataset: Any) -> tuple[int, int] | None:
    """The size that the intrinsics of a data set of hands are for."""
    if not _is_of_hands(dataset):
        return None
    from ..hand.freihand import IMAGE_SIZE

    return IMAGE_SIZE, IMAGE_SIZE


def _is_of_hands(dataset: Any) -> bool:
    return type(dataset).__module__.startswith("fastvit_dense.hand")


def _check_keypoints(where: str, annotations: Any, source: str) -> Iterator[Finding]:
    """Compare keypoints with those that the model will make of the same vertices.

    Args:
        where: the place of the dataset in the config.
        annotations: of fastvit_dense.hand; nothing is to be done where they have no labels.
        source: the config's ``model.head.mano``.
    """
    from ..hand.mano import get_mano
    from ..hand.mano.topology import FINGERTIP_VERTICES, KEYPOINT_ORDER, NUM_ROTATIONS

    if annotations.vertices is None:
        return
    try:
        mano = get_mano(source)
    except (FileNotFoundError, ValueError) as error:
        what = f"whether keypoints are those of the vertices cannot be checked: {error}"
        yield Finding(WARNING, where, what)
        return
    count = len(annotations)
    rows = np.unique(np.linspace(0, count - 1, _COMPARED_HANDS).astype(int))
    expected = mano.keypoint_regressor @ annotations.vertices[rows].astype(np.float64)
    errors = 1000 * np.linalg.norm(annotations.keypoints[rows] - expected, axis=-1)  # (n, 21), mm
    distance = f"{errors.mean():.2f} mm on average and {errors.max():.2f} mm at most"
    of_hands = f"{len(rows)} of {count} hands"
    wrong = errors.max(0) > _SAME_KEYPOINT  # (21,)
    if not wrong.any():
        what = f"keypoints of {of_hands} are those of the vertices, {distance} away"
        yield Finding(OK, where, what)
        return
    is_tip = np.array(KEYPOINT_ORDER) >= NUM_ROTATIONS
    if not wrong[is_tip].any():
        cure = (
            "joints of the kinematic chain, as smplx and manopth return? FreiHAND's are regressed from the "
            "posed vertices"
        )
    elif not wrong[~is_tip].any():
        cure = f"take FreiHAND's vertices for fingertips: {', '.join(map(str, FINGERTIP_VERTICES))}"
    else:
        cure = (
            f"do xyz and verts belong together, and is {source} the hand that they were made with?"
        )
    yield Finding(
        WARNING,
        where,
        f"{wrong.sum()} of 21 keypoints, in {of_hands}, are not those that the model makes of the same "
        f"vertices (J_regressor @ vertices, five fingertips): all are {distance} away, so a perfect mesh "
        "would have a PJ above zero",
        cure,
    )


def _summarise(where: str, errors: Sequence[str], total: int) -> Finding:
    """One finding for all errors of a kind."""
    first, *others = errors
    names = [m.group() for e in others[: _SHOWN - 1] if (m := _PATH.search(e))]
    also = f"; also {', '.join(names)}" if names else ""
    more = f" and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    cure = "--bad-files FILE lists them all" if more else ""
    return Finding(ERROR, where, f"{len(errors)} of {total} images: {first}{also}{more}", cure)


def _check_occurring(where: str, dataset: Any, found: Counter[int]) -> Iterator[Finding]:
    names = (getattr(dataset, "metainfo", None) or {}).get("classes") or ()
    never = [str(name) for i, name in enumerate(names) if not found[i]]
    if found and never:
        shown = ", ".join(never[:8]) + (", ..." if len(never) > 8 else "")
        yield Finding(
            WARNING,
            where,
            f"{len(never)} of {len(names)} classes never occur: {shown}",
            "take them out of metainfo['classes'] (and num_classes), or look for why they are not there",
        )


def _check_overlap(paths: Mapping[str, set[str]]) -> Iterator[Finding]:
    """Images to train on must not be among those that measure."""
    train = {path: where for where, found in paths.items() if "train" in where for path in found}
    for where, found in paths.items():
        common = sorted(set(train) & found)
        if common and "train" not in where:
            yield Finding(
                WARNING,
                where,
                f"{len(common)} of its {len(found)} images are in {train[common[0]]} too, such as "
                f"{common[0]}: figures on images that were trained on say nothing",
                "use other images to measure on",
            )
