"""tools/doctor.py: what is as it should be passes, and each kind of mistake is found."""

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

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from fastvit_dense import FastViT, reparameterize
from fastvit_dense.doctor.checkpoint import check_checkpoint
from fastvit_dense.doctor.checks import check_machine, run_checks
from fastvit_dense.doctor.data import Unread, read_all
from fastvit_dense.doctor.preflight import quiet
from fastvit_dense.doctor.report import ERROR, OK, WARNING, Diagnostic, Report, guarded
from fastvit_dense.hand.mano.file import save_mano
from fastvit_dense.hand.mano.layer import ManoLayer, pose_to_rotations
from fastvit_dense.hand.mano.synthetic import synthetic_hand
from fastvit_dense.synthetic.ade20k import write_ade20k
from fastvit_dense.synthetic.coco import write_coco
from fastvit_dense.synthetic.freihand import write_freihand

DET = ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py"
SEG = ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py"
HAND = ROOT / "configs/hand/mano_fastvit-t8_demo-hands.py"
FOLDERS = {DET: "coco", SEG: "ade", HAND: "hands"}
TRAIN, VAL = "train_dataloader.dataset", "val_dataloader.dataset"


def has(found: list[Diagnostic], level: str, where: str, *words: str) -> None:
    """Assert that there is such a diagnostic, with all words in it."""
    assert any(
        d.level == level and d.where == where and all(word in str(d) for word in words)
        for d in found
    ), f"no {level} at {where!r} with {words} in {found}"


def wrong(found: list[Diagnostic]) -> list[Diagnostic]:
    """What is not as it should be; the machine is the tester's."""
    return [d for d in found if d.level != OK and d.where and d.where != "/dev/shm"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of each task, and the MANO file of the hands."""
    folder = tmp_path_factory.mktemp("rendered")
    write_coco(folder / "coco", train=16, val=8, size=64)
    write_ade20k(folder / "ade", train=8, val=8, size=128)
    write_freihand(folder / "hands", train=1, val=4)
    save_mano(synthetic_hand(), folder / "MANO.npz")
    return folder


@pytest.fixture
def data(rendered: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(rendered, tmp_path / "data"))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """The demos' configs without base files, which mmengine takes seconds to find."""
    folder = tmp_path_factory.mktemp("configs")
    with quiet():
        for path in FOLDERS:
            Config.fromfile(path).dump(folder / path.name)
    return {path: folder / path.name for path in FOLDERS}


@pytest.fixture
def examine(flat: dict[Path, Path], rendered: Path) -> Callable:
    """Run all checks of a demo's config, with overrides."""

    def run(base: Path, options: dict | None = None, *, root: Path = rendered, **more: Any) -> Any:
        report = Report()
        folder = str(root / FOLDERS[base])
        checkpoint = more.pop("checkpoint", None)
        run_checks(report, str(flat[base]), checkpoint, options=options, data_root=folder, **more)
        return report

    return run


# --- as it should be


@pytest.mark.parametrize("base", FOLDERS)
def test_nothing_is_wrong(base: Path, examine: Callable, capfd: pytest.CaptureFixture) -> None:
    report = examine(base)
    assert not wrong(report) and report.summary()[0] == 0
    has(report, OK, "model", "loss")
    has(report, OK, TRAIN, "images/s")
    out = capfd.readouterr().out
    assert "mmcv operators" in out and "creating index" not in out and "mmengine - " not in out


def test_a_part_of_the_images(examine: Callable) -> None:
    report = examine(SEG, images=2)
    assert not wrong(report)
    has(report, OK, TRAIN, "2 of 8")


def test_what_does_not_import_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ImportError('libfoo.so is missing')")
    done = subprocess.run(
        [sys.executable, "tools/doctor.py", "x.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not done.stderr
    assert "timm: cannot be imported" in done.stdout and "libfoo.so" in done.stdout


# --- configs and models


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        ({"model.backbone.ach": "t8"}, "", ["FastViT", "'arch'"]),
        ({"model.backbone.arch": "t9"}, "", ["t8"]),
        ({"model.backbone.type": "FastVit"}, "", ["'FastViT'"]),
        ({"model.backbone.arch": "t12"}, "model.neck.", ["channels"]),
        ({"model.neck.out_channels": 32}, "model.decode_head.", ["channels"]),
        ({"model.decode_head.num_classes": 5}, "classes", ["decode_head 5", "train_dataloader 8"]),
        ({"model.backbone.init_cfg.type": "Pretrained", "model.backbone.init_cfg.checkpoint": "no.pth"},
         "model.backbone.init_cfg.checkpoint", ["no.pth", "init_cfg=None"]),
        ({"train_dataloader.batchsize": 2}, "train_dataloader", ["'batch_size'"]),
        ({"val_evaluator.iou_metric": 2}, "val_evaluator", ["IoUMetric", "'iou_metrics'"]),
        ({"train_cfg.max_iter": 9}, "train_cfg", ["'max_iters'"]),
    ],
)  # fmt: skip
def test_mistakes_in_configs(
    options: dict, where: str, words: list[str], flat: dict, rendered: Path, tmp_path: Path
) -> None:
    cfg = Config.fromfile(flat[SEG])
    cfg.model.backbone.init_cfg = {} if "no.pth" in options.values() else None
    cfg.merge_from_dict(options)
    cfg.dump(tmp_path / "config.py")
    report = Report()
    run_checks(report, str(tmp_path / "config.py"), None, data_root=str(rendered / "ade"), images=1)
    errors = [d for d in report if d.level == ERROR and d.where.startswith(where)]
    assert any(all(word in str(d) for word in words) for d in errors), report


def test_timm_names_are_compared(examine: Callable, flat: dict, tmp_path: Path) -> None:
    cfg = Config.fromfile(flat[SEG])
    source = "timm://fastvit_sa12.aple_in1k"
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=source)
    cfg.dump(tmp_path / "config.py")
    report = Report()
    run_checks(report, str(tmp_path / "config.py"), None)
    has(report, ERROR, "model.backbone.init_cfg.checkpoint", "'fastvit_sa12.apple_in1k'")


