"""Names in a config that nothing reads: misspelt ones, and variables that are set where it is too late."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .findings import ERROR, WARNING, Finding

# What mmengine's Runner, OpenMMLab's tools and this project read at the top of a config.
TOP_LEVEL = {
    "auto_scale_lr", "channels_last", "compile", "custom_hooks", "custom_imports", "data_preprocessor",
    "default_hooks", "default_scope", "env_cfg", "experiment_name", "find_unused_parameters",
    "launcher", "load_from", "load_strict", "log_level", "log_processor", "model",
    "model_wrapper_cfg", "optim_wrapper", "param_scheduler", "randomness", "resume", "sync_bn",
    "test_cfg", "test_dataloader", "test_evaluator", "train_cfg", "train_dataloader", "tta_cfg",
    "tta_evaluator", "tta_model", "tta_pipeline", "val_cfg", "val_dataloader", "val_evaluator",
    "visualizer", "work_dir",
}  # fmt: skip
# OpenMMLab's before 2022, and what to write now.
_OUTDATED = {
    "data": "train_dataloader, val_dataloader and test_dataloader",
    "optimizer": "optim_wrapper=dict(type='OptimWrapper', optimizer=...)",
    "optimizer_config": "optim_wrapper.clip_grad",
    "lr_config": "param_scheduler",
    "runner": "train_cfg",
    "total_epochs": "train_cfg.max_epochs",
    "evaluation": "val_evaluator and train_cfg.val_interval",
    "checkpoint_config": "default_hooks.checkpoint",
    "log_config": "default_hooks.logger and visualizer",
    "dist_params": "env_cfg.dist_cfg",
    "resume_from": "load_from and resume=True",
}
# Dicts that no class is built from; of some, unknown keys are passed over in silence.
_PLAIN = {
    "auto_scale_lr": {"enable", "base_batch_size"},
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    "env_cfg.mp_cfg": {"mp_start_method", "opencv_num_threads"},
    "randomness": {"seed", "deterministic", "diff_rank_seed"},
    "custom_imports": {"imports", "allow_failed_imports"},
    "optim_wrapper.paramwise_cfg": {
        "custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult",
        "flat_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate",
    },
}  # fmt: skip
# Names that configs have by convention, for use further down.
_VARIABLES = {"train_pipeline", "val_pipeline", "test_pipeline"}
_HOOK_SLOTS = {"runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"}


def check_keys(cfg: Config, path: str) -> Iterator[Finding]:
    """Names at the top of a config, and keys of dicts that no class is built from.

    A config is Python: any name may be at its top, for use further down. One that is neither used in the
    file nor read by a tool is misspelt, or overrides what a base file has used already.

    Args:
        cfg: the config.
        path: its file.
    """
    yield from _check_top(cfg, path)
    for where, known in _PLAIN.items():
        node: Any = cfg
        for key in where.split("."):
            node = node.get(key) if isinstance(node, Mapping | Config) else None
        if where.startswith("optim_wrapper") and isinstance(node, Mapping):
            if cfg.optim_wrapper.get("constructor"):  # which reads keys of its own
                continue
        if isinstance(node, Mapping):
            yield from unknown_keys(node, known, where, "nothing")
    for name, hook in (cfg.get("default_hooks") or {}).items():
        if isinstance(hook, Mapping) and "type" not in hook:
            near = nearest(name, _HOOK_SLOTS)
            cure = f"did you mean {near!r}?" if near else "give it one, type=..."
            yield Finding(ERROR, f"default_hooks.{name}", "has no type", cure)


def unknown_keys(node: Mapping, known: Iterable[str], where: str, reader: str) -> Iterator[Finding]:
    """A finding for each key that `reader`, such as the name of a class, does not read."""
    known = set(known)
    for key in node:
        if key not in known:
            near = nearest(key, known)
            cure = f"did you mean {near!r}?" if near else f"known are {', '.join(sorted(known))}"
            yield Finding(ERROR, f"{where}.{key}", f"{reader} reads no {key!r}", cure)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one is likely to mean."""
    found = difflib.get_close_matches(str(name), [k for k in known if k != name], n=1, cutoff=0.75)
    return found[0] if found else None


def _check_top(cfg: Config, path: str) -> Iterator[Finding]:
    unused, is_override = _unused_names(path)
    for name in sorted((set(cfg) if unused is None else unused & set(cfg)) - TOP_LEVEL):
        near = None if name in _VARIABLES else nearest(name, TOP_LEVEL)
        # Where all is in one file, as in what a training writes out, variables have done their work, and a
        # misspelt key leaves the place of the right one empty.
        if not is_override and (name in _OUTDATED or near in cfg):
            near = None
        if name in _OUTDATED and (is_override or "optim_wrapper" not in cfg):
            what = "is a key of OpenMMLab before 2022: nothing reads it"
            yield Finding(ERROR, name, what, f"write {_OUTDATED[name]}")
        elif near:
            yield Finding(ERROR, name, "is a key that nothing reads", f"did you mean {near!r}?")
        elif is_override and (places := list(_places(cfg, name))):
            yield Finding(
                WARNING,
                name,
                "has no effect: nothing in this file uses it, and base files have used their own already",
                f"set {' and '.join(places[:3])}",
            )
        elif is_override:
            what = "has no effect: nothing in this file uses it, and no tool reads it"
            yield Finding(WARNING, name, what, "use it, or remove it")


def _unused_names(path: str) -> tuple[set[str] | None, bool]:
    """Names at the top of a config file that nothing in it uses, None if it is not Python; and whether it
    overrides a base file.
    """
    if Path(path).suffix != ".py":
        return None, False
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    return assigned - used, "_base_" in assigned | used


def _places(node: Any, name: str, path: str = "") -> Iterator[str]:
    """Where a key is, below the top level."""
    if isinstance(node, Mapping | Config):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if key == name and path:
                yield here
            else:
                yield from _places(value, name, here)
