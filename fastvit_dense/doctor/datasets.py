"""The datasets of a config: where they are in it, their classes, and the datasets themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from .config_parts import class_name, find_classes
from .findings import ERROR, OK, WARNING, Finding, in_one_line
from .quiet import quiet

# OpenMMLab's datasets, which pass over mistakes in silence, and those with checks that take the same
# arguments, with the modules that register them.
_CHECKED = {
    "CocoDataset": ("CheckedCocoDataset", "fastvit_dense.det.coco"),
    "ADE20KDataset": ("CheckedADE20KDataset", "fastvit_dense.seg.datasets"),
    "CityscapesDataset": ("CheckedCityscapesDataset", "fastvit_dense.seg.datasets"),
    "BaseSegDataset": ("CheckedSegDataset", "fastvit_dense.seg.datasets"),
}


def dataset_cfgs(cfg: Config) -> Iterator[tuple[str, Mapping]]:
    """The datasets inside of the dataloaders, without those that only wrap others; and their places."""
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        if isinstance(loader, Mapping):
            yield from _leaves(loader.get("dataset"), f"{split}_dataloader.dataset")


def _leaves(node: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    if not isinstance(node, Mapping):
        return
    if "dataset" in node:
        yield from _leaves(node["dataset"], f"{where}.dataset")
    elif "datasets" in node:
        for i, inner in enumerate(node["datasets"]):
            yield from _leaves(inner, f"{where}.datasets[{i}]")
    else:
        yield where, node


def classes_of(cfg: Config) -> dict[str, tuple[str, ...]]:
    """Names of the classes of each dataset that has some, by its place in the config."""
    found = {}
    for where, dataset in dataset_cfgs(cfg):
        kinds = find_classes(dataset.get("type"), DATASETS)
        if not kinds or not hasattr(kinds[0], "_load_metainfo"):
            continue
        try:
            metainfo = kinds[0]._load_metainfo(copy.deepcopy(dataset.get("metainfo")))
        except Exception:  # building the dataset says what is wrong
            continue
        if isinstance(metainfo.get("classes"), list | tuple):
            found[where] = tuple(metainfo["classes"])
    return found


def check_metainfo(where: str, cfg: Mapping) -> Iterator[Finding]:
    """Names of OpenMMLab before 2022, which are passed over in silence; colours for other classes."""
    metainfo = cfg.get("metainfo")
    if not isinstance(metainfo, Mapping):
        return
    for key in {"CLASSES", "PALETTE"} & set(metainfo):
        what, cure = "is not read: it is in lower case now", f"metainfo=dict({key.lower()}=...)"
        yield Finding(ERROR, f"{where}.metainfo.{key}", what, cure)
    classes, palette = metainfo.get("classes"), metainfo.get("palette")
    if not isinstance(classes, list | tuple) or not isinstance(palette, list | tuple):
        return
    if len(classes) != len(palette):
        what = f"has {len(palette)} colours for {len(classes)} classes"
        cure = "palette=[(red, green, blue), ...], one for each class"
        yield Finding(ERROR, f"{where}.metainfo.palette", what, cure)


def build(where: str, cfg: Mapping) -> tuple[Any, list[Finding]]:
    """A dataset that only loads and checks, None where it cannot be built; and what building it found."""
    options = dict(copy.deepcopy(cfg))
    findings = []
    name = class_name(options)
    if name in _CHECKED:
        plain, (name, module) = name, _CHECKED[name]
        import_module(module)
        options["type"] = name
        findings.append(
            Finding(
                WARNING,
                f"{where}.type",
                f"{plain} trains on truncated images, wrong sizes and classes without a word",
                f"{name}, with custom_imports = dict(imports=['fastvit_dense', {module!r}])",
            )
        )
    options["pipeline"] = _loading_steps(options.get("pipeline") or [], name)
    options["lazy_init"] = False
    dataset = None
    with quiet() as said:
        try:
            dataset = DATASETS.build(options)
        except Exception as error:
            plain_error = isinstance(error, ValueError | FileNotFoundError)
            text = in_one_line(error) if not plain_error else str(error)
            cure = "" if plain_error else "correct the dataset in the config"
            findings.append(Finding(ERROR, where, text, cure))
    for is_warning, text in said:
        cure = "correct the annotations if this is not meant" if is_warning else ""
        findings.append(Finding(WARNING if is_warning else OK, where, text, cure))
    return dataset, findings


def _loading_steps(pipeline: Sequence[Any], dataset: str) -> list[Any]:
    """The steps that read and check files; the rest of a pipeline only computes."""
    steps: list[Any] = []
    names = [class_name(step) for step in pipeline]
    for step, name in zip(pipeline, names, strict=True):
        if name.startswith(("Load", "Check")):
            steps.append(step)
        if name == "LoadImageFromFile" and "CheckImage" not in names:
            import_module("fastvit_dense.compat.transforms")
            steps.append(dict(type="CheckImage"))
        is_checked_seg = dataset in [name for name, module in _CHECKED.values() if "seg" in module]
        if name == "LoadAnnotations" and is_checked_seg and "CheckLabels" not in names:
            steps.append(dict(type="CheckLabels"))
    return steps or list(pipeline)
