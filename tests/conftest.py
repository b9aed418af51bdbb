"""Shared test helpers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastvit_dense  # noqa: F401  (registers FastViT, serves mmcv's operators)

ROOT = Path(__file__).parents[1]


def run_tool(*command: object, fails: bool = False) -> str:
    """Run a tool as a user types it, in the repository; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    text = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, text[-5000:]
    return text


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm and layer scale values that matter.

    With the defaults (mean 0, variance 1, layer scale 1e-5) a model with half of its branches wired
    wrongly still passes a comparison at 1e-3.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        with torch.no_grad():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.5, 0.5)
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 2.0)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            uniform(parameter, 0.1, 0.6)
    return model


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
