"""tools/train.py and tools/test.py on segmentation as a user types them, and mmseg's inference API."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from conftest import run_tool as run

from fastvit_dense.synthetic.ade20k import write_ade20k

pytest.importorskip("mmseg")

DEMO = ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py"

TINY = """
_base_ = {base!r}
data_root = {data!r}
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_ade20k(folder / "regions", train=4, val=2, size=128)
    path = folder / "tiny.py"
    path.write_text(TINY.format(base=str(DEMO), data=f"{folder}/regions"))
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    """A work folder after four iterations."""
    folder = config.parent / "run"
    (folder.parent / "printed.txt").write_text(run("tools/train.py", config, "--work-dir", folder))
    return folder


def test_training_says_what_it_does(trained: Path) -> None:
    text = (trained.parent / "printed.txt").read_text()
    assert "batch: 1 processes x 2 images = 2 images per step, but lr 0.003 is meant for 8" in text
    assert "decode.loss_ce" in text
    for name in ("sky", "grass"):  # the table of classes
        assert re.search(rf"\|\s+{name}\s+\|", text)
    assert "mIoU:" in text and "mDice:" in text
    assert (trained / "iter_4.pth").is_file()
    assert list(trained.glob("*/vis_data/events.out.tfevents*"))


def test_resume_goes_on(config: Path, trained: Path) -> None:
    text = run(
        "tools/train.py", config, "--work-dir", trained, "--resume",
        "--cfg-options", "train_cfg.max_iters=6",
    )  # fmt: skip
    assert re.search(r"Iter\(train\) \[ ?5/6\]", text)
    assert not re.search(r"Iter\(train\) \[ ?1/6\]", text)


def test_pictures_and_augmented_testing(config: Path, trained: Path, tmp_path: Path) -> None:
    text = run(
        "tools/test.py", config, trained / "iter_4.pth", "--work-dir", tmp_path / "plain",
        "--show-dir", tmp_path / "pictures",
    )  # fmt: skip
    assert re.search(r"\|\s+water\s+\|", text)
    images = {p.stem: cv2.imread(str(p)).shape for p in (config.parent).rglob("ADE_val_*.jpg")}
    pictures = sorted((tmp_path / "pictures").glob("*.jpg"))
    assert {p.stem for p in pictures} == set(images)
    for picture in pictures:  # ground truth, prediction, legend
        assert cv2.imread(str(picture)).shape[1] == 2 * images[picture.stem][1] + 150

    text = run(
        "tools/test.py", config, trained / "iter_4.pth", "--work-dir", tmp_path / "tta", "--tta"
    )
    assert "mIoU:" in text


def test_heads_that_do_not_fit_the_classes(config: Path, tmp_path: Path) -> None:
    text = run(
        "tools/train.py", config, "--work-dir", tmp_path,
        "--cfg-options", "model.decode_head.num_classes=7", fails=True,
    )  # fmt: skip
    assert "model.decode_head has num_classes=7, CheckedADE20KDataset has 8 classes" in text


def test_inference_api(config: Path, trained: Path, tmp_path: Path) -> None:
    """mmseg's functions and inferencer, fused and unfused, give what the Runner's test loop gives."""
    image = sorted((config.parent / "regions/images/validation").glob("*.jpg"))[0]
    script = f"""
import numpy as np, torch
from mmseg.apis import MMSegInferencer, inference_model, init_model, show_result_pyplot
config, checkpoint, image = {str(config)!r}, {str(trained / "iter_4.pth")!r}, {str(image)!r}
model = init_model(config, checkpoint, device="cpu")
result = inference_model(model, image)
labels = result.pred_sem_seg.data[0].numpy()
assert len(model.dataset_meta["classes"]) == 8
drawn = show_result_pyplot(model, image, result, show=False, out_file={str(tmp_path / "drawn.png")!r})
assert drawn.shape[:2] == labels.shape

inferencer = MMSegInferencer(config, checkpoint, device="cpu")
other = inferencer(image, out_dir={str(tmp_path)!r}, show=False)["predictions"]
np.testing.assert_array_equal(labels, other)

from fastvit_dense import reparameterize
fused = inference_model(reparameterize(model), image)
a, b = result.seg_logits.data, fused.seg_logits.data
assert (a - b).norm() <= 1e-4 * a.norm()

from mmengine.registry import init_default_scope
from fastvit_dense.engine.runner import Runner, load_config
cfg = load_config(config, work_dir={str(tmp_path / "runner")!r})
cfg.load_from = checkpoint
runner = Runner.from_cfg(cfg)
kept = []
runner.model.register_forward_hook(lambda module, args, output: kept.extend(output))
runner.test()
(same,) = [o for o in kept if o.img_path.endswith({image.name!r})]
np.testing.assert_array_equal(labels, same.pred_sem_seg.data[0].numpy())
print("agree on", labels.size)
"""
    assert "agree on" in run("-c", script)
    assert (tmp_path / "drawn.png").is_file()
    assert len(list((tmp_path / "vis").glob("*.jpg"))) == 1
    assert len(list((tmp_path / "pred").glob("*.png"))) == 1


