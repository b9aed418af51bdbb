"""tools/verify_fusion.py tells a fold that is slightly off from rounding."""

import math

import pytest
import torch
from conftest import run_tool
from torch import nn

from fastvit_dense.backbone import fold
from fastvit_dense.deploy.compare import TOLERANCES, check_fusion, relative_error


def test_relative_error() -> None:
    one = torch.tensor([3.0, -4.0])  # of norm 5
    assert relative_error([one, one], [one, one]) == 0
    assert relative_error([one, one + torch.tensor([0.3, 0.4])], [one, one]) == pytest.approx(0.1)
    assert relative_error([0 * one], [0 * one]) == 0
    assert relative_error([one], [one, one]) == math.inf
    assert relative_error([one[:1]], [one]) == math.inf
    assert relative_error([one * math.nan], [one]) == math.inf


def test_right_folds_pass() -> None:
    errors = check_fusion("sa12", (69, 98))
    assert len(errors) == 2 * 4 and all(e.passes and e.relative > 0 for e in errors)
    assert {e.dtype for e in errors} == set(TOLERANCES)


def test_a_fold_slightly_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold.fold_conv_bn
    monkeypatch.setattr(
        fold, "fold_conv_bn", lambda b: fold.Kernel(right(b).weight * 1.00001, right(b).bias)
    )
    errors = check_fusion("t8", (69, 98))
    single, double = errors[:4], errors[4:]
    assert not single[3].passes and not any(e.passes for e in double)
    assert min(e.relative for e in double) > 1e-9


def test_a_number_that_is_none_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold.fold_bn

    def broken(bn: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        scale, shift = right(bn)
        return scale, shift * (float("nan") if len(shift) == 384 else 1)  # the last stage alone

    monkeypatch.setattr(fold, "fold_bn", broken)
    errors = check_fusion("t8", (69, 98))
    assert [e.passes for e in errors] == [True, True, True, False] * 2
    assert math.isinf(errors[3].relative) and math.isinf(errors[7].relative)


def test_tool() -> None:
    text = run_tool("tools/verify_fusion.py", "--arch", "t8", "--shape", "64", "96")
    assert "t8, 64x96" in text and text.count("| ok |") == 8 and "TOO LARGE" not in text
