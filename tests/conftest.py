"""Shared test helpers."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from fastvit_dense.deploy.compare import randomise_statistics as randomise

# The package registers FastViT and serves mmcv's operators.
from fastvit_dense.hand.mano.topology import PARENTS

__all__ = ["follow_chain", "randomise", "run_tool", "stated_size"]

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))  # for tools that run in this process, as it is for others


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="where tests marked gpu run")


def pytest_runtest_setup(item: pytest.Item) -> None:
    wants_gpu = item.get_closest_marker("gpu") and item.config.getoption("--device") != "cpu"
    if wants_gpu and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def run_tool(*command: object, fails: bool = False, **environment: object) -> str:
    """Run a tool as a user types it, in the repository; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, text[-5000:]
    return text


def follow_chain(rest: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Where MANO's skeleton carries its joints along, bone by bone: (n, 16, 3).

    Args:
        rest: (n, 16, 3), joints without rotation.
        rotations: (n, 16, 3, 3), each relative to the parent's.
    """
    joints, turns = rest.copy(), rotations.copy()
    for joint, parent in enumerate(PARENTS[1:], start=1):
        bone = rest[:, joint] - rest[:, parent]
        joints[:, joint] = joints[:, parent] + np.einsum("nij,nj->ni", turns[:, parent], bone)
        turns[:, joint] = turns[:, parent] @ rotations[:, joint]
    return joints


def stated_size(width: int, height: int) -> bytes:
    """A PNG that states a size; OpenCV looks no further where it is too large."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> None:
    """What one test leaves behind for the next: torch's random state, and OpenMMLab's default scope."""
    torch.manual_seed(0)
    DefaultScope._instance_dict.clear()
