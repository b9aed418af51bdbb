"""FreiHAND's annotations, read and checked against each other and against the images.

Metres, camera frame, right hands. Image i of a split belongs to annotation ``i % N``: the training split
shows each of its N hands four times, see VERSIONS; the evaluation split once.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from .json_arrays import load_json_array
from .topology import NUM_KEYPOINTS, NUM_VERTICES, SCALE_BONE
from .transforms import load_image

IMAGE_SIZE = 224
# The training split has all hands before a green screen, then before other pictures, blended in three ways.
VERSIONS = ("gs", "hom", "sample", "auto")

_SHAPES: dict[str, tuple[int, ...]] = {
    "K": (3, 3),
    "scale": (),
    "xyz": (NUM_KEYPOINTS, 3),
    "verts": (NUM_VERTICES, 3),
}
_SMALLEST, _LARGEST = 0.03, 0.6  # metres, diagonals of boxes around hands
_CHECKED_VERTICES = 256  # annotations: all would mean to read 300 MB at each start


@dataclass(frozen=True)
class Annotations:
    """The annotations of a split, read-only arrays of float32; copies share them.

    Attributes:
        K: (N, 3, 3), intrinsics in pixels.
        scale: (N,), length of the bone between keypoints 9 and 10, in metres.
        keypoints: (N, 21, 3), metres; None where the split comes without labels.
        vertices: (N, 778, 3), likewise.
    """

    K: np.ndarray
    scale: np.ndarray
    keypoints: np.ndarray | None = None
    vertices: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.K)

    def __deepcopy__(self, memo: dict) -> Annotations:
        return self

    def __reduce__(self) -> tuple:
        # A worker that is spawned, not forked, gets the name of a mapped file in place of its content.
        arrays = [a.filename if isinstance(a, np.memmap) else a for a in vars(self).values()]
        return _reopen, tuple(arrays)


def _reopen(*arrays: Any) -> Annotations:
    return Annotations(
        *(np.load(a, mmap_mode="r") if isinstance(a, str | Path) else a for a in arrays)
    )


def read_annotations(root: str | Path, split: str) -> Annotations:
    """Read the annotations of a split of FreiHAND and check that they fit together.

    Any number of annotations will do, so that data sets of others in this layout can be read.

    Args:
        root: the folder of the data set.
        split: training or evaluation. The latter may come without xyz and verts.

    Raises:
        FileNotFoundError: a file or image is missing.
        ValueError: a file is damaged; there are more or fewer entries or images than there should be;
            the unit is not the metre; hands are behind the camera; K is no matrix of intrinsics.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"folder {root} does not exist: unpack FreiHAND there "
            "(https://lmb.informatik.uni-freiburg.de/projects/freihand/), or draw synthetic hands with "
            f"tools/sample_data.py freihand {root}"
        )
    paths = _find_files(root, split)
    arrays = {"K": load_json_array(paths["K"], _SHAPES["K"])}
    # The images before the large files: who has forgotten them shall not wait.
    _check_images(root / split / "rgb", split=split, annotations=len(arrays["K"]))
    for name, path in paths.items():
        if name not in arrays:
            arrays[name] = load_json_array(path, _SHAPES[name])
        if len(arrays[name]) != len(arrays["K"]):
            raise ValueError(
                f"{path} has {len(arrays[name])} entries, {paths['K'].name} has {len(arrays['K'])}: "
                "they must be of the same hands"
            )
    found = Annotations(arrays["K"], arrays["scale"], arrays.get("xyz"), arrays.get("verts"))
    _check_intrinsics(found.K, paths["K"])
    if found.keypoints is not None and found.vertices is not None:
        rows = np.linspace(0, len(found) - 1, min(len(found), _CHECKED_VERTICES)).astype(int)
        _check_unit(found.keypoints, paths["xyz"])
        _check_unit(found.vertices[rows], paths["verts"])
        _check_scale(found.scale, found.keypoints, paths["scale"])
        _check_projection(found.keypoints, found.K, paths["xyz"])
    return found


def _find_files(root: Path, split: str) -> dict[str, Path]:
    """Paths of the files there are, by the keys of _SHAPES."""
    paths = {name: root / f"{split}_{name}.json" for name in _SHAPES}
    has_no_labels = not (paths["xyz"].exists() or paths["verts"].exists())
    if split == "evaluation" and has_no_labels:
        del paths["xyz"], paths["verts"]
    missing = [path.name for path in paths.values() if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks {', '.join(missing)}: expected {', '.join(p.name for p in paths.values())}"
            + (" (without labels: neither xyz nor verts)" if split == "evaluation" else "")
        )
    return paths


