"""Training data that does not depend on what the process did before, nor on the number of workers.

Workers draw random numbers as they go, each from a state of its own: after a resume, or with another
number of workers, the same image is cropped and flipped differently. Here every draw has a seed of its
own, made of the run's seed, the epoch, the process, and its place in the epoch; and places that were
trained on already are left out without reading an image.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset

from .random_states import seeded


class Draw(int):
    """An index of a dataset with the seed of the random numbers for this time it is read."""

    seed: int

    def __new__(cls, index: int, seed: int) -> "Draw":
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __reduce__(self) -> tuple[Any, ...]:  # on the way to workers
        return Draw, (int(self), self.seed)


class SeededDataset(Dataset):
    """A dataset whose random transforms follow the seed in :class:`Draw`; all else is the dataset's.

    Args:
        dataset: any map-style dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__["dataset"] = dataset

    def __setattr__(self, name: str, value: Any) -> None:  # as hooks do that switch pipelines
        setattr(self.dataset, name, value)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, Draw):
            return self.dataset[index]
        # The states are put back: without workers, the model's random numbers come from them.
        with seeded(index.seed):
            return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet, while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededBatches:
    """A batch sampler that gives each index a seed, and can leave out what was trained on.

    Args:
        batches: the batch sampler; its ``sampler`` may have an ``epoch``.
        seed: of the run.
    """

    def __init__(self, batches: Any, *, seed: int) -> None:
        self.batches, self.seed, self.skip = batches, seed, 0

    @property
    def sampler(self) -> Any:
        """The sampler of the batch sampler, whose ``set_epoch`` mmengine calls."""
        return self.batches.sampler

    def __iter__(self) -> Iterator[list[Draw]]:
        skip, self.skip = self.skip, 0
        key = [self.seed, getattr(self.sampler, "epoch", 0), get_rank()]
        place = 0
        for number, batch in enumerate(self.batches):
            if number >= skip:
                yield [Draw(index, _seed([*key, place + k])) for k, index in enumerate(batch)]
            place += len(batch)

    def __len__(self) -> int:
        return len(self.batches)


def repeatable(loader: DataLoader, seed: int) -> DataLoader:
    """The same data loader with seeded draws.

    Args:
        loader: of a map-style dataset, with batches.
        seed: of the run.
    """
    generator = torch.Generator().manual_seed(
        seed
    )  # otherwise each epoch draws from the global state
    return DataLoader(
        SeededDataset(loader.dataset),
        batch_sampler=SeededBatches(loader.batch_sampler, seed=seed),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def reseed(loader: DataLoader, seed: int) -> None:
    """Give a loader of :func:`repeatable` the seed of the run that is resumed; before it is iterated."""
    batches: Any = loader.batch_sampler
    batches.seed = seed
    if hasattr(batches.sampler, "seed"):
        batches.sampler.seed = seed


def _seed(key: list[int]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
