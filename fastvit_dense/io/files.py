"""Files that are complete or not there, and folders that can be written to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"  # suffix of what is being written


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` when the block ends well.

    What was there before stays until then, also when the process or the machine stops.

    Args:
        path: the file.
    """
    path = Path(path)
    aside = path.with_name(path.name + UNFINISHED)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process was writing."""
    for path in Path(folder).glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, too, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def why_unwritable(folder: str | Path) -> str:
    """Why files cannot be written to a folder, which may not exist yet; empty where they can.

    Args:
        folder: a path.
    """
    wanted = Path(folder).absolute()
    there = next(p for p in (wanted, *wanted.parents) if p.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    return f"cannot be written: {there} is {'read-only for you' if there.is_dir() else 'a file'}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that gets its name when it is complete.

    Args:
        path: of the file; its folder exists.
        content: all of it.
    """
    aside = path.with_name(f"{path.name}.unfinished")
    aside.write_bytes(content)
    aside.replace(path)
