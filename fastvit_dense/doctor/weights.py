"""Where the weights that a config begins with come from, and whether they are there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache
from mmengine.config import Config
from torch import nn

from ..backbone.fastvit import FastViT
from ..backbone.pretrained import is_pretrained_cfg, load_pretrained
from ..io.weights import cached_path, url_of
from .config_keys import nearest
from .findings import ERROR, OK, WARNING, Finding

_OFFLINE = "without a network, fetch it elsewhere and give its path; from scratch: --cfg-options "


def check_weights(cfg: Config, model: nn.Module) -> Iterator[Finding]:
    """Look at every ``init_cfg`` and at ``load_from``; downloads nothing.

    Args:
        cfg: the config.
        model: built from it.
    """
    for where, source in _sources(cfg.model, "model"):
        part = model
        for name in where.split(".")[1:-2]:
            part = getattr(part, name, nn.Identity())
        yield from _check_source(where, source, part)
    if cfg.get("load_from"):
        yield from _check_source("load_from", cfg.load_from, None)


def _sources(node: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{where}.{key}"
            if key == "init_cfg" and is_pretrained_cfg(value) and value.get("checkpoint"):
                yield f"{here}.checkpoint", str(value["checkpoint"])
            elif key == "pretrained" and isinstance(value, str):
                yield here, value
            else:
                yield from _sources(value, here)
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _sources(value, f"{where}[{i}]")


def _check_source(where: str, source: str, part: nn.Module | None) -> Iterator[Finding]:
    turn_off = f"{where.removesuffix('.checkpoint')}=None"
    try:
        url = url_of(source)
    except ValueError as error:
        yield Finding(ERROR, where, str(error))
        return
    scheme = url.partition("://")[0] if "://" in url else ""
    if not scheme:
        yield from _check_file(where, url, part, turn_off)
        return
    if scheme == "timm":
        name = source.removeprefix("timm://")
        if name not in timm.list_pretrained("fastvit_*"):
            near = nearest(name, timm.list_pretrained("fastvit_*"))
            yield Finding(
                ERROR,
                where,
                f"timm has no pretrained model {name!r}",
                f"did you mean 'timm://{near}'?"
                if near
                else f"such as timm://fastvit_sa12.apple_in1k; {turn_off} trains from scratch",
            )
            return
        cached = _in_hub_cache(f"timm/{name}")
        place = f"huggingface.co/timm/{name}"
    else:
        cached = scheme.startswith("http") and cached_path(url).is_file()
        place = url
    if cached:
        yield Finding(OK, where, f"{source} is in the cache of this machine")
    elif scheme == "timm" and constants.HF_HUB_OFFLINE:
        yield Finding(
            ERROR,
            where,
            f"{source} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it",
            "unset it; " + _OFFLINE + turn_off,
        )
    else:
        size = (
            f" (about {sum(p.numel() for p in part.parameters()) * 4 / 1e6:.0f} MB)"
            if part is not None
            else ""
        )
        yield Finding(
            WARNING,
            where,
            f"{source} is not in the cache: the first run fetches it from {place}{size}",
            _OFFLINE + turn_off,
        )


def _in_hub_cache(repository: str) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _check_file(where: str, path: str, part: nn.Module | None, turn_off: str) -> Iterator[Finding]:
    if not os.path.isfile(path):
        yield Finding(
            ERROR,
            where,
            f"{path} does not exist (working directory {os.getcwd()})",
            f"correct the path; {turn_off} trains from scratch",
        )
        return
    if isinstance(part, FastViT):
        try:
            report = load_pretrained(part, path)
        except ValueError as error:
            yield Finding(ERROR, where, str(error))
            return
        yield Finding(
            OK,
            where,
            f"{path} ({report.format}) fits: {len(report.loaded)} tensors, {len(report.left_out)} left out",
        )
        return
    yield Finding(OK, where, f"{path} is there")
