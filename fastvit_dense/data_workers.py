"""Worker processes of data loaders that outlast a signal to the whole job, and end with it."""

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter


def outlast_signals(loader: DataLoader) -> DataLoader:
    """Let a loader's workers ignore SIGTERM.

    Clusters send it to every process of a job. The main one needs its workers until it has saved; it ends
    them itself, see :func:`workers_ended`.

    Args:
        loader: changed in place, before it is iterated.
    """
    loader.worker_init_fn = partial(_begin, then=loader.worker_init_fn)
    return loader


@contextmanager
def workers_ended() -> Iterator[None]:
    """End all workers of data loaders when the block ends, however it does.

    Otherwise Python ends those that are left at its exit, by SIGTERM.
    """
    try:
        yield
    finally:
        for candidate in gc.get_objects():
            if type(candidate) is _MultiProcessingDataLoaderIter:  # isinstance() wakes lazy objects
                candidate._shutdown_workers()


def _begin(worker: int, *, then: Callable[[int], None] | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if then is not None:
        then(worker)
