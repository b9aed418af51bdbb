"""What the rendered data sets share: arguments checked, a new folder, JPEGs."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np

_ASPECTS = ((1, 1), (1, 1), (4, 5), (5, 4), (3, 4), (4, 3), (2, 3), (3, 2))  # width : height


def check_ranges(train: int, val: int, seed: int, **others: tuple[float, float, float]) -> None:
    """Raise a ValueError for an argument of a writer that is out of range.

    Args:
        train: Number of images to train on, 1 to a million.
        val: Number of held-out images, likewise.
        seed: Not negative.
        others: name=(value, low, high).
    """
    limits = dict(train=(train, 1, 10**6), val=(val, 1, 10**6), seed=(seed, 0, 2**63), **others)
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def sample_size(rng: np.random.Generator, longer: int) -> tuple[int, int]:
    """Width and height of an image with one of eight aspects, in pixels."""
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
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.partial-") as d:
        partial = Path(d, target.name)  # the temporary folder itself is for its owner only
        partial.mkdir()
        yield partial
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
