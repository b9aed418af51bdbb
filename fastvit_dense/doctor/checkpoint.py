"""What a checkpoint is, and what of it would load into a config's model."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..backbone.fastvit import FastViT, refuse_other_structures
from ..backbone.pretrained import detect_format, load_pretrained
from ..engine.models import mismatched_keys, without_prefix
from ..io.weights import read_content
from .findings import ERROR, OK, WARNING, Finding

_OTHER_CONFIG = (
    "use the config it was trained with (tools/train.py left a copy beside it), or "
    "--cfg-options load_strict=False to start from what fits"
)


def check_checkpoint(
    path: str, model: nn.Module | None, classes: Sequence[str] | None
) -> Iterator[Finding]:
    """Read a checkpoint, say what it is, and compare it with a model.

    Args:
        path: the file.
        model: of the config; None where there is none.
        classes: of the config's datasets; None where there are none.
    """
    if not Path(path).is_file():
        yield Finding(ERROR, path, "is no file", "name one that tools/train.py wrote, *.pth")
        return
    try:
        content = read_content(path)
    except ValueError as error:
        has_code = "code" in str(error)
        yield Finding(
            ERROR,
            "",
            str(error),
            "do not load it anywhere else either, unless you trust who made it"
            if has_code
            else "get it again, or take an earlier checkpoint",
        )
        return
    is_run = isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping)
    if is_run:
        yield from _describe_run(path, content)
    tensors = _tensors_in(content)
    if not tensors:
        what = f"{_about(path)}: holds no tensors by name, but a {type(content).__name__}"
        yield Finding(ERROR, "", what, "name a file that tools/train.py wrote, or one of weights")
        return
    yield from _check_finite(tensors)
    try:
        found = detect_format(tensors, checkpoint=path)
    except ValueError as error:
        yield Finding(WARNING, "", str(error), "is it a checkpoint of another model?")
        found = None
    if found and not found.prefix:
        yield from _check_backbone(path, found.format, found.arch, model)
    elif model is not None:
        yield from _check_fits(tensors, model)
        trained_on = tuple((_meta(content).get("dataset_meta") or {}).get("classes") or ())
        if classes and trained_on and tuple(classes) != trained_on:
            yield Finding(
                ERROR,
                "classes",
                f"trained on {len(trained_on)} ({_some(trained_on)}), the config's datasets have "
                f"{len(classes)} ({_some(classes)})",
                _OTHER_CONFIG,
            )


def _tensors_in(content: Any) -> dict[str, Tensor]:
    """Named tensors, bare or where checkpoints of trainings keep them."""
    for name in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    content = content if isinstance(content, Mapping) else {}
    return without_prefix({k: v for k, v in content.items() if isinstance(v, Tensor)})


def _meta(content: Any) -> Mapping:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def _about(path: str) -> str:
    status = Path(path).stat()
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
    return f"{status.st_size / 1e6:.1f} MB, written {date}"


def _describe_run(path: str, content: Mapping) -> Iterator[Finding]:
    """A checkpoint of mmengine's Runner, by what lies beside its weights."""
    meta = _meta(content)
    parts = [_about(path)]
    if "epoch" in meta or "iter" in meta:
        parts.append(f"after epoch {meta.get('epoch', '?')}, iteration {meta.get('iter', '?')}")
    name = re.sub(r"_\d{8}_\d{6}$", "", str(meta.get("experiment_name") or ""))
    if name:
        parts.append(f"of {name}")
    classes = (meta.get("dataset_meta") or {}).get("classes") or ()
    if classes:
        parts.append(f"{len(classes)} classes ({_some(classes)})")
    if (meta.get("fastvit_dense") or {}).get("deploy"):
        parts.append("fused: for inference alone")
    elif "optimizer" in content:
        parts.append("with the optimizer's state: --resume can go on from it")
    else:
        parts.append("weights alone: no --resume from it")
    yield Finding(OK, "", "; ".join(parts))


def _check_finite(tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        yield Finding(
            ERROR,
            "",
            f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity: {_some(bad)}",
            "the training diverged: take an earlier checkpoint; a lower learning rate or "
            "optim_wrapper.clip_grad.max_norm=1 prevents it",
        )


def _check_backbone(
    path: str, family: str, arch: str | None, model: nn.Module | None
) -> Iterator[Finding]:
    """Weights to begin with: a backbone by itself, or the classifier of which it is a part."""
    name = f"FastViT-{arch.upper()}" if arch else "a FastViT of no known variant"
    kind = {"apple": "Apple's classifier", "timm": "timm's classifier"}.get(
        family.partition(",")[0], "a bare backbone"
    )
    yield Finding(
        OK,
        "",
        f"{_about(path)}; {kind}{', fused' if 'fused' in family else ''}, {name}: weights to begin with, "
        "for model.backbone.init_cfg = dict(type='Pretrained', checkpoint=...)",
    )
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, FastViT):
        return
    try:
        report = load_pretrained(backbone, path)
    except ValueError as error:
        yield Finding(
            ERROR, "model.backbone", str(error), "name other weights, or change the backbone"
        )
        return
    yield Finding(
        OK,
        "model.backbone",
        f"{len(report.loaded)} tensors would load, {len(report.left_out)} be left out (classifier), "
        f"{len(report.new)} are new (output norms)",
    )


def _check_fits(tensors: Mapping[str, Tensor], model: nn.Module) -> Iterator[Finding]:
    try:
        refuse_other_structures(model, tensors)
    except ValueError as error:
        yield Finding(ERROR, "model", str(error))
        return
    wanted = model.state_dict()
    problems, fits = mismatched_keys(wanted, tensors)
    if problems:
        what = f"{fits} of the model's {len(wanted)} tensors would load; {'; '.join(problems)}"
        yield Finding(ERROR, "model", what, _OTHER_CONFIG)
    else:
        yield Finding(OK, "model", f"all {len(wanted)} tensors of the config's model would load")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