def test_without_data_the_model_is_run_all_the_same(examine: Callable, tmp_path: Path) -> None:
    report = examine(DET, root=tmp_path)
    has(report, ERROR, "", "missing", "instances_train2017.json", "--data-root")
    has(report, OK, "model", "random")


def test_a_schedule_of_another_length(examine: Callable) -> None:
    report = examine(DET, {"train_cfg.max_epochs": 20}, images=1)
    has(report, WARNING, "param_scheduler", "14", "20")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model = dict(", "never closed"),
        ("_base_ = 'nowhere.py'", "nowhere.py"),
        ("custom_imports = dict(imports=['no_such_module'])", "no_such_module"),
        ("x = 1 / 0", "ZeroDivisionError"),
    ],
)
def test_configs_that_cannot_be_read(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(text)
    report = Report()
    run_checks(report, str(tmp_path / "config.py"), None)
    assert any(d.level == ERROR and word in str(d) for d in report)


def test_a_check_that_breaks_is_an_error() -> None:
    def check_nothing(_: int) -> Any:
        yield Diagnostic(OK, "", "begun")
        raise KeyError("oops")

    begun, broken = guarded(check_nothing, 1)
    assert begun.level == OK and broken.level == ERROR
    assert broken.where == "check_nothing" and "oops" in broken.message


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64_000)
    assert "OMP_NUM_THREADS" in next(d.hint for d in check_machine() if d.level == WARNING)


# --- data


