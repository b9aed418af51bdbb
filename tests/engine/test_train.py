"""tools/train.py and tools/test.py as a user types them, on a few drawn shapes."""

import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from conftest import run_tool as run
from mmengine.registry import DATASETS, METRICS, init_default_scope

from fastvit_dense.engine.config import load_config
from fastvit_dense.synthetic.coco import write_coco

DEMO = ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py"
RETINANET = ROOT / "configs/det/retinanet_fastvit-sa12_fpn_1x_coco.py"

TINY = """
_base_ = {base!r}
data_root = {data!r}
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_coco(folder / "shapes", train=6, val=2, size=128)
    path = folder / "tiny.py"
    path.write_text(TINY.format(base=str(DEMO), data=f"{folder}/shapes/"))
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    """A work folder after two epochs."""
    folder = config.parent / "run"
    text = run("tools/train.py", config, "--work-dir", folder)
    (folder / "printed.txt").write_text(text)
    return folder


def test_training_says_what_it_does_and_leaves_what_it_should(trained: Path) -> None:
    text = (trained / "printed.txt").read_text()
    assert re.search(r"mmcv operators: \S+", text)
    assert "batch: 1 processes x 2 images = 2 images per step, but lr 0.003 is meant for 4" in text
    assert (
        "--auto-scale-lr scales it to 0.0015; optim_wrapper.accumulative_counts=2 keeps it" in text
    )
    assert (trained / "epoch_2.pth").is_file()
    assert list(trained.glob("*/vis_data/events.out.tfevents*"))
    logged = [
        json.loads(line)
        for file in trained.glob("*/vis_data/scalars.json")
        for line in file.read_text().splitlines()
    ]
    assert any("loss_mask" in entry for entry in logged)
    assert any("coco/segm_mAP_50" in entry for entry in logged)


def test_resume_goes_on(config: Path, trained: Path) -> None:
    text = run(
        "tools/train.py", config, "--work-dir", trained, "--resume",
        "--cfg-options", "train_cfg.max_epochs=3",
    )  # fmt: skip
    assert "resumed epoch: 2" in text and "Epoch(train) [3]" in text
    assert "Epoch(train) [1]" not in text
    assert (trained / "epoch_3.pth").is_file()


def test_tables_pictures_and_predictions(config: Path, trained: Path, tmp_path: Path) -> None:
    text = run(
        "tools/test.py", config, trained / "epoch_2.pth", "--work-dir", tmp_path,
        "--show-dir", tmp_path / "pictures", "--out", tmp_path / "out.pkl",
    )  # fmt: skip
    assert text.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2
    assert re.search(r"\| category \| mAP", text) and "| ring " in text
    pictures = list((tmp_path / "pictures").glob("*.jpg"))
    assert len(pictures) == 2
    predictions = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert len(predictions) == 2 and "pred_instances" in predictions[0]
    # Ground truth and prediction stand side by side.
    widths = {p["img_id"]: p["ori_shape"][1] for p in predictions}
    for picture in pictures:
        assert cv2.imread(str(picture)).shape[1] == 2 * widths[int(picture.stem)]


def test_mixed_precision_on_cpu_with_scaled_lr(config: Path, tmp_path: Path) -> None:
    text = run(
        "tools/train.py", config, "--work-dir", tmp_path, "--amp", "--auto-scale-lr",
        "--cfg-options", "train_cfg.max_epochs=1",
    )  # fmt: skip
    assert "recipe 4; lr scaled linearly from 0.003 to 0.0015" in text
    losses = [float(m) for m in re.findall(r"  loss: (\S+)", text)]
    assert len(losses) == 3 and all(np.isfinite(losses))


def test_workers_beside_a_gpu(config: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside.py"
    beside.write_text(
        f"_base_ = {str(config)!r}\n"
        'custom_imports = dict(imports=["fastvit_dense.det", "cuda_in_workers"])\n'
        "train_dataloader = dict(num_workers=2)\nval_dataloader = dict(num_workers=2)\n"
        "train_cfg = dict(max_epochs=1, val_interval=1)\n"
    )
    text = run("tools/train.py", beside, "--work-dir", tmp_path / "run", PYTHONPATH=ROOT / "tests")
    assert (tmp_path / "run" / "epoch_1.pth").is_file() and "coco/segm_mAP_50" in text


def test_inference_api_without_importing_this_package(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    image = next((config.parent / "shapes" / "val2017").glob("*.jpg"))
    script = f"""
