"""A FreiHAND data set of synthetic hands, to train, test and try things on without a download."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..engine.devices import usable_cores
from ..hand.freihand import VERSIONS
from .files import check_ranges, new_folder, write_jpeg
from .hands import Annotation, Scene, sample_annotation

_FILES = ("K", "mano", "scale", "verts", "xyz")
POSES = ("all", "closing")
_WORTH_PROCESSES = 100  # hands, from which on starting processes takes less time than it saves
_MOST = 10**6  # hands, and the numbers that FreiHAND's file names have room for


def write_freihand(
    out: str | os.PathLike[str],
    *,
    train: int = 500,
    val: int = 100,
    seed: int = 0,
    poses: str = "all",
    views: float = 180,
    overwrite: bool = False,
) -> Path:
    """Write a data set of synthetic hands in the layout of FreiHAND.

    `training/rgb/%08d.jpg` holds four pictures of each hand, first the first pictures of all hands,
    then the second: before a green screen (gs), then in other light before something else (hom,
    sample, auto). `training/mask/%08d.jpg` is one for each hand, 255 where it is seen; its arm does not
    count. `evaluation/rgb/%08d.jpg` holds one picture of each held-out hand, before something.
    `{training,evaluation}_{K,mano,scale,verts,xyz}.json` have one entry for each hand. The numbers in
    `mano` are of the synthetic hand and mean nothing to MANO.

    The same arguments give the same bytes, and hand i of a split does not depend on how many follow
    it; but for training pictures its number does, as in FreiHAND.

    Args:
        out: folder to create.
        train: hands to train on, at least 1; there are four times as many pictures.
        val: held-out hands, at least 1.
        seed: not negative; other seeds give other hands.
        poses: ``all``, or ``closing``: between open and a fist, all fingers alike.
        views: greatest turn of a hand, in degrees, from a palm that faces the camera, fingers up: fewer
            poses and views are learned from fewer pictures.
        overwrite: whether to replace a data set that is already there.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is out of range, or `out` must not be written to.
    """
    check_ranges(
        train=(train, 1, _MOST), val=(val, 1, _MOST), seed=(seed, 0, 2**63), views=(views, 10, 180)
    )
    if poses not in POSES:
        raise ValueError(f"poses must be one of {', '.join(POSES)}; got {poses!r}")
    splits = ("training", "evaluation")
    files = [f"{split}_{name}.json" for split in splits for name in _FILES]
    files += [f"{file}.*.npy" for file in files]  # caches of readers
    variety = dict(poses=poses, views=views)
    with new_folder(out, overwrite=overwrite, holds=(*splits, *files)) as folder:
        _write_training(folder, train, seed, variety)
        _write_evaluation(folder, val, seed, variety)
    return Path(out)


def _write_training(folder: Path, count: int, seed: int, variety: dict[str, Any]) -> None:
    rgb, mask = folder / "training" / "rgb", folder / "training" / "mask"
    rgb.mkdir(parents=True)
    mask.mkdir()

    def draw(i: int) -> Annotation:
        annotation, scene, rng = _draw(seed, 0, i, variety)
        for number, version in enumerate(VERSIONS):
            picture = scene.photograph(rng, version)
            write_jpeg(rgb / f"{number * count + i:08d}.jpg", picture)
        write_jpeg(mask / f"{i:08d}.jpg", scene.mask.astype(np.uint8) * 255)
        return annotation

    _write_split(folder, "training", count, draw)


def _write_evaluation(folder: Path, count: int, seed: int, variety: dict[str, Any]) -> None:
    rgb = folder / "evaluation" / "rgb"
    rgb.mkdir(parents=True)

    def draw(i: int) -> Annotation:
        annotation, scene, rng = _draw(seed, 1, i, variety)
        write_jpeg(rgb / f"{i:08d}.jpg", scene.photograph(rng, VERSIONS[1 + i % 3]))
        return annotation

    _write_split(folder, "evaluation", count, draw)


class _Drawings(Dataset[Annotation]):
    """Item i: the annotation of hand i, once its pictures are written."""

    def __init__(self, count: int, draw: Callable[[int], Annotation]) -> None:
        self._count, self._draw = count, draw

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Annotation:
        return self._draw(i)


def _write_split(folder: Path, split: str, count: int, draw: Callable[[int], Annotation]) -> None:
    """Draw the hands, on all cores where there are many, and write their annotations in order."""
    # Forked, since `draw` cannot be pickled; elsewhere than on Linux one core has to do.
    many = count >= _WORTH_PROCESSES and sys.platform == "linux"
    drawings = DataLoader(
        _Drawings(count, draw),
        batch_size=None,
        collate_fn=lambda annotation: annotation,
        num_workers=usable_cores() if many else 0,
        multiprocessing_context="fork" if many else None,
        worker_init_fn=_one_thread,
    )
    with _JsonLists(folder, split) as lists:
        for annotation in tqdm(drawings, desc=split, unit="hand", disable=None):
            lists.append(annotation)


def _one_thread(_: int) -> None:
    # A core for each process; besides, OpenCV's threads do not survive a fork.
    cv2.setNumThreads(0)


def _draw(
    seed: int, split: int, i: int, variety: dict[str, Any]
) -> tuple[Annotation, Scene, np.random.Generator]:
    rng = np.random.default_rng([seed, split, i])
    annotation = sample_annotation(rng, **variety)
    return annotation, Scene(rng, annotation), rng


class _JsonLists:
    """The JSON files of a split, written entry by entry: a hand's vertices alone are 30 kB.

    Args:
        folder: where to write.
        split: what the names of the files begin with.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._files = {
            name: open(folder / f"{split}_{name}.json", "w", encoding="ascii") for name in _FILES
        }
        self._is_first = True

    def __enter__(self) -> _JsonLists:
        return self

    def append(self, annotation: Annotation) -> None:
        values = {
            "K": annotation.K,
            "mano": annotation.mano[None],  # (1, 61)
            "scale": np.array(annotation.scale),
            "verts": annotation.vertices,
            "xyz": annotation.keypoints,
        }
        for name, file in self._files.items():
            file.write("[" if self._is_first else ", ")
            json.dump(values[name].round(8).tolist(), file)
        self._is_first = False

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.write("]")
            file.close()
