"""mmengine's training loops, resumed where they were: in the middle of an epoch, without reading twice."""

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator

from .repeatable_data import repeatable, reseed


class ResumableEpochs(EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop that can begin within an epoch.

    Attributes:
        done: batches of the running epoch that were trained on before a resume.
    """

    _iter: int

    def __init__(self, runner: Runner, dataloader: Any, **kwargs: Any) -> None:
        super().__init__(runner, _loader(runner, dataloader), **kwargs)
        self.done = 0
        self._began = (
            0  # iteration that the epoch began at; batches an epoch may change on a resume
        )

    def position(self, epoch: int, iteration: int) -> dict[str, int]:
        """Batches of `epoch` that are done after `iteration` iterations, and how many it has."""
        within = iteration - self._began if epoch == self._epoch else 0
        return dict(batches=within, of=len(self.dataloader))

    def resume(self, position: dict[str, int], *, seed: int) -> str:
        """Go on behind `position`; returns what is not as it was, or an empty text."""
        reseed(self.dataloader, seed)
        batches = position.get("batches", 0)
        self._began = self._iter - batches
        if batches and position["of"] != len(self.dataloader):
            self._iter = self._began
            return (
                f"an epoch had {position['of']} batches, now {len(self.dataloader)}: the epoch, of which "
                f"{batches} were done, begins anew"
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
        """Go on behind iteration ``self.iter``; returns an empty text."""
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
    """An iterator whose first steps do nothing, since it stands behind them already."""

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
    return repeatable(runner.build_dataloader(dataloader, **options), runner.seed)