def spoil(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("kind", ["CheckedCocoDataset", "CocoDataset"])
def test_images_of_detection(kind: str, data: Path, examine: Callable, tmp_path: Path) -> None:
    images = sorted((data / "coco/train2017").iterdir())
    spoil(images[0], 0.7)
    spoil(images[1], 0)
    images[2].unlink()
    cv2.imwrite(str(images[3]), np.zeros((20, 30, 3), np.uint8))
    bad_files = tmp_path / "bad.txt"
    report = examine(DET, {f"{TRAIN}.type": kind}, root=data, bad_files=str(bad_files))
    for image in images[:4]:
        has(report, ERROR, TRAIN, image.name)
    has(report, ERROR, TRAIN, images[3].name, "30x20")
    has(report, OK, TRAIN, "4 cannot")
    listed = bad_files.read_text().splitlines()
    assert len(listed) == 4 and all(any(p.name in line for line in listed) for p in images[:4])


def test_many_are_counted(data: Path, examine: Callable) -> None:
    for image in (data / "coco/val2017").iterdir():
        spoil(image, 0.9)  # of less, some versions of OpenCV make nothing at all
    report = examine(DET, root=data)
    has(report, ERROR, VAL, "3 more", "--bad-files")
    has(report, OK, VAL, "0 of 8 images")


def test_annotations(data: Path, examine: Callable) -> None:
    (data / "coco/annotations/instances_val2017.json").write_text("[1, 2")
    assert any(d.level == ERROR and "JSON" in str(d) for d in examine(DET, root=data))


def test_labels_of_segmentation(data: Path, examine: Callable) -> None:
    labels = sorted((data / "ade/annotations/training").iterdir())
    cv2.imwrite(str(labels[0]), np.full_like(cv2.imread(str(labels[0]), 0), 200))
    cv2.imwrite(str(labels[1]), np.zeros((8, 8), np.uint8))
    spoil(labels[2], 0.6)
    report = examine(
        SEG,
        {
            f"{TRAIN}.metainfo.classes": ("wall", "clock"),
            f"{TRAIN}.metainfo.palette": [(9, 9, 9), (99, 99, 99)],
        },
        root=data,
    )
    has(report, ERROR, TRAIN, labels[0].name, "200")
    has(report, ERROR, TRAIN, labels[1].name, "8x8")
    has(report, ERROR, TRAIN, labels[2].name)
    has(report, WARNING, TRAIN, "never occur", "clock")
    has(report, ERROR, "classes", "train_dataloader 2", "val_dataloader 8")


def test_images_of_hands(data: Path, examine: Callable) -> None:
    image = sorted((data / "hands/evaluation/rgb").iterdir())[2]
    spoil(image, 0.8)
    has(examine(HAND, root=data), ERROR, VAL, image.name)


def test_keypoints_of_the_vertices(rendered: Path, examine: Callable) -> None:
    report = examine(HAND, {"model.head.mano": str(rendered / "MANO.npz")})
    has(report, OK, VAL, "21 of 21", "4 of 4 hands", "0.00 mm")


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
    ("mistake", "right"),
    [("kinematic", "5 of 21"), ("smplx's tips", "19 of 21"), ("other hands", "0 of 21")],
)
def test_keypoints_of_another_definition(
    mistake: str, right: str, data: Path, examine: Callable
) -> None:
    file = data / "hands/evaluation_xyz.json"
    before, verts, mano = (
        np.array(json.loads((data / f"hands/evaluation_{name}.json").read_text()))
        for name in ("xyz", "verts", "mano")
    )
    xyz = before.copy()
    if mistake == "kinematic":
        of_joints = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]
        xyz[:, of_joints] = kinematic_joints(verts, mano)
    elif mistake == "smplx's tips":
        xyz[:, [16, 20]] = verts[:, [554, 671]]
    else:
        xyz = xyz[::-1]
    file.write_text(json.dumps(xyz.tolist()))
    error = 1000 * np.linalg.norm(xyz - before, axis=-1)
    report = examine(HAND, {"model.head.mano": str(data / "MANO.npz")}, root=data)
    has(report, WARNING, VAL, right, f"{error.mean():.2f} mm", f"{error.max():.2f} mm")


def test_keypoints_without_the_mano_file(examine: Callable) -> None:
    report = examine(HAND, {"model.head.mano": "none/MANO_RIGHT.pkl"})
    assert any(d.level == ERROR and "MANO_RIGHT.pkl" in str(d) for d in report)


def _act(index: int) -> int:
    if index == 2:  # is being read by another worker when 3 dies
        time.sleep(1)
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if index == 7:
        time.sleep(60)
    return index * index


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_worker_that_dies_or_hangs_costs_one_item(workers: int) -> None:
    began = time.monotonic()
    results = dict(read_all(_act, range(20), workers=workers, limit=4))
    assert time.monotonic() - began < 50
    assert sorted(results) == list(range(20))
    assert {i for i, r in results.items() if isinstance(r, Unread)} == {3, 7}
    assert all(r == i * i for i, r in results.items() if not isinstance(r, Unread))


# --- checkpoints


