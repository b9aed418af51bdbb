"""MANO's own pickle and an .npz of the same arrays, read without running anything that is in them.

A pickle is a program: it names functions and classes of any module, and loading calls them. Here each
name that MANO's files have use for stands for a class that does nothing but note what it was called
with, and any other name is refused. No code of numpy or chumpy runs either: chumpy, which some of the
arrays are objects of, cannot be installed on a current Python, and numpy trusts the sizes of a pickle.
What was noted is then made into arrays, with checks.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ...io.files import atomic_write
from .arrays import _SHAPES, HOW_TO_GET_MANO, Mano, _check_handedness
from .topology import NUM_ROTATIONS, PARENTS

# What may be named. Python 3 writes bytes for Python 2 by _codecs.encode; protocols 0 and 1 write any
# object by copy_reg._reconstructor; sets are in the state of chumpy's objects.
_ARRAY = r"numpy\._?core\.(?:multiarray\._reconstruct|numeric\._frombuffer)"
_SPARSE = r"scipy\.sparse\._?cs[cr]\.cs[cr]_(?:matrix|array)"
_CHUMPY = r"chumpy(?:\.\w+)+"
_ALLOWED = re.compile(
    rf"{_ARRAY}|{_SPARSE}|{_CHUMPY}|numpy\.(ndarray|dtype)|numpy\._?core\.multiarray\.scalar"
    r"|_codecs\.encode|copy_?reg\._reconstructor|(__builtin__|builtins)\.(object|set)"
)


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
        noted.args, noted.state = args, {}
        return noted

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Noted]:
        origin = f"{module}.{name}"
        if _ALLOWED.fullmatch(origin):
            return type("Noted", (_Noted,), {"origin": origin})
        raise ValueError(
            f"it uses {origin}, which may run code and has no place in a file of MANO's; nothing was "
            "run. Get the file from its own site"
        )


def read_pickle(content: bytes, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays out of a pickled dictionary.

    Args:
        content: of the file. Pickles of Python 2 and 3, with arrays of numpy, sparse matrices of scipy
            (csc and csr, made dense), and objects of chumpy that hold or select from an array.
        names: keys to read. Those that are not there are left out.

    Returns:
        The arrays.

    Raises:
        ValueError: the pickle names a function or class that is not of those; it is damaged, no
            dictionary, or an entry is no array of numbers.
    """
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # of many kinds: a damaged pickle is another program
        raise ValueError(
            f"it is no pickle, or a damaged or refused one: {error} ({type(error).__name__})"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"it must hold a dictionary of arrays, got {_origin(loaded)}")
    arrays = {}
    for name in names:
        if name in loaded:
            try:
                arrays[name] = _as_array(loaded[name])
            except Exception as error:  # what was noted may be anything
                raise ValueError(f"{name} cannot be read: {error}") from error
    return arrays


def _as_array(value: Any) -> np.ndarray:
    """Make what was noted of an array, matrix or chumpy object into an array."""
    origin = _origin(value)
    if re.fullmatch(_ARRAY, origin):
        if origin.endswith("_frombuffer"):
            data, dtype, shape, order = value.args
        else:
            _, shape, dtype, is_fortran, data = value.state
            order = "F" if is_fortran else "C"
        return np.frombuffer(_as_bytes(data), _as_dtype(dtype)).reshape(shape, order=order)
    if re.fullmatch(_SPARSE, origin):
        return _from_sparse(value.state, by_column="csc" in origin)
    kind = origin.rpartition(".")[2] if re.fullmatch(_CHUMPY, origin) else ""
    if kind == "Ch":
        return _as_array(value.state["x"])
    if kind == "Select":
        array = _as_array(value.state["a"]).ravel()[_as_array(value.state["idxs"])]
        return array.reshape(value.state.get("preferred_shape", array.shape))
    if kind:
        raise ValueError(f"{origin} is a computation, which is not run: expected an array")
    raise ValueError(f"expected an array, got {origin}")


def _as_bytes(data: Any) -> bytes | bytearray:
    if _origin(data) == "_codecs.encode":
        data, _ = data.args
    if not isinstance(data, str | bytes | bytearray):
        raise ValueError("expected an array of numbers, got one of Python objects")
    return data.encode("latin1") if isinstance(data, str) else data


def _as_dtype(dtype: Any) -> np.dtype:
    code, byte_order = dtype.args[0], dtype.state[1]
    if not re.fullmatch(r"b1|[iuf][1248]", code) or byte_order not in "<>|=":
        raise ValueError(f"expected an array of numbers, got one of type {byte_order}{code}")
    return np.dtype(byte_order + code)


def _from_sparse(state: dict[str, Any], *, by_column: bool) -> np.ndarray:
    shape = state["_shape"]
    if shape != _SHAPES["joint_regressor"]:  # before it is made dense
        raise ValueError(f"expected a matrix of shape {_SHAPES['joint_regressor']}, got {shape}")
    parts = [_as_array(state[name]) for name in ("data", "indices", "indptr")]
    matrix = (sparse.csc_array if by_column else sparse.csr_array)(tuple(parts), shape=shape)
    matrix.check_format(full_check=True)  # its conversion writes wherever the indices point
    return matrix.toarray()


def _origin(value: Any) -> str:
    """Of what was noted, the class or function; of anything else its type."""
    if not isinstance(value, _Noted):
        return type(value).__name__
    if value.origin.endswith("._reconstructor") and value.args:
        return getattr(value.args[0], "origin", "")
    return value.origin


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
        FileNotFoundError: the file does not exist; the message says where to get it.
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

    The arrays have MANO's own names, so that other projects can read the file too. An older one is
    replaced.

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
    with atomic_write(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)


def _read_npz(content: bytes, keys: list[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {key: file[key] for key in keys if key in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"it is a damaged .npz, or one with Python objects: {error}") from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> Mano:
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
