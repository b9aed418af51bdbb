"""Reading many items in worker processes, none of which can hang or end the others.

A worker that dies (a decoder that crashes, memory that runs out) or takes too long is replaced; the item
it was at is reported, and the others are read all the same.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2
import torch

_CHUNK = 16  # items that a worker gets at a time
_LIMIT = 60.0  # seconds that an item may take


class Unread(str):
    """In place of what would have been read: why it was not."""


def read_all(
    read: Callable[[int], Any], indices: Iterable[int], *, workers: int, limit: float = _LIMIT
) -> Iterator[tuple[int, Any]]:
    """Call `read` for each index, in processes of their own.

    Args:
        read: raises nothing.
        indices: of the items.
        workers: number of processes, at least 1.
        limit: seconds after which an item is given up.

    Returns:
        Index and result, in the order that they come in; the result is an :class:`Unread` where there is
        none.
    """
    waiting = deque(indices)
    crew = [_Worker(read) for _ in range(min(workers, len(waiting) // _CHUNK + 1))]
    try:
        while waiting or any(worker.todo for worker in crew):
            for worker in crew:
                if waiting and not worker.todo:
                    worker.give([waiting.popleft() for _ in range(min(_CHUNK, len(waiting)))])
            ready = wait([worker.connection for worker in crew if worker.todo], timeout=0.2)
            for number, worker in enumerate(crew):
                if worker.connection in ready:
                    yield from worker.take()
                if worker.todo and (reason := worker.failure(limit)):
                    worker.stop()
                    yield worker.todo.popleft(), Unread(reason)
                    waiting.extendleft(reversed(worker.todo))
                    crew[number] = _Worker(read)
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A process, what it has still to do, and since when it is at the first of that."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.connection, other_end = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_work, args=(read, other_end), daemon=True)
        with warnings.catch_warnings():
            # Of Python 3.12, which sees other threads: those of torch and OpenCV are idle.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        other_end.close()  # so that what comes from the process ends when it does
        self.todo: deque[int] = deque()
        self.since = time.monotonic()
        self.is_dead = False

    def give(self, indices: list[int]) -> None:
        self.todo.extend(indices)
        self.since = time.monotonic()
        with suppress(OSError):  # it has died: `take` will find out
            self.connection.send(indices)

    def take(self) -> Iterator[tuple[int, Any]]:
        """What has come in."""
        try:
            while self.todo and self.connection.poll():
                result = self.connection.recv()
                yield self.todo.popleft(), result
                self.since = time.monotonic()
        except (EOFError, OSError):
            self.is_dead = True

    def failure(self, limit: float) -> str:
        """Why the first of `todo` will never come; empty while it may."""
        if self.is_dead:
            self.process.join(5)
            code = self.process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"status {code}"
            return (
                f"the process that read it died ({how}): the file makes a library crash, or memory is "
                "short; take the file out, or try fewer --workers"
            )
        if time.monotonic() - self.since > limit:
            return f"reading it takes more than {limit:g} seconds: take it out, or look at the disk"
        return ""

    def stop(self) -> None:
        self.process.kill()
        self.process.join(5)  # not for ever: it may hang in a file system
        self.connection.close()


def _work(read: Callable[[int], Any], connection: Connection) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    with suppress(EOFError, OSError, KeyboardInterrupt):  # nobody waits any more
        while True:
            for index in connection.recv():
                connection.send(read(index))
