"""FreiHAND's annotation files, JSON lists of arrays, as numpy arrays.

``training_verts.json`` is 1.4 GB of text. It is read in chunks, an entry at a time, so that the text and
Python's floats, ten times the size of the result, are never in memory as a whole. The result is kept in
a file beside it, from which later runs, and all workers of a data loader together, map it into memory.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mmengine.logging import print_log
from tqdm import tqdm

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
