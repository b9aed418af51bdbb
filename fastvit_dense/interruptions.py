"""What ends a training before its time: a signal, which is saved for, and numbers that are none."""

import math
import os
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from .checkpoint_files import INTERRUPTED_NAMES, write_last_checkpoint

# Exit status after a signal that was saved for. (sysexits.h calls it EX_TEMPFAIL: try again later.)
INTERRUPTED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)


class StopOnSignal(Hook):
    """Saves at the next iteration after SIGTERM or SIGUSR1, and exits with status 75.

    SLURM and Kubernetes send SIGTERM some time before they kill; ``sbatch --signal=USR1@120`` gives two
    minutes. All processes of a run stop at the same iteration, whichever of them was told. ``--resume``
    goes on from there.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Take the signals over."""
        self._handlers = {s: signal.signal(s, self._note) for s in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        for s, handler in self._handlers.items():
            signal.signal(s, handler)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and exit, if a signal came and no gradients are half accumulated."""
        iteration = runner.iter + 1
        accumulates = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if iteration % accumulates or not self._anyone(runner):
            return
        name = INTERRUPTED_NAMES.replace("*", str(iteration))
        runner.save_checkpoint(runner.work_dir, name, by_epoch=False)
        told = self.signal.name if self.signal else "a signal in another process"
        path = os.path.join(runner.work_dir, name)
        if is_main_process():
            write_last_checkpoint(runner.work_dir, path)
        runner.logger.warning(
            f"stopped by {told} after iteration {iteration}; saved to {path}. --resume goes on from there."
        )
        raise SystemExit(INTERRUPTED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)

    def _anyone(self, runner: Runner) -> bool:
        if get_world_size() == 1:
            return self.signal is not None
        device = next(runner.model.parameters()).device
        told = torch.tensor(float(self.signal is not None), device=device)
        all_reduce(told, op="max")
        return bool(told)


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
        terms = ", ".join(f"{name} {float(value):g}" for name, value in _numbers(outputs))
        raise FloatingPointError(
            f"the loss of iteration {runner.iter + 1} is not finite: {terms}. Images: "
            f"{', '.join(_images(data_batch)) or 'without names'}. Checkpoints are of before. Look at "
            "these images and their labels (tools/doctor.py), lower the learning rate, clip gradients "
            "(optim_wrapper.clip_grad), or train without --amp."
        )


def _numbers(outputs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in outputs.items()
        if isinstance(value, float | int) or isinstance(value, Tensor) and value.numel() == 1
    ]


def _images(data_batch: Any) -> list[str]:
    samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
    if samples is None or not hasattr(samples, "__iter__"):
        return []
    return [str(getattr(sample, "img_path", "?")) for sample in samples]
