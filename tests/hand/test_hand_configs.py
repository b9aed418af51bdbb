"""Every hand config builds, trains a step, predicts, and has the paper's schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import BaseDataElement

from fastvit_dense import ARCHS
from fastvit_dense.engine.config import batch_message, load_config
from fastvit_dense.hand.model import HandDataSample

CONFIGS = sorted(ROOT.glob("configs/hand/**/*.py"))
VARIANTS = ("t8", "sa12", "sa24", "ma36")


def test_how_many() -> None:
    names = {f"mano_fastvit-{arch}_8xb32-200e_freihand-224x224" for arch in VARIANTS}
    others = {
        "mano_fastvit-ma36_8xb32-200e_freihand-224x224_all-l1", "mano_fastvit-t8_demo-hands"
    }  # fmt: skip
    assert {p.stem for p in CONFIGS} == names | others and len(CONFIGS) == 4 + 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_builds_trains_and_predicts(path: Path) -> None:
    cfg = load_config(str(path), {"model.head.mano": "synthetic"})
    init_default_scope(cfg.default_scope)
    backbone = cfg.model.backbone
    assert f"fastvit-{backbone.arch}" in path.stem
    if "demo" not in path.stem:
        assert backbone.drop_path_rate == ARCHS[backbone.arch].drop_path_rate
        assert backbone.init_cfg.checkpoint == f"timm://fastvit_{backbone.arch}.apple_in1k"
    backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    assert model.backbone.out_channels == (cfg.model.head.in_channels,)

    samples = []
    for i in range(2):
        sample = HandDataSample(metainfo=dict(K=np.diag([480.0, 480.0, 1]), rotation=30.0, index=i))
        sample.gt = BaseDataElement(
            vertices=torch.randn(778, 3) / 20, keypoints=torch.randn(21, 3) / 20,
            keypoints_2d=torch.rand(21, 2) * 64,
        )  # fmt: skip
        samples.append(sample)
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    data = dict(inputs=images, data_samples=samples)
    model.train()
    loss, parts = model.parse_losses(
        model(**model.data_preprocessor(data, training=True), mode="loss")
    )
    assert torch.isfinite(loss) and len(parts) == 1 + 3
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    model.eval()
    with torch.no_grad():
        predictions = model.test_step(data)
    assert len(predictions) == 2
    assert predictions[1].pred.vertices_camera.shape == (778, 3)
    assert predictions[1].pred.vertices_camera.isfinite().all()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_schedule_and_data(path: Path) -> None:
    cfg = Config.fromfile(path)
    assert cfg.default_scope == "mmengine"
    assert cfg.custom_imports == dict(imports=["fastvit_dense.hand"])
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    assert {backend.type for backend in cfg.visualizer.vis_backends} >= {"TensorboardVisBackend"}
    assert cfg.tta_evaluator.prefix == "tta" != cfg.test_evaluator.get("prefix")
    views = TRANSFORMS.build(cfg.tta_pipeline[-1])
    crop = TRANSFORMS.build(cfg.test_dataloader.dataset.pipeline[1])
    assert (views.out_size, views.center, views.size) == (crop.out_size, crop.center, crop.size)
    assert views.out_size == cfg.model.get("image_size", 224)
    assert (views.rotations[0], views.scales[0]) == (0, 1), "results are in the frame of the first"
    assert not any("EMA" in hook.type for hook in cfg.get("custom_hooks", []))
    for split, name in (("train", "training"), ("val", "evaluation"), ("test", "evaluation")):
        assert cfg[f"{split}_dataloader"].dataset.split == name
    if "demo" in path.stem:
        assert cfg.model.head.mano == "synthetic"
        return
    # Appendix B.5: Adam at 1e-4, a tenth of it after half of 200 epochs; all weights are 1.
    assert cfg.optim_wrapper.optimizer == dict(type="Adam", lr=1e-4)
    (scheduler,) = cfg.param_scheduler
    assert (scheduler.milestones, scheduler.gamma, cfg.train_cfg.max_epochs) == ([100], 0.1, 200)
    loss = cfg.model.loss
    terms = [loss.vertices, loss.keypoints, loss.keypoints_2d]
    assert [t.weight for t in terms] == [1, 1, 1]
    wanted = ["l1"] * 3 if path.stem.endswith("all-l1") else ["l1", "mse", "mse"]
    assert [t.criterion for t in terms] == wanted
    assert "as in the recipe" in batch_message(cfg, 8) and "= 256 images" in batch_message(cfg, 8)
    assert cfg.train_dataloader.dataset.versions == ("gs", "hom", "sample", "auto")


def test_a_missing_mano_file_has_one_message() -> None:
    cfg = load_config(str(CONFIGS[0]), {"model.head.mano": "nowhere/MANO_RIGHT.pkl"})
    cfg.model.backbone.init_cfg = None
    init_default_scope(cfg.default_scope)
    with pytest.raises(FileNotFoundError, match="nowhere/MANO_RIGHT.pkl") as error:
        MODELS.build(cfg.model)
    assert "mano.is.tue.mpg.de" in str(error.value) and "synthetic" in str(error.value)


def test_the_papers_figures() -> None:
    models = yaml.safe_load((ROOT / "configs/hand/metafile.yml").read_text())["Models"]
    results = {m["Name"]: m["Results"][0]["Metrics"] for m in models if "Results" in m}
    assert results == {
        "mano_fastvit-ma36_8xb32-200e_freihand-224x224": {
            "PJ, mm (paper)": 6.6, "PV, mm (paper)": 6.7, "F@5 (paper)": 0.722, "F@15 (paper)": 0.981,
        }
    }  # fmt: skip
