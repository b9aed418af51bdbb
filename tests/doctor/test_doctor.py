"""tools/doctor.py: what is as it should be passes, and each kind of mistake is found, with its cure."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, follow_chain, run_tool
from mmengine.config import Config
from mmengine.registry import DefaultScope

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from fastvit_dense import FastViT, reparameterize
from fastvit_dense.doctor import config_parts, machine
from fastvit_dense.doctor.checkpoint import check_checkpoint
from fastvit_dense.doctor.config_keys import check_keys
from fastvit_dense.doctor.config_parts import check_parts
from fastvit_dense.doctor.data import check_data
from fastvit_dense.doctor.examination import examine
from fastvit_dense.doctor.findings import ERROR, OK, WARNING, Finding, Report, guarded
from fastvit_dense.doctor.model import build_model
from fastvit_dense.doctor.quiet import quiet
from fastvit_dense.doctor.reading import Unread, read_all
from fastvit_dense.doctor.training import check_batch, check_iterations, check_schedule
from fastvit_dense.hand.mano.file import save_mano
from fastvit_dense.hand.mano.layer import ManoLayer, pose_to_rotations
from fastvit_dense.hand.mano.synthetic import synthetic_hand
from fastvit_dense.synthetic.ade20k import write_ade20k
from fastvit_dense.synthetic.coco import write_coco
from fastvit_dense.synthetic.freihand import write_freihand

DET = ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py"
SEG = ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py"


def has(found: list[Finding], level: str, where: str, *phrases: str) -> None:
    """Assert that there is such a finding: all phrases in what it says or in its cure."""
    for finding in found:
        text = f"{finding.what} -> {finding.cure}"
        if finding.level == level and finding.where == where and all(p in text for p in phrases):
            return
    raise AssertionError(f"no {level} at {where!r} with {phrases} in {found}")


def wrong(found: list[Finding]) -> list[Finding]:
    """What is not as it should be; the batch is the machine's."""
    return [f for f in found if f.level != OK and not f.where.startswith(("batch", "OMP", "GPU"))]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_coco(folder / "coco", train=24, val=20, size=64)
    write_ade20k(folder / "ade", train=8, val=8, size=128)
    return folder


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "data"))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """The demos' configs without base files, which mmengine takes seconds to find."""
    folder = tmp_path_factory.mktemp("configs")
    with quiet():
        for path in (DET, SEG):
            items = Config.fromfile(path)._cfg_dict.to_dict().items()
            (folder / path.name).write_text("".join(f"{k} = {v!r}\n" for k, v in items))
    return {path: folder / path.name for path in (DET, SEG)}


@pytest.fixture
def config(flat: dict[Path, Path], tmp_path: Path) -> Callable[[Path, str], Path]:
    """Write a config of one's own over one of the demos'."""

    def write(base: Path, text: str) -> Path:
        (tmp_path / "config.py").write_text(f"_base_ = {str(flat[base])!r}\n{text}\n")
        return tmp_path / "config.py"

    return write


def examined(config: Path | None, checkpoint: Path | None = None, **options: Any) -> Report:
    report = Report()
    examine(report, config and str(config), checkpoint and str(checkpoint), **options)
    return report


def det_data(root: Path) -> dict[str, Any]:
    options = {
        f"{s}_dataloader.dataset.data_root": f"{root}/coco/" for s in ("train", "val", "test")
    }
    file = f"{root}/coco/annotations/instances_val2017.json"
    # So few images want a shorter warm-up.
    return options | {
        "val_evaluator.ann_file": file, "test_evaluator.ann_file": file, "param_scheduler.0.end": 5
    }  # fmt: skip


def seg_data(root: Path) -> dict[str, Any]:
    return {f"{s}_dataloader.dataset.data_root": f"{root}/ade" for s in ("train", "val", "test")}


