"""mmengine's Runner that also runs distributed on a CPU, loads strictly, and survives being stopped."""

import os
import os.path as osp
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.runner import Runner as MMEngineRunner
from torch import nn
from torch.utils.data import DataLoader

from ..compat import mmcv_ops
from ..io.files import atomic_write, remove_unfinished
from .config import _LAUNCHERS, batch_message
from .hooks import CheckpointFits, SafeCheckpointHook, ValidateRankZero
from .models import partial_loading
from .preemption import StopOnNaN, StopOnSignal, outlast_signals, workers_ended
from .resume import ResumableEpochs, ResumableIterations, TrainingState, find_checkpoint

# Where mmengine's own would lose a file or an iteration.
_SAFER: dict[str, Any] = {
    "CheckpointHook": SafeCheckpointHook,
    "EpochBasedTrainLoop": ResumableEpochs,
    "IterBasedTrainLoop": ResumableIterations,
}


class Runner(MMEngineRunner):
    """mmengine's Runner that also runs distributed on CPU, loads strictly, and survives being stopped.

    Checkpoints are complete or not there, and hold what a resumed run needs to be the run it would have
    been: random states and the place in the epoch, besides mmengine's own.

    Args:
        as for :class:`mmengine.runner.Runner`; built with ``Runner.from_cfg(cfg)``.
    """

    _load_from: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.training_state = TrainingState()
        for hook in (
            CheckpointFits(),
            self.training_state,
            ValidateRankZero(),
            StopOnNaN(),
            StopOnSignal(),
        ):
            self.register_hook(hook)
        self.logger.info(mmcv_ops.describe())

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        """Register a hook; mmengine's CheckpointHook becomes ours."""
        super().register_hook(_safer(hook), priority)

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a data loader, whose workers wait for the main process when all are told to stop."""
        return outlast_signals(MMEngineRunner.build_dataloader(dataloader, *args, **kwargs))

    def build_train_loop(self, loop: Any) -> Any:
        """Build the training loop; mmengine's become ours."""
        if isinstance(loop, Mapping) and "by_epoch" in loop:
            kind = "EpochBasedTrainLoop" if loop["by_epoch"] else "IterBasedTrainLoop"
            loop = {"type": kind, **{k: v for k, v in loop.items() if k != "by_epoch"}}
        return super().build_train_loop(_safer(loop))

    def setup_env(self, env_cfg: dict) -> None:
        """Set up processes; without a GPU, distributed training goes over gloo."""
        if self.distributed and not dist.is_initialized() and not torch.cuda.is_available():
            # mmengine would select a CUDA device for each rank.
            for name, given in _LAUNCHERS[self.launcher].items():
                os.environ[name] = os.environ[given]
            os.environ.setdefault("MASTER_PORT", "29500")  # mmengine's
            dist.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap for distributed training; on CPU a replica has no device id.

        ``channels_last=True`` in the config puts the weights, and with them all maps, into that memory
        format: here, since the wrapper lays out its gradient buckets by the weights.
        """
        if self.cfg.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        if self.distributed and model_wrapper_cfg is None and not torch.cuda.is_available():
            return MMDistributedDataParallel(
                module=revert_sync_batchnorm(model),  # SyncBN needs a GPU
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get("find_unused_parameters", False),
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        """Load a checkpoint of plain data, with errors that name the file; see CheckpointFits."""
        try:
            with partial_loading():  # CheckpointFits has the say
                content = super().load_checkpoint(filename, *args, **kwargs)
        except (ValueError, OSError):
            raise
        except Exception as e:  # of a hook: its part is there and is something else
            raise ValueError(
                f"{filename} is damaged, or no training wrote it: {type(e).__name__}: {e}"
            ) from e
        # mmengine resumes such a text by running it (mmengine/runner/runner.py, Runner.resume). Its own
        # checkpoints have `cfg` instead, which is not run.
        (content.get("meta") or {}).pop("config", None)
        return content

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        *args: Any,
        save_optimizer: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint, which appears under its name once it is complete.

        To be called by all processes; the first one writes. Arguments are mmengine's.

        Raises:
            OSError: it could not be written, as on a full disk. What was there before is untouched.
        """
        here = (self.epoch + 1, self.iter) if by_epoch else (self.epoch, self.iter + 1)
        meta = {"epoch": here[0], "iter": here[1], **(meta or {})}
        if save_optimizer:  # a checkpoint to resume from
            self.training_state.note(self.train_loop.position(meta["epoch"], meta["iter"]))
        options = dict(kwargs, save_optimizer=save_optimizer, meta=meta, by_epoch=by_epoch)
        if not is_main_process():
            return
        if backend_args is not None or "://" in out_dir:  # remote stores write whole files
            super().save_checkpoint(out_dir, filename, *args, backend_args=backend_args, **options)
            return
        os.makedirs(out_dir, exist_ok=True)
        with atomic_write(osp.join(out_dir, filename)) as unfinished:
            super().save_checkpoint(str(unfinished.parent), unfinished.name, *args, **options)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume model, optimizer, schedules, random states and the place in the data."""
        super().resume(filename, *args, **kwargs)
        point = self.training_state
        for reason in (self.train_loop.resume(point.position, seed=self.seed), point.restore()):
            if reason:
                self.logger.warning(f"--resume: {reason}")

    def load_or_resume(self) -> None:
        """Load or resume; ``--resume`` without a name takes the newest checkpoint that can be read."""
        if self._resume and self._load_from is None and not self._has_loaded:
            found = [find_checkpoint(self.work_dir) if is_main_process() else None]
            broadcast_object_list(found)
            if found[0] is None:
                self.logger.warning(
                    f"--resume: no checkpoint in {self.work_dir}, training starts from the beginning"
                )
                return
            self._load_from = found[0]
        super().load_or_resume()

    def train(self) -> nn.Module:
        """Train; first say how the batch compares with the recipe's."""
        message = batch_message(self.cfg, get_world_size())
        if message:
            self.logger.info(message)
        if is_main_process():
            remove_unfinished(self.work_dir)
        with workers_ended():
            return super().train()

    def val(self) -> dict:
        """Validate."""
        with workers_ended():
            return super().val()

    def test(self) -> dict:
        """Test."""
        with workers_ended():
            return super().test()


def _safer(cfg: Any) -> Any:
    if isinstance(cfg, Mapping) and cfg.get("type") in _SAFER:
        return {**cfg, "type": _SAFER[cfg["type"]]}
    return cfg
