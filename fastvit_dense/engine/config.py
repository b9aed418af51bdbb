"""Configs: read, overridden from the command line, checked, switched to AMP or test-time augmentation."""

from __future__ import annotations

import difflib
import os
import os.path as osp
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..compat import mmcv_ops

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
        FileNotFoundError: the config does not exist.
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
            hint = did_you_mean(top, [*cfg, *_RUNNER_KEYS])
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for the end of a message: the known name that is most like `name`; empty if none is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_config_file(path: str) -> Config:
    """Read a config file as it is.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
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
                f"--tta: tta_pipeline resizes images to {views}, the test pipeline to {own}, "
                "and the accuracy would be another model's. Expected sizes around the "
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
            f"batch: {arithmetic} = {images} images per step, recipe {recipe}; lr scaled linearly from "
            f"{lr:g} to {scaled:g}"
        )
    if images == recipe:
        return f"batch: {arithmetic} = {images} images per step, as in the recipe; lr {lr:g}"
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
        f"batch: {arithmetic} = {images} images per step, but lr {lr:g} is meant for {recipe}. "
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
