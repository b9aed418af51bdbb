"""The benchmark measures what it says. Nothing here depends on how fast the machine is."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_tool
from torch import Tensor

from fastvit_dense.benchmark import hand as speed
from fastvit_dense.benchmark.hand import PARTS, Row, check, measure, random_model, table
from fastvit_dense.deploy.runtimes import Setting
from fastvit_dense.hand.model import HandMeshModel
from fastvit_dense.hand.predictor import HandPredictor

EAGER = Setting("eager", "float32", "cpu", 1)


@pytest.fixture(scope="module")
def model() -> HandMeshModel:
    return random_model("t8")


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)


def test_parts_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts its readings: each part takes one, MANO two (posing and placing)."""
    readings = iter(range(10**6))
    monkeypatch.setattr(speed, "_DRAWN_EVERY", 2)
    rows, _ = measure(
        ["t8"], ["eager"], threads=1, warmup=1, runs=4, clock=lambda: float(next(readings))
    )
    (row,) = rows
    assert row.arch == "t8" and row.problem is None and row.error is not None and row.error < 1e-5
    assert {part: set(row.seconds[part]) for part in PARTS} == {
        "crop": {1.0}, "network": {2.0}, "MANO": {2.0}
    }  # fmt: skip
    assert {len(row.seconds[part]) for part in PARTS} == {4} and row.whole == [5.0] * 4
    assert len(row.seconds["drawing"]) == 3  # of 5 passes with the one to warm up


def test_fused_is_compared_with_unfused(
    model: HandMeshModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, predictor = check(model, image(), EAGER)
    assert row.problem is None and row.error is not None and 0 < row.error < 1e-5
    assert predictor is not None and predictor.model is not model

    def wrong(self: HandPredictor, image: np.ndarray, matrix: np.ndarray) -> Tensor:
        fused = self.model.backbone.deploy
        return (1.1 if fused else 1) * crop(self, image, matrix)

    crop = HandPredictor.crop
    monkeypatch.setattr(HandPredictor, "crop", wrong)
    row, predictor = check(model, image(), EAGER)
    assert predictor is None and row.problem and "WRONG OUTPUT" in row.problem


def stale(predictor: HandPredictor, setting: Setting) -> Any:
    """A runtime that goes on returning its first maps."""
    kept: list[Any] = []

    def features(crop: Tensor) -> Any:
        kept.append(predictor.model.backbone(crop))
        return kept[0]

    return features


def nan(predictor: HandPredictor, setting: Setting) -> Any:
    return lambda crop: [m * float("nan") for m in predictor.model.backbone(crop)]


@pytest.mark.parametrize("runtime", [stale, nan])
def test_wrong_runtimes_are_not_timed(
    model: HandMeshModel, monkeypatch: pytest.MonkeyPatch, runtime: Any
) -> None:
    monkeypatch.setattr(speed, "in_runtime", runtime)
    row, predictor = check(model, image(), EAGER._replace(backend="eager-nchw"))
    assert predictor is None and row.problem and "WRONG OUTPUT" in row.problem
    lines = table([row._replace(arch="t8")], [], device="cpu").splitlines()
    assert any(line.startswith("Not measured: t8, eager-nchw: WRONG OUTPUT") for line in lines)


@pytest.mark.parametrize("backend", ["eager-nchw", "onnxruntime", "openvino"])
def test_runtimes(model: HandMeshModel, backend: str) -> None:
    if backend != "eager-nchw":
        pytest.importorskip(backend)
    row, predictor = check(model, image(), EAGER._replace(backend=backend))
    assert row.problem is None and row.error is not None and row.error < 1e-5
    assert predictor is not None
    crop = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        (ours,), (theirs,) = predictor.model.backbone(crop), predictor.features(crop)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_runtime_that_is_not_there(model: HandMeshModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    row, predictor = check(model, image(), EAGER._replace(backend="openvino"))
    assert predictor is None and row.problem and "openvino is not installed" in row.problem
    with pytest.raises(ValueError, match="--arch must be of t8, .*; got t9"):
        random_model("t9")


def test_table() -> None:
    seconds = dict(crop=[1e-3] * 3, network=[7e-3, 8e-3, 12e-3], MANO=[1e-3] * 3, drawing=[0.05])
    rows = [Row("ma36", "eager", 2e-7, None, seconds)]
    lines = table(rows, ["noisy"], device="cuda").splitlines()
    assert lines[2] == (
        "| fastvit_ma36 | eager | 2.0e-07 | 10.00 | 9.20 | 13.20 | 100.0 | 1.00 (10%) | 8.00 (80%) "
        "| 1.00 (10%) | 50.0 |"
    )
    assert "Paper: fastvit_ma36 218 FPS on an RTX 2080 Ti (table 8)." in lines
    assert lines[-1] == "WARNING: noisy"
    assert "Paper" not in table(rows, [], device="cpu")


def test_tool(tmp_path: Path) -> None:
    text = run_tool(
        "tools/benchmark_hand.py", "--arch", "t8", "--threads", 2, "--warmup", 1, "--runs", 2,
        "--device", "cpu", "--json", tmp_path / "speed.json",
    )  # fmt: skip
    assert (
        "images of 224x224, 1 passes to warm up, 2 timed" in text
        and "| fastvit_t8 | eager |" in text
    )
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["conditions"]["threads"] == "2" and found["arguments"]["runs"] == 2
    assert len(found["rows"][0]["seconds"]["network"]) == 2
