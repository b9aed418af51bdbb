"""Imported first by the tools: if a package is missing, they end with the command that brings it.

It stands beside them, since fastvit_dense itself may be what is missing.
"""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VENV = Path(__file__).resolve().parents[1] / ".venv"  # what `make` creates


def activation() -> str:
    """The command that makes ``python`` this interpreter; empty where it is, or is of no environment."""
    folder, python = Path(sys.executable).parent, shutil.which("python")
    if (python and Path(python).parent == folder) or not (folder / "activate").is_file():
        return ""
    return f"source {os.path.relpath(folder / 'activate')}"


def _explain(kind: Any, error: Any, traceback: Any) -> None:
    if kind is not ModuleNotFoundError or find_spec(name := error.name.partition(".")[0]):
        sys.__excepthook__(kind, error, traceback)
        return
    if sys.prefix == str(VENV):
        hint = "`make setup` completes .venv"
    elif VENV.is_dir():
        hint = f"Type `source {os.path.relpath(VENV)}/bin/activate` first"
    else:
        hint = "Type `make setup` and `source .venv/bin/activate` first"
    print(
        f"{Path(sys.argv[0]).stem}: package {name} is missing in {sys.executable}. {hint}, or in an "
        "environment of your own `pip install -e '.[det,seg,hand,export]'`",
        file=sys.stderr,
    )


sys.excepthook = _explain
