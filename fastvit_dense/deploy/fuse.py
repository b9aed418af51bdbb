"""Fused checkpoints: written with a config of their own, after fused and unfused were compared.

A fused model has another structure than the one its config describes: no BatchNorms in neck and heads,
biases in their place, output norms only where they could not be folded. mmengine builds models from
configs, so beside ``X.pth`` stands ``X.py``, the complete config with those changes and without what only
training needs; whatever takes a config and a checkpoint takes these two.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from ..backbone.fastvit import FastViT, stages_with_norm
from ..backbone.reparameterize import reparameterize
from ..engine.config import load_config
from ..engine.models import build_model, count_parameters, load_strict, read_checkpoint
from ..io.files import atomic_write
from ..io.weights import mismatched_keys
from .compare import PROPOSALS, Error, compare_precisions, table

BatchNorm = nn.modules.batchnorm._BatchNorm
# Height and width compared at if none are given: an image as mmdet's and mmseg's configs scale it.
SHAPES = {"mmdet": (800, 1333)}
OTHER_SHAPE = (512, 512)
# What only training reads. Without it mmengine's Runner refuses to train, instead of failing to learn.
TRAINING = (
    "auto_scale_lr", "load_from", "optim_wrapper", "param_scheduler", "resume", "train_cfg",
    "train_dataloader", "train_pipeline",
)  # fmt: skip
# Folds beside the backbone's, in the order tried: a config cannot express all of them, such as a
# head that has BatchNorms without a setting for it.
FOLDS = (
    dict(conv_modules=True, output_norms=True),
    dict(conv_modules=True, output_norms=False),
    dict(conv_modules=False, output_norms=True),
    dict(conv_modules=False, output_norms=False),
)


class Equivalence(NamedTuple):
    """What became of a model by fusing it.

    Attributes:
        errors: of each pyramid level and head, in float32 and float64.
        shape: (B, C, H, W) of the images compared on.
        tensors: entries of the state dict, before and after.
        parameters: parameters, before and after.
        macs: multiply-accumulates of one forward pass at `shape`, before and after.
        norms: BatchNorms that are left, by name.
    """

    errors: list[Error]
    shape: tuple[int, int, int, int]
    tensors: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    norms: list[str]

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        on = f"random images, {size}"
        if any(e.what == "roi_head" for e in self.errors):
            on += f", RoI heads on {PROPOSALS} random proposals"
        lines = [
            f"Fused and unfused on {on}:",
            "",
            table(self.errors),
            "",
            "| | unfused | fused |",
            "|---|---|---|",
            "| tensors | {} | {} |".format(*self.tensors),
            "| parameters, M | {:.2f} | {:.2f} |".format(*(n / 1e6 for n in self.parameters)),
            "| MACs, G | {:.2f} | {:.2f} |".format(*(n / 1e9 for n in self.macs)),
        ]
        if self.norms:
            lines += ["", f"BatchNorms that are left: {', '.join(self.norms)}"]
        return "\n".join(lines)


def fuse_checkpoint(
    config: str,
    checkpoint: str,
    *,
    out: str,
    shape: tuple[int, int] | None = None,
    force: bool = False,
) -> Equivalence:
    """Fuse a trained model; write its checkpoint and, beside it, the config that runs it.

    What is compared with the unfused model is what is written: a model built from the text of the new
    config, with the new checkpoint loaded strictly.

    Args:
        config: config of a model whose ``backbone`` is a FastViT: detector, segmentor, hand model and
            the like.
        checkpoint: path or URL of what ``tools/train.py`` wrote with that config.
        out: where the fused checkpoint goes, ``X.pth``; its config goes to ``X.py``.
        shape: height and width in pixels of the random image compared on, padded as the model pads
            its images. None means the model's own `image_size`, such as 224x224 of hands, 800x1333 for
            mmdet's models, 512x512 for others.
        force: replace `out` and its config if they exist.

    Returns:
        The comparison; ``str()`` of it is a Markdown report.

    Raises:
        FileNotFoundError: the config or checkpoint does not exist.
        FileExistsError: `out` or its config exists, without `force`.
        ValueError: the checkpoint does not fit the config, the model is fused already or has no
            FastViT, `out` is no ``.pth`` or one of the files read, or the fused model computes
            something else. Nothing is written then.
    """
    paths = _out_paths(config, checkpoint, out, force=force)
    cfg = load_config(config)
    for key in ("launcher", "work_dir"):  # load_config's own
        cfg.pop(key)
    content = read_checkpoint(checkpoint)
    model = _load(cfg, content["state_dict"], config=config, checkpoint=checkpoint)

    fused, folds, fused_cfg = _fuse(model, cfg)
    text = (
        f"# {Path(config).name} with {Path(checkpoint).name}, fused by tools/reparameterize.py: for "
        f"inference only.\n{fused_cfg.pretty_text}"
    )
    state_dict = fused.state_dict()
    built = build_model(Config.fromstring(text, ".py"))
    built.load_state_dict(state_dict)
    if shape is None:
        shape = getattr(model, "image_size", SHAPES.get(cfg.get("default_scope"), OTHER_SHAPE))
    result = _compare(model, built, shape, folds)
    off = [e for e in result.errors if not e.passes]
    if off:
        raise ValueError(
            f"the fused model computes something else: {len(off)} of {len(result.errors)} outputs are "
            f"further off than rounding explains. Nothing was written.\n\n{result}"
        )

    from fastvit_dense import __version__

    meta = dict(content.get("meta") or {})
    meta.update(cfg=text, fastvit_dense=dict(deploy=True, version=__version__))
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(paths[0]) as new_checkpoint, atomic_write(paths[1]) as new_config:
        torch.save(dict(meta=meta, state_dict=state_dict), new_checkpoint)
        new_config.write_text(text, encoding="utf-8")
    return result


def _out_paths(config: str, checkpoint: str, out: str, *, force: bool) -> tuple[Path, Path]:
    """Where checkpoint and config go."""
    path = Path(out)
    if path.suffix != ".pth":
        raise ValueError(
            f"the fused checkpoint must be named *.pth, its config goes beside it; got {out}"
        )
    paths = path, path.with_suffix(".py")
    for path in paths:
        if path.resolve() in (Path(config).resolve(), Path(checkpoint).resolve()):
            raise ValueError(
                f"{path} is one of the files read, which stay as they are. Choose another name, such "
                f"as {path.with_name(path.stem + '_fused.pth')}"
            )
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists. Choose another name, or --force to replace it.")
    return paths


def _load(cfg: Config, state_dict: Mapping, *, config: str, checkpoint: str) -> Any:
    """The unfused model with all of the checkpoint's weights."""
    model = build_model(cfg)
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, FastViT):
        raise ValueError(
            f"{config}: model.backbone is a {type(backbone).__name__}, expected a FastViT"
        )
    if backbone.deploy:
        raise ValueError(f"{config} describes a fused model: there is nothing to reparameterize")
    load_strict(model, state_dict, checkpoint=checkpoint, config=config)
    return model


