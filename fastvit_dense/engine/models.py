"""Models from configs and checkpoints; a checkpoint is loaded strictly or not at all.

mmengine loads non-strictly: a checkpoint of another architecture leaves a model random and a line in the
log. Whatever loads a trained model here goes through :func:`load_model` or :func:`load_strict`.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from ..backbone.fastvit import FastViT, refuse_other_structures
from ..io.weights import mismatched_keys, read_content
from .config import read_config_file
from .devices import check_device


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read what ``tools/train.py`` or ``tools/reparameterize.py`` wrote, on the CPU.

    Args:
        path: path or URL of the checkpoint.

    Returns:
        Its content: ``state_dict``, without the prefix of distributed training, and what else there is,
        such as ``meta``.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read, holds code, or holds no ``state_dict`` of named tensors.
    """
    content = read_content(path)
    if not isinstance(content, Mapping) or not content.get("state_dict"):
        raise ValueError(f"{path} holds no 'state_dict': expected a file that tools/train.py wrote")
    state_dict, meta = content["state_dict"], content.get("meta", {})
    if not isinstance(state_dict, Mapping) or not isinstance(meta, Mapping):
        raise ValueError(f"{path} is damaged: its 'state_dict' or 'meta' is no dict")
    strange = [
        k for k, v in state_dict.items() if not (isinstance(k, str) and isinstance(v, Tensor))
    ]
    if strange:
        raise ValueError(
            f"{path} is damaged: in its 'state_dict', {strange[0]!r} is no named tensor"
        )
    return {**content, "state_dict": without_prefix(state_dict)}


def build_model(cfg: Config, *, device: str = "cpu") -> nn.Module:
    """Build a config's model for inference, with random weights.

    Args:
        cfg: the config; left as it is (mmdet's detectors write into what they are built from).
        device: cpu or cuda:0.

    Returns:
        The model in eval mode, with plain in place of synchronised BatchNorm and the config as ``cfg``,
        where OpenMMLab's inference functions look for it.

    Raises:
        ValueError: the config has no model; the device does not exist.
    """
    check_device(device)
    if not cfg.get("model"):
        raise ValueError(f"{cfg.filename or 'the config'} has no model")
    init_default_scope(cfg.get("default_scope") or "mmengine")
    top = {"data_preprocessor": cfg.data_preprocessor} if cfg.get("data_preprocessor") else {}
    model: Any = revert_sync_batchnorm(MODELS.build(copy.deepcopy({**top, **cfg.model})))
    model.cfg = cfg
    if device != "cpu":  # one built on the meta device, to be counted, has no data to move
        model = model.to(device)
    return model.eval()


def load_model(config: str | Config, checkpoint: str, *, device: str = "cpu") -> nn.Module:
    """Build a trained model and load its weights, all of them or none.

    Args:
        config: a config file, or one that was read.
        checkpoint: path or URL of what ``tools/train.py`` or ``tools/reparameterize.py`` wrote with it.
        device: cpu or cuda:0.

    Returns:
        As :func:`build_model`, with what the checkpoint knows of its dataset, such as ``classes``, as
        ``dataset_meta``.

    Raises:
        FileNotFoundError: the config or the checkpoint does not exist.
        ValueError: one of them cannot be read; the checkpoint does not fit; the device does not exist.
    """
    check_device(device)
    cfg = read_config_file(config) if isinstance(config, str) else config
    content = read_checkpoint(checkpoint)
    model: Any = build_model(cfg, device=device)
    name = cfg.filename or "this config"
    load_strict(model, content["state_dict"], checkpoint=checkpoint, config=name)
    model.dataset_meta = (content.get("meta") or {}).get("dataset_meta") or {}
    return model


