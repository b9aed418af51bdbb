"""Shared test helpers."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

# The package registers FastViT and serves mmcv's operators.
from fastvit_dense.random_statistics import randomise_statistics as randomise

__all__ = ["randomise", "run_tool", "stated_size"]

ROOT = Path(__file__).parents[1]


def run_tool(*command: object, fails: bool = False) -> str:
    """Run a tool as a user types it, in the repository; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, text[-5000:]
    return text


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
def _seeded() -> None:
    torch.manual_seed(0)
