"""Checkpoints from anywhere, read as plain data: tensors, numbers, text, and containers of these.

A pickle can hold calls of any function. mmengine runs them in whatever comes over http(s), and in files too
if ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` is set. Here stand loaders in place of its own, one for each scheme
that it knows, and all end in :func:`_read`: so a checkpoint is plain data whether ``init_cfg``, the Runner,
a tool, or an inference function of mmdet or mmseg asks for it.
"""

import argparse
import difflib
import hashlib
import os
import os.path as osp
import pickle
import re
import ssl
import sys
import zipfile
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import huggingface_hub
import numpy as np
import safetensors.torch
import timm
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, get_mmcls_models, get_torchvision_models
from mmengine.runner.checkpoint import _process_mmcls_checkpoint, get_external_models
from torch import Tensor

_BY_PATH = "Without a network, fetch the file elsewhere and give its path."
_WAYS_OUT = (
    "Ways out: (1) fetch the file on a machine with a network and give its path as "
    "init_cfg.checkpoint; (2) copy a filled Hugging Face cache here and point HF_HOME at it; "
    "(3) train from scratch with --cfg-options model.backbone.init_cfg=None."
)
# As torchvision and OpenMMLab put the first digits of the SHA-256 into names.
_HASHED = re.compile(r"-[0-9a-f]{8,}\.")
# Names whose URLs mmengine has in tables.
TABLES = {
    "torchvision://": get_torchvision_models,
    "modelzoo://": get_torchvision_models,
    "open-mmlab://": get_external_models,
    "openmmlab://": get_external_models,
    "mmcls://": get_mmcls_models,
}


def read_content(checkpoint: str, *, map_location: Any = "cpu") -> Any:
    """Read a checkpoint of plain data, whatever it consists of.

    Args:
        checkpoint: a path, a URL, or a name such as ``timm://fastvit_sa12.apple_in1k``.
        map_location: as in :func:`torch.load`.

    Raises:
        FileNotFoundError: the file does not exist.
        ConnectionError: it cannot be fetched.
        ValueError: it cannot be read, or holds code; the name is unknown.
    """
    return CheckpointLoader.load_checkpoint(checkpoint, map_location, logger="silent")


def mismatched_keys(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[list[str], int]:
    """What keeps a checkpoint's tensors from being a model's; BatchNorm's counters may be missing.

    Args:
        wanted: the model's state dict.
        given: the checkpoint's.

    Returns:
        A phrase for each kind of difference (missing, unexpected, of another shape) with examples, and
        the number of the model's tensors that the checkpoint supplies.
    """
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in wanted]
    misshapen = [
        f"{k} {tuple(given[k].shape)}, in the model {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in given and given[k].shape != v.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    problems = [
        f"{len(keys)} tensors {what} ({'; '.join(keys[:3])}{'; ...' if len(keys) > 3 else ''})"
        for what, keys in kinds.items()
        if keys
    ]
    return problems, len(wanted) - len(missing) - len(misshapen)


def url_of(checkpoint: str) -> str:
    """What a name of mmengine's tables stands for: a URL, or a path. Anything else stands for itself.

    Args:
        checkpoint: such as ``torchvision://resnet50``.

    Raises:
        ValueError: the name is unknown; the message has similar ones.
    """
    if not checkpoint.startswith(tuple(TABLES)):
        return checkpoint
    scheme, _, name = checkpoint.partition("://")
    known = TABLES[f"{scheme}://"]()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"{checkpoint}: {scheme}:// has no checkpoint {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return known[name]


