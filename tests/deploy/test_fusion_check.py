"""tools/verify_fusion.py tells a fold that is slightly off from rounding."""

import math

import pytest
import torch
from conftest import run_tool
from torch import nn

from fastvit_dense.backbone import fold
from fastvit_dense.deploy.compare import FARTHER, FLOAT32, check_fusion


def test_right_folds_pass() -> None:
    row = check_fusion("sa12", (69, 98))
    assert row.passes and 0 < row.float32 <= FLOAT32 and 0 < row.unfused


def test_a_fold_slightly_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold.fold_conv_bn
    monkeypatch.setattr(
        fold, "fold_conv_bn", lambda b: fold.Kernel(right(b).weight * 1.00001, right(b).bias)
    )
    row = check_fusion("t8", (69, 98))
    assert not row.passes and row.float64 > 1e-9 and row.fused > FARTHER * row.unfused


def test_a_number_that_is_none_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold.fold_bn

    def broken(bn: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        scale, shift = right(bn)
        return scale, shift * (float("nan") if len(shift) == 384 else 1)  # the last stage alone

    monkeypatch.setattr(fold, "fold_bn", broken)
    row = check_fusion("t8", (69, 98))
    assert not row.passes and math.isnan(row.float64) and math.isnan(row.fused)


def test_tool() -> None:
    text = run_tool("tools/verify_fusion.py", "--arch", "t8", "--shape", "64", "96")
    assert "| t8 | 64x96 |" in text and "OFF" not in text
