"""The training benchmark measures what it says. Nothing here depends on how fast the machine is."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config

from fastvit_dense.benchmark import training
from fastvit_dense.benchmark.timing import measure
from fastvit_dense.benchmark.training import (
    TrainingStep,
    Workload,
    candidates,
    read_training_config,
)

RETINANET = str(ROOT / "configs/det/retinanet_fastvit-sa12_fpn_1x_coco.py")
SHAPES = str(ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py")
TILED = str(ROOT / "configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512_tiled.py")
SEGMENTOR = str(ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py")
HANDS = str(ROOT / "configs/hand/mano_fastvit-t8_8xb32-200e_freihand-224x224.py")
WORK = Workload(batch=1, shape=(64, 96), device="cpu", amp=False, objects=2)


@pytest.fixture(scope="module")
def config() -> Config:
    cfg = read_training_config(RETINANET)
    cfg.model.backbone.update(arch="t8")
    cfg.model.neck.update(in_channels=[96, 192, 384], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=1)
    return cfg


@pytest.fixture(scope="module")
def small(config: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("configs") / "small.py"
    config.dump(path)
    return str(path)


@pytest.mark.parametrize(
    "path",
    [RETINANET, "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
     "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"],
)  # fmt: skip
def test_configs_are_read_without_weights(path: str) -> None:
    model = read_training_config(path).model
    assert model.backbone.init_cfg is None and model.get("pretrained") is None


@pytest.mark.parametrize("change", [{}, dict(amp=True), dict(channels_last=True)])
def test_a_step_trains(config: Config, change: dict) -> None:
    assert_trains(TrainingStep(config, WORK._replace(**change)))


@pytest.mark.parametrize(
    "path", [SEGMENTOR, HANDS, "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"]
)
def test_a_step_of_the_other_tasks_trains(path: str) -> None:
    cfg = read_training_config(path)
    assert_trains(TrainingStep(cfg, WORK._replace(batch=2, shape=(64, 64))))


@pytest.mark.parametrize("classes", [1, 2, 80])
def test_labels_are_of_the_models_classes(classes: int) -> None:
    """An RPN beside the heads counts one class, whatever theirs are."""
    cfg = read_training_config(SHAPES)
    heads = cfg.model.roi_head
    heads.bbox_head.num_classes = heads.mask_head.num_classes = classes
    step = TrainingStep(cfg, WORK._replace(batch=2, objects=60))
    samples = step.data["data_samples"]
    labels = torch.cat([sample.gt_instances.labels for sample in samples])
    assert 0 <= labels.min() and labels.max() < classes
    assert len(labels.unique()) > classes / 2
    assert_trains(step)


def test_a_new_process_knows_what_the_config_imports(tmp_path: Path) -> None:
    cfg = read_training_config(TILED)
    cfg.model.backbone.arch, cfg.model.neck.in_channels = "t8", [48, 96, 192, 384]
    cfg.dump(tmp_path / "tiled.py")
    ((row, _),) = candidates([str(tmp_path / "tiled.py")], WORK._replace(batch=2))
    assert row.figures["memory"] > 0


def assert_trains(step: TrainingStep) -> None:
    before = {k: v.clone() for k, v in step.model.named_parameters()}
    step()
    changed = [not torch.equal(v, before[k]) for k, v in step.model.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)
    assert all(p.grad is None for p in step.model.parameters()), "as mmengine leaves them"
    weights = [m.weight for m in step.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert any(not w.is_contiguous() for w in weights) == step.work.channels_last


def test_memory_on_a_gpu_is_that_of_one_model(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that other models hold are not counted, the optimizer's state is."""
    events = []

    class Two:
        model = torch.nn.Linear(1, 1)

        def __init__(self, cfg: Config, work: Workload) -> None:
            events.append("build")

        def __call__(self) -> None:
            events.append("step")

    monkeypatch.setattr(training, "TrainingStep", Two)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: events.append("reset")
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1700)
    ((row, step),) = candidates([small], WORK._replace(device="cuda:0"))
    assert row.figures["memory"] == 700 and isinstance(step, Two)
    assert events == ["reset", "build", "step", "step"]


def test_a_device_that_cannot_be_timed(config: Config) -> None:
    with pytest.raises(ValueError, match="got the device 'mps'"):
        TrainingStep(config, WORK._replace(device="mps"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", [False, True])
def test_a_step_on_a_gpu(config: Config, small: str, amp: bool) -> None:
    work = WORK._replace(device="cuda", amp=amp)
    assert_trains(TrainingStep(config, work))
    rows, _ = measure(candidates([small, small], work), "cuda", warmup=1, runs=2)
    a, b = (row.figures["memory"] for row in rows)
    assert 0 < a < 8 * 2**30 and b == pytest.approx(a, rel=0.1)


@pytest.mark.parametrize("amp", [False, True])
def test_measure(small: str, amp: bool) -> None:
    rows, _ = measure(candidates([small], WORK._replace(amp=amp)), "cpu", warmup=0, runs=2)
    (row,) = rows
    assert row[:4] == ("small", "eager", "bfloat16" if amp else "float32", 1)
    assert len(row.seconds) == 2 and min(row.seconds) > 0
    assert 50 * 2**20 < row.figures["memory"] < 8 * 2**30