def found_in_data(base: Path, options: dict[str, Any], **more: Any) -> list[Finding]:
    """What opening the data of a config finds."""
    cfg = Config.fromfile(base)
    cfg.merge_from_dict(options)
    with quiet(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        return list(check_data(cfg, workers=2, **more))


# --- as it should be


def test_good_detection(drawn: Path, flat: dict, capfd: pytest.CaptureFixture) -> None:
    report = examined(flat[DET], options=det_data(drawn))
    assert not wrong(report) and not report.has_errors()
    has(report, OK, "model", "MaskRCNN", "predicts")
    has(report, OK, "train_dataloader.dataset", "23 of 23 images", "images/s")
    has(report, OK, "test_dataloader.dataset", "the same as val_dataloader.dataset")
    out = capfd.readouterr().out
    assert "mmcv operators" in out and "creating index" not in out and "mmengine - " not in out


def test_good_segmentation(drawn: Path, flat: dict) -> None:
    report = examined(flat[SEG], options=seg_data(drawn), images=2)
    assert not wrong(report)
    has(report, OK, "train_dataloader.dataset", "2 of 8 images", "left out")


def test_what_does_not_import_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ImportError('libfoo.so is missing')")
    done = subprocess.run(
        [sys.executable, "tools/doctor.py", "x.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not done.stderr
    assert "cannot be imported: ImportError: libfoo.so is missing" in done.stdout
    assert "install timm again" in done.stdout and "nothing else is checked" in done.stdout


# --- configs

TOP = [
    ("modle = dict(type='X')", ERROR, "modle", "did you mean 'model'"),
    ("optim_wraper = dict()", ERROR, "optim_wraper", "'optim_wrapper'"),
    ("lr_config = dict(step=[8])", ERROR, "lr_config", "before 2022", "param_scheduler"),
    ("data_root = 'mine/'", WARNING, "data_root", "set train_dataloader.dataset.data_root"),
    ("number = 5", WARNING, "number", "no tool reads it"),
    ("env_cfg = dict(mp_cfg=dict(mp_start_metod='fork'))", ERROR, "env_cfg.mp_cfg.mp_start_metod"),
    ("auto_scale_lr = dict(base_batchsize=4)", ERROR, "auto_scale_lr.base_batchsize"),
    (
        "optim_wrapper = dict(paramwise_cfg=dict(norm_decay=0))",
        ERROR,
        "optim_wrapper.paramwise_cfg.norm_decay",
        "did you mean 'norm_decay_mult'",
    ),
    ("default_hooks = dict(chekpoint=dict(interval=1))", ERROR, "default_hooks.chekpoint", "'checkpoint'"),
]  # fmt: skip

PARTS = [
    ("train_dataloader = dict(batchsize=2)", ERROR, "train_dataloader.batchsize", "'batch_size'"),
    ("val_evaluator = dict(anns='x')", ERROR, "val_evaluator.anns", "CocoMetric", "known are ann_file"),
    ("optim_wrapper = dict(optimizer=dict(weight_dekay=1))", ERROR,
     "optim_wrapper.optimizer.weight_dekay", "AdamW", "'weight_decay'"),
    ("default_hooks = dict(checkpoint=dict(intervall=1))", ERROR,
     "default_hooks.checkpoint.intervall", "CheckpointHook", "'interval'"),
    ("param_scheduler = [dict(type='CosineAnealingLR')]", ERROR, "param_scheduler[0].type",
     "'CosineAnnealingLR'"),
    ("custom_hooks = [dict(type='EMAHok')]", ERROR, "custom_hooks[0].type", "'EMAHook'"),
    ("train_dataloader = dict(dataset=dict(typ=1))", ERROR, "train_dataloader.dataset.typ"),
    ("train_pipeline = [dict(type='Resize', scal=(9, 9))]\n"
     "train_dataloader = dict(dataset=dict(pipeline=train_pipeline))", ERROR,
     "train_dataloader.dataset.pipeline[0].scal", "'scale'"),
    ("custom_hooks = [dict(type='mmnope.Hook')]", ERROR, "custom_hooks[0].type", "install the package"),
]  # fmt: skip

SCHEDULES = [
    ("train_cfg = dict(max_epochs=20)", WARNING, "param_scheduler", "ends after 14 epochs", "20"),
    ("train_cfg = dict(max_epochs=5, val_interval=9)", WARNING, "train_cfg.val_interval", "never"),
    ("param_scheduler = [dict(type='MultiStepLR', end=14, milestones=[8, 22])]", WARNING,
     "param_scheduler[0].milestones", "22 never come"),
    ("train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=100)", WARNING,
     "param_scheduler[1]", "goes by epochs"),
    ("train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=100)", WARNING,
     "default_hooks.checkpoint.by_epoch", "only checkpoint", "interval=10"),
    ("param_scheduler = [dict(type='LinearLR', begin=30, end=40)]", WARNING, "param_scheduler[0]",
     "begins after 30 epochs"),
    ("auto_scale_lr = dict(base_batch_size=64)", WARNING, "batch on this machine (no GPU)",
     "is meant for 64", "accumulative_counts=16"),
]  # fmt: skip


def found_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The findings in a config, without building anything."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with quiet(), DefaultScope.overwrite_default_scope("mmdet"):
        cfg = Config.fromfile(path)
        checks = (check_parts, check_schedule, check_batch)
        return [*check_keys(cfg, str(path)), *(f for check in checks for f in check(cfg))]


@pytest.mark.parametrize("case", TOP + PARTS + SCHEDULES, ids=lambda case: case[0][:40])
def test_mistakes_in_configs(
    case: tuple[str, ...], config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, *expected = case
    has(found_in(config(DET, text), monkeypatch), *expected)


def test_no_mistakes_in_variables(config: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
norm = dict(type='BN', requires_grad=True)
root = 'elsewhere/'
train_pipeline = [dict(type='LoadImageFromFile')]
model = dict(neck=dict(norm_cfg=norm), test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))
train_dataloader = dict(dataset=dict(data_root=root, pipeline=train_pipeline))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0)}))
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority=49)]
"""
    assert not wrong(found_in(config(DET, text), monkeypatch))


MODELS = [
    ("backbone=dict(ach='t8')", "model.backbone.ach", "FastViT", "'arch'"),
    ("backbone=dict(arch='t9')", "model (FastViT)", "arch must be one of t8"),
    ("backbone=dict(type='FastVit')", "model.backbone.type", "'FastViT'"),
    ("backbone=dict(arch='t12')", "model.neck.in_channels", "in_channels=[64, 128, 256, 512]"),
    ("neck=dict(out_channels=32)", "model.decode_head.in_channels", "in_channels=[32, 32, 32, 32]"),
    ("decode_head=dict(num_classes=5)", "model.decode_head.num_classes", "num_classes=8", "wall"),
    ("decode_head=dict(in_index=[0, 1, 2, 4])", "model.decode_head.in_index", "there are 4 maps"),
    ("backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='no.pth'))",
     "model.backbone.init_cfg.checkpoint", "no.pth does not exist", "init_cfg=None"),
    ("backbone=dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint='timm://fastvit_sa12.aple_in1k'))",
     "model.backbone.init_cfg.checkpoint", "timm://fastvit_sa12.apple_in1k"),
]  # fmt: skip


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvit_dense.doctor.examination.check_data", lambda *_, **__: ())


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case[0][:60])
def test_mistakes_in_models(case: tuple[str, ...], config: Callable, no_data: None) -> None:
    text, *expected = case
    report = examined(config(SEG, f"model = dict({text})"))
    has(report, ERROR, *expected)
    assert len(wrong(report)) == 1


def test_weights_that_are_not_there_are_not_fetched(
    config: Callable, no_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvit_dense.doctor.weights.try_to_load_from_cache", lambda *_: None)
    init_cfg = "dict(_delete_=True, type='Pretrained', checkpoint='timm://fastvit_t8.apple_in1k')"
    report = examined(config(SEG, f"model = dict(backbone=dict(init_cfg={init_cfg}))"))
    where = "model.backbone.init_cfg.checkpoint"
    has(report, WARNING, where, "first run fetches it from huggingface.co/timm/fastvit_t8", "MB")


def test_strides(config: Callable, no_data: None) -> None:
    """A detector with wrong ones runs, and looks at the wrong places."""
    change = "roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[8, 16, 32, 64]))"
    where = "model.roi_head.bbox_roi_extractor.featmap_strides"
    report = examined(config(DET, f"model = dict({change})"))
    has(report, ERROR, where, "featmap_strides=[4, 8, 16, 32]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", "never closed"),
        ("_base_ = 'nowhere.py'", "nowhere.py"),
        ("custom_imports = dict(imports=['no_such_module'])", "no_such_module"),
        ("x = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_configs_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(text)
    report = examined(tmp_path / "config.py")
    error = next(f for f in report if f.level == ERROR)
    assert message in error.what and error.cure


def test_a_contradiction_does_not_hide_the_rest(flat: dict, drawn: Path) -> None:
    options = det_data(drawn) | {"val_evaluator.ann_file": "other.json"}
    report = examined(flat[DET], options=options, images=1)
    has(report, ERROR, "", "compared with other annotations")
    has(report, OK, "val_dataloader.dataset", "1 of 20")


def test_missing_imports(flat: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own, where nothing has imported the module yet."""
    known = config_parts.find_classes
    name = "CheckedADE20KDataset"
    monkeypatch.setattr(config_parts, "find_classes", lambda n, r: [] if n == name else known(n, r))
    with quiet(), DefaultScope.overwrite_default_scope("mmseg"):
        found = list(check_parts(Config.fromfile(flat[SEG])))
    where = "train_dataloader.dataset.type"
    has(found, ERROR, where, "nothing imports fastvit_dense.seg.datasets", "to custom_imports")