from mmdet.apis import DetInferencer, inference_detector, init_detector
config, checkpoint, image = {str(config)!r}, {str(trained / "epoch_2.pth")!r}, {str(image)!r}
model = init_detector(config, checkpoint, device="cpu")
result = inference_detector(model, image)
inferencer = DetInferencer(model=config, weights=checkpoint, device="cpu")
other = inferencer(image, out_dir={str(tmp_path)!r}, no_save_pred=False, pred_score_thr=0.0)
scores = result.pred_instances.scores.tolist()
assert scores and model.dataset_meta["classes"] == ("disc", "square", "triangle", "star", "ring")
assert all(abs(a - b) < 1e-5 for a, b in zip(scores, other["predictions"][0]["scores"]))
print("agree on", len(scores))
"""
    assert "agree on" in run("-c", script)
    assert list((tmp_path / "vis").glob("*.jpg"))


def test_checkpoint_that_does_not_fit(config: Path, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(f"_base_ = {str(config)!r}\nmodel = dict(backbone=dict(arch='t12'))\n"
                     "model['neck'] = dict(in_channels=[64, 128, 256, 512])\n")  # fmt: skip
    text = run("tools/test.py", other, trained / "epoch_2.pth", "--work-dir", tmp_path, fails=True)
    assert re.search(r"the checkpoint does not fit this config: \d+ tensors missing", text)


def test_truncated_and_hostile_checkpoints(config: Path, trained: Path, tmp_path: Path) -> None:
    whole = (trained / "epoch_2.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    text = run("tools/test.py", config, tmp_path / "half.pth", "--work-dir", tmp_path, fails=True)
    assert "half.pth cannot be read, it may be truncated" in text

    torch.save({"state_dict": {}, "meta": Path("x")}, tmp_path / "code.pth")
    text = run("tools/test.py", config, tmp_path / "code.pth", "--work-dir", tmp_path, fails=True)
    assert "code.pth holds more than plain data and its code is not run" in text


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two different images with the same boxes, so that both halves of a batch weigh the same."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "train2017").mkdir()
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in (1, 2):
        pixels = cv2.resize(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), (128, 128))
        cv2.imwrite(str(folder / f"train2017/{i}.jpg"), pixels)
        images.append(dict(id=i, file_name=f"{i}.jpg", width=128, height=128))
        for k, (x, y, w, h) in enumerate(((8, 8, 60, 70), (50, 40, 70, 60))):
            annotations.append(
                dict(id=10 * i + k, image_id=i, category_id=k + 1, bbox=[x, y, w, h],
                     area=w * h, iscrowd=0, segmentation=[[x, y, x + w, y, x + w, y + h]])
            )  # fmt: skip
    categories = [dict(id=1, name="one"), dict(id=2, name="two")]
    (folder / "annotations/instances_train2017.json").write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )
    (folder / "pair.py").write_text(f"""
_base_ = {str(RETINANET)!r}
model = dict(
    # Output norms in training mode normalise by their own replica's images: not the same function.
    backbone=dict(arch="t8", drop_path_rate=0.0, out_norm=False, init_cfg=None),
    neck=dict(in_channels=[96, 192, 384], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, num_classes=2, stacked_convs=1),
)
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, batch_sampler=None,
    sampler=dict(shuffle=False),
    dataset=dict(
        data_root={str(folder)!r}, metainfo=dict(classes=("one", "two")),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True),
                  dict(type="PackDetInputs")],
    ),
)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
default_hooks = dict(checkpoint=dict(_delete_=True, type="CheckpointHook", interval=1))
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=1)
param_scheduler = None
# One step of plain gradient descent: the weights differ from the first ones by the gradient.
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=1.0))
randomness = dict(seed=0)
""")
    return folder


def test_two_processes_give_the_gradients_of_the_double_batch(pair: Path, tmp_path: Path) -> None:
    single, double, start = tmp_path / "single", tmp_path / "double", tmp_path / "start"
    config = pair / "pair.py"
    run("tools/train.py", config, "--work-dir", single,
        "--cfg-options", "train_dataloader.batch_size=2")  # fmt: skip
    run("tools/train.py", config, "--work-dir", start, "--cfg-options",
        "train_dataloader.batch_size=2", "optim_wrapper.optimizer.lr=0.0")  # fmt: skip
    text = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
               "tools/train.py", config, "--work-dir", double, "--launcher", "pytorch")  # fmt: skip
    assert "batch: 2 processes x 1 images = 2 images per step" in text
    weights = [
        torch.load(folder / "epoch_1.pth")["state_dict"] for folder in (start, single, double)
    ]
    names = [k for k, v in weights[0].items() if v.is_floating_point() and "running" not in k]
    before, one, two = (torch.cat([w[k].flatten() for k in names]).double() for w in weights)
    gradient = one - before
    assert gradient.norm() > 1e-2
    assert (two - one).norm() <= 1e-4 * gradient.norm()


def test_config_of_ones_own_data_in_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands there, in the project's folder, with data as its comments say."""
    readme = (ROOT / "README.md").read_text()
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "_base_" in c]
    path = re.match(r"# (\S+)\n", code)[1]
    assert f"python tools/train.py {path} --auto-scale-lr\n" in readme
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    Path(path).write_text(code)
    cfg = load_config(path)

    data = Path(cfg.data_root)
    assert str(data) == "data/cats" and cfg.work_dir == "work_dirs/cats"
    source = write_coco(tmp_path / "shapes", train=2, val=1, size=128)
    (data / "images").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((source / f"annotations/instances_{split}2017.json").read_text())
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] < 3]
        content["categories"] = [dict(id=1, name="cat"), dict(id=2, name="kitten")]
        (data / f"{split}.json").write_text(json.dumps(content))
        for image in (source / f"{split}2017").iterdir():
            image.rename(data / "images" / image.name)
    init_default_scope(cfg.default_scope)
    for loader, count in ((cfg.train_dataloader, 2), (cfg.val_dataloader, 1)):
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == count and dataset.metainfo["classes"] == ("cat", "kitten")
    heads = cfg.model.roi_head
    assert heads.bbox_head.num_classes == heads.mask_head.num_classes == 2
    assert METRICS.build(cfg.test_evaluator).metrics == ["bbox", "segm"]


def test_what_the_readme_writes_is_ignored_by_git_and_apart_by_task() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = re.findall(r'(?:out_dir="|--show-dir )([^"`\s]+)', readme)
    for tool in ("seg", "hand"):
        text = (ROOT / f"tools/{tool}_demo.py").read_text()
        (default,) = re.findall(r'default="(work_dirs\S+)"', text)
        assert default == f"work_dirs/predictions/{tool}" and (tool == "seg" or default in readme)
    assert sorted(folders) == [
        f"work_dirs/{kind}/{task}"
        for kind in ("pictures", "predictions")
        for task in ("det", "seg")
    ]
    assert "/work_dirs/" in (ROOT / ".gitignore").read_text().split()
