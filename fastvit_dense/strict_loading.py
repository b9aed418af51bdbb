"""Checkpoints are read as plain data, and loaded whole or not at all.

mmengine loads non-strictly: a checkpoint of another architecture leaves a model random and a line in the
log. Whatever loads a trained model here goes through :func:`read_checkpoint` and :func:`load_whole`.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from .backbone import refuse_other_structures
from .checkpoint import reading_error, refused_global


def allow_own_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read the checkpoints that mmengine's Runner writes.

    Beside tensors they hold the message hub's ``HistoryBuffer`` and numpy scalars and arrays: data
    types without code of their own, named here one by one. A buffer names its methods through
    ``getattr``; what stands in for that answers for those methods alone. The check itself stays on.
    """
    scalars = {type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, bool)}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_buffer_method, "builtins.getattr"),
            (_history_buffer_method, "__builtin__.getattr"),
            np.ndarray,
            np.dtype,
            np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
            np._core.multiarray.scalar,  # type: ignore[attr-defined]
            *scalars,
        ]
    )


def _history_buffer_method(owner: type, name: str) -> Callable[..., Any]:
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not allowed in a checkpoint")
    return getattr(HistoryBuffer, name)


@contextmanager
def clear_reading_errors(filename: str) -> Iterator[None]:
    """Let errors of reading a checkpoint name the file and the likely cause.

    A file is first compared with the checksums in it, which ``torch.load`` does not do: weights of which
    bits have changed would be loaded without a word. (Files of before torch 1.6 have none.)

    Args:
        filename: the checkpoint read inside.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it holds code, or is damaged.
    """
    try:
        if zipfile.is_zipfile(filename):
            with zipfile.ZipFile(filename) as archive:
                if (part := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"its part {part} is not what was written")
        yield
    except FileNotFoundError as e:
        raise FileNotFoundError(f"checkpoint {filename!r} does not exist") from e
    except Exception as e:  # what a damaged file gives depends on where: about any
        if isinstance(e, ValueError) and not isinstance(e, UnicodeError):
            raise  # of those who look at what was read
        if isinstance(e, pickle.UnpicklingError) and (refused := refused_global(e)):
            raise ValueError(
                f"{filename} holds more than plain data and its code is not run: {refused}"
            ) from e
        raise ValueError(
            f"{filename} cannot be read, it may be truncated or damaged: {reading_error(e)}"
        ) from e


def read_content(path: str) -> Any:
    """Read a checkpoint of plain data, whatever it consists of, on the CPU.

    Args:
        path: path or URL of the checkpoint.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read, or holds code.
    """
    with clear_reading_errors(path):
        try:
            return CheckpointLoader.load_checkpoint(path, "cpu", logger="silent")
        except ValueError as e:  # of damaged data: nobody has looked at it yet
            raise RuntimeError(reading_error(e)) from e


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
