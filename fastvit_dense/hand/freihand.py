"""FreiHAND (Zimmermann et al. 2019): its JSON files as arrays, checked, and as a data set of mmengine."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from tqdm import tqdm

from .mano.topology import NUM_KEYPOINTS, NUM_VERTICES, SCALE_BONE
from .transforms import load_image

_CHUNK = 1 << 20
_CACHE_FROM = 1 << 20  # bytes of text: smaller files are parsed in the blink of an eye
_LONGEST_NUMBER = 256  # characters, with the white space around it
_LONGEST_TOKEN = 16  # of those that can be cut within: a long number ends where its text does
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def load_json_array(path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a JSON list of arrays of one shape, from the cache beside it where that is up to date.

    The cache is ``NAME.json.SIZE-TIME.npy`` with the size and time of change of the JSON file, so that it
    is never taken for another one. Where it cannot be written, the log says so and the array is
    in memory. Files below 1 MB have none.

    Args:
        path: the JSON file.
        shape: of each entry; () for numbers.

    Returns:
        (N, *shape) float32, read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as of :func:`parse_json_array`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    status = path.stat()
    cache = path.with_name(f"{path.name}.{status.st_size}-{status.st_mtime_ns}.npy")
    array = _open_cache(cache, shape)
    if array is None:
        array = parse_json_array(path, shape)
        if status.st_size >= _CACHE_FROM and _write_cache(cache, array, name=path.name):
            array = _open_cache(cache, shape)
    assert array is not None
    array.setflags(write=False)
    return array


def parse_json_array(path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a JSON list of arrays of one shape, without a cache.

    Args:
        path: the JSON file.
        shape: of each entry; () for numbers.

    Returns:
        (N, *shape) float32.

    Raises:
        ValueError: it is not JSON or is cut off; it is no list; an entry has another shape, or holds
            something other than finite numbers. The message names the file and the entry.
    """
    size = os.path.getsize(path)
    values, count = np.empty((0, *shape), np.float32), 0
    bar = tqdm(
        total=size,
        desc=f"reading {Path(path).name}",
        unit="B",
        unit_scale=True,
        delay=1,
        disable=None,
    )
    with bar, open(path, "rb") as stream:
        reader = _ListReader(stream, str(path), math.prod(shape) * _LONGEST_NUMBER)
        for entry in reader:
            if count == len(values):
                # As many as there will be if the others are as long as these were, and a few more.
                # In place: a copy would need the memory twice.
                expected = math.ceil((count + 1) * size / reader.position * 1.02) + 1
                values.resize((expected, *shape), refcheck=False)
            try:
                values[count] = _to_array(entry, shape)
            except ValueError as error:
                raise ValueError(f"{path}: entry {count} {error}") from None
            count += 1
            bar.update(reader.position - bar.n)
    values.resize((count, *shape), refcheck=False)
    return values


class _ListReader:
    """Iterates over the values of a JSON list in a file without holding more than a few of them."""

    def __init__(self, stream: BinaryIO, name: str, longest: int) -> None:
        self._stream, self._name, self._longest = stream, name, longest
        self._text, self._at, self._count = "", 0, 0
        self._before = 0  # bytes of the file before the text

    @property
    def position(self) -> int:
        """Bytes read and used."""
        return self._before + self._at

    def __iter__(self) -> Iterator[Any]:
        if self._peek() != "[":
            raise self._error("is not a JSON list")
        self._at += 1
        if self._peek() == "]":
            self._at += 1
        else:
            separator = ","
            while separator == ",":
                yield self._value()
                self._count += 1
                separator = self._peek()
                self._at += 1
        if self._peek():
            raise self._error("goes on after the end of the list")

    def _value(self) -> Any:
        """The next value, which a comma or the end of the list follows."""
        while True:
            self._peek()
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                after = _SPACE.match(self._text, end).end()  # type: ignore[union-attr]
                if self._text[after : after + 1] in (",", "]"):
                    self._at = end
                    return value
                reason, failed_at = "expected a comma or the end of the list", after
            except json.JSONDecodeError as error:
                reason, failed_at = error.msg, error.pos
            except (
                ValueError,
                RecursionError,
            ) as error:  # thousands of digits; lists in lists in lists
                raise self._error(f"has no array in entry {self._count}: {error}") from None
            place = self._before + failed_at
            # The end of a chunk may have cut a token: a syntax error near it is not one yet.
            if failed_at >= len(self._text) - _LONGEST_TOKEN:
                if len(self._text) - self._at > self._longest + _CHUNK:
                    raise self._error(f"has an entry that is too long, number {self._count}")
                if self._read():
                    continue
                rest = self._text.rstrip()
                if place >= self._before + len(rest) or not rest.endswith("]"):
                    raise self._error(
                        f"ends within entry {self._count}: it is cut off, get it again"
                    )
            raise self._error(
                f"is not valid JSON at byte {place}, in entry {self._count}: {reason}"
            )

    def _peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            rest = self._text[self._at : self._at + 1]
            if rest and not rest.isspace():
                return rest
            if rest:
                self._at += 1
            elif not self._read():
                return ""

    def _read(self) -> bool:
        """Read another chunk, and forget the text that was used; False at the end of the file."""
        chunk = self._stream.read(_CHUNK)
        self._before += self._at
        # A byte a character, so that no chunk ends within one; what is not ASCII is no number anyway.
        self._text, self._at = self._text[self._at :] + chunk.decode("latin-1"), 0
        return bool(chunk)

    def _error(self, what: str) -> ValueError:
        size = os.path.getsize(self._name)
        return ValueError(f"{self._name} ({size} bytes) {what}")


