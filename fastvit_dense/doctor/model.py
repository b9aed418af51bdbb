"""Whether a config's model can be built, whether its parts fit together, and to the classes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from .findings import ERROR, OK, WARNING, Finding, in_one_line

_OF_SHAPES = re.compile(r"channels|shape|size of tensor|mat1|normalized_shape|Sizes of tensors")
_SIDE = 128  # pixels, of the picture that a model is tried with: some of its coarsest cells


def build_model(cfg: Config) -> nn.Module:
    """The config's model with random weights, in eval mode."""
    model = copy.deepcopy(cfg.model)
    if cfg.get("data_preprocessor"):
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    return MODELS.build(model).eval()


def why_not_built(error: Exception) -> Finding:
    """An exception of building a model, with the part that it comes from."""
    part, step = "", error.__traceback__
    while step is not None:
        if isinstance(module := step.tb_frame.f_locals.get("self"), nn.Module):
            part = f" ({type(module).__name__})"
        step = step.tb_next
    what = f"cannot be built: {in_one_line(error)}"
    return Finding(ERROR, f"model{part}", what, "correct that part in the config")


def check_model(cfg: Config, model: nn.Module) -> Iterator[Finding]:
    """Run a model, and compare its parts.

    Args:
        cfg: the config.
        model: built from it.
    """
    failure = _try_out(model)
    misfits = _misfits(cfg.model, model)
    if failure is None:
        # It runs, so channels fit, however unusual; strides it would pass over.
        misfits = [finding for finding in misfits if finding.where.endswith("strides")]
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        what = f"{type(model).__name__}, {millions:.1f} M parameters: builds, and predicts on a picture"
        yield Finding(OK, "model", what)
    yield from misfits or ([failure] if failure else [])


