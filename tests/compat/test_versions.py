"""Versions of Python, torch, torchvision and mmcv that do not fit together: one line with the command."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_tool

from fastvit_dense.compat import versions


def fake(folder: Path, name: str, version: str, code: str = "") -> dict[str, str]:
    """A package that is found before the installed one of that name: the environment for it."""
    (folder / name).mkdir()
    (folder / name / "version.py").write_text(f"__version__ = '{version}'\n")
    (folder / name / "__init__.py").write_text(f"__version__ = '{version}'\n{code}\n")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


NO_OPERATORS = "raise RuntimeError('operator torchvision::nms does not exist')"


def test_the_installed_torchvision_belongs_to_the_installed_torch():
    (needed,) = (r for r in metadata.requires("torchvision") or [] if re.match(r"torch\b", r))
    operator, version = re.fullmatch(r"torch\s*\(?([=>]=)([\d.]+)\)?", needed).groups()
    installed = metadata.version("torchvision").split("+")[0]
    wanted = versions.torchvision_for(torch.__version__)
    is_fixed = operator == "==" and int(version.split(".")[1]) < 14
    assert wanted == (f"==0.{installed.split('.')[1]}.*" if is_fixed else ">=0.29.1,<1")
    # The versions say nothing against them: what is left is the reason that importing gave.
    assert "cannot be used" in versions.explain_torchvision("some reason\nmore")[0]


@pytest.mark.parametrize(
    ("found", "what", "command"),
    [
        (("2.6.0+cu124", "0.26.0+cu130"), "torch 2.6.0+cu124 needs torchvision==0.21.*, found 0.26.0+cu130",
         "pip install torch==2.6.0 'torchvision==0.21.*'"),
        (("2.14.1+cu130", "0.29.0+cu130"), "torch 2.14.1+cu130 needs torchvision>=0.29.1,<1, found 0.29.0",
         "pip install torch==2.14.1 'torchvision>=0.29.1,<1'"),
        (("2.6.0+cpu", "0.21.0+cu124"), "torch 2.6.0+cpu needs a torchvision of the same build, +cpu, "
         "found 0.21.0+cu124", "pip install --force-reinstall torch==2.6.0 'torchvision==0.21.*'"),
        (("2.6.0+cu124", ""), "needs torchvision==0.21.*, found none",
         "pip install torch==2.6.0 'torchvision==0.21.*'"),
        (("2.6.0", "0.21.0"), "torchvision 0.21.0 cannot be used with torch 2.6.0 (libfoo is missing)",
         "pip install --force-reinstall torch==2.6.0 'torchvision==0.21.*'"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_torchvision(found, what, command, monkeypatch):
    stated = {"torch": found[0], "torchvision": found[1]}
    monkeypatch.setattr(versions, "stated_version", stated.get)
    said = versions.explain_torchvision("libfoo is missing\nand more")
    assert what in said[0] and command in said[1]
    assert "\n" not in "".join(said)


@pytest.mark.parametrize("code", [NO_OPERATORS, ""], ids=["does not import", "has no operators"])
def test_a_torchvision_for_another_torch(code, tmp_path):
    environment = fake(tmp_path, "torchvision", "0.1.0+cu99", code)
    pair = f"pip install torch=={torch.__version__.split('+')[0]} 'torchvision"
    last = run_tool("tools/train.py", "x.py", fails=True, **environment).splitlines()[-1]
    assert "ImportError: torch " in last and "found 0.1.0+cu99" in last and pair in last
    said = " ".join(run_tool("tools/doctor.py", fails=True, **environment).split())
    wanted = versions.torchvision_for(torch.__version__)
    assert f"needs torchvision{wanted}, found 0.1.0+cu99" in said
    assert pair in said


def test_a_cpu_torch_beside_a_cuda_torchvision(tmp_path):
    # Of the right version, so that only the build is wrong.
    version = metadata.version("torchvision").split("+")[0] + "+other"
    environment = fake(tmp_path, "torchvision", version, NO_OPERATORS)
    last = run_tool("-c", "import fastvit_dense", fails=True, **environment).splitlines()[-1]
    assert "of the same build" in last and f"found {version}" in last
    assert "pip install --force-reinstall torch==" in last


def test_a_torch_that_is_too_old(tmp_path):
    environment = fake(tmp_path, "torch", "2.5.1+cpu")
    last = run_tool("-c", "import fastvit_dense", fails=True, **environment).splitlines()[-1]
    assert "torch is 2.5.1+cpu, expected 2.6 or later" in last and "pip install 'torch>=2.6" in last


def test_a_python_that_is_too_old(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    with pytest.raises(ImportError, match=r"^Python is 3\.9\.18, expected 3\.10 or later"):
        versions.require_suitable()


def test_compiled_mmcv_for_another_torch(tmp_path):
    pytest.importorskip("mmdet")
    environment = fake(tmp_path, "mmcv", "2.1.0")
    symbol = "undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE"
    (tmp_path / "mmcv" / "_ext.py").write_text(f"raise ImportError({symbol!r})")
    config = "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py"
    last = run_tool("tools/train.py", config, fails=True, **environment).splitlines()[-1]
    versions_and_cures = (
        f"torch {torch.__version__}",
        "pip install mmcv-lite==2.1.0",
        "MMCV_WITH_OPS=1",
    )
    for phrase in (symbol, *versions_and_cures):
        assert phrase in last
    said = " ".join(run_tool("tools/doctor.py", fails=True, **environment).split())
    assert "were built for another one" in said and symbol in said


def test_find_loader_is_there_for_mmengine():
    """Gone in Python 3.14, and called whenever mmengine builds an optimizer."""
    code = (
        "import pkgutil, warnings; warnings.simplefilter('ignore')\n"
        "if hasattr(pkgutil, 'find_loader'): del pkgutil.find_loader\n"
        "import fastvit_dense; from mmengine.utils.dl_utils import mmcv_full_available as available\n"
        "print(available(), pkgutil.find_loader('no_such_module'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "None" and done.stdout.split()[-2] in ("True", "False")
