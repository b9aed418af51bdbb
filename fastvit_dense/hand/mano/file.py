"""Arrays out of MANO's own pickle, without running anything that is in it.

A pickle is a program: it names functions and classes of any module, and loading calls them. Here each
name that MANO's files have use for stands for a class that does nothing but note what it was called
with, and any other name is refused. No code of numpy, scipy or chumpy runs either: chumpy, which some of
the arrays are objects of, cannot be installed on a current Python, and the other two trust the sizes and
indices of a pickle. What was noted is then made into arrays, with checks.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import _SHAPES, HOW_TO_GET_MANO, Mano, _check_handedness
from .topology import (
    NUM_ROTATIONS,
    PARENTS,
)

_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_SPARSE = re.compile(r"scipy\.sparse\._?cs[cr]\.cs[cr]_(matrix|array)")
_CHUMPY = re.compile(r"chumpy(\.\w+)+")
_OTHERS = (
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",  # how Python 3 writes bytes for Python 2
    "copy_reg._reconstructor",  # how protocols 0 and 1 write any object
    "copyreg._reconstructor",
    "__builtin__.object",
    "builtins.object",
    "__builtin__.set",  # in the state of chumpy's objects
    "builtins.set",
)
_HARMLESS = frozenset((*_RECONSTRUCT, *_FROM_BUFFER, *_OTHERS))
_MAX_DEPTH = 8  # of arrays in chumpy's objects in one another
_MAX_NUMBERS = 10**7  # in a matrix made dense; MANO's has 12,448


class RefusedPickleError(ValueError):
    """A pickle names something that has no place in a file of arrays."""


class _Noted:
    """Stands for an object of a pickle: what would have made it, and nothing of what that does.

    Attributes:
        origin: module and name of the class or function; each has a subclass of its own.
        args: what it was called with.
        state: what the object would have been given then.
    """

    origin = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> _Noted:
        noted = super().__new__(cls)
        noted.args, noted.state = args, None
        return noted

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Noted]:
        origin = f"{module}.{name}"
        if origin in _HARMLESS or _SPARSE.fullmatch(origin) or _CHUMPY.fullmatch(origin):
            return type("Noted", (_Noted,), {"origin": origin})
        raise RefusedPickleError(
            f"it uses {origin}, which may run code and has no place in a file of MANO's; nothing was "
            "run. Get the file from its own site"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickleError(f"it points at something outside of the file ({str(pid)[:50]!r})")


def read_pickle(content: bytes, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays out of a pickled dictionary.

    Args:
        content: of the file. Pickles of Python 2 and 3, with arrays of numpy, sparse matrices of scipy
            (csc and csr, made dense), and objects of chumpy that hold or select from an array.
        names: keys to read. Those that are not there are left out.

    Returns:
        The arrays.

    Raises:
        RefusedPickleError: the pickle names a function or class that is not of those.
        ValueError: it is damaged, no dictionary, or an entry is no array of numbers.
    """
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except RefusedPickleError:
        raise
    except Exception as error:  # of many kinds: a damaged pickle is another program
        raise ValueError(
            f"it is no pickle, or a damaged one ({type(error).__name__}: {error}): was it downloaded "
            "completely?"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"it must hold a dictionary of arrays, got {_describe(loaded)}")
    arrays = {}
    for name in names:
        if name in loaded:
            try:
                arrays[name] = _as_array(loaded[name])
            except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
                raise ValueError(f"{name} cannot be read: {error}") from error
    return arrays