def checkpoint_bytes(cfg: Config, model: nn.Module) -> int:
    """Room that the checkpoints of a training take at a time."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    kept = max(hook.get("max_keep_ckpts", -1), 1) + 1 + bool(hook.get("save_best"))
    # Weights and the two moments of Adam, 4 bytes each.
    return kept * 3 * 4 * sum(p.numel() for p in model.parameters())


def _misfits(cfg: Mapping, model: nn.Module) -> list[Finding]:
    """Where channels or strides differ between backbone, neck and heads."""
    try:
        with torch.no_grad():
            return list(_check_channels(cfg, model))
    except Exception:  # of a model made of other parts: trying it out tells more
        return []


def _check_channels(cfg: Mapping, model: nn.Module) -> Iterator[Finding]:
    run: Any = model  # torch's stubs know nothing of its parts
    maps = run.backbone(torch.zeros(1, 3, _SIDE, _SIDE))
    levels = [m.shape[1] for m in maps]
    neck = cfg.get("neck")
    if isinstance(neck, Mapping):
        wanted = neck.get("in_channels")
        given = levels if isinstance(wanted, list | tuple) else levels[-1]
        if wanted is not None and _plain(wanted) != given:
            yield Finding(
                ERROR,
                "model.neck.in_channels",
                f"is {_plain(wanted)}, the backbone's maps have {levels} channels",
                f"in_channels={given}",
            )
            return
        maps = run.neck(maps)
        levels = [m.shape[1] for m in maps]
    strides = [round(_SIDE / m.shape[-1]) for m in maps]
    for where, head in _readers(cfg):
        yield from _check_reader(where, head, levels, strides)


def _readers(model: Mapping) -> Iterator[tuple[str, Mapping]]:
    """The parts of a model that read the maps, and where they are."""
    places = [(name, model.get(name)) for name in ("rpn_head", "bbox_head", "decode_head")]
    places += [("auxiliary_head", model.get("auxiliary_head")), ("head", model.get("head"))]
    roi_head = model.get("roi_head") or {}
    for name in ("bbox_roi_extractor", "mask_roi_extractor"):
        places.append((f"roi_head.{name}", roi_head.get(name)))
    for name, part in places:
        parts = {f"[{i}]": p for i, p in enumerate(part)} if isinstance(part, list) else {"": part}
        for number, one in parts.items():
            if isinstance(one, Mapping):
                yield f"model.{name}{number}", one


def _check_reader(
    where: str, head: Mapping, levels: list[int], strides: list[int]
) -> Iterator[Finding]:
    is_extractor = "extractor" in where
    key = "out_channels" if is_extractor else "in_channels"
    wanted, reads = head.get(key), head.get("featmap_strides")
    first = is_extractor or "rpn" in where or "bbox" in where
    index = head.get("in_index", 0 if first else -1)
    if isinstance(wanted, list | tuple):
        index = head.get("in_index", range(len(levels)))
    indices = [index] if isinstance(index, int) else list(index)
    if any(not -len(levels) <= i < len(levels) for i in indices):
        what = f"is {_plain(index)}, there are {len(levels)} maps"
        yield Finding(ERROR, f"{where}.in_index", what, f"numbers from 0 to {len(levels) - 1}")
        return
    given = [levels[i] for i in indices] if isinstance(wanted, list | tuple) else levels[indices[0]]
    if wanted is not None and _plain(wanted) != given:
        what = f"is {_plain(wanted)}, the maps it reads have {given} channels"
        yield Finding(ERROR, f"{where}.{key}", what, f"{key}={given}")
    if reads and _plain(reads) != strides[: len(reads)]:
        what = f"is {_plain(reads)}, the maps have strides {strides}"
        cure = f"featmap_strides={strides[: len(reads)]}"
        yield Finding(ERROR, f"{where}.featmap_strides", what, cure)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _try_out(model: nn.Module) -> Finding | None:
    """A forward pass; None if it succeeds, else the part of the model that breaks and why."""
    with _running_part(model) as running, torch.no_grad():
        try:
            model(torch.rand(1, 3, _SIDE, _SIDE), _samples(model), mode="predict")
            return None
        except Exception as error:
            where = ".".join(["model", *running[-1:]])
            why = f"on a picture of {_SIDE}x{_SIDE} pixels: {in_one_line(error)}"
            if isinstance(error, NotImplementedError):  # an operator of mmcv; it says what to do
                return Finding(ERROR, where, f"cannot run {why}")
            if _OF_SHAPES.search(str(error)) and not where.startswith("model.backbone"):
                cure = "compare its channels and levels with the part before it"
                return Finding(ERROR, where, f"breaks {why}", cure)
            cure = "nothing, if it takes other pictures; else train a few iterations to see"
            return Finding(WARNING, where, f"could not be tried {why}", cure)


def _samples(model: nn.Module) -> list[Any] | None:
    """What a detector has to know of its pictures; other models need nothing."""
    if not any(c.__module__.startswith("mmdet.models.detectors") for c in type(model).__mro__):
        return None
    from mmdet.structures import DetDataSample

    shapes = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    metainfo = dict.fromkeys(shapes, (_SIDE, _SIDE)) | {"scale_factor": (1.0, 1.0)}
    return [DetDataSample(metainfo=metainfo)]


@contextmanager
def _running_part(model: nn.Module) -> Iterator[list[str]]:
    """A list of the parts of a model that are running, outermost first: it ends where an error arose."""
    running: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if name and name.count(".") < 3:

            def enter(*_: Any, name: str = name) -> None:
                running.append(name)

            def leave(*_: Any) -> None:
                running.pop()

            handles += [
                module.register_forward_pre_hook(enter), module.register_forward_hook(leave),
            ]  # fmt: skip
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def check_classes(model: nn.Module, classes: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Heads against the classes of the datasets, and the datasets against each other.

    Args:
        model: built from the config.
        classes: of each dataset, by its place in the config.
    """
    if not classes or type(model).__name__ == "RPN":  # which tells objects from none
        return
    (first, names), *others = classes.items()
    for where, theirs in others:
        if tuple(theirs) != tuple(names):
            yield Finding(
                ERROR,
                f"{where}.metainfo",
                f"has {len(theirs)} classes ({_some(theirs)}), {first} has {len(names)} ({_some(names)})",
                "give both the same metainfo=dict(classes=(...)), in the same order",
            )
    for name, module in model.named_modules():
        count = getattr(module, "num_classes", None)
        is_head = "head" in name and not re.search("rpn_head|semantic_head|loss", name)
        if is_head and isinstance(count, int) and count != len(names):
            yield Finding(
                ERROR,
                f"model.{name}.num_classes",
                f"is {count}, {first} has {len(names)} classes ({_some(names)})",
                f"num_classes={len(names)}, or metainfo=dict(classes=(...)) of the datasets",
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
