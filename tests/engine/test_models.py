"""Models are built from configs, and loaded whole or not at all."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import ROOT, randomise

from fastvit_dense.engine.config import read_config_file
from fastvit_dense.engine.models import build_model, load_model

DET = str(ROOT / "configs/det/retinanet_fastvit-sa12_fpn_1x_coco.py")


def test_load_is_strict_and_leaves_the_config(tmp_path: Path) -> None:
    cfg = read_config_file(DET)
    cfg.model.backbone.arch = "t8"
    cfg.model.neck.in_channels = [48, 96, 192, 384]
    before = copy.deepcopy(cfg.model.to_dict())
    trained = randomise(build_model(cfg))
    state_dict = {f"module.{k}": v for k, v in trained.state_dict().items()}
    meta = dict(dataset_meta=dict(classes=("a", "b")))
    path = str(tmp_path / "x.pth")
    torch.save(dict(state_dict=state_dict, meta=meta), path)

    model = load_model(cfg, path)
    assert not model.training and model.cfg is cfg and cfg.model.to_dict() == before
    assert model.dataset_meta == dict(classes=("a", "b"))
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())

    del state_dict["module.backbone.norm3.weight"]
    torch.save(dict(state_dict=state_dict), path)
    with pytest.raises(ValueError, match="1 tensors missing .backbone.norm3.weight"):
        load_model(cfg, path)
    with pytest.raises(ValueError, match="not there"):
        load_model(cfg, path, device="cuda:99")
