"""What training and testing need around mmengine's Runner: configs, loading, devices, batch sizes.

``tools/train.py`` and ``tools/test.py`` are thin wrappers of :func:`load_config` and :class:`Runner`.
"""

import difflib
import os
import os.path as osp
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import broadcast, broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import (
    BaseTTAModel,
    MMDistributedDataParallel,
    is_model_wrapper,
    revert_sync_batchnorm,
)
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner as MMEngineRunner
from torch import nn
from torch.utils.data import DataLoader

from . import mmcv_ops
from .backbone import refuse_other_structures
from .checkpoint_files import SafeCheckpointHook, find_checkpoint, remove_unfinished, written_aside
from .data_workers import outlast_signals, workers_ended
from .interruptions import StopOnNaN, StopOnSignal
from .resume_point import ResumePoint
from .strict_loading import misfits, parts_are_welcome, without_prefix
from .train_loops import ResumableEpochs, ResumableIterations

# Keys a config may get from the command line without having them itself.
_RUNNER_KEYS = {
    "auto_scale_lr", "channels_last", "custom_hooks", "default_hooks", "experiment_name", "launcher",
    "load_from", "load_strict", "model_wrapper_cfg", "param_scheduler", "randomness", "resume",
    "visualizer", "work_dir",
}  # fmt: skip


def load_config(
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    work_dir: str | None = None,
    launcher: str = "none",
) -> Config:
    """Read a config file, apply command line overrides and check what can be checked without data.

    Args:
        path: the config file.
        options: ``--cfg-options`` as a mapping of dotted keys.
        work_dir: folder for logs and checkpoints; None means ``work_dirs/<name of the config>``.
        launcher: none, pytorch, slurm or mpi.

    Returns:
        The config, ready for :class:`Runner`.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: the file is no config; an override names a key that the config does not have, or a
            place in a list that is not there; an evaluator reads other annotations than its dataset.
        ImportError: mmcv is compiled, and for another torch.
    """
    return override(read_config_file(path), path, options, work_dir=work_dir, launcher=launcher)


