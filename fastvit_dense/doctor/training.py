"""Settings of a training that contradict each other: schedules, intervals, batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config

from ..engine.config import batch_message
from .findings import OK, WARNING, Finding


def check_schedule(cfg: Config) -> Iterator[Finding]:
    """Learning rates, validation and checkpoints against the length of the training."""
    loop = cfg.get("train_cfg")
    if not loop:
        return
    by_epoch = is_epoch_based(loop)
    length, unit = (
        (loop.get("max_epochs"), "epochs") if by_epoch else (loop.get("max_iters"), "iterations")
    )
    if not isinstance(length, int):
        return  # the loop's own error names the argument
    for i, scheduler in enumerate(_schedulers(cfg)):
        yield from _check_scheduler(scheduler, f"param_scheduler[{i}]", by_epoch, length)
    ends = [s.get("end") for s in _schedulers(cfg) if s.get("by_epoch", True) == by_epoch]
    if ends and None not in ends and max(ends) != length:
        then = "is still changing then" if max(ends) > length else "stays where it is from there on"
        yield Finding(
            WARNING,
            "param_scheduler",
            f"the last one ends after {max(ends)} {unit}, the training after {length}: the learning rate "
            f"{then}",
            f"set its end to {length} (and milestones within), or train for {max(ends)} {unit}",
        )
    interval = loop.get("val_interval", 1)
    if cfg.get("val_cfg") and interval > length:
        yield Finding(
            WARNING,
            "train_cfg.val_interval",
            f"is {interval}, the training has {length} {unit}: it is never validated",
            f"at most {length}",
        )
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    if not by_epoch and hook.get("by_epoch", True):
        yield Finding(
            WARNING,
            "default_hooks.checkpoint.by_epoch",
            f"is True in a training of {length} iterations: the only checkpoint is that of the end",
            f"by_epoch=False, interval={max(length // 10, 1)}",
        )


def _check_scheduler(
    scheduler: Mapping, where: str, by_epoch: bool, length: int
) -> Iterator[Finding]:
    if scheduler.get("by_epoch", True) != by_epoch:
        if not by_epoch:
            yield Finding(
                WARNING,
                where,
                f"{scheduler.get('type')} goes by epochs (by_epoch is True unless set), and a training of "
                "iterations has one: it never changes anything",
                f"by_epoch=False, with begin, end and milestones in iterations of {length}",
            )
        return
    unit = "epochs" if by_epoch else "iterations"
    if scheduler.get("begin", 0) >= length:
        yield Finding(
            WARNING, where, f"begins after {scheduler['begin']} {unit}, the training has {length}",
            "scale begin and end to the training",
        )  # fmt: skip
    late = [m for m in scheduler.get("milestones", ()) if m >= length]
    if late:
        yield Finding(
            WARNING,
            f"{where}.milestones",
            f"the training has {length} {unit}: {', '.join(map(str, late))} never come",
            "scale them to the training",
        )


def check_batch(cfg: Config) -> Iterator[Finding]:
    """The images of a step on this machine's GPUs against those that the learning rate is for."""
    if not cfg.get("optim_wrapper") or "batch_size" not in (cfg.get("train_dataloader") or {}):
        return
    message = batch_message(cfg, _processes())
    if message:
        level = WARNING if "but lr" in message else OK
        what, _, cure = message.removeprefix("batch: ").partition(". ")
        machine = "a GPU each" if torch.cuda.is_available() else "no GPU"
        yield Finding(level, f"batch on this machine ({machine})", what, cure)


def check_iterations(cfg: Config, images: int) -> Iterator[Finding]:
    """How long the training is with the images there are, and whether warm-ups fit into it.

    Args:
        cfg: the config.
        images: of the training dataset.
    """
    loop = cfg.get("train_cfg") or {}
    if not is_epoch_based(loop) or not isinstance(loop.get("max_epochs"), int):
        return
    batch = cfg.train_dataloader.get("batch_size", 1) * _processes()
    epoch = math.ceil(images / batch)
    total = epoch * loop["max_epochs"]
    yield Finding(
        OK, "", f"an epoch is {epoch} iterations of {batch} images here, the training {total}"
    )
    for i, scheduler in enumerate(_schedulers(cfg)):
        end = scheduler.get("end")
        if not scheduler.get("by_epoch", True) and isinstance(end, int) and end > total / 2:
            yield Finding(
                WARNING,
                f"param_scheduler[{i}].end",
                f"{scheduler.get('type')} ends after {end} of {total} iterations: if it is the warm-up, "
                "most of the training runs at a low rate",
                f"about {max(total // 20, 1)}, or train for more epochs",
            )


def is_epoch_based(loop: Mapping) -> bool:
    """Whether a ``train_cfg`` counts epochs."""
    kind = loop.get("type")
    if kind is None:
        return bool(loop.get("by_epoch", "max_epochs" in loop))
    return "Epoch" in getattr(kind, "__name__", str(kind))


def _processes() -> int:
    return max(torch.cuda.device_count(), 1)


def _schedulers(cfg: Config) -> list[Any]:
    found = cfg.get("param_scheduler") or []
    found = [found] if isinstance(found, Mapping) else found
    return [s for s in found if isinstance(s, Mapping) and "type" in s]
