"""What an installation contains and does: wheels, the .pth file, pinned requirements, make."""

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fastvit_dense.compat.versions import torchvision_for

PTH = "fastvit_dense_mmcv.pth"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def build(kind: str, folder: Path) -> Path:
    """The ordinary ("wheel") or the editable wheel, built from a copy so as to leave no traces."""
    source = folder / "source"
    # All folders of the repository, to see that only the package is taken.
    for name in ("fastvit_dense", "requirements", "tools", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    out = folder / "out"
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    result = run(sys.executable, "-W", "ignore", "-c", code, cwd=source)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    return {kind: build(kind, tmp_path_factory.mktemp(kind)) for kind in ("wheel", "editable")}


@pytest.fixture
def site(wheels, tmp_path) -> Path:
    """A folder with the wheel's content, as pip unpacks it."""
    with zipfile.ZipFile(wheels["wheel"]) as file:
        file.extractall(tmp_path / "site")
    return tmp_path / "site"


def start_with(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with ``site`` as an additional site-packages, and our checkout unknown.

    -S and the plain path keep an editable installation of ours in the test environment out.
    """
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # Python 3.13 reads .pth files with that codec.
    before = f"import encodings.utf_8_sig, site, sys; sys.path += {libraries!r}; old = set(sys.modules)\n"
    before += f"site.addsitedir({str(site)!r}); new = set(sys.modules) - old\n"
    return run(sys.executable, "-S", "-W", "ignore", "-c", before + code, cwd=site.parent)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_wheels_carry_the_pth_file_in_their_record(wheels, kind):
    with zipfile.ZipFile(wheels[kind]) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert len(names) == len(set(names))
        assert PTH in names
        (record_name,) = (name for name in names if name.endswith(".dist-info/RECORD"))
        record = {row[0]: row for row in csv.reader(file.read(record_name).decode().splitlines())}
        # pip removes what is in the record, and only that.
        assert record.keys() == set(names)
        content = file.read(PTH)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert record[PTH] == [PTH, f"sha256={digest}", str(len(content))]


def test_wheel_holds_the_package_and_nothing_else(wheels):
    with zipfile.ZipFile(wheels["wheel"]) as file:
        names = file.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        text = file.read(metadata).decode()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"fastvit_dense", PTH}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastvit_dense").rglob("*.py")}
    assert modules <= set(names)
    python = re.search(r"^Requires-Python: (.*)$", text, re.MULTILINE)[1]
    assert SpecifierSet(python) == SpecifierSet(">=3.10,<3.15")
    for line in (
        "Requires-Dist: torch",
        'Requires-Dist: mmcv-lite==2.1.0; extra == "det"',
        'Requires-Dist: mmdet==3.3.0; extra == "det"',
        'Requires-Dist: mmsegmentation==1.2.2; extra == "seg"',
    ):
        assert line in text
    extras = re.findall(r"^Provides-Extra: (\w+)$", text, re.MULTILINE)
    assert sorted(extras) == ["det", "dev", "export", "hand", "seg"]


def test_editable_wheel_points_at_the_checkout(wheels):
    with zipfile.ZipFile(wheels["editable"]) as file:
        (pointer,) = (n for n in file.namelist() if n.endswith(".pth") and n != PTH)
        assert Path(file.read(pointer).decode().strip()) == wheels["editable"].parents[1] / "source"


def test_the_pth_file_installs_the_finder_and_imports_nothing(site):
    result = start_with(site, "print(sorted(new)); print(sys.meta_path[-1].__name__)")
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["[]", "MmcvExtFinder"]


def test_the_pth_file_is_silent_if_the_package_is_gone(site):
    shutil.rmtree(site / "fastvit_dense")
    code = "from importlib.util import find_spec; print(sorted(new), find_spec('mmcv._ext'))"
    result = start_with(site, code)
    assert (result.stdout, result.stderr) == ("[] None\n", "")


def test_mmdet_can_be_imported_first(site):
    pytest.importorskip("mmdet")
    code = (
        "from mmdet.apis import init_detector\n"
        "import fastvit_dense\n"
        "print(fastvit_dense.__file__, fastvit_dense.compat.mmcv_ops.describe(), sep='\\n')\n"
    )
    result = start_with(site, code)
    assert result.returncode == 0, result.stderr
    file, described = result.stdout.splitlines()[-2:]
    assert Path(file).parents[1] == site
    assert described.startswith("mmcv operators: ") and "none" not in described


def test_lock_pins_what_the_other_files_ask_for():
    def lines(name: str) -> list[str]:
        text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        return [line.strip() for line in text.splitlines()]

    lock = [line for line in lines("lock") if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9-]+==[\w.]+( ;|$)", line) for line in lock)
    versions = [line.split(" ;")[0].split("==") for line in lock]
    names = {name for name, _ in versions}
    asked = [
        Requirement(line)
        for name in ("base", "mmcv", "det", "seg", "hand", "export", "dev")
        for line in lines(name)
        if line and not line.startswith("#")
    ]
    assert len(asked) > 20
    for need in asked:
        if need.name == "opencv-python":
            # The one with windows needs libraries of a desktop; both install the package cv2.
            assert need.name not in names
            need.name = "opencv-python-headless"
        locked = [version for name, version in versions if name == need.name]  # one or more
        assert locked and all(need.specifier.contains(version) for version in locked), need
        # What a user has stays: one version alone only if there is no other.
        if "==" in str(need.specifier):
            assert need.name in {"mmengine", "mmcv-lite", "mmdet", "mmsegmentation", "ruff", "mypy"}
    assert dict(versions)["torchvision"] in SpecifierSet(torchvision_for(dict(versions)["torch"]))


def test_the_matrix_is_of_files_that_exist():
    """noxfile.py names tests by hand."""
    names = re.findall(r'"(tests/[\w/.]+)"', (ROOT / "noxfile.py").read_text(encoding="utf-8"))
    assert len(names) > 5
    assert not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_names_the_versions_it_cannot_use(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$2" in *platform*) echo 3.9.18;; *) exit 1;; esac\n')
    old.chmod(0o755)
    result = run("make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", cwd=ROOT)
    assert result.returncode != 0
    assert "3.10 to 3.14" in result.stderr and f"{old} is 3.9.18" in result.stderr
    assert not (tmp_path / "venv").exists()
    result = run("make", "setup", "PYTHON=no-such-python", f"VENV={tmp_path / 'v'}", cwd=ROOT)
    assert "no-such-python" in result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_removes_only_virtual_environments(tmp_path):
    (tmp_path / "precious").write_text("")
    where = (f"PYTHON={sys.executable}", f"VENV={tmp_path}")
    result = run("make", "setup", *where, cwd=ROOT)
    assert result.returncode != 0 and "virtual environment" in result.stderr
    assert (tmp_path / "precious").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_installs_again_when_requirements_change_and_only_then(tmp_path):
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements").mkdir()
    lock = tmp_path / "requirements" / "lock.txt"
    lock.write_text("one==1\n")
    calls = tmp_path / "calls"
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    python.chmod(0o755)

    def installs() -> int:
        calls.write_text("")
        assert run("make", "setup", cwd=tmp_path).returncode == 0
        return calls.read_text().count("requirements/lock.txt")

    assert installs() == 1
    assert installs() == 0
    os.utime(lock)  # as a checkout does
    assert installs() == 0
    lock.write_text("one==2\n")
    assert installs() == 1
    # An installation that fails is taken up again.
    lock.write_text("one==3\n")
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in *lock.txt*) exit 1;; esac\n')
    assert run("make", "setup", cwd=tmp_path).returncode != 0
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    assert installs() == 1


def test_setup_reads_the_version_the_package_states():
    import fastvit_dense

    result = run(sys.executable, "-W", "ignore", "setup.py", "--version", cwd=ROOT)
    assert result.stdout.split()[-1] == fastvit_dense.__version__


# What a user reads who has not activated the environment.

TOOLS = sorted(
    path.name
    for path in (ROOT / "tools").glob("*.py")
    # They start without any package: doctor.py to say what is missing.
    if path.name != "doctor.py" and not path.name.startswith("_")
)


@pytest.mark.parametrize("venv", [True, False])
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_name_the_command_that_brings_their_packages(tool, venv, tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    if venv:
        (tmp_path / ".venv").mkdir()
    result = run(sys.executable, "-S", f"tools/{tool}", cwd=tmp_path)  # -S: no packages
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert re.match(rf"{tool[:-3]}: .*package \w+ ", line) and "pip install -e" in line
    assert "source .venv/bin/activate" in line and ("make setup" in line) != venv


def test_other_errors_of_tools_keep_their_traceback(tmp_path):
    for code, wanted in (
        ("import json.nothing", "ModuleNotFoundError: No module named 'json.nothing'"),
        ("1 / 0", "ZeroDivisionError"),
    ):
        code = f"import sys; sys.path.append({str(ROOT / 'tools')!r}); import _environment; {code}"
        result = run(sys.executable, "-S", "-c", code, cwd=tmp_path)
        assert "Traceback" in result.stderr and wanted in result.stderr


def test_when_the_environment_has_to_be_activated(tmp_path, monkeypatch):
    from _environment import activation

    folder = tmp_path / ".venv/bin"
    folder.mkdir(parents=True)
    (folder / "python").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert activation() == ""  # no virtual environment
    (folder / "activate").touch()
    assert activation() == "source .venv/bin/activate"
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert activation() == ""