def test_pictures_leave_unlabelled_pixels_alone() -> None:
    from fastvit_dense.seg.visualization import draw_legend, draw_segmentation

    image = np.full((60, 40, 3), 100, np.uint8)
    labels = np.full((60, 40), 255)
    labels[:20], labels[20:30] = 0, 1
    classes, palette = ("red", "green"), [(255, 0, 0), (0, 255, 0)]
    drawn = draw_segmentation(
        image, labels, classes=classes, palette=palette, alpha=0.5, legend=False
    )
    assert drawn.shape == image.shape
    assert drawn[5, 5].tolist() == [50, 50, 178]  # BGR
    assert drawn[25, 5].tolist() == [50, 178, 50]
    assert drawn[50, 5].tolist() == [100, 100, 100]
    legend = draw_legend(labels, 60, classes, palette)
    assert legend[9, 10].tolist() == [0, 0, 255] and legend[27, 10].tolist() == [0, 255, 0]
    whole = draw_segmentation(image, labels, classes=classes, palette=palette)
    assert whole.shape == (60, 40 + 150, 3)
    with pytest.raises(ValueError, match="labels are 40x59, the image is 40x60"):
        draw_segmentation(image, labels[:-1], classes=classes, palette=palette)
    many = tuple(f"class {i}" for i in range(20))
    assert draw_legend(np.arange(20), 72, many, [(0, 0, 0)] * 20).shape == (72, 150, 3)


def test_two_processes_give_the_gradients_of_the_double_batch(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "step.py"
    path.write_text(f"""
_base_ = {str(config)!r}
# BatchNorms in training mode normalise by their own replica's images: not the same function.
model = dict(
    backbone=dict(norm_eval=True, out_norm=False), neck=dict(norm_cfg=None),
    decode_head=dict(norm_cfg=None, dropout_ratio=0.0),
)
train_dataloader = dict(
    batch_size=1, sampler=dict(shuffle=False),
    dataset=dict(pipeline=[
        dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"),
        dict(type="Resize", scale=(96, 96), keep_ratio=False), dict(type="PackSegInputs"),
    ]),
)
model["data_preprocessor"] = dict(size=(96, 96))
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
train_cfg = dict(max_iters=1)
param_scheduler = None
# One step of plain gradient descent: the weights differ from the first ones by the gradient.
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=1.0))
default_hooks = dict(checkpoint=dict(_delete_=True, type="CheckpointHook", by_epoch=False, interval=1))
""")
    both = ("--cfg-options", "train_dataloader.batch_size=2")
    run("tools/train.py", path, "--work-dir", tmp_path / "one", *both)
    run("tools/train.py", path, "--work-dir", tmp_path / "start", *both,
        "optim_wrapper.optimizer.lr=0.0")  # fmt: skip
    run("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29518,
        "tools/train.py", path, "--work-dir", tmp_path / "two", "--launcher", "pytorch")  # fmt: skip
    weights = [
        torch.load(tmp_path / name / "iter_1.pth")["state_dict"] for name in ("start", "one", "two")
    ]
    names = [k for k, v in weights[0].items() if v.is_floating_point() and "running" not in k]
    before, one, two = (torch.cat([w[k].flatten() for k in names]).double() for w in weights)
    gradient = one - before
    assert gradient.norm() > 1e-2
    assert (two - one).norm() <= 1e-4 * gradient.norm()
