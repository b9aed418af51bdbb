"""A user's mistake ends a tool with one line, a mistake in the code with its traceback."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from torch._utils import ExceptionWrapper
from toy_training import write_config

from fastvit_dense.engine.errors import end_in_one_line, users_mistake
from fastvit_dense.io.files import why_unwritable
from fastvit_dense.io.media import read_image


def tool(text: str) -> Callable[[], Any]:
    """A function as it stands in a tool."""
    names: dict[str, Any] = {"__name__": "__main__", "json": json, "read_image": read_image}
    exec(f"def main():\n    {text}", names)
    return names["main"]


def caught(main: Callable[[], Any]) -> str | None:
    with pytest.raises(Exception) as error:  # noqa: B017  of any kind
        main()
    return users_mistake(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('say how')", "say how"),
        ("raise FileNotFoundError('no file')", "no file"),
        ("raise ValueError('above') from KeyError('below')", "above"),
        ("with open(__import__('os').devnull):\n        raise ValueError('in a block')", "in a block"),
        ("try:\n        raise ValueError('kept')\n    finally:\n        pass", "kept"),
        ("try:\n        raise ValueError('again')\n    except ValueError:\n        raise", "again"),
        ("open('no/such/file')", "[Errno 2] No such file or directory: 'no/such/file'"),
        ("__import__('pathlib').Path(__import__('os').devnull, 'x').mkdir()", "Not a directory: "),
        ("read_image(__import__('os').devnull)", "is not an image that OpenCV can read"),
    ],
)  # fmt: skip
def test_mistakes_of_the_user(text: str, message: str) -> None:
    found = caught(tool(text))
    assert found and message in found


@pytest.mark.parametrize(
    "text",
    [
        "int('x')",
        "a, b = 1, 2, 3",
        "json.loads('{')",
        "try:\n        int('x')\n    except ValueError:\n        raise",
        "raise KeyError('x')",
        "__import__('socket').socket().recv(1)",
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_mistakes_in_the_code(text: str) -> None:
    assert caught(tool(text)) is None


@pytest.mark.parametrize(("read", "is_users"), [(read_image, True), (int, False)])
def test_mistakes_that_a_worker_of_a_loader_meets(
    read: Callable, is_users: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jpg").touch()
    try:
        read("empty.jpg")
    except ValueError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")  # takes the current one
    expected = "empty.jpg (0 bytes) is not an image that OpenCV can read: it is empty"
    assert caught(wrapper.reraise) == (expected if is_users else None)


def test_status_and_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tools/thing.py"])
    assert end_in_one_line(tool("raise ValueError('say how')")) == 2
    assert capsys.readouterr().err == "thing: say how\n"
    assert end_in_one_line(tool("return None")) == 0 and end_in_one_line(tool("return 1")) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        end_in_one_line(tool("int('x')"))


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tools/thing.py", "--traceback", "x"])
    with pytest.raises(ValueError, match="say how"):
        end_in_one_line(tool("raise ValueError('say how')"))
    assert sys.argv == ["tools/thing.py", "x"]


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/deep/down"):
        assert f"{tmp_path}/file is a file" in why_unwritable(tmp_path / folder)
    assert not why_unwritable(tmp_path) and not why_unwritable(tmp_path / "new/and/deep")
    assert not (tmp_path / "new").exists()


# --- what users were seen to type

DET = ROOT / "configs/det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py"
SEG = ROOT / "configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Callable[..., str]]:
    """Run a tool of which the user's mistake is expected; gives the last line, which is of the tool."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGINT)
    Path("x.pth").write_bytes(b"PK")
    Path("file").touch()
    Path("fused.py").write_text(f"_base_ = '{DET}'\nmodel = dict(backbone=dict(deploy=True))\n")
    cv2.imwrite("image.png", np.zeros((64, 64, 3), np.uint8))

    def run(name: str, *words: object) -> str:
        path = str(ROOT / f"tools/{name}.py")
        monkeypatch.setattr("sys.argv", [path, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(path, run_name="__main__")
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 or lines[0].startswith("usage:")  # argparse's
        return lines[-1]

    yield run
    signal.signal(signal.SIGINT, before)


DEMO = ("seg_demo", "image.png", "--device", "cpu", "--config")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "x.pth"), "the config comes first"),
        (("test", "x.pth", DET), "the config comes first"),
        (("reparameterize", "x.pth", DET, "out.pth"), "the config comes first"),
        (("reparameterize", DET, DET, "out.pth"), "is a config: the config comes first"),
        ((*DEMO, "x.pth", "--checkpoint", SEG), "x.pth' is no config"),
        ((*DEMO, SEG, "--checkpoint", SEG), "is a config"),
        ((*DEMO, DET, "--checkpoint", "x.pth"), "a MaskRCNN, expected a segmentor"),
        ((*DEMO, SEG, "--checkpoint", "x.pth", "--device", "cuda:99"), "'cuda:99'"),
        ((*DEMO, SEG, "--checkpoint", "x.pth", "--device", "tpu"), "expected cpu or cuda:0"),
        ((*DEMO, SEG, "--checkpoint", "x.pth", "--out", "file"), "file is a file"),
        (("train", DET, "--work-dir", "file/run"), "file is a file"),
        (("test", DET, "x.pth", "--work-dir", "file"), "file is a file"),
        (("test", DET, "x.pth", "--out", "file/x.pkl"), "file is a file"),
        (("test", DET, "x.pth", "--show-dir", "file"), "file is a file"),
        (("train", DET, "--cfg-options", "a=[(1,2"), "bracket"),
        (("test", DET, "x.pth", "--cfg-options", "a=(1,2]"), "bracket"),
        (("train", DET, "--cfg-options", "train_cfg.max_epochs=three"), "expected a number"),
        (("train", DET, "--cfg-options", "train_cfg.max_epoch=3"), "did you mean 'max_epochs'"),
        (("train", DET, "--launcher", "pytorch"), "RANK, .*torchrun"),
        (("train", DET, "--launcher", "slurm"), "SLURM_PROCID, .*srun"),
        (("train", "fused.py"), "fused model.*for inference"),
    ],
)
def test_mistakes_at_the_prompt(typed: Callable[..., str], words: tuple, message: str) -> None:
    line = typed(*words)
    assert re.search(message, line), line


def test_a_running_training_logs_the_traceback(tmp_path: Path) -> None:
    """The terminal has the line."""
    config = write_config(tmp_path / "toy.py", by_epoch=True)
    config.write_text(f"{config.read_text()}\ntrain_dataloader['dataset']['poison'] = 5\n")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/train.py", config, "--work-dir", tmp_path / "run"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    message = done.stderr.splitlines()[-1]
    (log,) = (tmp_path / "run").glob("*/*.log")
    assert "Traceback" in log.read_text() and message.partition(": ")[2][:40] in log.read_text()
