"""A user's mistake ends a tool with one line, a mistake in the code with its traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch._utils import ExceptionWrapper

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


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/deep/down"):
        assert f"{tmp_path}/file is a file" in why_unwritable(tmp_path / folder)
    assert not why_unwritable(tmp_path) and not why_unwritable(tmp_path / "new/and/deep")
    assert not (tmp_path / "new").exists()
