"""A resumed run is the run it would have been: random states, seeded data, the place in the epoch.

Training data is seeded by epoch and index, so that it depends neither on what the process did before nor
on the number of workers. A checkpoint holds the random states and the place in the data.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset

from .models import read_checkpoint

States = dict[str, Any]


def capture() -> States:
    """The states of Python, numpy, torch and every CUDA device, as plain data and tensors."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = state
    return dict(
        python=(version, torch.tensor(numbers), gauss),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def restore(states: States) -> None:
    """Set the states that :func:`capture` gave, on whatever device their tensors are."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch's CPU generator for a block, which leaves their states as they were.

    CUDA's are neither asked for nor set: a data loader worker is forked from a process that uses CUDA and
    must not, and reading a device's state waits for the device.

    Args:
        seed: for all three generators.
    """
    before = random.getstate(), np.random.get_state()
    # Without a device, fork_rng touches the CPU's state alone.
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class SeededIndex(int):
    """An index of a dataset with the seed of the random numbers for this time it is read."""

    seed: int

    def __new__(cls, index: int, seed: int) -> "SeededIndex":
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __reduce__(self) -> tuple[Any, ...]:  # on the way to workers
        return SeededIndex, (int(self), self.seed)


class SeededDataset(Dataset):
    """A dataset whose random transforms follow the seed in :class:`SeededIndex`; all else is the dataset's.

    Args:
        dataset: any map-style dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__["dataset"] = dataset

    def __setattr__(self, name: str, value: Any) -> None:  # as hooks do that switch pipelines
        setattr(self.dataset, name, value)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
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

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        skip, self.skip = self.skip, 0
        key = [self.seed, getattr(self.sampler, "epoch", 0), get_rank()]
        place = 0
        for number, batch in enumerate(self.batches):
            if number >= skip:
                yield [
                    SeededIndex(index, _seed([*key, place + k])) for k, index in enumerate(batch)
                ]
            place += len(batch)

    def __len__(self) -> int:
        return len(self.batches)


def seed_loader(loader: DataLoader, seed: int) -> DataLoader:
    """The same data loader with a seed for each index.

    Args:
        loader: of a map-style dataset, with batches.
        seed: of the run.
    """
    # Without a generator, each epoch would take a number from the global state.
    generator = torch.Generator().manual_seed(seed)
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
    """Give a loader of :func:`seed_loader` the seed of the run that is resumed; before it is iterated."""
    batches: Any = loader.batch_sampler
    batches.seed = seed
    if hasattr(batches.sampler, "seed"):
        batches.sampler.seed = seed


def _seed(key: list[int]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class TrainingState(Hook):
    """Keeps the random states of all processes and the place in the epoch in checkpoints.

    A checkpoint may be saved before or after a validation (the best one), and a resumed run starts after
    it. So a validation leaves the random states as they were: training then samples the same in each case.
    A checkpoint that was saved within a validation says so, for the validation to be run again.

    Attributes:
        position: place in the epoch of the checkpoint that was loaded; see ResumableEpochs.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.position: dict[str, int] = {}
        self._loaded: list[States] = []
        self._before_val: States | None = None
        self._to_save: dict[str, Any] = {}

    @property
    def validating(self) -> bool:
        """Whether a validation is running."""
        return self._before_val is not None

    def note(self, position: dict[str, int]) -> None:
        """Collect what the next checkpoint is to hold. To be called by all processes."""
        states = all_gather_object(self._before_val or capture())
        if self.validating:
            position = dict(position, validating=1)
        self._to_save = dict(random_states=states, position=position)

    def restore(self) -> str:
        """Set the random states that were loaded; returns why not, or an empty text."""
        states, self._loaded = self._loaded, []
        if not states:
            return "the checkpoint holds no random states: random numbers differ from here on"
        if get_rank() >= len(states):
            return (
                f"the checkpoint is of {len(states)} processes: this one gets other random numbers"
            )
        restore(states[get_rank()])
        return ""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add it to a checkpoint."""
        checkpoint.update(self._to_save)
        self._to_save = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take it from a checkpoint."""
        self.position = checkpoint.pop("position", None) or {}
        self._loaded = checkpoint.pop("random_states", None) or []

    def before_val(self, runner: Runner) -> None:
        """Keep the random states of training."""
        self._before_val = capture()

    def after_val(self, runner: Runner) -> None:
        """Go on with them."""
        if self._before_val is not None:
            restore(self._before_val)
            self._before_val = None


class ResumableEpochs(EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop that can begin within an epoch.

    Attributes:
        done: batches of the running epoch that were trained on before a resume.
    """

    _iter: int

    def __init__(self, runner: Runner, dataloader: Any, **kwargs: Any) -> None:
        super().__init__(runner, _loader(runner, dataloader), **kwargs)
        self.done = 0
        # The iteration that the epoch began at: batches per epoch may change on a resume.
        self._began = 0

    def position(self, epoch: int, iteration: int) -> dict[str, int]:
        """Batches of `epoch` that are done after `iteration` iterations, and how many it has."""
        within = iteration - self._began if epoch == self._epoch else 0
        return dict(batches=within, of=len(self.dataloader))

    def resume(self, position: dict[str, int], *, seed: int) -> str:
        """Continue after `position`; returns what differs, or an empty text."""
        reseed(self.dataloader, seed)
        batches = position.get("batches", 0)
        self._began = self._iter - batches
        if batches and position["of"] != len(self.dataloader):
            self._iter = self._began
            return (
                f"an epoch had {position['of']} batches, now {len(self.dataloader)}: the epoch, of which "
                f"{batches} were done, begins again"
            )
        self.done = batches
        return ""

    def run_epoch(self) -> None:
        """One epoch, or the rest of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        done, self.done = self.done, 0
        self.dataloader.batch_sampler.skip = done
        for i, batch in enumerate(self.dataloader, start=done):
            self.run_iter(i, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._began = self._iter


class ResumableIterations(IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop that resumes without loading what was trained on."""

    def __init__(self, runner: Runner, dataloader: Any, **kwargs: Any) -> None:
        super().__init__(runner, _loader(runner, dataloader), **kwargs)

    def position(self, epoch: int, iteration: int) -> dict[str, int]:
        """Iterations count from the beginning of the run: there is no other place to keep."""
        return {}

    def resume(self, position: dict[str, int], *, seed: int) -> str:
        """Continue after iteration ``self.iter``; returns an empty text."""
        reseed(self.dataloader, seed)
        batches = self.dataloader.batch_sampler
        epoch, done = 0, self._iter
        if isinstance(batches.sampler, DefaultSampler):  # the others have no end
            epoch, done = divmod(self._iter, len(batches))
            batches.sampler.set_epoch(epoch)
        if hasattr(batches.sampler, "_indices_of_rank"):
            # mmengine's InfiniteSampler has one generator, of which workers were given batches already.
            batches.sampler.indices = batches.sampler._indices_of_rank()
        batches.skip = done
        iterator = _InfiniteDataloaderIterator(self.dataloader)
        iterator._epoch = epoch
        # The base class advances by loading `self.iter` batches: they are let go for nothing.
        self.dataloader_iterator = _Advanced(iterator, self._iter)
        return ""


class _Advanced:
    """An iterator whose first steps do nothing, since it is past them already."""

    def __init__(self, iterator: Iterator[Any], steps: int) -> None:
        self.iterator, self.steps = iterator, steps

    def __next__(self) -> Any:
        if self.steps:
            self.steps -= 1
            return None
        return next(self.iterator)


def _loader(runner: Runner, dataloader: Any) -> Any:
    options = dict(
        seed=runner.seed, diff_rank_seed=runner._randomness_cfg.get("diff_rank_seed", False)
    )
    return seed_loader(runner.build_dataloader(dataloader, **options), runner.seed)


def find_checkpoint(work_dir: str | Path) -> str | None:
    """The newest checkpoint of a run that can be read whole and resumed from.

    Args:
        work_dir: folder of the run. ``last_checkpoint`` in it is tried first, then its other checkpoints,
            the newest first; one that cannot be read is named in the log.

    Returns:
        Its path, None if there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints, and none can be read.
    """
    folder = Path(work_dir)
    last = folder / "last_checkpoint"
    named = [Path(last.read_text().strip())] if last.is_file() and last.read_text().strip() else []
    others = [p for p in folder.glob("*.pth") if not p.name.startswith("best_")]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    candidates = list(dict.fromkeys([*named, *others]))
    for path in candidates:
        try:
            content = read_checkpoint(str(path))
            if "optimizer" in content and "iter" in content.get("meta", {}):
                return str(path)
            reason = "it holds weights alone, no state of a training"
        except (ValueError, FileNotFoundError) as e:
            reason = str(e)
        print_log(f"--resume: not from {path}: {reason}", logger="current", level=30)
    if candidates:
        raise ValueError(
            f"--resume: none of the {len(candidates)} checkpoints in {work_dir} can be resumed from; "
            "the reasons are above. Name another one, or train without --resume in another --work-dir."
        )
    return None
