"""Ctrl-C, typed in a terminal: every process of a run is told, and none may stay."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_resume import last
from toy_training import BEGUN, PAUSE, ToyModel, write_config

from fastvit_dense.engine.preemption import CTRL_C

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BOUND = 30  # seconds; what hung, hung for minutes
# A terminal of its own, and SIGINT as a shell in the foreground leaves it. Without the shell, the end of
# the command would be that of the session, which SIGHUP ends.
IN_TERMINAL = (
    "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """A Python command in a pseudo-terminal.

    Attributes:
        text: what was shown so far.
    """

    def __init__(self, *command: object, mark: Path, **environment: object) -> None:
        self.mark, self.text = f"IN_TERMINAL={mark}", ""
        env = os.environ | {name: str(value) for name, value in environment.items()}
        env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "IN_TERMINAL": str(mark)}
        self.terminal, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *map(str, command)], stdin=inside, stdout=inside,
            stderr=inside, start_new_session=True, cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(inside)

    def wait_for(self, text: str) -> None:
        """Read until `text` has been shown."""
        until = time.monotonic() + 120
        while text not in self.text:
            assert self._read() and time.monotonic() < until, f"no {text!r}: {self.text[-5000:]}"

    def ctrl_c(self) -> None:
        os.write(self.terminal, b"\x03")

    def status(self) -> int:
        """Read to the end; the exit status. No process may be left a few seconds later."""
        until = time.monotonic() + BOUND
        while self._read() or self.process.poll() is None or self.alive():
            if time.monotonic() > until:
                raise AssertionError(f"{self.alive()} hang: {self.text[-5000:]}")
        return self.process.returncode

    def alive(self) -> list[int]:
        """All processes that the command started, and theirs."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # ended, or of another user
                pass
        return found

    def close(self) -> None:
        """Kill what is left after a test that failed."""
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.terminal)

    def _read(self) -> bool:
        """Read what comes within a tenth of a second; False at the end."""
        if not select.select([self.terminal], [], [], 0.1)[0]:
            return self.process.poll() is None
        try:
            self.text += os.read(self.terminal, 65536).decode(errors="replace")
        except OSError:  # so Linux says that nobody has the terminal open any more
            return False
        return True


Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command in a terminal, whose forward passes take 0.3 s more."""
    with ExitStack() as stack:
        yield lambda *command, pause=0.3: stack.enter_context(
            closing(Terminal(*command, mark=tmp_path, **{PAUSE: pause, BEGUN: tmp_path / "begun"}))
        )


def write_big(path: Path, **options: object) -> Path:
    """A training whose workers have more to write than a pipe holds, whenever Ctrl-C comes."""
    config = write_config(path, workers=2, **options)
    with config.open("a") as file:
        file.write(
            'train_dataloader["dataset"]["ballast"] = 2_000_000\n'
            "val_dataloader.update(num_workers=2, dataset=dict(\n"
            '    type="ToyDataset", length=99, ballast=2_000_000))\n'
            "test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, dict()\n"
            'train_cfg["val_interval"] = 1 if train_cfg["by_epoch"] else 24\n'
        )
    return config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_big(tmp_path / "toy.py", by_epoch=True, epochs=99)


def assert_saved(run: Terminal, work_dir: Path, *, of: int = 1) -> str:
    """The run told where it stopped and saved that, without a traceback; returns its last line."""
    found = re.search(r"stopped by Ctrl-C after iteration (\d+)", run.text)
    assert found, run.text[-5000:]
    saved = last(work_dir)
    assert saved["meta"]["iter"] == int(found[1]) and len(saved["random_states"]) == of
    assert "fastvit_dense/" not in run.text.partition("Traceback")[2]
    return run.text.rstrip().splitlines()[-1]


def test_training(start: Start, tmp_path: Path) -> None:
    # It takes nine more batches to the end of the step, of which workers have four.
    config = write_big(tmp_path / "toy.py", by_epoch=False, accumulate=12)
    command = ["tools/train.py", config, "--work-dir", tmp_path / "run"]
    run = start(*command)
    run.wait_for("[1][3/6]")
    run.ctrl_c()
    assert run.status() == CTRL_C
    line = assert_saved(run, tmp_path / "run")
    assert "after iteration 12;" in line and "Traceback" not in run.text
    assert line.endswith(f"Go on with: python {' '.join(map(str, command))} --resume")


def test_second_ctrl_c(start: Start, config: Path, tmp_path: Path) -> None:
    run = start("tools/train.py", config, "--work-dir", tmp_path / "run", pause=600)
    run.wait_for("Checkpoints will be saved")
    while not (tmp_path / "begun").exists():
        time.sleep(0.1)
    time.sleep(1)  # for the workers to fill the pipe
    run.ctrl_c()
    run.wait_for("press it again")
    run.ctrl_c()
    assert run.status() == -signal.SIGINT
    assert "Traceback" not in run.text


def test_validation(start: Start, config: Path, tmp_path: Path) -> None:
    run = start("tools/train.py", config, "--work-dir", tmp_path / "run")
    run.wait_for("[1][ 3/25]")
    run.ctrl_c()
    assert run.status() == CTRL_C
    line = assert_saved(run, tmp_path / "run")
    assert "after iteration 6;" in line and "Traceback" not in run.text


def test_test(start: Start, config: Path, tmp_path: Path) -> None:
    torch.save(dict(state_dict=ToyModel().state_dict()), tmp_path / "toy.pth")
    run = start("tools/test.py", config, tmp_path / "toy.pth", "--work-dir", tmp_path / "run")
    run.wait_for("[ 3/25]")
    run.ctrl_c()
    assert run.status() == -signal.SIGINT
    assert "Traceback" not in run.text


def test_torchrun(start: Start, config: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    run = start(*torchrun, "tools/train.py", config, "--work-dir", tmp_path / "run",
                "--launcher", "pytorch")  # fmt: skip
    run.wait_for("[1][2/3]")
    run.ctrl_c()
    assert run.status() != 0
    assert_saved(run, tmp_path / "run", of=2)


def test_demo(start: Start, config: Path, tmp_path: Path) -> None:
    step = f"demo.run('tools/train.py', {str(config)!r}, '--work-dir', {str(tmp_path / 'run')!r})"
    run = start("-c", f"import sys; sys.path.append('tools'); import demo; {step}", "seg")
    run.wait_for("[1][3/6]")
    run.ctrl_c()
    assert run.status() == CTRL_C
    line = assert_saved(run, tmp_path / "run")
    assert line.endswith("Go on with: python -c seg --resume") and "Traceback" not in run.text


@pytest.mark.parametrize("tool", ["train", "test", "demo", "sample_data"])
def test_import(start: Start, tool: str) -> None:
    run = start("-X", "importtime", f"tools/{tool}.py")
    run.wait_for("torch.")
    run.ctrl_c()
    assert run.status() in (-signal.SIGINT, CTRL_C)
    assert "Traceback" not in run.text


def test_exit_with_a_busy_worker(start: Start) -> None:
    # No run of a Runner ends these workers: Python's exit has to.
    script = (
        "import time; from fastvit_dense.engine.runner import Runner\n"
        "class Slow:\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): time.sleep(600 * (i > 0)); return i\n"
        "loader = Runner.build_dataloader(dict(batch_size=1, num_workers=2, persistent_workers=True,\n"
        "    sampler=dict(type='DefaultSampler', shuffle=False), dataset=Slow()))\n"
        "next(iter(loader)); print('got one')"
    )
    run = start("-c", script)
    run.wait_for("got one")
    assert run.status() == 0 and "Error" not in run.text
