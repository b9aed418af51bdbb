"""A FreiHAND data set of synthetic hands, to train, test and try things on without a download."""

from __future__ import annotations

import json
import os
import sys
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
_WORTH_PROCESSES = 100  # hands, from which on processes save more time than they take to start


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
    check_ranges(train, val, seed, views=(views, 10, 180))
    if poses not in POSES:
        raise ValueError(f"poses must be one of {', '.join(POSES)}; got {poses!r}")
    splits = {"training": train, "evaluation": val}
    files = [f"{split}_{name}.json" for split in splits for name in _FILES]
    caches = [f"{file}.*.npy" for file in files]  # of readers
    with new_folder(out, overwrite=overwrite, holds=(*splits, *files, *caches)) as folder:
        for number, (split, count) in enumerate(splits.items()):
            hands = _Hands(folder / split, count, (seed, number), dict(poses=poses, views=views))
            _write_split(folder, split, hands)
    return Path(out)


class _Hands(Dataset[Annotation]):
    """Item i: the annotation of hand i, once its pictures are written.

    Args:
        folder: of the split, created here. For training, there are four pictures and a mask of each hand.
        count: number of hands.
        seed: of the split.
        variety: options of :func:`sample_annotation`.
    """

    def __init__(
        self, folder: Path, count: int, seed: tuple[int, int], variety: dict[str, Any]
    ) -> None:
        self._folder, self._count, self._seed, self._variety = folder, count, seed, variety
        self._training = folder.name == "training"
        for name in ("rgb", "mask") if self._training else ("rgb",):
            (folder / name).mkdir(parents=True)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Annotation:
        rng = np.random.default_rng([*self._seed, i])
        annotation = sample_annotation(rng, **self._variety)
        scene = Scene(rng, annotation)
        for number, version in enumerate(VERSIONS if self._training else [VERSIONS[1 + i % 3]]):
            path = self._folder / "rgb" / f"{number * self._count + i:08d}.jpg"
            write_jpeg(path, scene.photograph(rng, version))
        if self._training:
            mask = scene.mask.astype(np.uint8) * 255
            write_jpeg(self._folder / "mask" / f"{i:08d}.jpg", mask)
        return annotation


def _write_split(folder: Path, split: str, hands: _Hands) -> None:
    """Render the hands, on all cores if there are many, and write their annotations in order."""
    many = len(hands) >= _WORTH_PROCESSES and sys.platform == "linux"
    loader = DataLoader(
        hands,
        batch_size=None,
        num_workers=usable_cores() if many else 0,
        multiprocessing_context="fork" if many else None,  # asks nothing of the script that calls
        worker_init_fn=_one_thread,
    )
    entries = [
        dict(K=a.K, mano=a.mano[None], scale=a.scale, verts=a.vertices, xyz=a.keypoints)
        for a in tqdm(loader, desc=split, unit="hand", disable=None)
    ]
    for name in _FILES:
        with open(folder / f"{split}_{name}.json", "w", encoding="ascii") as file:
            for i, entry in enumerate(entries):  # one by one: a hand's vertices alone are 30 kB
                file.write(", " if i else "[")
                json.dump(np.round(entry[name], 8).tolist(), file)
            file.write("]")


def _one_thread(_: int) -> None:
    # A core for each process; besides, OpenCV's threads do not survive a fork.
    cv2.setNumThreads(0)
