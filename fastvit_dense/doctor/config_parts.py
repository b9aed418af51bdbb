"""Parts of a config that classes are built from: classes nobody registered, arguments they do not take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry, root
from torch.utils.data import DataLoader

from .config_keys import nearest, unknown_keys
from .findings import ERROR, WARNING, Finding

# Where classes are looked up first; anywhere else after that.
_REGISTRIES = {
    "model": root.MODELS, "data_preprocessor": root.MODELS, "tta_model": root.MODELS,
    "train_dataloader": root.TRANSFORMS, "val_dataloader": root.TRANSFORMS,
    "test_dataloader": root.TRANSFORMS, "tta_pipeline": root.TRANSFORMS,
    "optim_wrapper": root.OPTIM_WRAPPERS, "param_scheduler": root.PARAM_SCHEDULERS,
    "val_evaluator": root.METRICS, "test_evaluator": root.METRICS, "tta_evaluator": root.METRICS,
    "default_hooks": root.HOOKS, "custom_hooks": root.HOOKS, "visualizer": root.VISUALIZERS,
    "train_cfg": root.LOOPS, "val_cfg": root.LOOPS, "test_cfg": root.LOOPS,
    "log_processor": root.LOG_PROCESSORS,
}  # fmt: skip
_ELSEWHERE = (
    *dict.fromkeys(_REGISTRIES.values()), root.DATASETS, root.DATA_SAMPLERS, root.OPTIMIZERS,
    root.TASK_UTILS, root.WEIGHT_INITIALIZERS, root.VISBACKENDS, root.OPTIM_WRAPPER_CONSTRUCTORS,
    root.EVALUATOR,
)  # fmt: skip
# Keys that a builder takes out before the class sees them.
_TAKEN_OUT = {
    "optim_wrapper": {"paramwise_cfg", "constructor"},
    "param_scheduler": {"convert_to_iter_based"},
    "custom_hooks": {"priority"},
    "default_hooks": {"priority"},
    "train_cfg": {"by_epoch"},
}
_TAKEN_FROM_LOADER = {
    "sampler", "batch_sampler", "dataset", "collate_fn", "worker_init_fn", "num_batch_per_epoch",
}  # fmt: skip
# Layers and functions: their builders have rules of their own.
_LAYERS = re.compile(r"(norm|conv|act|upsample)_cfg$|^(dcn|roi_layer|bbox_params|nms)$")


def check_parts(cfg: Config, *, only: str | None = None) -> Iterator[Finding]:
    """Classes that are not registered, and arguments that classes do not take.

    Args:
        cfg: the config; its modules are imported.
        only: a key at its top; None: all but ``model``, whose building tells more reliably.
    """
    for top, registry in _REGISTRIES.items():
        if top == only or (only is None and top not in ("model", "tta_model")):
            yield from _check_part(cfg.get(top), (top,), registry)
        if only is None and top.endswith("_dataloader") and isinstance(cfg.get(top), Mapping):
            takes = _TAKEN_FROM_LOADER | set(inspect.signature(DataLoader).parameters) - {"self"}
            yield from unknown_keys(cfg[top], takes, top, "torch's DataLoader")


def find_classes(name: Any, first: Registry) -> list[Any]:
    """The classes or functions registered by a name, those of the likeliest registry first."""
    if not isinstance(name, str):
        return [name]
    found = []
    for registry in (first, *_ELSEWHERE):
        with registry.switch_scope_and_registry(None) as scoped:
            try:
                kind = scoped.get(name)
            except Exception:  # it tries to import a name with dots, which may do anything
                kind = None
        if kind is not None and kind not in found:
            found.append(kind)
    return found


def class_name(node: Any) -> str:
    """The name of the class that a dict of a config names, without scope or module."""
    kind = node.get("type") if isinstance(node, Mapping) else node
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _check_part(node: Any, path: tuple[Any, ...], registry: Registry) -> Iterator[Finding]:
    if isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _check_part(value, (*path, i), registry)
    if not isinstance(node, Mapping):
        return
    if node.get("type") is not None and not _LAYERS.search(str(path[-1])):
        yield from _check_class(node, path, registry)
    if class_name(node) == "Albu":  # its transforms are albumentations'
        return
    for key, value in node.items():
        yield from _check_part(value, (*path, key), registry)


def _check_class(node: Mapping, path: tuple[Any, ...], registry: Registry) -> Iterator[Finding]:
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    found = find_classes(node["type"], registry)
    if not found:
        if class_name(node)[:1].isupper():  # others are names that their readers alone know
            yield _unregistered(str(node["type"]), where, registry)
        return
    given = {k: v for k, v in node.items() if k not in {"type", "_scope_"}}
    candidates = []
    for kind in found:
        takes, is_all = _arguments(kind)
        takes |= _TAKEN_OUT.get(path[0], set())
        wrong = [k for k in given if k not in takes]
        if not is_all:  # others are passed on; one that is nearly known is misspelt all the same
            wrong = [k for k in wrong if nearest(k, takes)]
        candidates.append((len(wrong), kind, wrong, takes))
    _, kind, wrong, takes = min(candidates, key=lambda c: c[0])  # the first of equals
    yield from unknown_keys(dict.fromkeys(wrong), takes, where, class_name(kind))


def _arguments(kind: Any) -> tuple[set[str], bool]:
    """Names of the arguments of a class or function, and whether these are all.

    Arguments that a class passes on as ``**kwargs`` are those of its base classes.
    """
    steps = [kind]
    if inspect.isclass(kind):
        steps = [vars(c)["__init__"] for c in kind.__mro__[:-1] if "__init__" in vars(c)]
    names: set[str] = set()
    is_all = not steps
    for number, step in enumerate(steps):
        try:
            parameters = list(inspect.signature(step).parameters.values())
        except (TypeError, ValueError):  # compiled
            continue
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            is_all = True
            if number == 0:
                break
    return names - {"self"}, is_all


def _unregistered(name: str, where: str, registry: Registry) -> Finding:
    """A class nobody registered; one of this project's is looked for in its files."""
    scope, _, plain = name.rpartition(".")
    if module := own_module(plain):
        what = f"{name} is not registered: nothing imports {module}"
        return Finding(ERROR, f"{where}.type", what, f"add {module!r} to custom_imports")
    with registry.switch_scope_and_registry(None) as scoped:
        known = list(scoped.module_dict) + list(scoped.parent.module_dict if scoped.parent else ())
    if scope and find_spec(scope.partition(".")[0]) is None:
        cure = f"install the package {scope}, or take a class of another one"
    elif near := nearest(plain, known):
        cure = f"did you mean {near!r}?"
    else:
        cure = "is it yours? custom_imports = dict(imports=['your_module']) imports its module"
    return Finding(ERROR, f"{where}.type", f"no class is registered as {name!r}", cure)


def own_module(name: str) -> str | None:
    """The module of this project that defines a class, by its source."""
    package = Path(__file__).parents[1]
    definition = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
    for path in sorted(package.rglob("*.py")):
        if definition.search(path.read_text(encoding="utf-8")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            return ".".join(parts[:2])  # the folder's own file imports those in it
    return None


def check_imports(cfg: Config) -> Iterator[Finding]:
    """Whether the config imports what it uses of this project; imports it, for the checks that follow."""
    imports = (cfg.get("custom_imports") or {}).get("imports") or []
    imports = [imports] if isinstance(imports, str) else imports
    names = set(_class_names(cfg))
    for name in names:
        if not find_classes(name, root.MODELS) and (module := own_module(name)):
            import_module(module)
    if "FastViT" in names and not any(i.split(".")[0] == "fastvit_dense" for i in imports):
        yield Finding(
            WARNING,
            "custom_imports",
            "does not name fastvit_dense: tools/train.py knows FastViT all the same, OpenMMLab's own tools "
            "and inferencers do not",
            'custom_imports = dict(imports=["fastvit_dense"])',
        )


def _class_names(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping | Config):
        if isinstance(node.get("type"), str):
            yield class_name(node)
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            yield from _class_names(value)
