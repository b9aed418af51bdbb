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

from fastvit_dense.benchmark import hand
from fastvit_dense.benchmark.hand import PARTS, candidates, image_to_mesh, random_model
from fastvit_dense.benchmark.report import table
from fastvit_dense.benchmark.timing import Candidate
from fastvit_dense.deploy.runtimes import Setting
from fastvit_dense.hand.predictor import HandPredictor

EAGER = Setting("eager", "float32", "cpu", 1)


def one(backend: str = "eager") -> Candidate:
    (found,) = candidates(["t8"], [EAGER._replace(backend=backend)])
    return found


def test_parts_make_up_the_whole() -> None:
    """With a clock that only the parts turn on: what each does is counted once, as its own."""
    now = [0.0]
    predictor = HandPredictor(random_model("t8"), device="cpu")
    head: Any = predictor.model.head

    def slowed(owner: Any, name: str, seconds: float) -> None:
        function = getattr(owner, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            now[0] += seconds
            return function(*args, **kwargs)

        setattr(owner, name, slow)

    slowed(predictor, "crop", 1)
    slowed(predictor, "features", 10)
    slowed(head, "pose_hands", 2)
    slowed(predictor, "place", 3)
    breakdown = image_to_mesh(predictor, image(), clock=lambda: now[0])
    breakdown()
    assert breakdown.seconds(1) == dict(crop=[1], network=[10], MANO=[5])


def test_fused_is_compared_with_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    row, run = one()
    assert row.name == "fastvit_t8" and row.problem is None and 0 < row.figures["error"] < 1e-5
    assert run is not None and run().vertices.shape == (778, 3)

    def wrong(self: HandPredictor, image: np.ndarray, matrix: np.ndarray) -> Tensor:
        fused = self.model.backbone.deploy
        return (1.1 if fused else 1) * crop(self, image, matrix)

    crop = HandPredictor.crop
    monkeypatch.setattr(HandPredictor, "crop", wrong)
    row, run = one()
    assert run is None and row.problem and "WRONG OUTPUT" in row.problem


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)


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
def test_wrong_runtimes_are_not_timed(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> None:
    monkeypatch.setattr(hand, "in_runtime", runtime)
    row, run = one("eager-nchw")
    assert run is None and row.problem and "WRONG OUTPUT" in row.problem
    assert "- fastvit_t8, eager-nchw, float32: WRONG OUTPUT" in table([row])


@pytest.mark.parametrize("backend", ["eager-nchw", "onnxruntime", "openvino"])
def test_runtimes(backend: str) -> None:
    if backend != "eager-nchw":
        pytest.importorskip(backend)
    row, run = one(backend)
    assert run is not None and row.problem is None and row.figures["error"] < 1e-5
    predictor = HandPredictor(random_model("t8"), device="cpu")
    features = hand.in_runtime(predictor, EAGER._replace(backend=backend))
    crop = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        (ours,), (theirs,) = predictor.model.backbone(crop), features(crop)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    row, run = one("openvino")
    assert run is None and row.problem and "openvino is not installed" in row.problem
    with pytest.raises(ValueError, match="t8, .*; got t9"):
        random_model("t9")


def test_tool(tmp_path: Path) -> None:
    text = run_tool(
        "tools/benchmark.py", "hand", "--arch", "t8", "--threads", 2, "--warmup", 1, "--runs", 2,
        "--device", "cpu", "--json", tmp_path / "speed.json",
    )  # fmt: skip
    assert "| fastvit_t8 | eager |" in text and "MANO, ms (share)" in text
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["conditions"]["threads"] == "2" and found["arguments"]["runs"] == 2
    assert {part: len(s) for part, s in found["rows"][0]["parts"].items()} == dict.fromkeys(
        PARTS, 2
    )
