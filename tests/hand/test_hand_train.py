"""tools/train.py and tools/test.py on hands as a user types them, and what training reaches."""

import json
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT as REPOSITORY
from conftest import run_tool as run
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope

from fastvit_dense.hand.mano.topology import ROOT
from fastvit_dense.hand.metric import hand_metrics
from fastvit_dense.synthetic.freihand import write_freihand

DEMO = REPOSITORY / "configs/hand/mano_fastvit-t8_demo-hands.py"
TINY = """
_base_ = {base!r}
data_root = {data!r}
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=3))
"""
FIGURES = {"PJ", "PV", "F@5", "F@15", "AUC_J", "AUC_V"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_freihand(folder / "hands", train=3, val=2)
    path = folder / "tiny.py"
    path.write_text(TINY.format(base=str(DEMO), data=f"{folder}/hands"))
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    """A work folder after two epochs."""
    folder = config.parent / "run"
    (config.parent / "printed.txt").write_text(run("tools/train.py", config, "--work-dir", folder))
    return folder


def test_training_says_what_it_does_and_leaves_what_it_should(trained: Path) -> None:
    text = (trained.parent / "printed.txt").read_text()
    assert "batch: 1 processes x 4 images = 4 images per step" in text
    assert "Epoch(train) [2][3/3]" in text  # 3 hands in four versions each
    logged = [
        json.loads(line)
        for file in trained.glob("*/vis_data/scalars.json")
        for line in file.read_text().splitlines()
    ]
    names = {name for entry in logged for name in entry}
    assert names > {"loss_vertices", "loss_keypoints", "loss_keypoints_2d"}
    assert names > {f"freihand/{figure}{kind}" for figure in FIGURES for kind in ("", "_raw")}
    assert list(trained.glob("*/vis_data/vis_image/val_*.png"))  # the first of a validation
    state = torch.load(trained / "epoch_2.pth")["state_dict"]
    assert {k.split(".")[1] for k in state if not k.startswith("backbone.")} == {
        "pose", "shape", "camera"
    }  # fmt: skip


def test_resume_with_mixed_precision(config: Path, trained: Path) -> None:
    text = run(
        "tools/train.py", config, "--work-dir", trained, "--resume", "--amp", "--auto-scale-lr",
        "--cfg-options", "train_cfg.max_epochs=3",
    )  # fmt: skip
    assert "resumed epoch: 2" in text and "Epoch(train) [3]" in text
    assert "Epoch(train) [1]" not in text and "lr scaled linearly" in text
    losses = [float(m) for m in re.findall(r"  loss: (\S+)", text)]
    assert len(losses) == 3 and all(np.isfinite(losses))


def test_pictures_and_predictions(config: Path, trained: Path, tmp_path: Path) -> None:
    run(
        "tools/test.py", config, trained / "epoch_2.pth", "--work-dir", tmp_path,
        "--show-dir", tmp_path / "pictures", "--out", tmp_path / "out.pkl",
        "--cfg-options", f"test_evaluator.pred_json={tmp_path / 'pred.json'}",
    )  # fmt: skip
    pictures = sorted((tmp_path / "pictures").glob("*.jpg"))
    assert [p.stem for p in pictures] == ["00000000", "00000001"]
    # Ground truth, prediction, side view.
    assert cv2.imread(str(pictures[0])).shape == (224, 3 * 224, 3)
    predictions = pickle.loads((tmp_path / "out.pkl").read_bytes())
    keypoints, vertices = json.loads((tmp_path / "pred.json").read_text())
    for i, prediction in enumerate(predictions):
        pred = prediction["pred"]
        assert np.allclose(keypoints[i], pred["keypoints_camera"], atol=1e-6)
        assert np.allclose(vertices[i], pred["vertices_camera"], atol=1e-6)


def test_augmented_testing_has_a_name_of_its_own(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    for name in ("training_xyz.json", "training_verts.json"):
        assert (config.parent / "hands" / name).is_file()
    text = run(
        "tools/test.py", config, trained / "epoch_2.pth", "--work-dir", tmp_path, "--tta",
        "--show-dir", tmp_path / "pictures",
    )  # fmt: skip
    assert "tta/PV: " in text and "freihand/" not in text.split("Epoch(test)")[-1]
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 2


def test_predictor_of_what_was_trained(config: Path, trained: Path) -> None:
    from fastvit_dense.hand import HandPredictor

    predictor = HandPredictor(config, trained / "epoch_2.pth", device="cpu")
    image = cv2.imread(str(config.parent / "hands/evaluation/rgb/00000000.jpg"))
    assert predictor(image).vertices.shape == (778, 3)


def test_two_processes_give_the_gradients_of_the_double_batch(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(f"""
_base_ = {str(config)!r}
model = dict(backbone=dict(norm_eval=True))  # statistics of a batch are each replica's own
train_dataloader = dict(
    batch_size=1, sampler=dict(shuffle=False),
    dataset=dict(indices=2, pipeline=[
        dict(type="LoadHandImage"), dict(type="HandCrop", out_size=96), dict(type="PackHandInputs"),
    ]),
)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=1)
param_scheduler = None
# One step of plain gradient descent: the weights differ from the first ones by the gradient.
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=1.0))
channels_last = False
""")
    single, double, start = tmp_path / "single", tmp_path / "double", tmp_path / "start"
    batch = "train_dataloader.batch_size=2"
    run("tools/train.py", path, "--work-dir", single, "--cfg-options", batch)
    run("tools/train.py", path, "--work-dir", start, "--cfg-options", batch,
        "optim_wrapper.optimizer.lr=0.0")  # fmt: skip
    text = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
               "tools/train.py", path, "--work-dir", double, "--launcher", "pytorch")  # fmt: skip
    assert "batch: 2 processes x 1 images = 2 images per step" in text
    weights = [
        torch.load(folder / "epoch_1.pth")["state_dict"] for folder in (start, single, double)
    ]
    names = [k for k, v in weights[0].items() if v.is_floating_point() and "running" not in k]
    before, one, two = (torch.cat([w[k].flatten() for k in names]).double() for w in weights)
    gradient = one - before
    assert gradient.norm() > 1e-2
    assert (two - one).norm() <= 1e-4 * gradient.norm()


def test_overfits_eight_hands(tmp_path: Path) -> None:
    """The whole model, from scratch, on eight held-out pictures in crops of 64 pixels for speed."""
    write_freihand(tmp_path / "hands", train=1, val=8)
    cfg = Config.fromfile(DEMO)
    init_default_scope(cfg.default_scope)
    crop = [
        dict(type="LoadHandImage"), dict(type="HandCrop", out_size=64), dict(type="PackHandInputs")
    ]  # fmt: skip
    dataset = dict(type="FreiHAND", data_root=str(tmp_path / "hands"), split="evaluation")
    hands = DATASETS.build(dict(**dataset, pipeline=crop))
    model = MODELS.build(cfg.model).train()
    data = pseudo_collate([hands[i] for i in range(8)])
    batch = model.data_preprocessor(data, True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    steps = 300
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps, pct_start=0.1)
    for _ in range(steps):
        loss, _ = model.parse_losses(model(**batch, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        found = model.eval()(batch["inputs"])  # by the running statistics, as in a test
    targets = [sample.gt for sample in batch["data_samples"]]
    figures = hand_metrics(
        pred_keypoints=found.keypoints.numpy(),
        pred_vertices=found.vertices.numpy(),
        keypoints=np.stack([t.keypoints - t.keypoints[ROOT] for t in targets]),
        vertices=np.stack([t.vertices - t.keypoints[ROOT] for t in targets]),
    )
    assert figures["PV"] <= 2 and figures["PJ"] <= 2  # mm, aligned
