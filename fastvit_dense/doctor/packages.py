"""What is installed: whether it works, and fits together. Imports nothing that could be broken itself."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module, metadata

from .report import ERROR, OK, WARNING, Diagnostic, in_one_line

# Distributions that are imported to see whether they work, and their modules.
_IMPORTED = {
    "numpy": "numpy", "torch": "torch", "torchvision": "torchvision", "timm": "timm",
    "mmengine": "mmengine", "mmcv-lite": "mmcv", "mmdet": "mmdet", "mmsegmentation": "mmseg",
}  # fmt: skip
# Extras, by the distribution that shows whether they were asked for.
_EXTRAS = {"det": "mmdet", "seg": "mmsegmentation", "hand": "trimesh"}
# What may be installed in place of another.
_SERVING = {"mmcv-lite": "mmcv", "opencv-python": "opencv-python-headless"}


def check_packages() -> Iterator[Diagnostic]:
    """Python and the packages: installed, importable, and of the versions this project is tested with."""
    if _version("fastvit_dense"):
        yield from _check_versions()
    else:
        yield Diagnostic(
            ERROR,
            "fastvit_dense",
            f"is not installed for {sys.executable}",
            "run `make` and `source .venv/bin/activate`; or `pip install -e .` here",
        )
    yield from _check_imports()


def check_operators() -> Iterator[Diagnostic]:
    """Which of mmcv's operators this process uses.

    Raises:
        ImportError: mmcv is compiled, and for another torch.
    """
    from ..compat import mmcv_ops

    mmcv_ops.require_loadable()
    yield Diagnostic(OK, "", mmcv_ops.describe())


def _version(name: str) -> str:
    """Of an installed distribution, or of what serves in its place; empty if there is none."""
    for candidate in filter(None, (name, _SERVING.get(name))):
        try:
            return metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _check_versions() -> Iterator[Diagnostic]:
    from packaging.requirements import Requirement

    extras = ["", *(extra for extra, name in _EXTRAS.items() if _version(name))]
    for need in map(Requirement, metadata.requires("fastvit_dense") or []):
        wanted_by = [e for e in extras if not need.marker or need.marker.evaluate({"extra": e})]
        if not wanted_by:
            continue
        hint = f"pip install -e '.[{wanted_by[0]}]'" if wanted_by[0] else "make"
        found = _version(need.name)
        if not found:
            what = f"is not installed, expected {need.name}{need.specifier}"
            yield Diagnostic(ERROR, need.name, what, hint)
        elif not need.specifier.contains(found, prereleases=True):
            what = f"is {found}; this project is tested with {need.specifier}"
            yield Diagnostic(WARNING, need.name, what, hint)


def _check_imports() -> Iterator[Diagnostic]:
    """Import what is installed."""
    works = [f"Python {platform.python_version()}"]
    for name, module in _IMPORTED.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                works += (
                    [f"{module} {_version(name)}"]
                    if _version(name) and import_module(module)
                    else []
                )
        except Exception as error:
            what, hint = (
                f"cannot be imported: {in_one_line(error)}",
                "install it again, or run `make`",
            )
            yield Diagnostic(ERROR, module, what, hint)
    yield Diagnostic(OK, "", ", ".join(works))
