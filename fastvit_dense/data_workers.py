"""Worker processes of data loaders that outlast a signal to the whole job, and end with it."""

import atexit
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from .interruptions import SIGNALS

GRACE = 5.0  # seconds that workers get to finish what they do


def outlast_signals(loader: DataLoader) -> DataLoader:
    """Let a loader's workers ignore the signals that end a run.

    A terminal sends Ctrl-C, and clusters send SIGTERM, to every process of a job. The main one needs its
    workers until it has saved; it ends them itself, see :func:`end_workers`. (A worker that Ctrl-C ends
    waits until all it has loaded is written to a pipe, which nobody reads any more.) If the main one is
    killed, they end within a second.

    Args:
        loader: changed in place, before it is iterated.
    """
    loader.worker_init_fn = partial(_begin, then=loader.worker_init_fn)
    return loader


@contextmanager
def workers_ended() -> Iterator[None]:
    """End all workers when the block ends, however it does."""
    try:
        yield
    finally:
        end_workers()


@atexit.register  # before Python's own, which sends SIGTERM and waits without end
def end_workers() -> None:
    """End the workers of all loaders of :func:`outlast_signals`; what is busy after GRACE is killed."""
    iterators = [
        candidate
        for candidate in gc.get_objects()
        if type(candidate) is _MultiProcessingDataLoaderIter  # isinstance() wakes lazy objects
        and getattr(candidate._worker_init_fn, "func", None) is _begin
    ]
    workers = [worker for iterator in iterators for worker in iterator._workers]

    def kill() -> None:
        for worker in workers:
            worker.kill()

    killer = threading.Timer(GRACE, kill)
    killer.start()
    try:
        for iterator in iterators:
            if iterator._worker_pids_set:  # torch would make an error of a worker that is killed
                _remove_worker_pids(id(iterator))
                iterator._worker_pids_set = False
            iterator._shutdown_workers()  # waits 5 s for each, and sends SIGTERM
    finally:
        killer.cancel()
        kill()


def _begin(worker: int, *, then: Callable[[int], None] | None) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker)


def _end_with(parent: int) -> None:
    """torch looks for the parent as well, but not while a worker waits for a pipe to be read."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
