"""The training benchmark measures what it says. Nothing here depends on how fast the machine is."""

import pytest
import torch
from conftest import ROOT

from fastvit_dense.benchmark import training as training_speed
from fastvit_dense.benchmark.training import (
    Speed,
    Trainee,
    Workload,
    detectors,
    device_name,
    measure,
    table,
)

RETINANET = str(ROOT / "configs/det/retinanet_fastvit-sa12_fpn_1x_coco.py")
SHAPES = str(ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py")
TILED = str(ROOT / "configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512_tiled.py")
SEGMENTOR = str(ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py")
HANDS = str(ROOT / "configs/hand/mano_fastvit-t8_8xb32-200e_freihand-224x224.py")
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


@pytest.mark.parametrize("change", [{}, dict(amp=True), dict(channels_last=True)])
def test_a_step_trains(model: dict, change: dict) -> None:
    assert_trains(Trainee(model, WORK._replace(**change)))


@pytest.mark.parametrize(
    "config", [SEGMENTOR, HANDS, "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"]
)
def test_a_step_of_the_other_tasks_trains(config: str) -> None:
    (model,) = detectors([config]).values()
    assert_trains(Trainee(model, WORK._replace(batch=2, shape=(64, 64))))


@pytest.mark.parametrize("classes", [1, 2, 80])
def test_labels_are_of_the_models_classes(classes: int) -> None:
    """An RPN beside the heads counts one class, whatever theirs are."""
    (model,) = detectors([SHAPES]).values()
    model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = classes
    trainee = Trainee(model, WORK._replace(batch=2, objects=60))
    samples = trainee.data["data_samples"]
    labels = torch.cat([sample.gt_instances.labels for sample in samples])
    assert 0 <= labels.min() and labels.max() < classes
    assert len(labels.unique()) > classes / 2
    assert_trains(trainee)


def test_a_new_process_knows_what_the_config_imports() -> None:
    (model,) = detectors([TILED]).values()
    model.backbone.arch, model.neck.in_channels = "t8", [48, 96, 192, 384]
    assert measure({"tiled": model}, WORK._replace(batch=2), steps=1, warmup=0)["tiled"].memory > 0


def assert_trains(trainee: Trainee) -> None:
    before = {k: v.clone() for k, v in trainee.model.named_parameters()}
    trainee.step()
    changed = [not torch.equal(v, before[k]) for k, v in trainee.model.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)
    assert all(p.grad is None for p in trainee.model.parameters()), "as mmengine leaves them"
    weights = [m.weight for m in trainee.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert any(not w.is_contiguous() for w in weights) == trainee.work.channels_last


def test_memory_on_a_gpu_is_that_of_one_model(model: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that other models hold are not counted, the optimizer's state is."""
    events = []

    class Two:
        def __init__(self, model: dict, work: Workload) -> None:
            events.append("build")

        def step(self) -> None:
            events.append("step")

    monkeypatch.setattr(training_speed, "Trainee", Two)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: events.append("reset")
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1700)
    results = measure({"a": model}, WORK._replace(device="cuda:0"), steps=1, warmup=0)
    assert results["a"].memory == 700
    assert events == ["reset", "build", "step", "step", "step"]


def test_a_device_that_cannot_be_timed(model: dict) -> None:
    with pytest.raises(ValueError, match="cpu or cuda, got the device 'mps'"):
        Trainee(model, WORK._replace(device="mps"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", [False, True])
def test_a_step_on_a_gpu(model: dict, amp: bool) -> None:
    work = WORK._replace(device="cuda", amp=amp)
    assert_trains(Trainee(model, work))
    results = measure({"a": model, "b": model}, work, steps=2, warmup=1)
    a, b = (results[name].memory for name in "ab")
    assert 0 < a < 8 * 2**30 and b == pytest.approx(a, rel=0.1)


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
