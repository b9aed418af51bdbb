"""Files that are complete or not there, and folders that can be written to."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".unfinished"  # suffix of what is being written


@contextlib.contextmanager
def atomic_write(path: str | Path, *, suffix: str = "", sync: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` when the block ends well.

    What was there before stays until then, also when the process or the machine stops. The name is
    another one each time: several processes may write one file.

    Args:
        path: the file; its folder exists.
        suffix: what the name must end in, if a library goes by it.
        sync: wait until the file is on the disk. Results that are made again in a moment need not.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}{suffix}")
    try:
        yield aside
        if sync:
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
        if sync:
            _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process was writing."""
    for path in Path(folder).glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, too, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def why_unwritable(folder: str | Path) -> str:
    """Why files cannot be written to a folder, which may not exist yet; empty if they can.

    Args:
        folder: a path.
    """
    wanted = Path(folder).absolute()
    there = next(p for p in (wanted, *wanted.parents) if p.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    return f"cannot be written: {there} is {'read-only for you' if there.is_dir() else 'a file'}"