def _fuse(model: nn.Module, cfg: Config) -> tuple[nn.Module, dict[str, bool], Config]:
    """Fuse as much as a config can describe: the fused model, how it was made, and its config."""
    for folds in FOLDS:
        fused = reparameterize(model, **folds)
        fused_cfg = _fused_config(cfg, model, fused)
        problems, _ = mismatched_keys(build_model(fused_cfg).state_dict(), fused.state_dict())
        if not problems:
            return fused, folds, fused_cfg
    raise ValueError(
        f"no config describes the fused {type(model).__name__}: {'; '.join(problems)} even where only "
        "the backbone is fused. The model has to take backbone=dict(deploy=True, out_norm=...)."
    )


def _fused_config(cfg: Config, model: nn.Module, fused: Any) -> Config:
    cfg = copy.deepcopy(cfg)
    for key in TRAINING:
        cfg.pop(key, None)
    for key in ("init_cfg", "pretrained"):
        cfg.model.pop(key, None)
    backbone = cfg.model.backbone
    for key in ("frozen_stages", "init_cfg", "norm_eval", "with_cp"):
        backbone.pop(key, None)
    with_norm = stages_with_norm(fused.backbone)
    all_or_none = len(with_norm) in (0, len(fused.backbone.out_indices))
    backbone.update(
        deploy=True, drop_path_rate=0.0, out_norm=bool(with_norm) if all_or_none else with_norm
    )

    def lost_its_norms(name: str) -> bool:
        return _has_norms(model, name) and not _has_norms(fused, name)

    for name, part in cfg.model.items():
        if name != "backbone":
            _drop_norm_cfg(part, name, lost_its_norms)
    return cfg


def _drop_norm_cfg(cfg: Any, name: str, lost_its_norms: Callable[[str], bool]) -> None:
    """Set ``norm_cfg=None`` where the module that a part of the config describes lost its norms."""
    if isinstance(cfg, dict):
        if cfg.get("norm_cfg") and lost_its_norms(name):
            cfg["norm_cfg"] = None
        branches: Any = list(cfg.items())
    else:
        branches = enumerate(cfg) if isinstance(cfg, list | tuple) else ()
    for key, branch in branches:
        _drop_norm_cfg(branch, f"{name}.{key}", lost_its_norms)


def _has_norms(model: nn.Module, name: str) -> bool:
    try:
        part = model.get_submodule(name)
    except AttributeError:  # not every part of a config is a module of that name
        return False
    return any(isinstance(m, BatchNorm) for m in part.modules())


def _compare(
    model: Any, built: Any, shape: tuple[int, int], folds: Mapping[str, bool]
) -> Equivalence:
    """Compare in both precisions; in float64 the fold itself is computed again, from the same weights."""
    step = getattr(getattr(model, "data_preprocessor", None), "pad_size_divisor", 1)
    height, width = (-(-side // step) * step for side in shape)
    channels = model.backbone.stem[0].conv_kxk[0].conv.in_channels
    images = torch.randn(
        1, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    tensors = len(model.state_dict()), len(built.state_dict())
    parameters = count_parameters(model), count_parameters(built)

    exact = copy.deepcopy(built).double()
    exact.load_state_dict(reparameterize(copy.deepcopy(model).double(), **folds).state_dict())
    result = compare_precisions(model, built, exact, images)
    return Equivalence(
        result.errors,
        (1, channels, height, width),
        tensors,
        parameters,
        result.macs,
        [name for name, m in built.named_modules() if isinstance(m, BatchNorm)],
    )
