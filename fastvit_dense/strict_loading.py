"""Checkpoints of models are loaded whole or not at all.

mmengine loads non-strictly: a checkpoint of another architecture leaves a model random and a line in the
log. Whatever loads a trained model here goes through :func:`read_checkpoint` and :func:`load_whole`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .backbone import FastViT, refuse_other_structures
from .weights import read_content


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


def load_whole(
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
        ValueError: tensors are missing, unexpected or of another shape, or of a fused model where this
            one is not, or the other way round.
    """
    given = without_prefix(state_dict)
    refuse_other_structures(model, given)
    problems, _ = misfits(model.state_dict(), given)
    if problems:
        raise ValueError(
            f"{checkpoint} does not fit {config}: {'; '.join(problems)}. Use the config it was trained "
            "with."
        )
    model.load_state_dict(given, strict=False)  # counters of batches may be missing


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without the wrapper of distributed training."""
    return {k.removeprefix("module."): v for k, v in state_dict.items()}


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[list[str], int]:
    """What keeps a checkpoint's tensors from being a model's.

    Args:
        wanted: the model's state dict.
        given: the checkpoint's.

    Returns:
        A phrase for each kind of difference (missing, unexpected, of another shape) with examples, and
        the number of the model's tensors that the checkpoint does supply.
    """
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in wanted]
    misshapen = [
        f"{k} {tuple(given[k].shape)}, in the model {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in given and given[k].shape != v.shape
    ]
    problems = [
        f"{len(keys)} tensors {what} ({'; '.join(keys[:3])}{'; ...' if len(keys) > 3 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if keys
    ]
    return problems, len(wanted) - len(missing) - len(misshapen)


_parts_are_welcome = False


@contextmanager
def parts_are_welcome() -> Iterator[None]:
    """Let checkpoints of other kinds of models be loaded, as far as they fit; see :func:`guard_models`."""
    global _parts_are_welcome
    before, _parts_are_welcome = _parts_are_welcome, True
    try:
        yield
    finally:
        _parts_are_welcome = before


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
    """Raise where parts of a model are not in a checkpoint, and parts of that not in the model."""
    given = {k.removeprefix(prefix).partition(".")[0] for k in state_dict if k.startswith(prefix)}
    parts = {name for name, child in model.named_children() if child.state_dict()}
    own = {k.partition(".")[0] for k in model.state_dict()}
    missing, other = sorted(parts - given), sorted(given - own)
    if missing and other and not _parts_are_welcome:
        raise ValueError(
            f"the checkpoint is of another kind of model: it has {', '.join(other[:5])}, and nothing for "
            f"{', '.join(missing)} of this {type(model).__name__}. Use the config it was trained with; to "
            "begin with its backbone: model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
