"""The training benchmark measures what it says. Nothing here depends on how fast the machine is."""

from pathlib import Path

import pytest
import torch

from fastvit_dense.training_speed import (
    Speed,
    Trainee,
    Workload,
    detectors,
    device_name,
    measure,
    table,
)

RETINANET = str(Path(__file__).parents[1] / "configs/det/retinanet_fastvit-sa12_fpn_1x_coco.py")
WORK = Workload(batch=1, shape=(64, 96), device="cpu", amp=False, objects=2)


@pytest.fixture(scope="module")
def model() -> dict:
    (cfg,) = detectors([RETINANET]).values()
    cfg.backbone.update(arch="t8")
    cfg.neck.update(in_channels=[96, 192, 384], out_channels=32)
    cfg.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    return cfg


def test_detectors_are_read_without_weights() -> None:
    models = detectors([RETINANET, "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"])
    assert list(models) == ["retinanet_fastvit-sa12_fpn_1x_coco", "retinanet_r50_fpn_1x_coco"]
    assert all(m["backbone"]["init_cfg"] is None for m in models.values())


@pytest.mark.parametrize("amp", [False, True])
def test_a_step_trains(model: dict, amp: bool) -> None:
    trainee = Trainee(model, WORK._replace(amp=amp))
    before = {k: v.clone() for k, v in trainee.model.named_parameters()}
    trainee.step()
    changed = [not torch.equal(v, before[k]) for k, v in trainee.model.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)


def test_measure(model: dict) -> None:
    results = measure({"a": model, "b": model}, WORK, steps=2, warmup=1)
    assert list(results) == ["a", "b"]
    for speed in results.values():
        assert len(speed.seconds) == 2 and min(speed.seconds) > 0
        assert 50 * 2**20 < speed.memory < 8 * 2**30


def test_a_gpu_is_named_by_its_index_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU of {device}")
    assert device_name("cuda:1") == "GPU of cuda:1" and device_name("cuda") == "GPU of cuda"
    assert "GPU" not in device_name("cpu")


def test_table() -> None:
    results = {
        "ours": Speed([0.4, 0.5, 0.9], 2**30), "other": Speed([1.0, 1.0, 1.0], 2 * 2**30),
    }  # fmt: skip
    rows = table(results, WORK._replace(batch=2)).splitlines()
    assert rows[2] == "| ours | 4.00 | 0.400 / 0.500 / 0.900 | 1.00 | 2.00 | 0.50 |"
    assert rows[3] == "| other | 2.00 | 1.000 / 1.000 / 1.000 | 2.00 | 1.00 | 1.00 |"