def cached_path(url: str) -> Path:
    """Where a file that was fetched from a URL is kept.

    That is torch.hub's folder (``TORCH_HOME`` moves it). A file whose name carries a hash of its content,
    as those of torchvision and OpenMMLab do, is there under that name, shared with torch.hub. Any other
    name may mean many files (each repository of Hugging Face has a model.safetensors), so it is kept in a
    folder for this URL.
    """
    folder, name = Path(torch.hub.get_dir(), "checkpoints"), Path(urlparse(url).path).name
    if _HASHED.search(name):
        return folder / name
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16] / (name or "checkpoint")


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a file."""
    path = osp.expanduser(filename)
    if not osp.isfile(path):
        raise FileNotFoundError(
            f"checkpoint {filename!r} does not exist. Expected a path, a URL or timm://MODEL.TAG, "
            "such as timm://fastvit_sa12.apple_in1k"
        )
    return _read(path, map_location, name=filename)


@CheckpointLoader.register_scheme(prefixes=("http://", "https://"), force=True)
def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Load a URL, with a progress bar on stderr; from then on, the copy at :func:`cached_path`.

    Of several processes the first one fetches it, and the others where they do not see its copy.
    """
    path, is_first = cached_path(filename), get_rank() == 0
    if not is_first:
        barrier()
    try:
        if path.is_file():
            return _read(path, map_location, name=f"{filename} (its copy {path})")
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch.hub takes what a broken connection leaves for the whole, so only what could be read is kept.
        with TemporaryDirectory(dir=path.parent) as folder:
            arrived = Path(folder, path.name)
            if is_first:
                print(f"Fetching {filename}\n      to {path}", file=sys.stderr)
            try:
                torch.hub.download_url_to_file(filename, str(arrived), progress=is_first)
            except (OSError, HTTPException, ValueError) as e:
                raise ConnectionError(f"{filename} could not be fetched ({e}). {_BY_PATH}") from e
            content = _read(arrived, map_location, name=filename)
            os.replace(arrived, path)
            return content
    finally:
        if is_first:  # also when it failed, so that nobody waits for it
            barrier()


@CheckpointLoader.register_scheme(prefixes=tuple(TABLES), force=True)
def load_from_hub(filename: str, map_location: Any = None) -> Any:
    """Load what a name of mmengine's tables stands for; see :func:`url_of`."""
    content = read_content(url_of(filename), map_location=map_location)
    return _process_mmcls_checkpoint(content) if filename.startswith("mmcls://") else content


@CheckpointLoader.register_scheme(
    prefixes=(r"(\S+\:)?s3://", r"(\S+\:)?petrel://", "pavi://"), force=True
)
def refuse_stores(filename: str, map_location: Any = None) -> NoReturn:
    """Refuse stores of which mmengine's clients are not public."""
    raise ValueError(
        f"{filename} is in a store that is not read here; fetch the file and give its path"
    )


@CheckpointLoader.register_scheme(prefixes="timm://")
def load_from_timm(filename: str, map_location: Any = None) -> dict[str, Tensor]:
    """Load ``timm://MODEL.TAG``, any model that timm has pretrained: it reads them as plain data.

    Args:
        filename: such as ``timm://fastvit_sa12.apple_in1k``.
        map_location: a device.

    Returns:
        The classifier's state dict, by timm's names.

    Raises:
        ValueError: timm has no such pretrained model; the message lists similar ones. Or the cached copy
            is damaged.
        ConnectionError: the hub cannot be reached and has no cached copy here.
    """
    name = filename.removeprefix("timm://")
    known = timm.list_pretrained()
    if name not in known:
        similar = timm.list_pretrained(f"{name.partition('.')[0]}.*")  # the same model, another tag
        similar = similar or difflib.get_close_matches(name, known, n=5)
        raise ValueError(
            f"timm has no pretrained model {name!r}; it has "
            + ", ".join(similar or timm.list_pretrained("fastvit_*"))
        )
    # The hub's client would repeat its question for 46 s before it says so.
    if not _is_cached(name) and not _answers(huggingface_hub.constants.ENDPOINT):
        raise ConnectionError(
            f"{filename} is not in the local cache, and {huggingface_hub.constants.ENDPOINT} cannot be "
            f"reached. {_WAYS_OUT}"
        )
    try:
        state_dict = timm.create_model(name, pretrained=True).state_dict()
    except OSError as e:  # what the hub's client raises for every kind of "not reachable"
        raise ConnectionError(
            f"{filename} could not be fetched and is not in the local cache "
            f"({type(e).__name__}). {_WAYS_OUT}"
        ) from e
    except Exception as e:
        raise ValueError(
            f"{filename} cannot be read, its cached copy may be damaged: {_reason(e)}"
        ) from e
    return _on_device(state_dict, map_location)


