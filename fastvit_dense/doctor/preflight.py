"""What tools/train.py and tools/test.py check before they write or log anything.

The checks are the doctor's, as far as they take seconds: no image is opened. What is wrong is a ValueError
of one line.
"""

from __future__ import annotations

import argparse
import os
import os.path as osp
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from ..engine.config import override, read_config_file
from ..engine.models import check_fits, read_checkpoint, unwrap
from ..io.files import why_unwritable
from .config_keys import TOP_LEVEL, check_keys, nearest
from .config_parts import check_imports, check_parts, find_classes
from .datasets import dataset_cfgs
from .findings import ERROR, Finding
from .model import build_model
from .quiet import quiet
from .weights import check_weights

_SHOWN = 6  # keys in a message
_TEXT_OR_NUMBER = {"loss_scale"}  # "dynamic"
_ANY_KEY = {
    "custom_keys",
    "default_hooks",
    "metainfo",
}  # dicts to which users add keys of their own
_TRAINING = ("train_dataloader", "train_cfg", "optim_wrapper")


class KeyValues(DictAction):
    """``--cfg-options`` for argparse: mmengine's action, with an error for what it would misread."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add keys and values to the mapping."""
        for text in values:
            key, equals, value = text.partition("=")
            if not key or not equals:
                parser.error(
                    f"{option_string} {text}: expected KEY=VALUE without spaces around =, such as "
                    "train_cfg.max_epochs=3"
                )
            if any(value.count(a) != value.count(b) for a, b in ("()", "[]")):
                parser.error(
                    f"{option_string} {text}: a bracket is open or closes nothing; expected a value such "
                    'as "[(1,2),(3,4)]", in quotes for the shell'
                )
            if value.startswith(("dict(", "{")):
                parser.error(
                    f"{option_string} {text}: expected a number, text or list; set the keys of a dict one "
                    f"by one, such as {key}.KEY=VALUE"
                )
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
        data_root: folder of the data in place of the config's, for all datasets and evaluators; printed
            is what that changes. `options` prevail.
        work_dir, launcher: as of :func:`fastvit_dense.engine.config.load_config`.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it cannot be read; an override names a key that nothing reads, or has text in place of
            a number; no dataset has a folder to replace, or they have several.
    """
    cfg, options = read_config_file(path), dict(options or {})
    for key, value in options.items():
        _refuse_variable(cfg, key, path)
        _check_value(cfg, key, value)
    if data_root is not None:
        options = _moved(cfg, data_root, path) | options
    cfg = override(cfg, path, options, work_dir=work_dir, launcher=launcher)
    if options:
        with quiet(), _scope_of(cfg):
            list(check_imports(cfg))  # for it imports what is named
            found = [
                *check_keys(cfg, path), *check_parts(cfg), *check_parts(cfg, only="model")
            ]  # fmt: skip
        for finding in found:
            where = re.sub(r"\[(\d+)\]", r".\1", finding.where)
            for key in options:
                if finding.level == ERROR and f"{key}.".startswith(f"{where}."):
                    raise ValueError(f"--cfg-options {key}: {_in_a_line(finding)}")
    return cfg


def check_run(cfg: Config, *, train: bool, outputs: Mapping[str, str | None] | None = None) -> None:
    """Refuse a run that could not begin: folders, data, weights, model and checkpoint.

    Args:
        cfg: with ``work_dir``, and ``load_from`` for a checkpoint.
        train: whether to train; else to test.
        outputs: folders to write to besides, by the option that names each; None: not given.

    Raises:
        FileNotFoundError: a file or folder that the datasets name does not exist, all of them are listed;
            there is no such checkpoint.
        ValueError: a folder cannot be written; the config cannot be trained; the model cannot be built, or
            its pretrained weights cannot be read; the checkpoint does not fit.
    """
    for option, folder in {"--work-dir": cfg.work_dir, **(outputs or {})}.items():
        if folder is not None and (why := why_unwritable(folder)):
            raise ValueError(f"{option} {folder} {why}")
    if train:
        _refuse_for_training(cfg)
    validated = ("val",) if cfg.get("val_cfg") is not None else ()
    splits = ("train", *validated) if train else ("test",)
    with quiet(), _scope_of(cfg):
        _check_files(cfg, splits)
        model = _build(cfg)
        if train:
            for finding in check_weights(cfg, model):
                if finding.level == ERROR and finding.where != "load_from":
                    raise ValueError(_in_a_line(finding))
    if cfg.get("load_from") and cfg.get("load_strict", True):
        check_fits(unwrap(model), read_checkpoint(cfg.load_from))


def _refuse_variable(cfg: Config, key: str, path: str) -> None:
    """A name at the top of a config that was used to write other values has done its work."""
    top, _, rest = key.partition(".")
    if top not in cfg or top in TOP_LEVEL:
        return
    places = [
        f"{place}.{rest}" if rest else place
        for place, value in _nodes(cfg)
        if _is_made_of(value, cfg[top], place.rpartition(".")[2], top)
    ]
    is_used = re.search(rf"\b{re.escape(top)}\b(?!\s*=[^=])", cfg.text or "")
    if not places and not is_used:
        return  # the user's own code may read it
    cure = (
        f"set {_some(places)}" if places else "set what it was used for, or write a config of yours"
    )
    if top == "data_root":
        cure = f"--data-root FOLDER moves all of the data; or {cure}"
    raise ValueError(
        f"--cfg-options {key}: {top!r} is a variable of {path}, already used when the file was read, so "
        f"that nothing would change: {cure}"
    )


def _is_made_of(value: Any, variable: Any, key: str, name: str) -> bool:
    if type(value) is not type(variable) or variable in (None, "") or isinstance(value, bool):
        return False
    if isinstance(value, str) and "/" in variable:
        return osp.normpath(value) == osp.normpath(variable) or value.startswith(
            osp.join(variable, "")
        )
    if isinstance(value, int | float):  # 5 may be anything
        return value == variable and name in key
    return value == variable


def _check_value(cfg: Config, key: str, value: Any) -> None:
    """Text in place of a number; a key beside a similar one, where any key is possible."""
    node: Any = cfg
    *parents, last = key.split(".")
    for place, part in enumerate(parents):
        node = _child(node, part)
        following = [*parents, last][place + 1]
        if isinstance(node, list | tuple) and following not in map(str, range(len(node))):
            raise ValueError(
                f"--cfg-options {key}: {'.'.join(parents[: place + 1])} is a list of {len(node)}: expected "
                f"a number below that, from 0, got {following!r}"
            )
    old = _child(node, last)
    if isinstance(value, str) and isinstance(old, int | float) and last not in _TEXT_OR_NUMBER:
        expected = "True or False" if isinstance(old, bool) else "a number"
        raise ValueError(
            f"--cfg-options {key}={value}: expected {expected}, as the {old} it replaces"
        )
    if isinstance(node, Mapping) and last not in node and "type" not in node:
        is_free = parents[-1] in _ANY_KEY or parents[-1].endswith("_dataloader")
        if not is_free and (near := nearest(last, node)):
            raise ValueError(
                f"--cfg-options {key}: {'.'.join(parents)} has no {last!r}; did you mean {near!r}?"
            )


def _moved(cfg: Config, folder: str, path: str) -> dict[str, str]:
    """What in a config lies in the datasets' folder, moved to another: dotted keys and new paths."""
    roots = sorted(
        {osp.normpath(d["data_root"]) for _, d in dataset_cfgs(cfg) if d.get("data_root")}
    )
    if len(roots) != 1:
        places = [f"{where}.data_root" for where, _ in dataset_cfgs(cfg)]
        found = f"they have {' and '.join(roots)}" if roots else "none has"
        raise ValueError(
            f"--data-root: expected one data_root of all datasets of {path}, {found}; set "
            f"{_some(places) or 'their paths'} by --cfg-options"
        )
    (root,) = roots
    moved = {}
    for key, value in _nodes(cfg):
        if isinstance(value, str) and re.match(r"\w+_(dataloader|evaluator|pipeline)\.", key):
            inside = osp.join(osp.normpath(value), "").partition(osp.join(root, ""))
            if not inside[0] and inside[1]:
                moved[key] = osp.normpath(osp.join(folder, inside[2]))
    if os.environ.get("RANK", "0") == "0":
        print(f"--data-root: {folder} in place of {root} in {', '.join(moved)}")
    return moved


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values that something reads, with their dotted keys, containers before what is in them."""
    items: Any = node.items() if isinstance(node, Mapping | Config) else ()
    if isinstance(node, list | tuple):
        items = enumerate(node)
    for key, value in items:
        if path or key in TOP_LEVEL:
            here = f"{path}.{key}" if path else str(key)
            yield here, value
            yield from _nodes(value, here)


def _child(node: Any, key: str) -> Any:
    if isinstance(node, Mapping | Config):
        return node.get(key)
    return node[int(key)] if isinstance(node, list | tuple) else None


def _refuse_for_training(cfg: Config) -> None:
    name = cfg.filename
    if ((cfg.get("model") or {}).get("backbone") or {}).get("deploy"):
        raise ValueError(
            f"{name} describes a fused model, which is for inference: train with the config that it was "
            "made from (its first line names it), and fuse again"
        )
    missing = [key for key in _TRAINING if cfg.get(key) is None]
    if missing:
        raise ValueError(f"{name} cannot be trained: it has no {', '.join(missing)}")


def _check_files(cfg: Config, splits: Sequence[str]) -> None:
    """Raise where files or folders of datasets do not exist, with all of them."""
    missing = [
        f"{where}.{key} {path}"
        for where, dataset in dataset_cfgs(cfg)
        if where.partition("_")[0] in splits
        for key, path in _paths_of(dataset)
        if not osp.exists(path)
    ]
    if missing:
        raise FileNotFoundError(
            f"data are missing (working directory {os.getcwd()}): {'; '.join(missing)}. Where they lie "
            "elsewhere: --data-root FOLDER; sample data: tools/sample_data.py"
        )


def _paths_of(dataset: Mapping) -> Iterator[tuple[str, str]]:
    """Files and folders on this machine that a dataset of mmengine's kind reads, with their keys."""
    kind = next(iter(find_classes(dataset.get("type"), DATASETS)), None)
    if not isinstance(kind, type) or not issubclass(kind, BaseDataset):
        return
    root = str(dataset.get("data_root") or "")
    prefix = dataset.get("data_prefix") or {}
    named = {"ann_file": dataset.get("ann_file")}
    named |= {f"data_prefix.{key}": value for key, value in prefix.items()}
    if kind.__name__ == "FreiHAND":  # its files have fixed names
        split = dataset.get("split", "training")
        named = {"data_root": f"{split}_K.json", "split": f"{split}/rgb"}
    if dataset.get("backend_args") or "://" in root:
        return
    for key, value in named.items():
        if value and isinstance(value, str) and "://" not in value:
            yield key, osp.join(root, value)


def _build(cfg: Config) -> nn.Module:
    """The model; where it cannot be built, the reason is what is wrong in its config, if that is found."""
    try:
        return build_model(cfg)
    except Exception as error:
        reasons = [f for f in check_parts(cfg, only="model") if f.level == ERROR]
        if not reasons:
            raise
        raise ValueError(_in_a_line(reasons[0])) from error


def _scope_of(cfg: Config) -> Any:
    return DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine")


def _in_a_line(finding: Finding) -> str:
    where = f"{finding.where}: " if finding.where else ""
    return f"{where}{finding.what}" + (f"; {finding.cure}" if finding.cure else "")


def _some(places: Sequence[str]) -> str:
    more = len(places) - _SHOWN
    return ", ".join(places[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
