"""What tools/train.py and tools/test.py check before they write or log anything.

It takes seconds: the model and the datasets' pipelines are built; no annotation is read, no image opened.
What is wrong is a ValueError of one line. The doctor reports the same checks, and all that is wrong.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import io
import logging
import os
import os.path as osp
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from logging.handlers import BufferingHandler
from traceback import walk_tb
from typing import Any

import timm
from mmengine import registry
from mmengine.config import Config, DictAction
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ..backbone.fastvit import FastViT
from ..backbone.pretrained import is_pretrained_cfg, load_pretrained
from ..engine import models
from ..engine.config import override, read_config_file
from ..engine.models import check_fits, read_checkpoint, unwrap
from ..io.files import why_unwritable
from ..io.weights import read_content, url_of
from .report import ERROR, Diagnostic, in_one_line

# What is read at the top of a config, besides the arguments of mmengine's Runner.
_TOP_LEVEL = {
    "channels_last", "compile", "custom_imports", "find_unused_parameters", "load_strict",
    "model_wrapper_cfg", "sync_bn", "tta_cfg", "tta_evaluator", "tta_model", "tta_pipeline",
    *inspect.signature(Runner).parameters,
}  # fmt: skip
# Parts whose building would read data or open files, by dotted key: arguments are compared with signatures.
_PARTS = {
    r"(train|val|test)_cfg": registry.LOOPS,
    r"optim_wrapper": registry.OPTIM_WRAPPERS,
    r"optim_wrapper\.optimizer": registry.OPTIMIZERS,
    r"param_scheduler(\.\d+)?": registry.PARAM_SCHEDULERS,
    r"(default|custom)_hooks\.\w+": registry.HOOKS,
    r"(val|test)_evaluator(\.\d+)?": registry.METRICS,
    r"visualizer": registry.VISUALIZERS,
}
# Keys that mmengine takes out of a dict before it passes the others on.
_TAKEN_OUT = {
    "_scope_", "by_epoch", "constructor", "convert_to_iter_based", "dataset", "num_batch_per_epoch",
    "paramwise_cfg", "priority", "type",
}  # fmt: skip


class KeyValues(DictAction):
    """``--cfg-options`` for argparse: mmengine's action, with an error for what it would misread."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Add keys and values to the mapping."""
        for text in values:
            key, equals, value = text.partition("=")
            expected = ""
            if not key or not equals:
                expected = "KEY=VALUE without spaces around =, such as train_cfg.max_epochs=3"
            elif any(value.count(a) != value.count(b) for a, b in ("()", "[]")):
                expected = 'each bracket to be closed, such as "[(1,2),(3,4)]" in quotes'
            elif value.startswith(("dict(", "{")):
                expected = f"a number, text or list; the keys of a dict one by one, {key}.KEY=VALUE"
            if expected:
                parser.error(f"{option_string} {text}: expected {expected}")
        super().__call__(parser, namespace, values, option_string)


def read_config(
    path: str,
    options: Mapping[str, Any] | None = None,
    *,
    data_root: str | None = None,
    work_dir: str | None = None,
    launcher: str = "none",
) -> Config:
    """Read a config with the overrides of a command line, each of which has to have an effect.

    Args:
        path: the config file.
        options: ``--cfg-options`` as a mapping of dotted keys.
        data_root: folder of the data in place of the config's, for all datasets and evaluators; what that
            changes is printed. `options` prevail.
        work_dir, launcher: as of :func:`fastvit_dense.engine.config.load_config`.

    Raises:
        FileNotFoundError: the config does not exist.
        ValueError: it cannot be read; an override names a key that does not exist or that nothing reads,
            or has text in place of a number; the datasets do not have one folder to replace.
    """
    cfg, options = read_config_file(path), dict(options or {})
    for key, value in options.items():
        _check_override(cfg, key, value, path)
    if data_root is not None:
        options = _moved(cfg, data_root, path) | options
    return override(cfg, path, options, work_dir=work_dir, launcher=launcher)


