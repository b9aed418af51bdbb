"""Checkpoint files that are complete or not there, and which of them a run resumes from."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from .strict_loading import read_checkpoint

UNFINISHED = ".unfinished"  # suffix of what is being written
INTERRUPTED_NAMES = (
    "interrupted_iter_*.pth"  # saved on a signal; the next regular one replaces them
)


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` when the block ends well.

    What was there before stays until then, also when the process or the machine stops.

    Args:
        path: the file.
    """
    path = Path(path)
    aside = path.with_name(path.name + UNFINISHED)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process was writing."""
    for path in Path(folder).glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def find_checkpoint(work_dir: str | Path) -> str | None:
    """The newest checkpoint of a run that can be read whole and resumed from.

    Args:
        work_dir: folder of the run. ``last_checkpoint`` in it is tried first, then its other checkpoints,
            the newest first; one that cannot be read is named in the log.

    Returns:
        Its path, None where there is no checkpoint at all.

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


class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which removes older files when the new one is complete, not before.

    :class:`fastvit_dense.runtime.Runner` uses it in place of the hook it extends, and writes the files. A
    full disk costs this checkpoint, not the run and not the one before; at the end of training it is an
    error.
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
            for path in (*old, *map(str, Path(runner.work_dir).glob(INTERRUPTED_NAMES))):
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
    with written_aside(Path(work_dir, "last_checkpoint")) as aside:
        aside.write_text(path)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk, too, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