def test_a_check_that_breaks_is_a_finding() -> None:
    def check_nothing(_: int) -> Any:
        yield Finding(OK, "", "begun")
        raise KeyError("oops")

    begun, broken = guarded(check_nothing, 1)
    assert begun.level == OK and broken.level == ERROR
    assert broken.where == "check_nothing" and "KeyError: 'oops'" in broken.what


# --- the machine


def test_room_for_checkpoints(tmp_path: Path) -> None:
    (plenty,) = machine.check_folder(tmp_path / "a/b", need=1)
    (little,) = machine.check_folder(tmp_path, need=2**60)
    (tmp_path / "file").touch()
    (no_folder,) = machine.check_folder(tmp_path / "file/b", need=1)
    assert (plenty.level, little.level, no_folder.level) == (OK, ERROR, ERROR)
    assert "make room" in little.cure and "is a file" in no_folder.what


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    has(list(machine.check_processor()), WARNING, "threads", "OMP_NUM_THREADS=1")


def test_a_gpu_that_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", fail)
    has(list(machine.check_gpus()), ERROR, "GPU 0", "cannot compute on it", "no kernel image")


@pytest.mark.parametrize(("free", "level"), [(60, OK), (3, WARNING)])
def test_a_gpu(free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = torch.ones(8, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: on_cpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU of a test")
    has(list(machine.check_gpus()), level, "GPU 0", f"GPU of a test, {free} of 80 GiB free")


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine._why_no_gpu("", []).level == OK
    old = machine._why_no_gpu("450.80", ["The NVIDIA driver on your system is too old"])
    has([old], WARNING, "GPU", "driver (450.80)", "too old", "update the driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    has([machine._why_no_gpu("450.80", [])], WARNING, "GPU", "CUDA_VISIBLE_DEVICES=''")


# --- data


def spoil(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def test_images_of_detection(data: Path, flat: dict) -> None:
    images = sorted((data / "coco/train2017").iterdir())
    spoil(images[0], 0.7)
    spoil(images[1], 0.6)
    spoil(images[2], 0)
    images[3].unlink()
    cv2.imwrite(str(images[4]), np.zeros((20, 30, 3), np.uint8))
    bad_files = data / "bad.txt"
    report = found_in_data(flat[DET], det_data(data), bad_files=bad_files)
    where = "train_dataloader.dataset"
    has(report, ERROR, where, "2 of 23 images", images[0].name, "truncated JPEG", images[1].name)
    has(report, ERROR, where, images[2].name, "the file is empty")
    has(report, ERROR, where, images[3].name, "does not exist", "data_prefix")
    has(report, ERROR, where, images[4].name, "is 30x20 pixels", "annotation says")
    has(report, OK, where, "18 of 23 images")
    listed = bad_files.read_text().splitlines()
    assert len(listed) == 5 and all(any(p.name in line for line in listed) for p in images[:5])


def test_many_of_a_kind_are_one_finding(data: Path, flat: dict) -> None:
    images = sorted((data / "coco/val2017").iterdir())
    for image in images:
        spoil(image, 0.9)  # of less, some versions of OpenCV make nothing at all
    report = found_in_data(flat[DET], det_data(data))
    where = "val_dataloader.dataset"
    has(report, ERROR, where, "20 of 20 images", "and 17 more", "--bad-files")
    has(report, ERROR, where, "0 of 20 images")


def test_annotations_and_plain_datasets(data: Path, flat: dict) -> None:
    """OpenMMLab's own dataset is checked as ours is."""
    options = det_data(data) | {"train_dataloader.dataset.type": "CocoDataset"}
    (data / "coco/annotations/instances_val2017.json").write_text("[1, 2")
    spoil(sorted((data / "coco/train2017").iterdir())[0], 0.7)
    report = found_in_data(flat[DET], options)
    has(
        report,
        WARNING,
        "train_dataloader.dataset.type",
        "CheckedCocoDataset",
        "fastvit_dense.det.coco",
    )
    has(report, ERROR, "train_dataloader.dataset", "truncated JPEG")
    has(report, ERROR, "val_dataloader.dataset", "not valid JSON")


def test_labels_of_segmentation(data: Path, flat: dict) -> None:
    labels = sorted((data / "ade/annotations/training").iterdir())
    cv2.imwrite(str(labels[0]), np.full_like(cv2.imread(str(labels[0]), 0), 200))
    cv2.imwrite(str(labels[1]), np.zeros((8, 8), np.uint8))
    spoil(labels[2], 0.6)
    options = seg_data(data) | {
        "train_dataloader.dataset.metainfo.CLASSES": ("wall",),
        "train_dataloader.dataset.metainfo.classes": ("wall", "clock"),
        "train_dataloader.dataset.metainfo.palette": [(9, 9, 9), (99, 99, 99)],
    }
    report = found_in_data(flat[SEG], options)
    where = "train_dataloader.dataset"
    has(report, ERROR, where, labels[0].name, "200")
    has(report, ERROR, where, labels[1].name, "8x8 pixels")
    has(report, ERROR, where, labels[2].name)
    has(report, WARNING, where, "1 of 2 classes never occur: clock")
    has(report, ERROR, f"{where}.metainfo.CLASSES", "lower case")


def test_limit_of_labels(drawn: Path, flat: dict) -> None:
    options = seg_data(drawn) | {
        "train_dataloader.dataset.max_pixels": 400_000_000,
        "val_dataloader.dataset.max_pixels": 100,
    }
    report = examined(flat[SEG], options=options, images=2)
    where = "val_dataloader.dataset"
    has(report, ERROR, where, "2 of 2 images: ", "more than the 100 that are read", "max_pixels=")
    assert all(f.where == where for f in wrong(report))
    has(report, OK, "train_dataloader.dataset", "2 of 8 images")


def test_datasets_of_other_classes(flat: dict, no_data: None) -> None:
    options: dict[str, Any] = {"val_dataloader.dataset.metainfo.classes": ("wall", "sky")}
    report = examined(flat[SEG], options=options)
    has(report, ERROR, "val_dataloader.dataset.metainfo", "has 2 classes (wall, sky)", "has 8")


def test_colours_of_other_classes(flat: dict, drawn: Path) -> None:
    options = seg_data(drawn) | {"val_dataloader.dataset.metainfo.classes": ("wall", "clock")}
    found = found_in_data(flat[SEG], options)
    has(found, ERROR, "val_dataloader.dataset.metainfo.palette", "8 colours for 2 classes")


def test_images_that_are_trained_on_do_not_measure(drawn: Path, flat: dict) -> None:
    options = seg_data(drawn) | {
        f"val_dataloader.dataset.data_prefix.{k}": f"{v}/training"
        for k, v in (("img_path", "images"), ("seg_map_path", "annotations"))
    }
    has(found_in_data(flat[SEG], options), WARNING, "val_dataloader.dataset", "8 of its 8 images")


def test_hands(tmp_path: Path) -> None:
    from test_fuzz import write_hands

    write_hands(tmp_path, 3)
    images = sorted((tmp_path / "evaluation/rgb").iterdir())
    cv2.imwrite(str(images[1]), np.zeros((100, 224, 3), np.uint8))
    spoil(images[2], 0.8)
    dataset = dict(type="FreiHAND", data_root=str(tmp_path), split="evaluation",
                   pipeline=[dict(type="LoadHandImage"), dict(type="HandCrop")])  # fmt: skip
    import fastvit_dense.hand  # noqa: F401

    cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
    with DefaultScope.overwrite_default_scope("mmengine"):
        found = list(check_data(cfg, workers=1))
    has(found, ERROR, "test_dataloader.dataset", images[1].name, "224x100", "expected 224x224")
    has(found, ERROR, "test_dataloader.dataset", images[2].name, "truncated")
    has(found, OK, "test_dataloader.dataset", "1 of 3 images")


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FreiHAND folder of synthetic hands, and beside it the MANO file that they are of."""
    folder = tmp_path_factory.mktemp("hands")
    write_freihand(folder / "hands", train=1, val=4)
    save_mano(synthetic_hand(), folder / "MANO.npz")
    return folder


def found_in_hands(root: Path, mano: Path) -> list[Finding]:
    dataset = dict(type="FreiHAND", data_root=str(root), split="evaluation",
                   pipeline=[dict(type="LoadHandImage"), dict(type="HandCrop")])  # fmt: skip
    head = dict(type="ManoHead", in_channels=384, mano=str(mano))
    cfg = Config(dict(model=dict(head=head), test_dataloader=dict(dataset=dataset)))
    with DefaultScope.overwrite_default_scope("mmengine"):
        return list(check_data(cfg, workers=1))


def test_keypoints_of_the_vertices(hands: Path) -> None:
    found = found_in_hands(hands / "hands", hands / "MANO.npz")
    has(found, OK, "test_dataloader.dataset", "keypoints of 4 of 4 hands", "0.00 mm on average")
    assert not wrong(found)


def kinematic_joints(verts: np.ndarray, mano: np.ndarray) -> np.ndarray:
    """(N, 16, 3): where the skeleton's joints are, in the frame of the vertices."""
    hand = synthetic_hand()
    rotations = pose_to_rotations(torch.tensor(mano[:, 0, :48]), hand.pose_mean)
    shaped = hand.template + np.einsum("vck,nk->nvc", hand.shape_directions, mano[:, 0, 48:58])
    joints = follow_chain(hand.joint_regressor @ shaped, rotations.numpy())
    # The frame of the file is the hand's, moved.
    unplaced = ManoLayer(hand, dtype=torch.float64)(rotations, torch.tensor(mano[:, 0, 48:58]))
    return joints + (verts - unplaced.vertices.numpy())[:, :1]


@pytest.mark.parametrize(
    ("mistake", "phrases"),
    [
        ("kinematic", ("16 of 21", "kinematic chain", "mm on average")),
        ("smplx's tips", ("2 of 21", "744, 320, 443, 555, 672", "mm at most")),
        ("other hands", ("21 of 21", "belong together", "MANO.npz")),
    ],
)
def test_keypoints_of_another_definition(
    mistake: str, phrases: tuple[str, ...], hands: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(hands / "hands", tmp_path / "hands"))
    xyz, verts, mano = (
        np.array(json.loads((root / f"evaluation_{name}.json").read_text()))
        for name in ("xyz", "verts", "mano")
    )
    if mistake == "kinematic":
        of_joints = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]
        xyz[:, of_joints] = kinematic_joints(verts, mano)
        expected = np.linalg.norm(xyz - np.array(json.loads(
            (root / "evaluation_xyz.json").read_text())), axis=-1) * 1000  # fmt: skip
        phrases = (
            *phrases,
            f"{expected.mean():.2f} mm on average",
            f"{expected.max():.2f} mm at most",
        )
    elif mistake == "smplx's tips":
        xyz[:, [16, 20]] = verts[:, [554, 671]]
    else:
        xyz = xyz[::-1]
    (root / "evaluation_xyz.json").write_text(json.dumps(xyz.tolist()))
    has(found_in_hands(root, hands / "MANO.npz"), WARNING, "test_dataloader.dataset", *phrases)


def test_keypoints_without_the_mano_file(hands: Path) -> None:
    found = found_in_hands(hands / "hands", hands / "MANO_RIGHT.pkl")
    has(found, WARNING, "test_dataloader.dataset", "cannot be checked", "MANO_RIGHT.pkl does not exist",
        "mano.is.tue.mpg.de")  # fmt: skip


def test_iterations() -> None:
    cfg = Config(dict(
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=4),
        train_dataloader=dict(batch_size=8),
        param_scheduler=[dict(type="LinearLR", by_epoch=False, end=500)],
    ))  # fmt: skip
    length, warm_up = check_iterations(cfg, 100 * max(torch.cuda.device_count(), 1))
    assert "an epoch is 13 iterations" in length.what and "52" in length.what
    assert warm_up.level == WARNING and "500 of 52" in warm_up.what


def _act(index: int) -> int:
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if index == 7:
        time.sleep(60)
    return index * index


@pytest.mark.parametrize("workers", [1, 3])
def test_a_worker_that_dies_or_hangs_costs_one_item(workers: int) -> None:
    began = time.monotonic()
    results = dict(read_all(_act, range(50), workers=workers, limit=1))
    assert time.monotonic() - began < 20
    assert sorted(results) == list(range(50))
    assert {i for i, r in results.items() if isinstance(r, Unread)} == {3, 7}
    assert "signal 9" in results[3] and "more than 1 seconds" in results[7]
    assert all(r == i * i for i, r in results.items() if not isinstance(r, Unread))


# --- checkpoints


@pytest.fixture(scope="module")
def segmentor(flat: dict[Path, Path]) -> torch.nn.Module:
    with quiet(), DefaultScope.overwrite_default_scope("mmseg"):
        return build_model(Config.fromfile(flat[SEG]))


@pytest.fixture
def run(segmentor: torch.nn.Module) -> dict:
    """What a training saves."""
    return dict(
        meta=dict(epoch=2, iter=300, experiment_name="fpn_t8_20260101_120000",
                  dataset_meta=dict(classes=("a", "b"))),
        state_dict=segmentor.state_dict(),
        optimizer={},
    )  # fmt: skip


Change = Callable[[dict], object]


def changed(run: dict, **tensors: torch.Tensor) -> None:
    run["state_dict"] = run["state_dict"] | tensors


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda run: None, (OK, "", "iteration 300", "of fpn_t8", "2 classes (a, b)", "--resume")),
        (lambda run: None, (OK, "model", "all")),
        (lambda run: run.pop("optimizer"), (OK, "", "weights alone")),
        (lambda run: run["meta"].update(fastvit_dense=dict(deploy=True)), (OK, "", "fused")),
        (lambda run: run["meta"]["dataset_meta"].update(classes=("a", "c")),
         (ERROR, "classes", "trained on 2 (a, c)", "(a, b)")),
        (lambda run: changed(run, extra=torch.ones(1)), (ERROR, "model", "1 tensors unexpected (extra)")),
        (lambda run: changed(run, **{"decode_head.conv_seg.bias": torch.ones(3)}),
         (ERROR, "model", "1 tensors of another shape", "(3,), in the model (8,)")),
        (lambda run: changed(run, **{"backbone.norm0.bias": torch.full((48,), float("nan"))}),
         (ERROR, "", "1 of ", "NaN", "backbone.norm0.bias", "earlier checkpoint")),
        (lambda run: run.update(state_dict={"a.weight": torch.ones(1)}),
         (WARNING, "", "holds no FastViT")),
        (lambda run: run.update(state_dict={}), (ERROR, "", "holds no tensors")),
    ],
)  # fmt: skip
def test_checkpoints(
    change: Change, expected: tuple, run: dict, segmentor: torch.nn.Module, tmp_path: Path
) -> None:
    change(run)
    torch.save(run, tmp_path / "x.pth")
    has(list(check_checkpoint(str(tmp_path / "x.pth"), segmentor, ("a", "b"))), *expected)