def check_run(cfg: Config, *, train: bool, outputs: Mapping[str, str | None] | None = None) -> None:
    """Refuse a run that could not begin: folders, data, classes and their arguments, weights, checkpoint.

    Args:
        cfg: with ``work_dir``, and ``load_from`` for a checkpoint.
        train: whether to train; else to test.
        outputs: folders to write to besides, by the option that names each; None: not given.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: anything else.
    """
    for option, folder in {"--work-dir": cfg.work_dir, **(outputs or {})}.items():
        if folder is not None and (why := why_unwritable(folder)):
            raise ValueError(f"{option} {folder} {why}")
    needed = ["train_dataloader", "train_cfg", "optim_wrapper"] if train else []
    if missing := [key for key in needed if not cfg.get(key)]:
        raise ValueError(f"{cfg.filename} cannot be trained: it has no {', '.join(missing)}")
    if train and ((cfg.get("model") or {}).get("backbone") or {}).get("deploy"):
        raise ValueError(
            f"{cfg.filename} is of a fused model, for inference: train the unfused one"
        )
    splits = ["train"] * train + ["val"] * (train and bool(cfg.get("val_cfg")))
    with quiet():
        registry.init_default_scope(cfg.get("default_scope") or "mmengine")
        for found in check_parts(cfg, splits or ["test"], {}):
            raise ValueError(str(found))
        model = build_model(cfg)
        for found in check_weights(model) if train else ():
            raise ValueError(str(found))
    if cfg.get("load_from") and cfg.get("load_strict", True):
        check_fits(unwrap(model), read_checkpoint(cfg.load_from))


def check_parts(
    cfg: Config, splits: Sequence[str], datasets: dict[str, Any]
) -> Iterator[Diagnostic]:
    """Errors in what the run would build from a config, the model excepted: see :func:`build_model`.

    Args:
        cfg: the config; its modules are imported.
        splits: of train, val and test.
        datasets: gets those whose files exist, by dotted key; they have read no annotations yet.
    """
    problems = {
        where: _mismatch(node, parts, where)
        for where, node in _nodes(cfg)
        for pattern, parts in _PARTS.items()
        if isinstance(node, Mapping) and re.fullmatch(pattern, where)
    }
    for loader in (f"{split}_dataloader" for split in splits):
        problems[loader] = _unknown_arguments(DataLoader, cfg.get(loader) or ())
    taken = cfg.get("randomness") or ()
    problems["randomness"] = _unknown_arguments(Runner.set_randomness, taken)
    yield from (Diagnostic(ERROR, where, why) for where, why in problems.items() if why)
    missing = []
    for where, node in dataset_cfgs(cfg, splits):
        try:
            with registry.DATASETS.switch_scope_and_registry(node.get("_scope_")) as scoped:
                kind = scoped.get(node["type"]) if isinstance(node.get("type"), str) else None
            lazy = isinstance(kind, type) and issubclass(kind, BaseDataset)
            dataset = _build(registry.DATASETS, {**node, **({"lazy_init": True} if lazy else {})})
        except ValueError as error:
            yield Diagnostic(ERROR, where, str(error))
            continue
        absent = [f"{where}.{k} {path}" for k, path in _paths_of(dataset) if not osp.exists(path)]
        missing += absent
        if not absent:
            datasets[where] = dataset
    if missing:
        what = f"data are missing (working directory {os.getcwd()}): {'; '.join(missing)}"
        hint = "--data-root FOLDER if they are elsewhere; tools/sample_data.py renders sample data"
        yield Diagnostic(ERROR, "", what, hint)


def check_weights(model: nn.Module) -> Iterator[Diagnostic]:
    """Errors in the sources of pretrained weights, of which files are read and nothing is fetched.

    Args:
        model: built from the config.
    """
    for name, part in model.named_modules():
        init_cfg: Any = getattr(part, "init_cfg", None)
        if not is_pretrained_cfg(init_cfg):
            continue
        try:
            _check_source(str(init_cfg["checkpoint"]), part)
        except (ValueError, OSError) as error:
            hint = f"--cfg-options model.{name}.init_cfg=None trains from scratch"
            yield Diagnostic(ERROR, f"model.{name}.init_cfg.checkpoint", str(error), hint)