def _check_images(folder: Path, *, split: str, annotations: int) -> None:
    """Raise unless there are all images, and no others; the first shows their size."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist: expected the images there")
    each = len(VERSIONS) if split == "training" else 1
    expected = each * annotations
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if re.fullmatch(r"\d{8}\.jpg", entry.name)}
    if not expected:
        raise ValueError(f"{folder.parents[1]} has no annotation for {split}")
    counts = (
        f"{folder} has {len(found)} images: expected {expected}, {each} for each of {annotations} "
        "annotations"
    )
    missing = [name for name in map("{:08d}.jpg".format, range(expected)) if name not in found]
    if missing:
        raise FileNotFoundError(f"{counts}; {len(missing)} are missing, the first is {missing[0]}")
    if len(found) != expected:
        raise ValueError(f"{counts}; do images and annotations belong together?")
    height, width = load_image(folder / "00000000.jpg").shape[:2]
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"{folder}/00000000.jpg is {width}x{height} pixels (width x height): expected "
            f"{IMAGE_SIZE}x{IMAGE_SIZE}, which the crop and K are for"
        )


def _check_intrinsics(K: np.ndarray, path: Path) -> None:
    right = (K[:, 2] == (0, 0, 1)).all(-1) & (K[:, 0, 0] > 0) & (K[:, 1, 1] > 0)
    if not right.all():
        first = int(np.argmin(right))
        raise ValueError(
            f"{path}: entry {first} is {K[first].tolist()}: expected [[fx, s, cx], [0, fy, cy], "
            "[0, 0, 1]] with focal lengths above zero"
        )


def _check_unit(points: np.ndarray, path: Path) -> None:
    """Raise unless the hands (N, P, 3) are as large as hands."""
    diagonals = np.linalg.norm(points.max(1) - points.min(1), axis=-1)
    typical = float(np.median(diagonals))
    if not _SMALLEST < typical < _LARGEST:
        units = {"millimetres": 1000, "centimetres": 100}
        guess = [unit for unit, f in units.items() if _SMALLEST < typical / f < _LARGEST]
        raise ValueError(
            f"{path}: hands have a diagonal of {typical:.3g} (median), expected {_SMALLEST} to "
            f"{_LARGEST} metres"
            + (f"; are they in {guess[0]}? Divide by {units[guess[0]]}" if guess else "")
        )


def _check_scale(scale: np.ndarray, keypoints: np.ndarray, path: Path) -> None:
    """Compare the scale (N,) with the bone that it is the length of: another unit is an error."""
    a, b = SCALE_BONE
    bones = np.linalg.norm(keypoints[:, a] - keypoints[:, b], axis=-1)
    typical = float(np.median(scale) / np.median(bones))
    if not 0.5 < typical < 2:
        raise ValueError(
            f"{path}: scale is {typical:.3g} times the distance of keypoints {a} and {b} (median): "
            "expected that distance, in metres"
        )
    wrong = np.abs(scale - bones) > 0.01 * bones
    if wrong.any():
        _warn(
            f"{path}: {wrong.sum()} of {len(scale)} scales differ by more than 1 % from the distance of "
            f"keypoints {a} and {b}, the first is number {np.argmax(wrong)}; do the files belong together?"
        )


def _check_projection(keypoints: np.ndarray, K: np.ndarray, path: Path) -> None:
    """Raise where a keypoint is behind the camera; say how many lie outside of their images."""
    behind = (keypoints[..., 2] <= 0).any(-1)
    if behind.any():
        raise ValueError(
            f"{path}: {behind.sum()} of {len(K)} hands are behind the camera (z <= 0), the first is "
            f"number {np.argmax(behind)}: expected the camera frame, x right, y down, z forward"
        )
    pixels = keypoints @ K.transpose(0, 2, 1)  # (N, 21, 3)
    pixels = pixels[..., :2] / pixels[..., 2:]
    outside = np.any((pixels < -0.5) | (pixels > IMAGE_SIZE - 0.5), axis=-1)  # (N, 21)
    if outside.any():
        _warn(
            f"{path}: K projects {outside.sum()} of {outside.size} keypoints, of {outside.any(-1).sum()} "
            f"of {len(K)} hands, to outside of {IMAGE_SIZE}x{IMAGE_SIZE} pixels"
            + (": does K belong to these images?" if outside.mean() > 0.1 else "")
        )


def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)
