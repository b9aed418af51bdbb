"""tests/rehearse_gpu.py: what it says of steps that fail, hang or lack something."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("rehearse_gpu", ROOT / "tests/rehearse_gpu.py")
    assert spec and spec.loader
    module = sys.modules["rehearse_gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["rehearse_gpu"]


def test_steps_go_on_after_one_that_fails(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def python(r: object, code: str) -> tuple[str, str]:
        return r.command(f"log-{abs(hash(code))}", "-c", code).strip(), f"block of {code}"

    def steps(r: object) -> Iterator[tuple]:
        yield "first", python, "print(1 + 1)"
        yield "second", python, "raise SystemExit('no such operator')"
        yield "third", python, "import time; time.sleep(60)"
        yield "fourth", python, "print('never')"

    rehearsal = tool.Rehearsal(tmp_path, "cpu")
    start = time.monotonic()
    rehearsal.run(tool.Part(0.005, steps))
    assert time.monotonic() - start < 30
    assert [ok for _, ok, _, _ in rehearsal.results] == [True, False, False, False]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok") and lines[0].endswith("first: 2")
    assert "second" in lines[1] and "exit status 1" in lines[1] and "no such operator" in lines[1]
    assert "time ran out" in lines[2] and "not run" in lines[3]
    report = (tmp_path / "gpu.md").read_text()
    assert "| first | passes |" in report and "| second | **fails** |" in report
    assert "block of print(1 + 1)" in report
    assert "mean nothing" in report  # figures of a run in small


def test_a_signal_is_sent_when_the_text_appears(tool: ModuleType, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('[2/4]', flush=True)\ntime.sleep(60)"
    )
    rehearsal = tool.Rehearsal(tmp_path, "cpu")
    rehearsal.deadline = time.monotonic() + 30
    text = rehearsal.command("stopped", "-c", code, status=tool.STOPPED, stop_at="[2/4]")
    assert text.strip() == "[2/4]"
    with pytest.raises(tool.Failed, match="exit status 0"):
        rehearsal.command("whole", "-c", "print('[1/4]')", status=tool.STOPPED, stop_at="[2/4]")


def test_each_benchmark_command_is_one(tool: ModuleType, tmp_path: Path) -> None:
    """What is typed for a GPU, with a device that no tool has: all else must be accepted."""
    rehearsal = tool.Rehearsal(tmp_path, "cuda")
    commands = [step[3] for step in tool.speed(rehearsal)]
    assert len(commands) == 3 * 3 + 2 + 1
    # One of each tool and set of options.
    commands = [commands[i] for i in (2, 5, 8, 9, 11)]
    for command in commands:
        done = subprocess.run(
            [sys.executable, *map(str, command), "--device", "nowhere"],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode != 0
        assert "device" in done.stderr.splitlines()[-1] and "nowhere" in done.stderr


def test_what_is_missing_is_named(tool: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(tool.PACKAGES, "a_package_that_is_not_there", "its-wheel")
    with pytest.raises(SystemExit, match="its-wheel.*\n.*pip download .*-d FOLDER its-wheel"):
        tool.set_up(None, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no wheels"):
        tool.set_up(tmp_path / "empty", tmp_path)
