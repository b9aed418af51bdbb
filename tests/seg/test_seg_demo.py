"""tools/seg_demo.py as a user types it, with a model of random weights."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, randomise
from mmengine.config import Config
from mmseg.registry import MODELS

from fastvit_dense.io.media import open_input
from fastvit_dense.seg import demo as seg_demo
from fastvit_dense.seg.demo import load_segmentor, run_demo, segment

LEGEND = 150  # width
CLASSES, PALETTE = ("wall", "floor", "door"), [(250, 0, 0), (0, 250, 0), (0, 0, 250)]

# mmseg's heads build their loss with a function that mmseg itself deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:``build_loss`` would be deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False:UserWarning"),
]

CONFIG = """
_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/default_runtime.py",
]
custom_imports = dict(imports=["fastvit_dense"])
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="FastViT",
        arch="t8",
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(type="Pretrained", checkpoint="timm://not_fetched"),
    ),
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=32),
    decode_head=dict(in_channels=[32] * 4, channels=16, num_classes=3),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 96), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
"""


def save(path: Path, model: torch.nn.Module, **meta: Any) -> Path:
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Config and checkpoint."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.py").write_text(CONFIG)
    cfg = Config.fromfile(folder / "tiny.py").model
    cfg.backbone.init_cfg = None
    model = randomise(MODELS.build(dict(cfg, _scope_="mmseg")))
    meta = dict(classes=CLASSES, palette=PALETTE)
    return folder / "tiny.py", save(folder / "tiny.pth", model, dataset_meta=meta)


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (80, 60))
    for i in range(frames):
        writer.write(np.roll(picture(), 10 * i, axis=1))
    writer.release()
    return path


def demo(model_files: tuple[Path, Path], source: Path, *options: object) -> str:
    """Run the tool; returns what it printed to stdout."""
    done = subprocess.run(
        [sys.executable, "tools/seg_demo.py", str(source), "--config", str(model_files[0]),
         "--checkpoint", str(model_files[1]), "--device", "cpu", *map(str, options)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "frame/s" in done.stderr or "s/frame" in done.stderr  # the progress bar
    return done.stdout


def assert_speed(text: str, frames: int, results: Path) -> None:
    assert re.search(rf"^{frames} frames on cpu \(\d+ threads\)$", text, re.M)
    assert re.search(r"^inference: [\d.]+ frames/s \(median [\d.]+ ms per frame", text, re.M)
    assert re.search(r"^end to end, .*: [\d.]+ frames/s$", text, re.M)
    assert f"results: {results}\n" in text


def test_image(model_files: tuple[Path, Path], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "room.png"), picture())
    text = demo(model_files, tmp_path / "room.png", "--out", tmp_path / "out", "--opacity", 1)
    assert_speed(text, 1, tmp_path / "out" / "room.png")
    drawn = cv2.imread(str(tmp_path / "out" / "room.png"))
    assert drawn.shape == (60, 80 + LEGEND, 3)
    # Opaque: every pixel has the colour of the class that the model gives it.
    model = load_segmentor(*map(str, model_files), device="cpu")
    labels = seg_demo.inference_model(model, picture()).pred_sem_seg.data[0].numpy()
    assert np.array_equal(drawn[:, :80, ::-1], np.array(PALETTE)[labels])


def test_folder(model_files: tuple[Path, Path], tmp_path: Path) -> None:
    for i, size in enumerate([(60, 80), (90, 50), (40, 100)]):
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), picture(*size))
    text = demo(model_files, tmp_path, "--out", tmp_path / "out")
    assert_speed(text, 3, tmp_path / "out")
    shapes = [cv2.imread(str(tmp_path / "out" / f"{i}.jpg")).shape for i in range(3)]
    assert shapes == [(60, 80 + LEGEND, 3), (90, 50 + LEGEND, 3), (54, 100 + LEGEND, 3)]


def test_video(model_files: tuple[Path, Path], tmp_path: Path) -> None:
    source = write_video(tmp_path / "walk.avi", 4)
    text = demo(model_files, source, "--out", tmp_path / "out")
    assert_speed(text, 4, tmp_path / "out" / "walk.mp4")
    result = cv2.VideoCapture(str(tmp_path / "out" / "walk.mp4"))
    assert result.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and result.get(cv2.CAP_PROP_FPS) == 10
    assert result.read()[1].shape == (60, 80 + LEGEND, 3)
    result.release()


def test_damaged_video_is_told(
    model_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_video(tmp_path / "walk.avi", 3)
    opened = open_input(source)
    opened.total = 100
    monkeypatch.setattr(seg_demo, "open_input", lambda _: opened)
    config, checkpoint = map(str, model_files)
    text, status = run_demo(
        str(source), config, checkpoint=checkpoint, out=str(tmp_path / "out"), device="cpu"
    )
    assert "3 frames on cpu" in text and "should have 100: is the file damaged" in text
    assert status == 1


def fake_model() -> torch.nn.Module:
    model: Any = torch.nn.Linear(1, 1)
    model.dataset_meta = dict(classes=CLASSES, palette=PALETTE)
    return model


def test_checkpoint_that_does_not_fit(model_files: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = model_files
    content = torch.load(checkpoint, weights_only=True)
    state = content["state_dict"]

    def refused(change: dict, drop: str = "none", meta: dict | None = None) -> str:
        kept = {k: v for k, v in state.items() if not k.startswith(drop)}
        torch.save(
            dict(state_dict={**kept, **change}, meta=meta or content["meta"]), tmp_path / "x.pth"
        )
        with pytest.raises(ValueError) as error:
            load_segmentor(str(config), str(tmp_path / "x.pth"), device="cpu")
        return str(error.value)

    assert "tensors missing (neck." in refused({}, drop="neck.")
    assert "1 tensors unexpected (more)" in refused(dict(more=torch.ones(1)))
    text = refused({"decode_head.conv_seg.bias": torch.zeros(150)})
    assert "conv_seg.bias (150,), in the model (3,)" in text and "it was trained with" in text
    text = refused({}, meta=dict(dataset_meta=dict(classes=("a", "b"))))
    assert "trained on 2 classes, the config has num_classes=3" in text


def test_files_that_are_none(model_files: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = map(str, model_files)
    with pytest.raises(FileNotFoundError, match="config 'none.py' does not exist"):
        load_segmentor("none.py", checkpoint, device="cpu")
    with pytest.raises(FileNotFoundError, match="checkpoint 'none.pth' does not exist"):
        load_segmentor(config, "none.pth", device="cpu")
    for length in (0, 5000, 500_000):
        (tmp_path / "cut.pth").write_bytes(Path(checkpoint).read_bytes()[:length])
        with pytest.raises(ValueError, match="cut.pth cannot be read, it may be truncated"):
            load_segmentor(config, str(tmp_path / "cut.pth"), device="cpu")
    torch.save(dict(weights=1), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="bare.pth holds no 'state_dict'"):
        load_segmentor(config, str(tmp_path / "bare.pth"), device="cpu")


def test_device_and_opacity(model_files: tuple[Path, Path], monkeypatch: Any) -> None:
    config, checkpoint = map(str, model_files)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device 'cuda:0' is not there: .* sees 0 GPUs"):
        load_segmentor(config, checkpoint, device="cuda:0")
    with pytest.raises(ValueError, match="device 'gpu' is unknown: expected cpu or cuda:0"):
        load_segmentor(config, checkpoint, device="gpu")
    with pytest.raises(ValueError, match="opacity is 1.5, expected 0"):
        segment(fake_model(), SimpleNamespace(), SimpleNamespace(), opacity=1.5)


def test_checkpoint_without_classes(
    model_files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, checkpoint = model_files
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    # As written by distributed training, and without names.
    wrapped = {f"module.{k}": v for k, v in state.items()}
    torch.save(dict(state_dict=wrapped, meta={}), tmp_path / "x.pth")
    model = load_segmentor(str(config), str(tmp_path / "x.pth"), device="cpu")
    assert model.dataset_meta["classes"] == ("0", "1", "2")
    assert len(set(model.dataset_meta["palette"])) == 3
    assert "x.pth names no classes" in capsys.readouterr().err
    for k, v in model.state_dict().items():
        assert torch.equal(v, state[k]), k
