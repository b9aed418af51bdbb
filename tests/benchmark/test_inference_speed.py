"""The inference benchmark times what it says. Nothing here depends on how fast the machine is."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, run_tool

pytest.importorskip("mmseg")
from mmseg.apis import inference_model, init_model  # noqa: E402

from fastvit_dense.benchmark.model import STEPS, WHOLE, measure_steps, step_table  # noqa: E402

CONFIG = str(ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py")


def test_steps_do_what_inference_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    model = init_model(CONFIG, device="cpu")
    seen = []
    real = model.postprocess_result
    monkeypatch.setattr(
        model, "postprocess_result", lambda *args: seen.append(real(*args)) or seen[-1]
    )
    seconds = measure_steps(model, [image], rounds=2, warmup=1)
    assert {len(times) for times in seconds.values()} == {2}
    assert min(min(times) for times in seconds.values()) > 0
    by_steps, by_function = seen[0][0], inference_model(model, str(image))
    assert (by_steps.pred_sem_seg.data == by_function.pred_sem_seg.data).all()
    assert by_function.pred_sem_seg.data.shape == (1, 70, 90)


def test_table() -> None:
    seconds = {name: [0.01, 0.01] for name in STEPS} | {WHOLE: [0.05, 0.15, 0.1]}
    text = step_table(seconds)
    assert "| head | 10.0 | 10.0 to 10.0 | 14% |" in text
    assert "10.00 images/s end to end; the steps add up to 70% of it." in text


def test_nothing_to_time() -> None:
    model = init_model(CONFIG, device="cpu")
    with pytest.raises(ValueError, match="no images"):
        measure_steps(model, [])
    model.test_cfg.mode = "slide"
    with pytest.raises(ValueError, match="mode must be 'whole'"):
        measure_steps(model, ["a.jpg"])


def test_tool_takes_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "note.txt").touch()
    command = ("tools/benchmark_inference.py", "--config", CONFIG, "--rounds", 1, "--device", "cpu")
    assert "images/s end to end" in run_tool(*command, tmp_path)
    video = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    text = run_tool(*command, video, fails=True)
    assert f"expected image files or folders of them, got {video}" in text
