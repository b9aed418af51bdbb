"""Every image and label of the datasets, read by their own transforms; their classes; hands' keypoints."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..engine.devices import usable_cores
from .preflight import quiet
from .report import ERROR, OK, WARNING, Diagnostic, guarded, in_one_line

_SHOWN = 5  # images that are named for each dataset
_COMPARED_HANDS = 256
_SAME_KEYPOINT = 0.1  # mm; what rounding to four decimals of a metre explains


class Unread(str):
    """In place of what would have been read: why it was not."""


def read_all(
    read: Callable[[int], Any], indices: Iterable[int], *, workers: int, limit: float = 60.0
) -> Iterator[tuple[int, Any]]:
    """Call `read` for each index in worker processes, which may crash or hang: that costs one item.

    Args:
        read: raises nothing.
        indices: of the items.
        workers: number of processes, at least 1.
        limit: seconds after which an item is given up.

    Returns:
        Index and result, in order; the result is an :class:`Unread` if there is none.
    """
    todo = list(indices)
    while todo:
        options: dict[str, Any] = dict(num_workers=workers, prefetch_factor=1, timeout=limit)
        done = 0
        try:
            for result in DataLoader(_Reader(read), None, sampler=todo, **options):
                yield todo[done], result
                done += 1
        except RuntimeError as error:  # torch's, of a worker that died or took too long
            if workers == 1:
                yield todo[done], Unread(f"the process that reads it fails: {error}")
                done += 1
            workers = 1  # with an item at a time, so that it is known which one fails
        todo = todo[done:]


class _Reader(Dataset):
    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, index: int) -> Any:
        cv2.setNumThreads(0)
        return self.read(index)


def check_data(
    cfg: Config,
    datasets: Mapping[str, Any],
    *,
    workers: int | None = None,
    images: int | None = None,
    bad_files: str | None = None,
) -> Iterator[Diagnostic]:
    """Open every image and label of datasets.

    Args:
        cfg: the config.
        datasets: by their places in it; their pipelines are cut down to what reads and checks files.
        workers: processes; None: as many as there are cores.
        images: of each dataset, evenly spread; None: all.
        bad_files: file to write, with a line for each image that something is wrong with; None: none.
    """
    errors: list[str] = []
    for where, dataset in datasets.items():
        use = workers or usable_cores()
        yield from guarded(_check_dataset, where, dataset, errors, use, images)
        if hasattr(dataset, "annotations"):  # FreiHAND that could be read
            mano = cfg.model.head.get("mano", "synthetic")
            yield from guarded(check_keypoints, where, dataset.annotations, mano)
    if bad_files is not None:
        Path(bad_files).write_text("".join(f"{line}\n" for line in errors), encoding="utf-8")


def _check_dataset(
    where: str, dataset: Any, errors: list[str], workers: int, images: int | None
) -> Iterator[Diagnostic]:
    """Read a dataset; adds to the `errors`."""
    with quiet() as logged:
        dataset.full_init()
    for record in logged:
        yield Diagnostic(WARNING, where, record.getMessage())
    count, names = len(dataset), dataset.metainfo.get("classes") or ()
    some = min(images or count, count)
    found: list[str] = []
    classes: Counter[int] = Counter()
    began = time.perf_counter()
    indices = np.linspace(0, count - 1, some).astype(int).tolist()
    dataset.pipeline = Compose(_loading(dataset.pipeline.transforms))
    results = read_all(partial(_read_item, dataset), indices, workers=workers)
    for index, result in tqdm(results, where.split("_")[0], some, unit=" images", disable=None):
        if isinstance(result, Unread):
            found.append(f"{dataset.get_data_info(index).get('img_path', index)}: {result}")
        elif isinstance(result, str):
            found.append(result)
        else:
            classes.update(result)
    rate = some / (time.perf_counter() - began)
    errors += [f"{where}\t{text}" for text in found]
    for text in found[:_SHOWN]:
        yield Diagnostic(ERROR, where, text)
    if len(found) > _SHOWN:
        what = f"{len(found) - _SHOWN} more images: --bad-files FILE lists them"
        yield Diagnostic(ERROR, where, what)
    what = f"{some - len(found)} of {count} images can be read, {len(found)} cannot; {rate:.0f} images/s"
    yield Diagnostic(OK, where, what)
    never = [str(name) for i, name in enumerate(names) if not classes[i]]
    if classes and never and some == count:
        what = f"{len(never)} of {len(names)} classes never occur: {', '.join(never[:8])}"
        yield Diagnostic(WARNING, where, what, "are metainfo['classes'] those of the annotations?")


def check_keypoints(where: str, annotations: Any, mano: str) -> Iterator[Diagnostic]:
    """Compare keypoints with those that the model makes of the same vertices, in millimetres.

    Args:
        where: the place of the dataset in the config.
        annotations: of fastvit_dense.hand; without labels there is nothing to compare.
        mano: the config's ``model.head.mano``.
    """
    from ..hand.mano import get_mano

    if annotations.vertices is None:
        return
    rows = np.unique(np.linspace(0, len(annotations) - 1, _COMPARED_HANDS).astype(int))
    expected = get_mano(mano).keypoint_regressor @ annotations.vertices[rows].astype(np.float64)
    errors = 1000 * np.linalg.norm(annotations.keypoints[rows] - expected, axis=-1)  # (n, 21), mm
    wrong = np.flatnonzero(errors.max(0) > _SAME_KEYPOINT)
    what = (
        f"{21 - len(wrong)} of 21 keypoints, in {len(rows)} of {len(annotations)} hands, are those of the "
        f"vertices: {errors.mean():.2f} mm apart on average, {errors.max():.2f} mm at most"
    )
    hint = (
        f"{', '.join(map(str, wrong))} differ from J_regressor @ vertices and five fingertips, so a "
        f"perfect mesh has a PJ above zero: joints of the kinematic chain, other tips, or not of {mano}?"
    )
    yield Diagnostic(WARNING, where, what, hint) if wrong.size else Diagnostic(OK, where, what)


def _read_item(dataset: Any, index: int) -> str | list[int]:
    """The classes that occur in an image; or what is wrong with it."""
    path = str(index)
    try:
        path = str(dataset.get_data_info(index).get("img_path", index))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = dataset.prepare_data(index)
    except Exception as error:
        text = str(error) if isinstance(error, ValueError | OSError) else in_one_line(error)
        return text if path in text else f"{path}: {text}"
    labels = results.get("gt_seg_map", results.get("gt_bboxes_labels", ()))
    occurs = np.zeros(256, bool)  # np.unique makes int64 of all labels
    occurs[np.asarray(labels, np.uint8).ravel()] = True
    return np.flatnonzero(occurs[:255]).tolist()  # 255: none


def _loading(transforms: Sequence[Any]) -> Iterator[Any]:
    """The transforms that read and check files; the rest of a pipeline only computes."""
    names = [type(transform).__name__ for transform in transforms]
    for name, transform in zip(names, transforms, strict=True):
        if name.startswith(("Load", "Check")):
            yield transform
        if name == "LoadImageFromFile" and "CheckImage" not in names:
            from ..compat.transforms import CheckImage

            yield CheckImage()
