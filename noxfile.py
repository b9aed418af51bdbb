"""Tests with the oldest packages allowed, the newest, and the lock: python -m nox -s oldest newest lock.

Each session makes an environment of its own in .nox (5 to 6 GB, shared with uv's cache where it lies on the
same disk) and ends with a row for the table in docs/install.md. What follows `--` goes to pytest in place
of the tests below.
python3.10 and python3.13 are looked for in PATH; with pyenv, set PYENV_VERSION=3.13:3.10.
"""

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True

# mmengine and mmcv ask for opencv-python; the headless one, which lock.in names, serves them all.
REQUIREMENTS = ("--override", "requirements/lock-overrides.txt", "-r", "requirements/lock.in")
# Operators, parity with timm, folds, hostile checkpoints, a training step a task, export, doctor, wheels.
TESTS = [
    "tests/backbone", "tests/compat", "tests/deploy", "tests/det", "tests/doctor",
    "tests/engine/test_train.py",    "tests/hand/test_hand_configs.py", "tests/io/test_weights.py",
    "tests/seg/test_seg_configs.py", "tests/test_setup.py",
]  # fmt: skip

ROW = """
import platform
from datetime import date
from importlib.metadata import version
names = "torch", "torchvision", "timm", "numpy", "opencv-python-headless"
print("|", date.today(), "|", platform.python_version(), "|", " | ".join(map(version, names)), "|")
"""


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """The lowest version that requirements/*.txt allow, of each package they name."""
    _test(session, "--resolution", "lowest-direct", *REQUIREMENTS)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """The highest versions that requirements/*.txt allow and the registry has."""
    _test(session, *REQUIREMENTS)


@nox.session
def lock(session: nox.Session) -> None:
    """The versions of requirements/lock.txt, with the Python that runs nox."""
    _test(session, "--no-deps", "-r", "requirements/lock.txt")


def _test(session: nox.Session, *requirements: str) -> None:
    session.install(*requirements)
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    session.run(
        "python", "-m", "pytest", "-n", "auto", "--maxprocesses", "4", "--dist", "worksteal",
        *(session.posargs or TESTS), env={"OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    session.run("python", "-c", ROW)
