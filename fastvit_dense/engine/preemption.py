"""Preemption: a run saves on a signal and stops; NaN stops it; its workers end with it."""

import atexit
import gc
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from .hooks import PREEMPTED_NAMES, write_last_checkpoint

# Exit status after a signal that was saved for. (sysexits.h calls it EX_TEMPFAIL: try again later.)
PREEMPTED = 75
CTRL_C = 128 + signal.SIGINT  # likewise after SIGINT, as shells count it: somebody wanted it to end
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


class StopOnSignal(Hook):
    """Saves after SIGTERM, SIGUSR1 or Ctrl-C (SIGINT), and exits with status 75, or 130 for Ctrl-C.

    It saves at the next iteration; in a validation at once, and the validation is run again on
    ``--resume``. A second Ctrl-C ends the process without saving.

    SLURM and Kubernetes send SIGTERM some time before they kill; ``sbatch --signal=USR1@120`` gives two
    minutes. All processes of a run stop at the same iteration, whichever of them was told. ``--resume``
    goes on from there.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Take the signals over; run the validation that was interrupted."""
        for s in SIGNALS:
            # A shell without job control starts background jobs without Ctrl-C: it is meant for others.
            if s != signal.SIGINT or signal.getsignal(s) is not signal.SIG_IGN:
                self._handlers[s] = signal.signal(s, self._note)
        interrupted = runner.iter > 0 and runner.training_state.position.get("validating")
        if interrupted and runner.val_loop is not None:
            runner.val_loop.run()

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        for s, handler in self._handlers.items():
            signal.signal(s, handler)
        self._handlers = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and exit, if a signal came and no gradients are half accumulated."""
        self._stop_if_told(runner, runner.iter + 1)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """The same in a validation within a training, where all processes have as many batches."""
        even = getattr(runner.val_dataloader.sampler, "round_up", False)
        if self._handlers and (even or get_world_size() == 1):
            self._stop_if_told(runner, runner.iter)

    def _stop_if_told(self, runner: Runner, iteration: int) -> None:
        accumulates = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if iteration % accumulates:
            return
        told = self._told(runner)
        if not told:
            return
        if runner.training_state.validating:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # its model is in place while a validation runs
                    hook.after_val_epoch(runner)
        path = os.path.join(runner.work_dir, PREEMPTED_NAMES.replace("*", str(iteration)))
        runner.save_checkpoint(
            runner.work_dir,
            os.path.basename(path),
            meta=dict(epoch=runner.epoch, iter=iteration),
            by_epoch=False,
        )
        if is_main_process():
            write_last_checkpoint(runner.work_dir, path)
        runner.logger.warning(
            f"stopped by {'Ctrl-C' if told == signal.SIGINT else told.name} after iteration {iteration}; "
            f"saved to {path}. Go on with: {_resume_command()}"
        )
        raise SystemExit(CTRL_C if told == signal.SIGINT else PREEMPTED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            if is_main_process():  # not print(), whose buffer this may have interrupted
                os.write(
                    2, b"\nCtrl-C: stopping after this iteration; press it again to stop at once\n"
                )

    def _told(self, runner: Runner) -> signal.Signals | None:
        """The signal that any of the processes got."""
        number = int(self.signal or 0)
        if get_world_size() > 1:
            device = next(runner.model.parameters()).device
            told = torch.tensor(number, device=device)
            all_reduce(told, op="max")
            number = int(told)
        return signal.Signals(number) if number else None


def _resume_command() -> str:
    if get_world_size() > 1:  # its beginning, such as torchrun's options, is not known here
        return "the same command with --resume"
    pairs = zip(sys.argv, [*sys.argv[1:], "-"], strict=True)
    resumes = any(word == "--resume" and after.startswith("-") for word, after in pairs)
    return shlex.join(["python", *sys.argv, *([] if resumes else ["--resume"])])


class StopOnNaN(Hook):
    """Ends a training whose loss is infinite or not a number, before a checkpoint of it is saved.

    With loss scaling (float16), where such a step is not taken and the scale is lowered, after 10 in a row.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._in_a_row = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Look at the loss of this iteration; raises FloatingPointError."""
        if not isinstance(outputs, Mapping) or "loss" not in outputs:
            return
        if math.isfinite(float(outputs["loss"].detach())):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if hasattr(runner.optim_wrapper, "loss_scaler") and self._in_a_row < 10:
            return
        terms = ", ".join(
            f"{name} {float(value):g}"
            for name, value in outputs.items()
            if not isinstance(value, Tensor) or value.numel() == 1
        )
        raise FloatingPointError(
            f"the loss of iteration {runner.iter + 1} is not finite: {terms}. Images: "
            f"{', '.join(_images(data_batch)) or 'without names'}. Checkpoints are of before. Look at "
            "these images and their labels (tools/doctor.py), lower the learning rate, clip gradients "
            "(optim_wrapper.clip_grad), or train without --amp."
        )


def _images(data_batch: Any) -> list[str]:
    samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
    if samples is None or not hasattr(samples, "__iter__"):
        return []
    return [str(getattr(sample, "img_path", "?")) for sample in samples]


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
