"""MANO, the hand model of Romero, Tzionas and Black (2017): its topology, arrays, file and layer.

MANO may be used for research and not be passed on: each user obtains MANO_RIGHT.pkl, and nothing of it
goes into a checkpoint. The synthetic hand has its counts and conventions, and no such terms.
"""

import os
from pathlib import Path

from mmengine.logging import print_log

from .arrays import Mano
from .file import load_mano
from .synthetic import synthetic_hand

__all__ = ["Mano", "get_mano", "load_mano", "synthetic_hand"]


def get_mano(source: str | os.PathLike[str]) -> Mano:
    """Get a hand model by what a config names.

    Args:
        source: ``"synthetic"`` for the procedural hand that comes with this package, or a file as
            :func:`load_mano` takes it. If there is a file of that name in MANO's other format only, such
            as MANO_RIGHT.npz for MANO_RIGHT.pkl, that one is read, and the log says so.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is neither file; the message says where to get it.
        ValueError: it is another file.
    """
    if source == "synthetic":
        return synthetic_hand()
    path = Path(source)
    other = path.with_suffix({".pkl": ".npz", ".npz": ".pkl"}.get(path.suffix, path.suffix))
    if not path.exists() and other.exists():
        print_log(f"MANO: {path} does not exist, {other} is read", logger="current")
        path = other
    return load_mano(path)
