"""Every segmentation config builds, trains a step, predicts, and fits its own parts together."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT as REPOSITORY
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from fastvit_dense import ARCHS
from fastvit_dense.engine.config import batch_message, enable_tta, load_config

mmseg = pytest.importorskip("mmseg")
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

ROOT = REPOSITORY / "configs/seg"
SEG = sorted(ROOT.glob("**/*.py"))


def test_how_many() -> None:
    assert (
        len(SEG) == 7 + 7 + 4
    )  # both schedules of every variant; tiled, UPerNet, Cityscapes, demo
    for schedule in ("8xb4-40k", "4xb4-80k"):
        names = {f"fpn_fastvit-{arch}_{schedule}_ade20k-512x512" for arch in ARCHS}
        assert names < {p.stem for p in SEG}


@pytest.mark.parametrize("path", SEG, ids=lambda p: p.stem)
def test_builds_trains_and_predicts(path: Path) -> None:
    cfg = load_config(str(path))
    init_default_scope(cfg.default_scope)
    backbone = cfg.model.backbone
    assert f"fastvit-{backbone.arch}" in path.stem
    assert "drop_path_rate" in backbone and "norm_eval" in backbone
    if "demo" not in path.stem:
        assert backbone.drop_path_rate == ARCHS[backbone.arch].drop_path_rate
        assert backbone.init_cfg.checkpoint == f"timm://fastvit_{backbone.arch}.apple_in1k"
    backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    reads = cfg.model.neck if cfg.model.get("neck") else cfg.model.decode_head
    assert tuple(reads.in_channels) == model.backbone.out_channels
    assert len(model.backbone.strides) == len(cfg.model.decode_head.in_channels)
    classes = cfg.model.decode_head.num_classes

    samples = []
    for _ in range(2):
        labels = torch.randint(classes, (1, 64, 96))
        labels[:, :8] = 255
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels),
                metainfo=dict(img_shape=(64, 96), ori_shape=(59, 90), pad_shape=(64, 96)),
            )
        )
    images = [torch.randint(256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    model.data_preprocessor.size = (64, 96)
    model.train()
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    loss, parts = model.parse_losses(model(**data, mode="loss"))
    assert torch.isfinite(loss) and len(parts) >= 2
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # the paper's table 9 has no part that does not learn, nor should a config
    assert model.backbone.norm3.weight.grad.abs().sum() > 0

    model.eval()
    if cfg.model.test_cfg.mode == "slide":
        model.test_cfg.update(crop_size=(64, 64), stride=(48, 48))
    with torch.no_grad():
        predictions = model.test_step(dict(inputs=images, data_samples=samples))
    for prediction in predictions:
        assert prediction.pred_sem_seg.data.shape == (1, 59, 90)
        assert 0 <= int(prediction.pred_sem_seg.data.min())
        assert int(prediction.pred_sem_seg.data.max()) < classes


@pytest.mark.parametrize("path", SEG, ids=lambda p: p.stem)
def test_schedule_and_data(path: Path) -> None:
    cfg = Config.fromfile(path)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    assert cfg.default_hooks.visualization.type == "SegPicturesHook"
    assert {"ClassesFitHook"} <= {hook.type for hook in cfg.custom_hooks}
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        assert dataset.type.startswith("Checked")
        steps = [t.type for t in dataset.pipeline]
        assert steps[:2] == ["LoadImageFromFile", "CheckImage"]
        assert steps[steps.index("LoadAnnotations") + 1] == "CheckLabels"
    if "demo" not in path.stem:
        gpus, images = map(int, path.stem.split("_")[2].split("-")[0].split("xb"))
        assert cfg.train_dataloader.batch_size == images
        assert cfg.auto_scale_lr.base_batch_size == gpus * images
        assert (
            int(path.stem.split("_")[2].split("-")[1].rstrip("k")) * 1000 == cfg.train_cfg.max_iters
        )
        assert "as in the recipe" in batch_message(cfg, gpus)
    if path.stem.startswith("fpn") and "ade20k" in path.stem:
        # Learning rate in proportion to the images per step, the same images in all.
        assert cfg.optim_wrapper.optimizer.lr / cfg.auto_scale_lr.base_batch_size == 2e-4 / 32
        assert cfg.auto_scale_lr.base_batch_size * cfg.train_cfg.max_iters == 32 * 40000


@pytest.mark.parametrize("path", SEG, ids=lambda p: p.stem)
def test_augmentation_fits_the_test_pipeline(path: Path, tmp_path: Path) -> None:
    """One of the views is what the test pipeline makes of an image, and others are smaller and larger."""
    cfg = load_config(str(path))
    if cfg.tta_pipeline is None:
        assert "tiled" in path.stem or "cityscapes" in path.stem
        return
    init_default_scope(cfg.default_scope)
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (256, 320, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "labels.png"), np.ones((256, 320), np.uint8))
    plain, views = (
        Compose(pipeline)(
            dict(
                img_path=str(tmp_path / "a.png"), seg_map_path=str(tmp_path / "labels.png"),
                reduce_zero_label=False, label_map=None, num_classes=8, seg_fields=[],
            )
        )["inputs"]
        for pipeline in (cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline)
    )  # fmt: skip
    assert any(torch.equal(view, plain) for view in views)
    widths = {view.shape[-1] for view in views}
    assert min(widths) < plain.shape[-1] < max(widths)
    enable_tta(cfg)
    assert cfg.test_dataloader.dataset.pipeline[-1].type == "TestTimeAug"
    assert cfg.model.type == "SegTTAModel" and cfg.model.module.type == "EncoderDecoder"


ADE20K = "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"
NOT_RESIZED = [dict(type="LoadImageFromFile")]


def resized(**size: Any) -> list[dict[str, Any]]:
    return [*NOT_RESIZED, dict(type="mmseg.Resize", keep_ratio=True, **size)]


@pytest.mark.parametrize(
    ("config", "pipeline", "why"),
    [
        (
            ADE20K,
            NOT_RESIZED,
            "1024, 256.*, the test pipeline to .*'scale_factor', 1.0",
        ),
        (ADE20K, resized(scale=(4096, 1024)), "the test pipeline to .*'scale', 4096, 1024"),
        (ADE20K, resized(scale=200), "the test pipeline to .*'scale', 200, 200"),
        ("fpn_fastvit-t8_demo-regions.py", resized(scale=(512, 512)), "'scale_factor', 0.75"),
        (
            "fpn_fastvit-t8_demo-regions.py",
            resized(scale_factor=2.0),
            "test pipeline to .*'scale_factor', 2.0",
        ),
        (ADE20K, resized(scale=(1500, 500)), None),
        ("fpn_fastvit-t8_demo-regions.py", resized(scale_factor=1.2), None),
    ],
)
def test_augmentation_that_does_not_fit(config: str, pipeline: list, why: str | None) -> None:
    cfg = load_config(str(ROOT / config))
    cfg.test_dataloader.dataset.pipeline = pipeline
    if why is None:
        return enable_tta(cfg)
    with pytest.raises(ValueError, match=f"tta_pipeline .*{why}"):
        enable_tta(cfg)


def test_no_augmentation() -> None:
    for path in SEG:
        if "tiled" in path.stem or "cityscapes" in path.stem:
            with pytest.raises(ValueError, match="no test-time augmentation"):
                enable_tta(load_config(str(path)))