def _as_array(value: Any, depth: int = 0) -> np.ndarray:
    """Make what was noted of an array, matrix or chumpy object into an array."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"arrays in one another, more than {_MAX_DEPTH} deep")
    origin = _origin(value)
    if origin in _RECONSTRUCT:
        _, shape, dtype, is_fortran, data = value.state
        return _from_bytes(data, dtype, shape, "F" if is_fortran else "C")
    if origin in _FROM_BUFFER:
        data, dtype, shape, order = value.args[:4]
        return _from_bytes(data, dtype, shape, order)
    if _SPARSE.fullmatch(origin):
        return _from_sparse(origin, _state(value), depth)
    if _CHUMPY.fullmatch(origin):
        return _from_chumpy(origin, _state(value), depth)
    raise ValueError(f"expected an array, got {_describe(value)}")


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(data, list):
        raise ValueError("expected an array of numbers, got one of Python objects")
    if _origin(data) == "_codecs.encode":
        data, _ = data.args
    if isinstance(data, str):
        data = data.encode("latin1")
    if _origin(dtype) != "numpy.dtype":
        raise ValueError(f"expected a type of numbers, got {_describe(dtype)}")
    code, byte_order = dtype.args[0], dtype.state[1]
    if not re.fullmatch(r"b1|[iuf][1248]", code) or byte_order not in "<>|=":
        raise ValueError(f"expected an array of numbers, got one of type {byte_order}{code}")
    if len(data) != math.prod(shape) * int(code[1]):
        raise ValueError(f"{len(data)} bytes do not make an array of shape {shape} and type {code}")
    return np.frombuffer(data, np.dtype(byte_order + code)).reshape(shape, order=order)


def _from_sparse(origin: str, state: dict[str, Any], depth: int) -> np.ndarray:
    values, inner, starts = (
        _as_array(state[name], depth + 1) for name in ("data", "indices", "indptr")
    )
    rows, columns = state["_shape"]
    is_by_column = "csc" in origin
    # Checked here and not left to scipy, whose conversion writes wherever the indices point.
    counts = np.diff(starts)
    if (
        rows * columns > _MAX_NUMBERS
        or len(starts) != (columns if is_by_column else rows) + 1
        or counts.sum() != len(inner)
        or inner.min(initial=0) < 0
    ):
        raise ValueError(f"a sparse matrix whose indices do not fit its shape {rows, columns}")
    outer = np.repeat(np.arange(len(counts)), counts)
    dense = np.zeros((rows, columns))
    np.add.at(dense, (inner, outer) if is_by_column else (outer, inner), values)
    return dense


def _from_chumpy(origin: str, state: dict[str, Any], depth: int) -> np.ndarray:
    kind = origin.rpartition(".")[2]
    if kind == "Ch":
        return _as_array(state["x"], depth + 1)
    if kind == "Select":
        array = _as_array(state["a"], depth + 1).ravel()[_as_array(state["idxs"], depth + 1)]
        return array.reshape(state.get("preferred_shape", array.shape))
    if kind == "Reshape":
        return _as_array(state["a"], depth + 1).reshape(state["newshape"])
    raise ValueError(
        f"{origin} holds no array but a computation, which is not run; with chumpy, numpy.array() "
        "makes an array of it"
    )


def _origin(value: Any) -> str:
    if not isinstance(value, _Noted):
        return ""
    if value.origin.endswith("._reconstructor") and value.args:
        return getattr(value.args[0], "origin", "")
    return value.origin


def _state(value: _Noted) -> dict[str, Any]:
    if not isinstance(value.state, dict):
        raise ValueError(f"{_describe(value)} without its contents")
    return value.state


def _describe(value: Any) -> str:
    return _origin(value) or type(value).__name__


# The same arrays in files, under MANO's own names.
_KEYS = {
    "template": "v_template",
    "faces": "f",
    "shape_directions": "shapedirs",
    "pose_directions": "posedirs",
    "joint_regressor": "J_regressor",
    "skinning_weights": "weights",
    "pose_components": "hands_components",
    "pose_mean": "hands_mean",
}
_TREE_KEY = "kintree_table"


def load_mano(path: str | os.PathLike[str]) -> Mano:
    """Read MANO's right hand.

    Args:
        path: MANO_RIGHT.pkl as it is distributed, or the .npz that :func:`save_mano` makes of it. What
            a pickle says to run is not run.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such file; the message says where to get it.
        ValueError: it is damaged, is another model or a left hand, or has a pickle's code in it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. {HOW_TO_GET_MANO}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file, such as MANO_RIGHT.pkl in it")
    content = path.read_bytes()
    keys = [*_KEYS.values(), _TREE_KEY]
    try:
        arrays = _read_npz(content, keys) if content[:2] == b"PK" else read_pickle(content, keys)
        mano = _from_arrays(arrays)
        _check_handedness(mano)
    except ValueError as error:
        raise ValueError(f"{path} is no usable MANO_RIGHT: {error}") from error
    return mano


def save_mano(mano: Mano, path: str | os.PathLike[str]) -> None:
    """Write a hand model as .npz, which loads without a pickle.

    The arrays have MANO's own names, so that other projects can read the file too. It gets its name when
    it is complete; an older one is replaced.

    Args:
        mano: the model.
        path: ends in .npz. Its folder is made.

    Raises:
        ValueError: `path` does not end in .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"expected a file that ends in .npz, got {path}")
    arrays = {key: getattr(mano, name) for name, key in _KEYS.items()}
    arrays[_TREE_KEY] = np.array([PARENTS, range(NUM_ROTATIONS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with aside.open("wb") as file:
            np.savez(file, **arrays)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _read_npz(content: bytes, keys: list[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in keys if key in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"it is a damaged .npz, or one with Python objects: {error}") from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> Mano:
    template = arrays.get("v_template")
    if template is not None and template.shape != _SHAPES["template"]:
        raise ValueError(
            f"it is a model with v_template of shape {template.shape}, such as a body's or head's; "
            f"MANO's hand has {_SHAPES['template']}"
        )
    if missing := [key for key in (*_KEYS.values(), _TREE_KEY) if key not in arrays]:
        raise ValueError(f"it lacks {', '.join(missing)} of MANO's arrays")
    tree = arrays[_TREE_KEY]
    # The root's parent is -1, written as 2**32 - 1.
    if tree.shape != (2, NUM_ROTATIONS) or not np.array_equal(tree[0, 1:], PARENTS[1:]):
        raise ValueError(
            f"kintree_table must have MANO's tree of joints, [root, {', '.join(map(str, PARENTS[1:]))}] "
            f"in the first of 2 rows, got {tree.tolist()}"
        )
    return Mano(**{name: arrays[key] for name, key in _KEYS.items()})
