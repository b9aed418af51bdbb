"""What is installed: whether it works, and fits together. Imports nothing that could be broken itself."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec

from ..compat.versions import explain_torchvision
from .findings import ERROR, OK, WARNING, Finding, in_one_line

# Distributions that are imported to see whether they work, and what they are imported as.
_IMPORTED = {
    "numpy": "numpy", "torch": "torch", "torchvision": "torchvision", "timm": "timm",
    "mmengine": "mmengine", "mmcv-lite": "mmcv", "mmdet": "mmdet", "mmsegmentation": "mmseg",
}  # fmt: skip
# Extras by the distribution without which there is nothing to check of them.
_EXTRAS = {"det": "mmdet", "seg": "mmsegmentation", "hand": "trimesh"}
_TASKS = {"det": "detection", "seg": "segmentation", "hand": "meshes of hands in files"}
# What serves in place of another: compiled mmcv is as good, and OpenCV comes in four distributions.
_SERVING = {
    "mmcv-lite": ("mmcv",),
    "opencv-python": (
        "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless",
    ),
}  # fmt: skip
# Pairs that write the same files.
_RIVALS = (("opencv-python", "opencv-python-headless"), ("mmcv", "mmcv-lite"))


def check_packages() -> Iterator[Finding]:
    """Python and the packages: there, importable, and of the versions this project is tested with."""
    if not _version("fastvit_dense"):
        yield Finding(
            ERROR,
            "fastvit_dense",
            f"is not installed for {sys.executable}",
            "run `make` and `source .venv/bin/activate`; or `pip install -e .` here",
        )
    else:
        yield from _check_versions()
    yield from _check_imports()
    for one, other in _RIVALS:
        if _version(one) and _version(other):
            what = "are both installed and write the same files: which of them works is chance"
            cure = f"pip uninstall {one} {other}, then install the one you want"
            yield Finding(WARNING, f"{one} and {other}", what, cure)


def _version(name: str) -> str:
    """Of an installed distribution; empty if it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _serving(name: str) -> str:
    """The distribution that is installed for another; that one itself, if none is."""
    return next((n for n in (name, *_SERVING.get(name, ())) if _version(n)), name)


def _check_versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = metadata.metadata("fastvit_dense")["Requires-Python"] or ""
    if not SpecifierSet(python).contains(platform.python_version()):
        what = f"is {platform.python_version()}, expected {python}"
        cure = "make another environment: make clean; make PYTHON=/path/to/python3.11"
        yield Finding(ERROR, "Python", what, cure)
    extras = [extra for extra, name in _EXTRAS.items() if _version(name)]
    seen = set()
    for line in metadata.requires("fastvit_dense") or []:
        need = Requirement(line)
        wanted_by = [
            e for e in ("", *extras) if not need.marker or need.marker.evaluate({"extra": e})
        ]
        if not wanted_by or need.name in seen:
            continue
        seen.add(need.name)
        found = _version(_serving(need.name))
        cure = "make" + (f", or pip install -e '.[{wanted_by[0]}]'" if wanted_by[0] else "")
        if not found:
            what = f"is not installed, expected {need.name}{need.specifier}"
            yield Finding(ERROR, need.name, what, cure)
        elif not need.specifier.contains(found, prereleases=True):
            what = f"is {found}; this project is tested with {need.specifier}"
            yield Finding(WARNING, need.name, what, f"{cure}, if anything fails")


def _check_imports() -> Iterator[Finding]:
    """Import what there is; what fails for the same reason is one finding."""
    works = [f"Python {platform.python_version()}"]
    failures: dict[str, list[str]] = {}
    for name, module in _IMPORTED.items():
        version = _version(_serving(name))
        if not version:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_module(module)
                if module == "torchvision":
                    _use_torchvision()
            works.append(f"{module} {version}")
        except Exception as error:
            failures.setdefault(in_one_line(error), []).append(f"{module} {version}")
    for reason, modules in failures.items():
        what, cure = f"cannot be imported: {reason}", _import_cure(modules[0])
        if modules[0].startswith("torchvision"):
            what, cure = explain_torchvision(reason)
        yield Finding(ERROR, ", ".join(modules), what, cure)
    absent = [
        f"no {name} (for {_TASKS[extra]}: pip install -e '.[{extra}]')"
        for extra, name in _EXTRAS.items()
        if not _version(name)
    ]
    yield Finding(OK, "", ", ".join(works + absent))


def _use_torchvision() -> None:
    import torch
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)


def _import_cure(module: str) -> str:
    name = module.split()[0]
    if find_spec("pkg_resources") is None:
        return "pkg_resources is missing, which mmengine needs: pip install 'setuptools>=77,<80.9'"
    return f"install {name} again, in the version that requirements/*.txt names, or run `make`"


def check_operators() -> Iterator[Finding]:
    """Which of mmcv's operators this process uses."""
    from ..compat import mmcv_ops

    try:
        mmcv_ops.require_loadable()
    except ImportError as error:
        yield Finding(ERROR, "", str(error))
        return
    text = mmcv_ops.describe()
    if "none" in text:
        cure = "pip install -e '.[det]'"
        yield Finding(WARNING, "", f"{text}: detection and segmentation do not run", cure)
    else:
        yield Finding(OK, "", text)