@pytest.fixture(scope="module")
def segmentor(flat: dict[Path, Path]) -> torch.nn.Module:
    from mmseg.apis import init_model

    with quiet():
        return init_model(str(flat[SEG]), device="cpu")


@pytest.fixture
def run(segmentor: torch.nn.Module) -> dict:
    """What a training saves."""
    meta = dict(iter=300, experiment_name="fpn_t8", dataset_meta=dict(classes=("a", "b")))
    return dict(meta=meta, state_dict=dict(segmentor.state_dict()), optimizer={})


def checked(path: Path, model: torch.nn.Module | None) -> list[Diagnostic]:
    return list(guarded(check_checkpoint, str(path), model, ("a", "b")))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda run: None, (OK, "", "iter 300", "fpn_t8", "2 classes", "--resume can")),
        (lambda run: None, (OK, "model", "all")),
        (lambda run: run.pop("optimizer"), (OK, "", "no --resume")),
        (lambda run: run["meta"].update(fastvit_dense=dict(deploy=True)), (OK, "", "fused")),
        (lambda run: run["meta"]["dataset_meta"].update(classes=("a", "c")),
         (ERROR, "", "(a, c)", "(a, b)")),
        (lambda run: run["state_dict"].update(extra=torch.ones(1)), (ERROR, "", "unexpected", "extra")),
        (lambda run: run["state_dict"].update({"decode_head.conv_seg.bias": torch.ones(3)}),
         (ERROR, "", "shape", "(3,)", "(8,)")),
        (lambda run: run["state_dict"].update({"backbone.norm0.bias": torch.full((48,), float("nan"))}),
         (ERROR, "", "NaN", "backbone.norm0.bias")),
        (lambda run: run.update(state_dict={"a.weight": torch.ones(1)}), (WARNING, "", "FastViT")),
        (lambda run: run.update(state_dict={}), (ERROR, "", "no tensors")),
    ],
)  # fmt: skip
def test_checkpoints(
    change: Callable, expected: tuple, run: dict, segmentor: torch.nn.Module, tmp_path: Path
) -> None:
    change(run)
    torch.save(run, tmp_path / "x.pth")
    has(checked(tmp_path / "x.pth", segmentor), *expected)


def test_pretrained_weights(segmentor: torch.nn.Module, tmp_path: Path) -> None:
    classifier = timm.create_model("fastvit_t8")
    torch.save(dict(model=classifier.state_dict()), tmp_path / "t8.pth")
    torch.save(FastViT("t12").state_dict(), tmp_path / "t12.pth")
    torch.save(reparameterize(FastViT("t8").eval()).state_dict(), tmp_path / "fused.pth")
    found = checked(tmp_path / "t8.pth", segmentor)
    has(found, OK, "", "t8", "timm", "init_cfg")
    has(found, OK, "model.backbone", "would load")
    has(checked(tmp_path / "t12.pth", segmentor), ERROR, "", "arch='t12'")
    has(checked(tmp_path / "fused.pth", segmentor), ERROR, "", "fused")
    assert len(checked(tmp_path / "t12.pth", None)) == 1


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch evil",)


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    torch.save(dict(state_dict={"a": torch.ones(9)}, meta=Evil()), tmp_path / "evil.pth")
    torch.save(dict(state_dict={"a": torch.ones(999)}), tmp_path / "cut.pth")
    spoil(tmp_path / "cut.pth", 0.8)
    torch.save([1, 2], tmp_path / "list.pth")
    expected = {"evil": "system", "cut": "truncated", "list": "no tensors", "none": "exist"}
    for name, word in expected.items():
        has(checked(tmp_path / f"{name}.pth", None), ERROR, "", f"{name}.pth", word)
    assert not Path("evil").exists()


def test_the_tool_with_a_checkpoint_alone(run: dict, tmp_path: Path) -> None:
    run["state_dict"]["backbone.norm0.bias"] = torch.full((48,), float("inf"))
    torch.save(run, tmp_path / "x.pth")
    text = run_tool("tools/doctor.py", tmp_path / "x.pth", fails=True)  # exit status 1
    assert "mmcv operators" in text and "fpn_t8" in text and "infinity" in text
    assert text.splitlines()[-1] == "1 error"