def build_model(cfg: Config) -> nn.Module:
    """The config's model with random weights; a ValueError says what prevents it."""
    try:
        return models.build_model(cfg).train()
    except Exception as error:
        raise ValueError(_explain(error)) from error


def dataset_cfgs(cfg: Config, splits: Sequence[str]) -> Iterator[tuple[str, Mapping]]:
    """The datasets in the data loaders, each once and without wrappers, and their dotted keys."""
    seen: list[Mapping] = []
    for loader in (f"{split}_dataloader" for split in splits):
        for where, node in _nodes(cfg.get(loader), loader):
            is_dataset = re.fullmatch(r"\w+(\.dataset|\.datasets\.\d+)+", where)
            if is_dataset and node not in seen and not {"dataset", "datasets"} & set(node or ()):
                seen.append(node)
                yield where, node


def unknown_keys(given: Iterable[str], known: Iterable[str], reader: str) -> str:
    """Which key `reader` does not know, and the nearest that it knows; empty if it knows all."""
    known = sorted(known)
    for key in given:
        if key not in known:
            near, some = _nearest(key, known), ", ".join(known[:20])
            return f"{reader} knows no {key!r}; " + (f"did you mean {near!r}?" if near else some)
    return ""


@contextmanager
def quiet() -> Iterator[list[logging.LogRecord]]:
    """Suppress what is printed and warned of inside; warnings that are logged are collected."""
    logger, collect = MMLogger.get_current_instance(), BufferingHandler(1_000_000)
    collect.setLevel(logging.WARNING)
    handlers, logger.handlers = logger.handlers, [collect]
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield collect.buffer
    finally:
        logger.handlers = handlers


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)), None)


def _check_override(cfg: Config, key: str, value: Any, path: str) -> None:
    """Raise if an override would have no effect, or has text in place of a number."""
    top, *parts = key.split(".")
    if top in cfg and top not in _TOP_LEVEL:
        hint = "set the keys that it was used for, or edit the file"
        if top == "data_root":
            hint = "--data-root FOLDER moves the data"
        why = f"is a variable of {path}, used up when the file was read: nothing would change"
        raise ValueError(f"--cfg-options {key}: {top!r} {why}; {hint}")
    node: Any = cfg.get(top)
    here = top
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping | list | tuple):
            break  # merging refuses it
        is_list = not isinstance(node, Mapping)
        known = [str(i) for i in range(len(node))] if is_list else list(node)
        if part not in known:
            # What a class takes is compared with its signature, once all overrides are in.
            is_inner = depth > 0 and depth < len(parts) - 1
            if is_list or ("type" not in node and (is_inner or _nearest(part, known))):
                raise ValueError(f"--cfg-options {key}: {unknown_keys([part], known, here)}")
            return
        key_or_place: Any = int(part) if is_list else part
        node, here = node[key_or_place], f"{here}.{part}"
    is_number = isinstance(node, int | float) and parts[-1:] != ["loss_scale"]  # or "dynamic"
    if isinstance(value, str) and is_number:
        expected = "True or False" if isinstance(node, bool) else "a number"
        raise ValueError(f"--cfg-options {key}={value}: expected {expected}, as the {node} there")


