"""Hooks of every run: checkpoints that fit, are complete, and outlive the one that replaces them."""

from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner import Runner as MMEngineRunner

from ..io.files import atomic_write
from .models import check_fits, unwrap

# Saved on a signal; the next regular one replaces them.
PREEMPTED_NAMES = "interrupted_iter_*.pth"


class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which removes older files when the new one is complete, not before.

    :class:`.runner.Runner` uses it in place of the hook it extends, and writes the files.
    A full disk costs this checkpoint, not the run and not the one before; at the end of training it is
    an error.
    """

    file_backend: Any
    keep_ckpt_ids: deque[int]
    last_ckpt: str | None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        kept, before = list(getattr(self, "keep_ckpt_ids", ())), self.last_ckpt
        outdated = []
        if self.max_keep_ckpts > 0 and (not kept or kept[-1] != step):
            outdated = kept[: max(len(kept) + 1 - self.max_keep_ckpts, 0)]
            self._keep(runner, [*kept[len(outdated) :], step])
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self._path(name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        except OSError as e:
            if self.max_keep_ckpts > 0:
                self._keep(runner, kept)
            self.last_ckpt = before
            if runner.iter + 1 >= runner.max_iters:
                raise
            runner.logger.error(
                f"{self._path(name)} could not be saved ({e}); training goes on. "
                f"{before or 'No checkpoint'} is the newest: make room before the next one is due."
            )
            return
        if is_main_process():
            write_last_checkpoint(runner.work_dir, self.last_ckpt)
            old = [self._path(self.filename_tmpl.format(i)) for i in outdated]
            for path in (*old, *map(str, Path(runner.work_dir).glob(PREEMPTED_NAMES))):
                if self.file_backend.isfile(path):
                    self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        backend, later = self.file_backend, _RemoveLater(self.file_backend)
        self.file_backend = later  # the base class removes the best one, then writes a better one
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as e:
            runner.logger.error(f"the best checkpoint could not be saved ({e}); training goes on")
        else:
            later.act(but=self._best_paths())
        finally:
            self.file_backend = backend

    def _keep(self, runner: Runner, steps: list[int]) -> None:
        self.keep_ckpt_ids = deque(steps, self.keep_ckpt_ids.maxlen)
        runner.message_hub.update_info("keep_ckpt_ids", steps)

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _best_paths(self) -> list[str]:
        several = getattr(self, "best_ckpt_path_dict", {})
        return [str(p) for p in (getattr(self, "best_ckpt_path", None), *several.values()) if p]


class _RemoveLater:
    """A file backend of mmengine that keeps what it is to remove until :meth:`act`."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removals: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.removals.append(path)

    def act(self, *, but: list[str]) -> None:
        for path in self.removals:
            if path not in but and self.backend.isfile(path):
                self.backend.remove(path)


def write_last_checkpoint(work_dir: str, path: str) -> None:
    """Let ``last_checkpoint`` in a run's folder name a file, from one moment to the next."""
    with atomic_write(Path(work_dir, "last_checkpoint")) as unfinished:
        unfinished.write_text(path)


class CheckpointFits(Hook):
    """Refuses a checkpoint that fits the model only in part, before anything is loaded.

    mmengine loads non-strictly: a checkpoint of another architecture leaves the model random and a
    line in the log. With ``load_strict=False`` in the config, what fits is loaded and the rest is
    counted in the log (for a start from a model with other classes).
    """

    def after_load_checkpoint(self, runner: MMEngineRunner, checkpoint: dict) -> None:
        """Compare names, shapes and classes; raises ValueError where they differ."""
        remark = check_fits(
            unwrap(runner.model),
            checkpoint,
            classes=_classes(runner),
            strict=runner.cfg.get("load_strict", True),
        )
        if remark:
            print_log(remark, logger="current")


class ValidateRankZero(Hook):
    """Gives all processes the first one's buffers before a validation.

    Each process keeps the BatchNorm statistics of its own images, and the first one's are saved. Without
    this, the logged metric, by which the best checkpoint is chosen, would be of models that differ from
    process to process and from the file.
    """

    priority = "LOWEST"  # after EMAHook has put its model in place

    def before_val_epoch(self, runner: MMEngineRunner) -> None:
        """Broadcast the buffers; to be called by all processes."""
        for buffer in unwrap(runner.model).buffers():
            broadcast(buffer)


def _classes(runner: MMEngineRunner) -> tuple[str, ...]:
    loop = runner._train_loop if runner._train_loop is not None else runner._test_loop
    dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
    return tuple((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