def _is_cached(name: str) -> bool:
    """Whether the hub's cache has a pretrained model of timm; True for those that come from elsewhere."""
    source: Any = timm.get_pretrained_cfg(name)
    files = (source.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
    return not source.hf_hub_id or any(
        isinstance(huggingface_hub.try_to_load_from_cache(source.hf_hub_id, file), str)
        for file in files
        if file
    )


def _answers(url: str, *, seconds: float = 5) -> bool:
    """Whether a server can be reached, through a proxy where one is set.

    Args:
        url: of the server.
        seconds: for a connection to one of its addresses. How long it takes to answer does not count,
            nor what it answers.
    """
    try:
        urlopen(Request(url, method="HEAD"), timeout=seconds).close()
    except URLError as e:  # what is wrong with a certificate is the hub client's to say
        return isinstance(e, HTTPError) or isinstance(e.reason, ssl.SSLError)
    except (OSError, HTTPException):
        return True
    return True


def _read(path: str | Path, map_location: Any, *, name: str) -> Any:
    """The content of a local file; errors call it by the name that the user knows it by."""
    try:
        if _is_safetensors(path):
            return _on_device(safetensors.torch.load_file(path), map_location)
        if zipfile.is_zipfile(path):
            _check_archive(path)
        # timm's saver stores the arguments of the training. A Namespace has attributes and no code of its
        # own; for this reading alone, because timm takes the permission back when it has read a file.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as e:  # what a damaged file gives depends on where: about any
        if name.endswith(".py"):
            raise ValueError(
                f"checkpoint {name!r} is a config: the config comes first, then the checkpoint"
            ) from e
        if isinstance(e, pickle.UnpicklingError) and (refused := _refused_global(e)):
            raise ValueError(
                f"{name} holds more than plain data and its code is not run: {refused}. Save the bare "
                "state dict again where the file came from."
            ) from e
        raise ValueError(
            f"{name} cannot be read, it may be truncated or damaged: {_reason(e)}"
        ) from e


def _is_safetensors(path: str | Path) -> bool:
    """By the content: Hugging Face's cache has files without a suffix. By the suffix: a damaged one.

    The format begins with the length of a JSON object in 8 bytes, and that object; at its brace, pickles
    and archives have other bytes.
    """
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{" or Path(path).suffix == ".safetensors"


def _check_archive(path: str | Path) -> None:
    """Compare a file with the checksums in it; torch.load would load weights of which bits have changed."""
    with zipfile.ZipFile(path) as archive:
        if (part := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"its part {part} is not what was written")


def _on_device(state_dict: dict[str, Tensor], map_location: Any) -> dict[str, Tensor]:
    """Where a device is named; what else torch.load takes says nothing of tensors that have no device."""
    if isinstance(map_location, str | torch.device):
        return {k: v.to(map_location) for k, v in state_dict.items()}
    return state_dict


def _refused_global(error: pickle.UnpicklingError) -> str:
    """What ``torch.load`` refused to run, from the middle of its long message; empty if nothing."""
    found = re.search(r"(?:GLOBAL|function|class) (?:<[^>]*>|'[^']*'|[\w.]+)", str(error))
    return found.group() if found and "nsupported operand" not in str(error) else ""


def _reason(error: Exception) -> str:
    """Why a file could not be read, in a sentence: what torch.load adds is how to run the code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, pickle.UnpicklingError) and lines[0].startswith(
        "Weights only load failed"
    ):
        return "its pickled part makes no sense"
    return f"{type(error).__name__}: {lines[0].partition('. ')[0]}" if lines else "it ends early"


def allow_own_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read the checkpoints that mmengine's Runner writes.

    Beside tensors they hold the message hub's ``HistoryBuffer`` and numpy scalars and arrays: data
    types without code of their own, named here one by one. A buffer names its methods through
    ``getattr``; what stands in for that answers for those methods alone. The check itself stays on.
    """
    scalars = {type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, bool)}
    # What numpy pickles an array and a scalar by; numpy 1 and 2 name the module differently, and each is to
    # read what the other has written.
    values: tuple[Any, ...] = (np.zeros(0), np.float64(0))
    functions = [value.__reduce__()[0] for value in values]
    modules = "numpy.core.multiarray", "numpy._core.multiarray"
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_buffer_method, "builtins.getattr"),
            (_history_buffer_method, "__builtin__.getattr"),
            np.ndarray,
            np.dtype,
            *((f, f"{module}.{f.__name__}") for f in functions for module in modules),
            *scalars,
        ]
    )


def _history_buffer_method(owner: type, name: str) -> Callable[..., Any]:
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not allowed in a checkpoint")
    return getattr(HistoryBuffer, name)
