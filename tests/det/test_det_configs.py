"""Every config builds, trains a step, predicts, and fits its own parts together."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT as REPOSITORY
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

from fastvit_dense import ARCHS
from fastvit_dense.engine.config import load_config

ROOT = REPOSITORY / "configs"
DET = sorted(ROOT.glob("det/**/*.py"))


def test_how_many() -> None:
    assert len(DET) == 7 + 2 + 1 + 1  # 1x of every variant, 3x with jitter, RetinaNet, the demo
    assert {f"mask-rcnn_fastvit-{arch}_fpn_1x_coco" for arch in ARCHS} < {p.stem for p in DET}


@pytest.mark.parametrize("path", DET, ids=lambda p: p.stem)
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
    if "rpn_proposal" in cfg.model.train_cfg:  # fewer regions: the wiring is what is tested
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 30
        cfg.model.train_cfg.rcnn.sampler.num = 32

    model = MODELS.build(cfg.model)
    assert tuple(cfg.model.neck.in_channels) == model.backbone.out_channels
    assert tuple(conv.in_channels for conv in model.neck.lateral_convs) == (
        model.backbone.out_channels
    )
    with_mask = hasattr(model, "roi_head")
    if with_mask:
        assert tuple(model.roi_head.bbox_roi_extractor.featmap_strides) == model.backbone.strides
        num_classes = cfg.model.roi_head.bbox_head.num_classes
    else:
        num_classes = cfg.model.bbox_head.num_classes

    data = demo_mm_inputs(
        2, [[3, 96, 128], [3, 128, 101]], num_items=[2, 1], num_classes=num_classes,
        with_mask=with_mask,
    )  # fmt: skip
    model.train()
    loss, parts = model.parse_losses(
        model(**model.data_preprocessor(data, training=True), mode="loss")
    )
    assert torch.isfinite(loss) and len(parts) >= 3
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.backbone.norm3.weight.grad.abs().sum() > 0

    model.eval()
    with torch.no_grad():
        predictions = model.test_step(data)
    assert len(predictions) == 2
    assert with_mask == hasattr(predictions[0].pred_instances, "masks")


@pytest.mark.parametrize("path", DET, ids=lambda p: p.stem)
def test_schedule_and_data(path: Path) -> None:
    cfg = Config.fromfile(path)
    assert cfg.custom_imports == dict(imports=["fastvit_dense.det"])
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    assert {backend.type for backend in cfg.visualizer.vis_backends} >= {"TensorboardVisBackend"}
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        assert dataset.type == "CheckedCocoDataset"
        assert [t.type for t in dataset.pipeline[:2]] == ["LoadImageFromFile", "CheckImage"]
    if "demo" not in path.stem:
        # PoolFormer's rates, which differ between the two detectors.
        lr = 1e-4 if path.stem.startswith("retinanet") else 2e-4
        assert cfg.optim_wrapper.optimizer == dict(type="AdamW", lr=lr, weight_decay=1e-4)
        assert cfg.auto_scale_lr.base_batch_size == 16
        assert cfg.train_dataloader.batch_size == 2


def test_model_index_names_every_config_with_the_papers_figures() -> None:
    root = ROOT.parent
    index = yaml.safe_load((root / "model-index.yml").read_text())
    metafiles = [yaml.safe_load((root / path).read_text()) for path in index["Import"]]
    models = [model for metafile in metafiles for model in metafile["Models"]]
    collections = {c["Name"] for metafile in metafiles for c in metafile["Collections"]}
    assert {m["Config"] for m in models} == {
        str(p.relative_to(root)) for p in ROOT.rglob("*.py") if "demo" not in p.stem
    }
    for model in models:
        assert model["Name"] == Path(model["Config"]).stem
        assert model["In Collection"] in collections
        assert "Weights" not in model  # none were ever published
    # The paper's tables 10 and 9.
    table = {
        "sa12": (38.9, 35.9, 38.0), "sa24": (42.0, 38.0, 41.0),
        "sa36": (43.8, 39.4, 42.9), "ma36": (45.1, 40.5, 44.6),
    }  # fmt: skip
    results = {
        model["Name"]: tuple(next(iter(r["Metrics"].values())) for r in model["Results"])
        for model in models
        if "Results" in model
    }
    expected = {f"mask-rcnn_fastvit-{a}_fpn_1x_coco": t[:2] for a, t in table.items()}
    expected |= {f"fpn_fastvit-{a}_4xb4-80k_ade20k-512x512": t[2:] for a, t in table.items()}
    expected["mano_fastvit-ma36_8xb32-200e_freihand-224x224"] = (6.6,)  # PJ, of table 8
    assert results == expected