def _to_array(entry: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The entry as float32; the message of its ValueError goes on from "entry 3"."""
    try:
        array = np.array(entry)
    except ValueError:  # lists of different lengths
        raise ValueError(f"is ragged: expected shape {shape}") from None
    if array.shape != shape:
        raise ValueError(f"has shape {array.shape}: expected {shape}")
    if array.dtype.kind not in "if":
        raise ValueError("holds something other than numbers")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("holds NaN, infinity or a number beyond float32")
    return array


def _open_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map the cache into memory; None where there is none that could be used."""
    try:
        array = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_ours = isinstance(array, np.memmap) and array.dtype == np.float32
    return array if is_ours and array.shape[1:] == shape else None


def _write_cache(cache: Path, array: np.ndarray, *, name: str) -> bool:
    """Write the cache under its name once it is complete, and remove those of earlier versions."""
    aside = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}.unfinished")
    try:
        with open(aside, "xb") as stream:
            np.save(stream, array, allow_pickle=False)
        aside.replace(cache)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        _log_without_cache(str(cache.parent), error.strerror)
        return False
    for old in cache.parent.glob(f"{name}.[0-9]*-[0-9]*.npy"):
        if old != cache:
            with contextlib.suppress(OSError):
                old.unlink()
    return True


@functools.cache
def _log_without_cache(folder: str, reason: str | None) -> None:
    print_log(
        f"{folder} takes no cache of parsed annotations ({reason}): each start parses the JSON files "
        "again, and each process holds them in its own memory",
        logger="current",
        level=logging.WARNING,
    )


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


@DATASETS.register_module()
class FreiHAND(BaseDataset):
    """The training or evaluation split of FreiHAND, or of a data set in its layout.

    Each image comes as a dict: img_path; index, its number in the split; K (3, 3), scale; and where
    annotated, keypoints (21, 3) and vertices (778, 3), in metres, camera frame, float32. The arrays
    stay in one place for all workers of a data loader.

    Args:
        data_root: the folder that holds ``training/rgb``, ``training_K.json`` and so on.
        split: training or evaluation. The latter may come without labels.
        versions: which of the four images of each hand to train on, of gs, hom, sample, auto.
        pipeline: transforms.
        **kwargs: of mmengine's BaseDataset, such as ``indices`` and ``lazy_init``. ``test_mode`` is on for
            evaluation unless given.

    Attributes:
        annotations: of all hands of the split.

    Raises:
        FileNotFoundError: a file or image is missing.
        ValueError: there is no such split or version, or annotations are wrong, see `read_annotations`.
    """

    METAINFO = {"dataset_name": "FreiHAND"}

    def __init__(
        self,
        data_root: str | Path,
        split: str = "training",
        *,
        versions: Sequence[str] = VERSIONS,
        pipeline: Sequence[dict | Callable] = (),
        **kwargs: Any,
    ) -> None:
        if split not in ("training", "evaluation"):
            raise ValueError(f"split must be training or evaluation, got {split!r}")
        unknown = set(versions) - set(VERSIONS)
        if isinstance(versions, str) or not versions or unknown:
            raise ValueError(f"versions must be some of {VERSIONS}, got {versions!r}")
        if split == "evaluation" and set(versions) != set(VERSIONS):
            raise ValueError(f"evaluation has one image of each hand, got versions={versions!r}")
        self.split, self.versions = split, tuple(versions)
        self.annotations: Annotations
        kwargs.setdefault("test_mode", split == "evaluation")
        super().__init__(data_root=str(data_root), pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read and check the annotations; the list holds no more than the numbers of the images."""
        self.annotations = read_annotations(self.data_root, self.split)
        count = len(self.annotations)
        if self.split == "evaluation":
            return [{"index": i} for i in range(count)]
        starts = [count * i for i, version in enumerate(VERSIONS) if version in self.versions]
        return [{"index": i} for start in starts for i in range(start, start + count)]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """What is known of an image of the dataset, for the pipeline."""
        info = super().get_data_info(idx)
        known, row = self.annotations, info["index"] % len(self.annotations)
        info["img_path"] = f"{self.data_root}/{self.split}/rgb/{info['index']:08d}.jpg"
        info["K"] = np.array(known.K[row])
        info["scale"] = float(known.scale[row])
        if known.keypoints is not None and known.vertices is not None:
            info["keypoints"] = np.array(known.keypoints[row])
            info["vertices"] = np.array(known.vertices[row])
        return info
