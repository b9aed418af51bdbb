"""All checks but that of the packages, in their order, reported as they come."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from traceback import walk_tb
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn

from ..engine.config import batch_message
from ..engine.devices import usable_cores
from ..io.files import why_unwritable
from .checkpoint import check_checkpoint
from .data import check_data
from .packages import check_operators
from .preflight import build_model, check_parts, check_weights, quiet, read_config
from .report import ERROR, OK, WARNING, Diagnostic, Report, guarded, in_one_line

_GIB = 2**30
_SPLITS = ("train", "val", "test")


def run_checks(
    report: Report,
    config: str | None,
    checkpoint: str | None,
    *,
    options: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    **data: Any,
) -> None:
    """Check the machine, a config, its data, and what a checkpoint is, and is to that config.

    Args:
        report: gets the diagnostics.
        config: the file.
        checkpoint: the file.
        options: ``--cfg-options`` for the config.
        data_root: folder of the data in place of the config's.
        **data: as of :func:`fastvit_dense.doctor.data.check_data`.
    """
    report.add(guarded(check_operators))
    report.add(guarded(check_machine))
    built: dict[str, Any] = {}
    with quiet():
        if config:
            found = guarded(_check_config, config, built, options, data_root)
            report.add(found, title=f"config {config}")
        if "cfg" in built:
            found = guarded(check_data, built["cfg"], built["datasets"], **data)
            report.add(found, title="data")
        if checkpoint:
            classes = _classes_of(built.get("datasets", {}), "train")
            found = guarded(check_checkpoint, checkpoint, built.get("model"), classes)
            report.add(found, title=f"checkpoint {checkpoint}")


def _check_config(
    path: str, built: dict, options: Mapping[str, Any] | None, data_root: str | None
) -> Iterator[Diagnostic]:
    """Check a config but for its data; what could be made of it is `built`."""
    cfg = read_config(path, options, data_root=data_root)
    init_default_scope(cfg.get("default_scope") or "mmengine")
    built.update(cfg=cfg, datasets={})
    yield from check_parts(cfg, _SPLITS, built["datasets"])
    yield from check_training(cfg)
    built["model"] = model = build_model(cfg)
    yield from check_weights(model)
    yield from check_classes(model, built["datasets"])
    yield from check_model(model, built["datasets"].get("train_dataloader.dataset"))


def check_machine() -> Iterator[Diagnostic]:
    """GPUs, threads, memory that data loaders share."""
    for i in range(torch.cuda.device_count()):
        torch.ones(8, 8, device=f"cuda:{i}").mm(torch.ones(8, 8, device=f"cuda:{i}")).sum().item()
        free, total = (n / _GIB for n in torch.cuda.mem_get_info(i))
        what = f"{torch.cuda.get_device_name(i)}, {free:.0f} of {total:.0f} GiB free"
        yield Diagnostic(OK if free > total / 2 else WARNING, f"GPU {i}", what)
    cores, threads = usable_cores(), torch.get_num_threads()
    what = f"torch sees {torch.cuda.device_count()} GPUs, uses {threads} threads on {cores} cores"
    hint = f"export OMP_NUM_THREADS={cores}" if threads > cores else ""
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE" and not torch.cuda.is_available():
        hint = "export OMP_WAIT_POLICY=PASSIVE: idle threads spin, up to 30 times slower"
    yield Diagnostic(WARNING if hint else OK, "", what, hint)
    if os.path.isdir("/dev/shm") and (free := shutil.disk_usage("/dev/shm").free / _GIB) < 1:
        what, hint = f"{free:.1f} GiB free, data loaders need more", "docker run --shm-size=8g"
        yield Diagnostic(WARNING, "/dev/shm", what, hint)


def check_training(cfg: Config) -> Iterator[Diagnostic]:
    """Where results go; the batch on this machine's GPUs; the schedule against the length of training."""
    if why := why_unwritable(cfg.work_dir):
        yield Diagnostic(ERROR, cfg.work_dir, why, "choose another folder with --work-dir")
    if not cfg.get("optim_wrapper") or not cfg.get("train_cfg"):
        return
    if message := batch_message(cfg, max(torch.cuda.device_count(), 1)):
        yield Diagnostic(OK, "on this machine", message)
    by_epoch = "max_epochs" in cfg.train_cfg
    length = cfg.train_cfg.get("max_epochs" if by_epoch else "max_iters")
    schedulers = cfg.get("param_scheduler") or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    ends = [s.get("end", length) for s in schedulers if s.get("by_epoch", True) == by_epoch]
    if ends and max(ends) != length:
        what = f"the last one ends at {max(ends)}, training at {length}"
        yield Diagnostic(WARNING, "param_scheduler", what, f"set its end to {length}")


def _classes_of(datasets: Mapping[str, Any], split: str) -> tuple[str, ...]:
    found = [d.metainfo.get("classes") for where, d in datasets.items() if where.startswith(split)]
    return tuple((found or [()])[0] or ())


def check_classes(model: nn.Module, datasets: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """The numbers of classes of heads and datasets."""
    counts = {f"{split}_dataloader": len(_classes_of(datasets, split)) for split in _SPLITS}
    for name, part in model.named_modules():
        if name.endswith(("bbox_head", "mask_head", "decode_head", "auxiliary_head")):
            counts[f"model.{name}"] = getattr(part, "num_classes", 0)
    counts = {where: count for where, count in counts.items() if count}
    if len(set(counts.values())) > 1:
        what = ", ".join(f"{where} {count}" for where, count in counts.items())
        hint = "set num_classes of the heads, and metainfo of the datasets"
        yield Diagnostic(ERROR, "classes", f"their numbers differ: {what}", hint)


def check_model(model: Any, dataset: Any) -> Iterator[Diagnostic]:
    """A forward pass: the loss of two training images; if there are none, features of random ones."""
    try:
        items = [dataset[i] for i in range(min(2, len(dataset)))] if dataset is not None else []
    except Exception:  # reported by the checks of the data
        items = []
    model.train()
    try:
        with torch.no_grad():
            if items:
                batch = model.data_preprocessor(pseudo_collate(items), training=True)
                loss, _ = model.parse_losses(model(**batch, mode="loss"))
                done = f"the loss of two training images is {loss.item():.4g}"
            else:
                getattr(model, "extract_feat", model.backbone)(torch.rand(2, 3, 128, 128))
                done = "features of random images, as there are no data"
    except Exception as error:
        names = {id(part): f"model.{name}" for name, part in model.named_modules() if name}
        callers = [id(frame.f_locals.get("self")) for frame, _ in walk_tb(error.__traceback__)]
        where = [names[caller] for caller in callers if caller in names][-1:] or ["model"]
        yield Diagnostic(ERROR, where[0], f"fails in a forward pass: {in_one_line(error)}")
    else:
        yield Diagnostic(OK, "model", f"{type(model).__name__}: {done}")
