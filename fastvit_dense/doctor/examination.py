"""All checks but that of the packages, in their order, printed as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from .checkpoint import check_checkpoint
from .config_keys import check_keys
from .config_parts import check_imports, check_parts
from .data import check_data
from .datasets import classes_of
from .findings import ERROR, Finding, Report, guarded, in_one_line
from .machine import check_folder, check_gpus, check_processor, check_shared_memory
from .model import build_model, check_classes, check_model, checkpoint_bytes, why_not_built
from .packages import check_operators
from .preflight import read_config
from .quiet import quiet
from .training import check_batch, check_schedule
from .weights import check_weights

_ROOM = 2 * 2**30  # bytes for results, of a model that is not known


def examine(
    report: Report,
    config: str | None,
    checkpoint: str | None,
    *,
    options: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    workers: int | None = None,
    images: int | None = None,
    bad_files: str | None = None,
) -> None:
    """Check the machine, a config, its data, and what a checkpoint is, and is to that config.

    Args:
        report: gets the findings.
        config: the file.
        checkpoint: the file.
        options: ``--cfg-options`` for the config.
        data_root: folder of the data in place of the config's.
        workers: processes that open images; None: as many as there are cores.
        images: of each dataset, evenly spread; None: all.
        bad_files: to write the names of images to that something is wrong with; None: none.
    """
    for check in (check_operators, check_gpus, check_processor, check_shared_memory):
        report.add(guarded(check))
    if not config:
        report.add(guarded(check_folder, "work_dirs", need=_ROOM))
    cfg = model = classes = None
    if config:
        report.add((), title=f"config {config}")
        with quiet():
            cfg = _read(report, config, options, data_root)
    scope = cfg.get("default_scope", "mmengine") if cfg else None
    with quiet(), DefaultScope.overwrite_default_scope(scope):
        if cfg is not None:
            report.add(guarded(check_keys, cfg, config))
            report.add(guarded(check_parts, cfg))
            report.add(guarded(check_imports, cfg))
            report.add(guarded(check_schedule, cfg))
            report.add(guarded(check_batch, cfg))
            model = _build(report, cfg)
            names = classes_of(cfg)
            classes = next(iter(names.values()), None)
            room = checkpoint_bytes(cfg, model) if model else _ROOM
            report.add(guarded(check_folder, cfg.get("work_dir") or "work_dirs", need=room))
            if model is not None:
                report.add(guarded(check_model, cfg, model))
                report.add(guarded(check_classes, model, names))
                report.add(guarded(check_weights, cfg, model))
            found = guarded(check_data, cfg, workers=workers, images=images, bad_files=bad_files)
            report.add(found, title="data")
        if checkpoint:
            findings = guarded(check_checkpoint, checkpoint, model, classes)
            report.add(findings, title=f"checkpoint {checkpoint}")


def _read(
    report: Report, path: str, options: Mapping[str, Any] | None, data_root: str | None
) -> Config | None:
    """The config, as far as it can be read; what is wrong with it is reported."""
    try:
        cfg = Config.fromfile(path)
        try:
            return read_config(path, options, data_root=data_root)
        except ValueError as error:  # it can be read, and contradicts itself or the options
            report.add([Finding(ERROR, "", str(error))])
        cfg.merge_from_dict({k: v for k, v in (options or {}).items() if k.split(".")[0] in cfg})
        return cfg
    except Exception as error:
        what = f"cannot be read: {in_one_line(error)}"
        report.add([Finding(ERROR, "", what, _reading_cure(error))])
        return None


def _reading_cure(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and "mmdet" in text:
        return "pip install -e '.[det]'"
    if isinstance(error, ModuleNotFoundError) and "mmseg" in text:
        return "pip install -e '.[seg]'"
    if isinstance(error, ImportError):
        return "correct custom_imports, or put the folder of that module on PYTHONPATH"
    if isinstance(error, FileNotFoundError):
        return "correct the path; those of _base_ are relative to the file they stand in"
    return "correct that line of the file, or of one of its _base_"


def _build(report: Report, cfg: Config) -> nn.Module | None:
    """The model; where it cannot be built, the parts of its config that are wrong are reported."""
    try:
        return build_model(cfg)
    except Exception as error:
        reasons = list(guarded(check_parts, cfg, only="model"))
        report.add(reasons or [why_not_built(error)])
        return None