def test_weights_to_begin_with(segmentor: torch.nn.Module, tmp_path: Path) -> None:
    classifier = timm.create_model("fastvit_t8")
    torch.save(dict(model=classifier.state_dict()), tmp_path / "t8.pth")
    torch.save(FastViT("t12").state_dict(), tmp_path / "t12.pth")
    torch.save(reparameterize(FastViT("t8").eval()).state_dict(), tmp_path / "fused.pth")
    found = list(check_checkpoint(str(tmp_path / "t8.pth"), segmentor, None))
    has(found, OK, "", "timm's classifier", "FastViT-T8", "init_cfg")
    has(found, OK, "model.backbone", "tensors would load")
    found = list(check_checkpoint(str(tmp_path / "t12.pth"), segmentor, None))
    has(found, OK, "", "a bare backbone", "FastViT-T12")
    has(found, ERROR, "model.backbone", "set arch='t12'")
    found = list(check_checkpoint(str(tmp_path / "fused.pth"), segmentor, None))
    has(found, ERROR, "model.backbone", "the checkpoint is fused")
    assert len(list(check_checkpoint(str(tmp_path / "t12.pth"), None, None))) == 1


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil",)


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    torch.save(dict(state_dict={"a": torch.ones(9)}, meta=Evil()), tmp_path / "evil.pth")
    torch.save(dict(state_dict={"a": torch.ones(999)}), tmp_path / "cut.pth")
    spoil(tmp_path / "cut.pth", 0.8)
    torch.save([1, 2], tmp_path / "list.pth")
    expected = {
        "evil.pth": ("holds more than plain data", "system", "unless you trust"),
        "cut.pth": ("may be truncated", "get it again"),
        "list.pth": ("a list",),
    }
    for name, phrases in expected.items():
        has(list(check_checkpoint(str(tmp_path / name), None, None)), ERROR, "", *phrases)
    missing = str(tmp_path / "none.pth")
    has(list(check_checkpoint(missing, None, None)), ERROR, missing, "no file")
    assert not Path("evil").exists()


def test_weights_of_which_bits_have_changed(tmp_path: Path) -> None:
    """torch.load does not compare checksums."""
    path = tmp_path / "flipped.pth"
    torch.save(dict(state_dict={"a": torch.arange(999.0)}), path)
    content = bytearray(path.read_bytes())
    content[content.find(np.float32(500).tobytes() + np.float32(501).tobytes())] ^= 4
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["state_dict"]["a"], torch.arange(999.0))
    has(list(check_checkpoint(str(path), None, None)), ERROR, "", "not what was written")


def test_the_tool_with_a_checkpoint_alone(run: dict, tmp_path: Path) -> None:
    changed(run, **{"backbone.norm0.bias": torch.full((48,), float("inf"))})
    torch.save(run, tmp_path / "x.pth")
    text = run_tool("tools/doctor.py", tmp_path / "x.pth", fails=True)  # exit status 1
    assert "mmcv operators" in text and "of fpn_t8; 2 classes" in text
    assert "hold NaN or infinity" in text and "1 error" in text.splitlines()[-1]
