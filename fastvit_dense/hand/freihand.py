"""FreiHAND (Zimmermann et al. 2019): its JSON files as arrays, checked, and as a data set of mmengine."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from tqdm import tqdm

from ..io.files import atomic_write
from .geometry import IMAGE_SIZE, are_intrinsics
from .mano.topology import NUM_KEYPOINTS, NUM_VERTICES
from .transforms import load_image

_CACHE_FROM = 1 << 20  # bytes of text: smaller files are parsed in the blink of an eye


def load_json_array(path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a JSON list of arrays of one shape, from the cache beside it if that is up to date.

    The cache is ``NAME.json.SIZE-TIME.npy`` with the size and modification time of the JSON file. If it
    cannot be written, the log says so and the array is in memory. Files below 1 MB have none.

    Args:
        path: the JSON file.
        shape: of each entry; () for numbers.

    Returns:
        (N, *shape) float32, read-only.

    Raises:
        FileNotFoundError: the file does not exist.
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
        if status.st_size >= _CACHE_FROM:
            array = _cached(array, cache, path.name)
    array.setflags(write=False)
    return array


def parse_json_array(path: str | Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a JSON list of arrays of one shape, number by number and without a cache.

    Args:
        path: the JSON file.
        shape: of each entry; () for numbers.

    Returns:
        (N, *shape) float32.

    Raises:
        ValueError: it is not JSON or is truncated; it is not a list; an entry has another shape, or holds
            something other than finite numbers. The message names the file and the entry.
    """
    with np.errstate(over="ignore"):
        array = np.fromiter(_numbers(Path(path), shape), np.float32).reshape(-1, *shape)
    finite = np.isfinite(array).all(tuple(range(1, array.ndim)))
    if not finite.all():
        raise ValueError(
            f"{path}, entry {np.argmin(finite)}: NaN, infinity or a number beyond float32"
        )
    return array


def _numbers(path: Path, shape: tuple[int, ...]) -> Iterator[float]:
    """The numbers of a file, checked for how they are nested."""
    size, inner = path.stat().st_size, len(shape) + 1
    lengths = list[int]()  # so far, of the lists that are open: of entries, of an entry, ...
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, delay=1, disable=None)
    try:
        with bar, path.open("rb") as stream:
            for event, value in ijson.basic_parse(stream, use_float=True):
                if event == "number" and len(lengths) == inner:
                    lengths[-1] += 1
                    yield float(value)
                elif event == "start_array" and len(lengths) < inner:
                    lengths.append(0)
                elif event == "end_array":
                    length, depth = lengths.pop(), len(lengths)
                    if depth and length != shape[depth - 1]:
                        raise ValueError(f"a list of {length}, not {shape[depth - 1]}")
                    if depth:
                        lengths[-1] += 1
                    if depth == 1:
                        bar.update(stream.tell() - bar.n)
                else:
                    raise ValueError(f"{event} in the wrong place")
    except (ijson.JSONError, ValueError, OverflowError) as error:
        place = f", entry {lengths[0]}" if lengths else ""
        why = str(error).partition("\n")[0].rstrip(".")  # the parser's other lines quote the file
        raise ValueError(
            f"{path} ({size} bytes){place}: {why}; expected a JSON list with entries of shape {shape}. "
            "Is the file complete?"
        ) from None


def _open_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map the cache into memory; None if there is none to use."""
    try:
        array = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_ours = isinstance(array, np.memmap) and array.dtype == np.float32
    return array if is_ours and array.shape[1:] == shape else None


def _cached(array: np.ndarray, cache: Path, name: str) -> np.ndarray:
    """Write the cache, remove those of earlier versions, and map it into memory."""
    try:
        with atomic_write(cache) as aside, aside.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        for old in set(cache.parent.glob(f"{name}.[0-9]*-[0-9]*.npy")) - {cache}:
            old.unlink(missing_ok=True)
        return np.load(cache, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        _warn(
            f"{cache.parent} takes no cache of {name} ({error.strerror}): each start parses it again, and "
            "each process holds it in its own memory"
        )
        return array


# The training split has all hands before a green screen, then before other pictures, blended in three ways.
VERSIONS = ("gs", "hom", "sample", "auto")
_SHAPES: dict[str, tuple[int, ...]] = {
    "K": (3, 3),
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
        keypoints: (N, 21, 3), metres; None where the split comes without labels.
        vertices: (N, 778, 3), likewise.
    """

    K: np.ndarray
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
            "(https://lmb.informatik.uni-freiburg.de/projects/freihand/), or render synthetic hands with "
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
    found = Annotations(arrays["K"], arrays.get("xyz"), arrays.get("verts"))
    _check_intrinsics(found.K, paths["K"])
    if found.keypoints is not None and found.vertices is not None:
        rows = np.linspace(0, len(found) - 1, min(len(found), _CHECKED_VERTICES)).astype(int)
        _check_unit(found.keypoints, paths["xyz"])
        _check_unit(found.vertices[rows], paths["verts"])
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
    right = are_intrinsics(K)
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
        raise ValueError(
            f"{path}: hands have a diagonal of {typical:.3g} (median), expected {_SMALLEST} to "
            f"{_LARGEST} metres: divide millimetres by 1000"
        )


def _check_projection(keypoints: np.ndarray, K: np.ndarray, path: Path) -> None:
    """Raise if a keypoint is behind the camera; say how many lie outside of their images."""
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

    Each image comes as a dict: img_path; index, its number in the split; K (3, 3); and where annotated,
    keypoints (21, 3) and vertices (778, 3), in metres, camera frame, float32. The arrays
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
        ValueError: the split or version does not exist, or annotations are wrong, see `read_annotations`.
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
        if known.keypoints is not None and known.vertices is not None:
            info["keypoints"] = np.array(known.keypoints[row])
            info["vertices"] = np.array(known.vertices[row])
        return info