def load_strict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    checkpoint: str,
    config: str = "this config",
) -> None:
    """Load a checkpoint's tensors into a model, all of them or none.

    Args:
        model: the model.
        state_dict: the checkpoint's tensors.
        checkpoint: its name, for the message.
        config: name of the model's config, for the message.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape, or one of the two is fused and
            the other is not.
    """
    given = without_prefix(state_dict)
    refuse_other_structures(model, given)
    problems, _ = mismatched_keys(model.state_dict(), given)
    if problems:
        raise ValueError(
            f"{checkpoint} does not fit {config}: {'; '.join(problems)}. Use the config it was trained "
            "with."
        )
    model.load_state_dict(given, strict=False)  # counters of batches may be missing


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without the wrapper of distributed training."""
    return {k.removeprefix("module."): v for k, v in state_dict.items()}


_partial_loading = False


@contextmanager
def partial_loading() -> Iterator[None]:
    """Let checkpoints of other kinds of models be loaded as far as they fit; see :func:`guard_models`."""
    global _partial_loading
    before, _partial_loading = _partial_loading, True
    try:
        yield
    finally:
        _partial_loading = before


def guard_models() -> None:
    """Have models with a FastViT in them refuse checkpoints of another kind of model, whoever loads them.

    OpenMMLab's inference functions load non-strictly: a segmentor's checkpoint in a detector leaves its
    heads random and prints a list of keys. The backbone is handed its own tensors alone and cannot tell, so
    the module that it becomes a part of gets a hook.
    """
    register_module_module_registration_hook(_guard)


def _guard(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if isinstance(child, FastViT):
        parent.register_load_state_dict_pre_hook(_refuse_other_kinds)


def _refuse_other_kinds(
    model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Raise if parts of a model are not in a checkpoint, and parts of that not in the model."""
    given = {k.removeprefix(prefix).partition(".")[0] for k in state_dict if k.startswith(prefix)}
    parts = {name for name, child in model.named_children() if child.state_dict()}
    own = {k.partition(".")[0] for k in model.state_dict()}
    missing, other = sorted(parts - given), sorted(given - own)
    if missing and other and not _partial_loading:
        raise ValueError(
            f"the checkpoint is of another kind of model: it has {', '.join(other[:5])}, and nothing for "
            f"{', '.join(missing)} of this {type(model).__name__}. Use the config it was trained with; to "
            "begin with its backbone: model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        )


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, trainable or not; buffers are not counted."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention in one forward pass.

    What the literature on efficient networks, the FastViT paper included, prints as "FLOPs". PyTorch's
    own counter is used, which counts a multiply-accumulate as two operations. Nothing is computed:
    shapes alone pass through a copy of the model.

    Args:
        model: takes a batch of images; the mode it is in is kept.
        shape: (B, C, H, W) of the batch.
    """
    empty = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers for distributed training and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module  # type: ignore[assignment]
    return model


def check_fits(
    model: nn.Module, checkpoint: Mapping, *, classes: tuple[str, ...] = (), strict: bool = True
) -> str:
    """Compare a checkpoint with a model: names, shapes and classes.

    Args:
        model: without wrappers.
        checkpoint: its content.
        classes: of the dataset; none are not compared.
        strict: refuse what does not fit.

    Returns:
        Without `strict`, what does not fit; empty if all does.

    Raises:
        ValueError: it does not fit, with `strict`; it holds no weights, or those of the other structure.
    """
    wanted, meta = model.state_dict(), checkpoint.get("meta", {})
    given = without_prefix(checkpoint.get("state_dict", {}))
    if not given:
        raise ValueError(
            "the checkpoint holds no 'state_dict': expected a file that tools/train.py wrote. "
            "Pretrained backbones go into model.backbone.init_cfg.checkpoint."
        )
    refuse_other_structures(model, given)
    problems, fits = mismatched_keys(wanted, given)
    trained_on = tuple((meta.get("dataset_meta") or {}).get("classes", ()))
    if classes and trained_on and classes != trained_on:
        problems.append(
            f"trained on {len(trained_on)} classes {_shorten(trained_on)}, "
            f"the dataset has {len(classes)} {_shorten(classes)}"
        )
    if problems and strict:
        raise ValueError(
            f"the checkpoint does not fit this config: {'; '.join(problems)}. Use the config "
            + (
                "that tools/reparameterize.py wrote beside it: it is fused."
                if meta.get("fastvit_dense", {}).get("deploy")
                else "it was trained with, or --cfg-options load_strict=False to start from "
                "what fits."
            )
        )
    if not problems:
        return ""
    return f"load_strict=False: {fits} of {len(wanted)} tensors fit; {'; '.join(problems)}"


def _shorten(names: tuple[str, ...]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