def _moved(cfg: Config, folder: str, path: str) -> dict[str, str]:
    """What in a config lies in the datasets' folder, moved to another: dotted keys and new paths."""
    datasets = [node for _, node in dataset_cfgs(cfg, ["train", "val", "test"])]
    roots = {osp.normpath(node["data_root"]) for node in datasets if node.get("data_root")}
    if len(roots) != 1:
        raise ValueError(
            f"--data-root: expected one data_root of all datasets of {path}, found "
            f"{' and '.join(sorted(roots)) or 'none'}; set each by --cfg-options"
        )
    (root,) = roots
    moved = {}
    for key, value in _nodes(cfg):
        if isinstance(value, str) and re.match(r"\w+_(dataloader|evaluator|pipeline)\.", key):
            before, _, inside = osp.join(osp.normpath(value), "").partition(osp.join(root, ""))
            if not before:
                moved[key] = osp.normpath(osp.join(folder, inside))
    if os.environ.get("RANK", "0") == "0":
        print(f"--data-root: {folder} in place of {root} in {', '.join(moved)}")
    return moved


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values that something reads, with their dotted keys, containers before what is in them."""
    items: Any = node.items() if isinstance(node, Mapping | Config) else ()
    if isinstance(node, list | tuple):
        items = enumerate(node)
    for key, value in items:
        if path or key in _TOP_LEVEL:
            here = f"{path}.{key}" if path else str(key)
            yield here, value
            yield from _nodes(value, here)


def _mismatch(node: Mapping, parts: registry.Registry, where: str) -> str:
    """Why no class could be built from a dict; empty if one can."""
    loop = "EpochBasedTrainLoop" if node.get("by_epoch", True) else "IterBasedTrainLoop"
    kind = node.get("type", {"train_cfg": loop, "optim_wrapper": "OptimWrapper"}.get(where))
    if kind is None:
        return "has no type: is the name misspelt?" if "hooks" in where else ""
    with parts.switch_scope_and_registry(None) as scoped:
        found = scoped.get(kind) if isinstance(kind, str) else kind
        return _unknown_arguments(found, node) if found else _unregistered(kind, scoped)


def _check_source(source: str, part: nn.Module) -> None:
    """Raise if weights do not exist or do not fit, as far as that shows without fetching anything."""
    url, model = url_of(source), source.removeprefix("timm://")
    if model != source and (why := unknown_keys([model], timm.list_pretrained(), "timm")):
        raise ValueError(why)
    if "://" not in url:
        load_pretrained(part, url) if isinstance(part, FastViT) else read_content(url)


def _build(parts: registry.Registry, node: Mapping) -> Any:
    try:
        return parts.build(copy.deepcopy(node))
    except Exception as error:
        raise ValueError(_explain(error)) from error


def _explain(error: Exception) -> str:
    """Why a registry could not build something: its own message, or the name that it does not know."""
    if isinstance(error, ValueError | OSError):
        return str(error)
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    building = [f.f_locals for f in frames if f.f_code is registry.build_from_cfg.__code__]
    local, why = building[-1] if building else {}, ""  # of the innermost class
    if isinstance(error, TypeError) and "obj_cls" in local:
        why = _unknown_arguments(local["obj_cls"], local["args"])
    elif isinstance(error, KeyError) and local.get("obj_cls", 0) is None:
        why = _unregistered(local["obj_type"], local["registry"])
    return why or in_one_line(error)


def _unknown_arguments(kind: Any, given: Iterable[str]) -> str:
    """Which argument a class does not take; those that it passes on are its base classes'."""
    functions = [kind]
    if inspect.isclass(kind):
        functions = [vars(c)["__init__"] for c in kind.__mro__[:-1] if "__init__" in vars(c)]
    known: set[str] = set()
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        known |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    else:  # it passes on anything: only what is nearly known is misspelt
        given = [key for key in given if _nearest(key, known)]
    return unknown_keys(given, (known | _TAKEN_OUT) - {"self"}, kind.__name__)


def _unregistered(name: str, scoped: registry.Registry) -> str:
    """What to say of the name of a class that nobody registered."""
    known = {*scoped.module_dict, *(scoped.parent.module_dict if scoped.parent else ())}
    near = _nearest(name.rpartition(".")[2], known)
    hint = f"did you mean {near!r}?" if near else "does custom_imports name the module it is in?"
    return f"no {scoped.name} is registered as {name!r}; {hint}"


def _paths_of(dataset: Any) -> Iterator[tuple[str, str]]:
    """Files and folders on this machine that a dataset of mmengine's kind reads, by the key of each."""
    if not isinstance(dataset, BaseDataset) or getattr(dataset, "backend_args", None):
        return
    named = {f"data_prefix.{k}": v for k, v in dataset.data_prefix.items()}
    named["ann_file"] = dataset.ann_file
    if type(dataset).__module__.startswith("fastvit_dense.hand"):  # its files have fixed names
        named = {"data_root": osp.join(dataset.data_root, f"{dataset.split}_K.json")}
        named["split"] = osp.join(dataset.data_root, f"{dataset.split}/rgb")
    yield from ((k, v) for k, v in named.items() if isinstance(v, str) and v and "://" not in v)
