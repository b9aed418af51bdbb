"""The latency breakdown of a whole model is of what mmdet's and mmseg's inference functions do."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_tool

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")
from mmdet.apis import inference_detector  # noqa: E402
from mmseg.apis import inference_model  # noqa: E402

from fastvit_dense.backbone.fastvit import FastViT  # noqa: E402
from fastvit_dense.benchmark.model import (  # noqa: E402
    PARTS,
    candidates,
    image_to_result,
    read_model_config,
)
from fastvit_dense.benchmark.timing import measure  # noqa: E402
from fastvit_dense.engine.models import build_model

SEGMENTOR = str(ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py")
DETECTOR = str(ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py")


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    return str(path)


@pytest.mark.parametrize("config", [SEGMENTOR, DETECTOR])
def test_results_are_those_of_the_inference_functions(config: str, image: str) -> None:
    cfg = read_model_config(config)
    model: Any = build_model(cfg).eval()
    if config == DETECTOR:
        model.test_cfg.rcnn.score_thr = 0.0  # there are no other detections of random weights
    model.cfg = cfg
    function = inference_detector if config == DETECTOR else inference_model
    expected: Any = function(model, image)
    (found,) = image_to_result(model, cfg, [image], "cpu")()
    if config == DETECTOR:
        assert len(found.pred_instances) > 0
        for key in ("bboxes", "scores", "masks"):
            assert torch.equal(
                torch.as_tensor(found.pred_instances[key]),
                torch.as_tensor(expected.pred_instances[key]),
            )
    else:
        assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)
        assert found.pred_sem_seg.data.shape == (1, 70, 90)


@pytest.mark.parametrize("config", [SEGMENTOR, DETECTOR])
def test_parts_of_a_whole_model(config: str, image: str) -> None:
    rows, _ = measure(
        candidates(config, sources=[image, image], device="cpu"), "cpu", warmup=0, runs=2
    )
    assert [row.name for row in rows] == ["unfused", "fused", "fused, channels_last"]
    for row in rows:
        assert tuple(row.parts) == PARTS and row.images == 2
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in row.parts.values())
        for whole, *parts in zip(row.seconds, *row.parts.values(), strict=True):
            assert whole == pytest.approx(sum(parts), rel=0.1)


def test_time_goes_to_the_part_that_takes_it(image: str) -> None:
    """With a clock that only these modules turn on."""
    cfg = read_model_config(SEGMENTOR)
    model: Any = build_model(cfg).eval()
    now = [0.0]

    def slowed(owner: Any, name: str, seconds: float) -> None:
        function = getattr(owner, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            now[0] += seconds
            return function(*args, **kwargs)

        setattr(owner, name, slow)

    slowed(model.data_preprocessor, "forward", 1)
    slowed(model.backbone, "forward", 10)
    slowed(model.neck, "forward", 2)
    slowed(model.decode_head, "forward", 3)
    slowed(model.decode_head.conv_seg, "forward", 4)
    slowed(model, "postprocess_result", 5)
    breakdown = image_to_result(model, cfg, [image], "cpu", clock=lambda: now[0])
    breakdown()
    parts = {part: seconds for part, (seconds,) in breakdown.seconds(1).items()}
    assert parts == dict(zip(PARTS, (0, 0, 1, 10, 2, 7, 5), strict=True))


def test_models_without_fastvit_are_measured_as_they_are(image: str) -> None:
    config = "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"
    ready = candidates(config, sources=[image], device="cpu")
    assert [row.name for row, _ in ready] == ["unfused"]
    assert not any(isinstance(m, FastViT) for m in build_model(read_model_config(config)).modules())


def test_tool_takes_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "note.txt").touch()
    command = (
        "tools/benchmark.py",
        "model",
        SEGMENTOR,
        "--warmup",
        0,
        "--runs",
        1,
        "--device",
        "cpu",
    )
    text = run_tool(*command, "--images", tmp_path)
    assert "| fused, channels_last | eager |" in text and "post-processing, ms (share)" in text