def override(
    cfg: Config,
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    work_dir: str | None = None,
    launcher: str = "none",
) -> Config:
    """:func:`load_config` of a config that has been read; it is changed and returned."""
    for key in options or {}:
        top = key.split(".")[0]
        if top not in cfg and top not in _RUNNER_KEYS:
            near = difflib.get_close_matches(top, [*cfg, *_RUNNER_KEYS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--cfg-options {key}: {path} has no {top!r}{hint}")
    try:
        cfg.merge_from_dict(dict(options or {}))
    except (KeyError, TypeError) as e:  # no such place in a list; a key of what is no dict
        raise ValueError(f"--cfg-options: {e.args[0]}") from e
    cfg.launcher = launcher
    cfg.work_dir = (
        work_dir or cfg.get("work_dir") or f"work_dirs/{osp.splitext(osp.basename(path))[0]}"
    )
    _check_same_annotations(cfg)
    return cfg


def read_config_file(path: str) -> Config:
    """Read a config file as it is.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no config, but, say, a checkpoint; its Python has a syntax error.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f"config {path!r} does not exist; configs/ holds those of the project"
        )
    if not path.endswith((".py", ".json", ".yaml", ".yml")):
        raise ValueError(
            f"config {path!r} is no config file (.py): the config comes first, then the checkpoint"
        )
    mmcv_ops.require_loadable()  # the config's custom_imports would not say why they fail
    try:
        return Config.fromfile(path)
    except SyntaxError as e:
        raise ValueError(f"config {path!r} cannot be read: {e}") from e


def enable_amp(cfg: Config) -> None:
    """Switch a config to mixed precision on the device that mmengine will choose.

    That is float16 with dynamic loss scaling on CUDA and bfloat16, which needs none, on a CPU.

    Args:
        cfg: changed in place.

    Raises:
        ValueError: mmengine will choose another device, such as mps, Apple's GPU: its AmpOptimWrapper
            refuses that one.
    """
    device = get_device()
    if device == "cuda":
        cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    elif device == "cpu":
        cfg.optim_wrapper.type = "CPUAmpOptimWrapper"
        mmcv_ops.accept_low_precision()
    else:
        raise ValueError(
            f"--amp: expected cuda (float16) or cpu (bfloat16), but this machine trains on {device}, for "
            "which there is no mixed precision here: train without --amp"
        )


def enable_tta(cfg: Config) -> None:
    """Switch a config to its test-time augmentation.

    Args:
        cfg: changed in place.

    Raises:
        ValueError: it defines none, or one whose sizes do not fit the test pipeline: a `Resize` to fixed
            sizes where the test pipeline keeps or scales the image's, or sizes that are all larger, or
            all smaller, than the test pipeline's.
    """
    if not cfg.get("tta_model") or not cfg.get("tta_pipeline"):
        raise ValueError(
            "--tta: the config defines no test-time augmentation; expected a tta_model and a tta_pipeline"
        )
    own, views = _sizes(cfg.test_dataloader.dataset.pipeline), _sizes(cfg.tta_pipeline)
    for kind, *size in own:
        sides = zip(*(v[1:] for v in views), strict=True)
        if {v[0] for v in views} != {kind} or any(
            not min(given) <= side <= max(given) for side, given in zip(size, sides, strict=True)
        ):
            raise ValueError(
                f"--tta: tta_pipeline resizes images to {_describe(views)}, the test pipeline to "
                f"{_describe(own)}, and the accuracy would be another model's. Expected sizes around the "
                "test pipeline's: give the config a tta_pipeline of its own, or tta_pipeline=None"
            )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.test_evaluator = cfg.get("tta_evaluator", cfg.test_evaluator)


def _sizes(pipeline: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What each `Resize` of a pipeline is given: ("scale", width, height) or ("scale_factor", x, y)."""
    steps: list[Any] = []
    for step in pipeline:
        views = step["transforms"] if step["type"] == "TestTimeAug" else [[step]]
        steps.extend(chain.from_iterable(views))
    sizes = []
    for step in steps:
        if step["type"].rpartition(".")[2] == "Resize":
            kind = "scale" if step.get("scale") else "scale_factor"
            size = step[kind]
            sizes.append((kind, *(size if isinstance(size, Sequence) else (size, size))))
    return sizes or [("scale_factor", 1.0, 1.0)]


def _describe(sizes: Sequence[tuple[Any, ...]]) -> str:
    """Sizes in words."""
    return ", ".join(
        f"{x}x{y} pixels" if kind == "scale" else f"{x:g} times their own size"
        for kind, x, y in sizes
    )


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper under bfloat16 autocast on CPU, where AmpOptimWrapper refuses to run.

    bfloat16 has float32's exponent, so there is no loss scaling.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast; gradients are accumulated as in the base class."""
        with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
            yield


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers for distributed training and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module  # type: ignore[assignment]
    return model


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


def check_fits(
    model: nn.Module, checkpoint: Mapping, *, classes: tuple[str, ...] = (), strict: bool = True
) -> str:
    """Compare a checkpoint with a model: names, shapes and classes.

    Args:
        model: without wrappers.
        checkpoint: its content.
        classes: of the dataset; none are not compared.
        strict: refuse what does not fit.

    Returns:
        Without `strict`, what does not fit; empty if all does.

    Raises:
        ValueError: it does not fit, with `strict`; it holds no weights, or those of the other structure.
    """
    wanted, meta = model.state_dict(), checkpoint.get("meta", {})
    given = without_prefix(checkpoint.get("state_dict", {}))
    if not given:
        raise ValueError(
            "the checkpoint holds no 'state_dict': expected a file that tools/train.py wrote. "
            "Pretrained backbones go into model.backbone.init_cfg.checkpoint."
        )
    refuse_other_structures(model, given)
    problems, fits = misfits(wanted, given)
    trained_on = tuple((meta.get("dataset_meta") or {}).get("classes", ()))
    if classes and trained_on and classes != trained_on:
        problems.append(
            f"trained on {len(trained_on)} classes {_shorten(trained_on)}, "
            f"the dataset has {len(classes)} {_shorten(classes)}"
        )
    if problems and strict:
        raise ValueError(
            f"the checkpoint does not fit this config: {'; '.join(problems)}. Use the config "
            + (
                "that tools/reparameterize.py wrote beside it: it is fused."
                if meta.get("fastvit_dense", {}).get("deploy")
                else "it was trained with, or --cfg-options load_strict=False to start from "
                "what fits."
            )
        )
    if not problems:
        return ""
    return f"load_strict=False: {fits} of {len(wanted)} tensors fit; {'; '.join(problems)}"


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


# What torch.distributed asks for, and what each launcher calls it.
# tools/slurm_train.sh sets address and port.
_LAUNCHERS = {
    "pytorch": {"RANK": "RANK", "WORLD_SIZE": "WORLD_SIZE", "MASTER_ADDR": "MASTER_ADDR"},
    "slurm": {
        "RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID",
    },
    "mpi": {
        "RANK": "OMPI_COMM_WORLD_RANK", "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK", "MASTER_ADDR": "MASTER_ADDR",
    },
}  # fmt: skip
_LAUNCHED_BY = {
    "pytorch": "torchrun --nproc_per_node N {tool} ... --launcher pytorch",
    "slurm": "srun --ntasks N python {tool} ... --launcher slurm (sbatch tools/slurm_train.sh does)",
    "mpi": "mpirun -np N -x MASTER_ADDR=HOST python {tool} ... --launcher mpi",
}
# Where mmengine's own would lose a file or an iteration.
_SAFER = {
    "CheckpointHook": SafeCheckpointHook,
    "EpochBasedTrainLoop": ResumableEpochs,
    "IterBasedTrainLoop": ResumableIterations,
}


class Runner(MMEngineRunner):
    """mmengine's Runner that also runs distributed on CPU, loads strictly, and survives being stopped.

    Checkpoints are complete or not there, and hold what a resumed run needs to be the run it would have
    been: random states and the place in the epoch beside mmengine's own.

    Args:
        as for :class:`mmengine.runner.Runner`; built with ``Runner.from_cfg(cfg)``.
    """

    _load_from: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resume_point = ResumePoint()
        for hook in (
            CheckpointFits(),
            self.resume_point,
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
            with parts_are_welcome():  # CheckpointFits has the say
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
            self.resume_point.note(self.train_loop.position(meta["epoch"], meta["iter"]))
        options = dict(kwargs, save_optimizer=save_optimizer, meta=meta, by_epoch=by_epoch)
        if not is_main_process():
            return
        if backend_args is not None or "://" in out_dir:  # remote stores write whole files
            super().save_checkpoint(out_dir, filename, *args, backend_args=backend_args, **options)
            return
        os.makedirs(out_dir, exist_ok=True)
        with written_aside(osp.join(out_dir, filename)) as aside:
            super().save_checkpoint(str(aside.parent), aside.name, *args, **options)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume model, optimizer, schedules, random states and the place in the data."""
        super().resume(filename, *args, **kwargs)
        point = self.resume_point
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
                    f"--resume: there is no checkpoint in {self.work_dir}, training begins anew"
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


def batch_message(cfg: ConfigDict, processes: int) -> str:
    """Say how the images of one optimizer step compare with those the learning rate is meant for.

    Args:
        cfg: the config.
        processes: number of training processes, one a GPU.

    Returns:
        One line; empty when the config has no ``auto_scale_lr.base_batch_size``.
    """
    recipe = cfg.get("auto_scale_lr", {}).get("base_batch_size")
    if not recipe:
        return ""
    batch = cfg.train_dataloader.batch_size
    steps = cfg.optim_wrapper.get("accumulative_counts", 1)
    images = processes * batch * steps
    lr = cfg.optim_wrapper.optimizer.lr
    arithmetic = f"{processes} processes x {batch} images" + (
        f" x {steps} accumulated steps" if steps > 1 else ""
    )
    scaled = lr * processes * batch / recipe  # mmengine scales by the images of one forward pass
    if cfg.auto_scale_lr.get("enable") and processes * batch != recipe:
        return (
            f"batch: {arithmetic} = {images} images a step, recipe {recipe}; lr scaled linearly from "
            f"{lr:g} to {scaled:g}"
        )
    if images == recipe:
        return f"batch: {arithmetic} = {images} images a step, as in the recipe; lr {lr:g}"
    ways = []
    if steps == 1:
        ways.append(f"--auto-scale-lr scales it to {scaled:g}")
    else:
        ways.append(f"optim_wrapper.optimizer.lr={lr * images / recipe:g} is in proportion")
    if recipe % (processes * batch) == 0:
        ways.append(f"optim_wrapper.accumulative_counts={recipe // (processes * batch)} keeps it")
    elif recipe % (processes * steps) == 0:
        ways.append(f"train_dataloader.batch_size={recipe // (processes * steps)} keeps it")
    return (
        f"batch: {arithmetic} = {images} images a step, but lr {lr:g} is meant for {recipe}. "
        f"{'; '.join(ways)}."
    )


def _check_same_annotations(cfg: Config) -> None:
    """A COCO evaluator has a path of its own, which people forget to change with the dataset's."""
    differ, keys = [], []
    for split in ("val", "test"):
        evaluator, loader = cfg.get(f"{split}_evaluator"), cfg.get(f"{split}_dataloader")
        if not isinstance(evaluator, Mapping) or not evaluator.get("ann_file") or not loader:
            continue
        dataset = loader["dataset"]
        reads = osp.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
        if osp.normpath(evaluator["ann_file"]) != osp.normpath(reads):
            differ.append(
                f"{split}_evaluator.ann_file is {evaluator['ann_file']!r}, but {split}_dataloader reads "
                f"{reads!r}"
            )
            keys.append(f"{split}_evaluator.ann_file={reads}")
    if differ:
        raise ValueError(
            f"{'; '.join(differ)}: predictions would be compared with other annotations. Set "
            f"{' and '.join(keys)}, or move all data with --data-root FOLDER"
        )


def _classes(runner: MMEngineRunner) -> tuple[str, ...]:
    loop = runner._train_loop if runner._train_loop is not None else runner._test_loop
    dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
    return tuple((getattr(dataset, "metainfo", None) or {}).get("classes") or ())


def _shorten(names: tuple[str, ...]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def check_launcher(launcher: str, *, local_rank: int = 0) -> None:
    """Check that this process was started as ``--launcher`` says, before it does anything.

    Args:
        launcher: none, pytorch, slurm or mpi.
        local_rank: that ``torch.distributed.launch`` gives as an argument; it is passed on.

    Raises:
        ValueError: it is one of several, which would all train alone in one work folder; or the variables
            of the launcher are missing.
    """
    tool = sys.argv[0]
    if launcher == "none":
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1" and "RANK" in os.environ:
            raise ValueError(
                f"this is one of {processes} processes (WORLD_SIZE), each of which would run alone: add "
                f"--launcher pytorch, or unset WORLD_SIZE to run {tool} once"
            )
        return
    missing = [name for name in _LAUNCHERS[launcher].values() if name not in os.environ]
    if missing:
        raise ValueError(
            f"--launcher {launcher}: {', '.join(missing)} not set; expected to be started by: "
            f"{_LAUNCHED_BY[launcher].format(tool=tool)}"
        )
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
