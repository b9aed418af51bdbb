"""What a checkpoint is, and whether it loads into a config's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..backbone.fastvit import FastViT
from ..backbone.pretrained import detect_format, load_pretrained
from ..engine.models import check_fits
from ..io.weights import read_content
from .report import ERROR, OK, WARNING, Diagnostic


def check_checkpoint(
    path: str, model: nn.Module | None, classes: tuple[str, ...]
) -> Iterator[Diagnostic]:
    """Read a checkpoint, say what it is, and compare it with a model.

    Args:
        path: the file.
        model: of the config; None if there is none.
        classes: of the config's datasets; empty if there are none.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read, holds code, or does not fit.
    """
    content = read_content(path)
    content = content if isinstance(content, Mapping) else {}
    inner = [content.get(name) for name in ("state_dict", "model", "state_dict_ema")]
    weights = next((part for part in inner if isinstance(part, Mapping)), content)
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name: expected what tools/train.py wrote")
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        what = f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity, such as {bad[0]}"
        hint = "training diverged: take an earlier checkpoint, lower the learning rate"
        yield Diagnostic(ERROR, "", what, hint)
    try:
        found = detect_format(tensors, checkpoint=path)
    except ValueError as error:
        yield Diagnostic(WARNING, "", str(error))
        found = None
    if found and not found.prefix:
        what = f"FastViT-{found.arch} ({found.format}): weights for model.backbone.init_cfg"
        yield Diagnostic(OK, "", what)
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, FastViT):
            report = load_pretrained(backbone, path)
            yield Diagnostic(OK, "model.backbone", f"{len(report.loaded)} tensors would load")
        return
    yield Diagnostic(OK, "", _describe_run(content))
    if model is not None:
        check_fits(model, {**content, "state_dict": tensors}, classes=classes)
        yield Diagnostic(OK, "model", f"all {len(model.state_dict())} tensors would load")


def _describe_run(content: Mapping) -> str:
    """A checkpoint of a Runner, by what is stored with its weights."""
    meta: Any = content.get("meta") if isinstance(content.get("meta"), Mapping) else {}
    parts = [
        f"{name} {meta[name]}" for name in ("experiment_name", "epoch", "iter") if name in meta
    ]
    if classes := (meta.get("dataset_meta") or {}).get("classes"):
        parts.append(f"{len(classes)} classes ({', '.join(classes[:3])})")
    resumable = "with the optimizer's state: --resume can continue from it"
    parts.append(resumable if "optimizer" in content else "weights alone: no --resume from it")
    if (meta.get("fastvit_dense") or {}).get("deploy"):
        parts.append("fused: for inference alone")
    return "; ".join(parts)
