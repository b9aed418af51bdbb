"""The sample data set is what it says, checked by other means than those that wrote it."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from scipy import ndimage

from fastvit_dense.synthetic.coco import CLASSES, polygons, render_scene, write_coco
from fastvit_dense.synthetic.files import new_folder

SPLITS = ("train2017", "val2017")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "shapes", train=50, val=12, seed=3)


def load(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def tree(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def decode(segmentation, height, width):
    """A mask, from polygons by OpenCV on a 10 times finer grid or from runs by pycocotools."""
    if isinstance(segmentation, dict):
        assert segmentation["size"] == [height, width]
        return mask_api.decode(segmentation).astype(bool)
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        fine = np.zeros((10 * height + 1, 10 * width + 1), np.uint8)
        points = 10 * np.array(polygon, np.int32).reshape(-1, 2)
        cv2.fillPoly(fine, [points], 1)
        mask |= fine[5::10, 5::10][:height, :width] == 1  # the middle of each pixel
    return mask


@pytest.mark.parametrize("split", SPLITS)
def test_masks_boxes_and_areas_agree(folder, split):
    data = load(folder, split)
    coco = COCO(folder / "annotations" / f"instances_{split}.json")
    assert len(coco.anns) == len(data["annotations"]) > 20
    owner = {}
    for image in data["images"]:
        owner[image["id"]] = np.zeros((image["height"], image["width"]), int)
    for ann in data["annotations"]:
        taken = owner[ann["image_id"]]
        mask = decode(ann["segmentation"], *taken.shape)
        assert (coco.annToMask(ann) == mask).all()  # so that every reader sees the same
        assert ann["area"] == mask.sum() > 0
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        x, y, w, h = ann["bbox"]
        assert (x, y) == (columns[0], rows[0])
        assert (x + w, y + h) == (columns[-1] + 1, rows[-1] + 1)
        assert not (taken[mask]).any(), "two visible parts overlap"
        taken[mask] = 1


def test_everything_is_there(folder):
    for split in SPLITS:
        data = load(folder, split)
        names = {c["id"]: c["name"] for c in data["categories"]}
        assert tuple(names.values()) == CLASSES
        assert list(names) != list(range(1, len(names) + 1)), "ids without gaps hide bugs"
        objects = data["annotations"]
        assert {a["iscrowd"] for a in objects} == {0}
        assert {names[a["category_id"]] for a in objects} == set(CLASSES)
        areas = np.array([a["area"] for a in objects])
        bins = [(areas < 32**2).sum(), ((areas >= 32**2) & (areas < 96**2)).sum()]
        assert min(*bins, (areas >= 96**2).sum()) > 0, bins
        assert {type(a["segmentation"]) for a in objects} == {list, dict}
        used = [a["image_id"] for a in data["annotations"]]
        assert {i["id"] for i in data["images"]} - set(used), "no image without annotation"
        counts = [used.count(i) for i in set(used)]
        assert min(counts) >= 1 and max(counts) <= 5
        assert len({(i["width"], i["height"]) for i in data["images"]}) > 3
    ids = [i["id"] for s in SPLITS for i in load(folder, s)["images"]]
    assert len(set(ids)) == len(ids) == 62
    ids = [a["id"] for s in SPLITS for a in load(folder, s)["annotations"]]
    assert len(set(ids)) == len(ids)


def test_holes_have_a_mask_with_a_hole(folder):
    data = load(folder, "train2017")
    sizes = {i["id"]: (i["height"], i["width"]) for i in data["images"]}
    rings = 0
    for ann in data["annotations"]:
        mask = decode(ann["segmentation"], *sizes[ann["image_id"]])
        filled = ndimage.binary_fill_holes(mask, np.ones((3, 3)))
        assert isinstance(ann["segmentation"], dict) == bool((filled & ~mask).any())
        rings += isinstance(ann["segmentation"], dict)
    assert rings > 5


@pytest.mark.parametrize("split", SPLITS)
def test_images_are_whole_jpegs_of_the_stated_size(folder, split):
    images = load(folder, split)["images"]
    assert sorted(p.name for p in (folder / split).iterdir()) == [i["file_name"] for i in images]
    for image in images:
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        with Image.open(folder / split / image["file_name"]) as picture:
            picture.load()
            assert picture.format == "JPEG"
            assert picture.size == (image["width"], image["height"])
        assert max(image["width"], image["height"]) == 192


def test_same_seed_same_bytes(folder, tmp_path):
    again = tree(write_coco(tmp_path / "again", train=50, val=12, seed=3))
    assert again == tree(folder)
    other = tree(write_coco(tmp_path / "other", train=2, val=1, seed=4))
    assert not set(other.values()) & set(again.values())
    # Fewer images: the same ones.
    fewer = tree(write_coco(tmp_path / "fewer", train=2, val=1, seed=3))
    pictures = [name for name in fewer if name.endswith(".jpg")]
    assert len(pictures) == 3 and all(fewer[name] == again[name] for name in pictures)


def test_labels_lie_on_what_is_rendered():
    """The mask is of the object in the picture: where it ends, the object's colours end."""
    for seed in range(8):
        image, labels, (shape,) = render_scene(np.random.default_rng(seed), (192, 144), count=1)
        mask = labels == 1
        error = np.abs(image - shape.colour.astype(float)).mean(axis=2)
        inside = ndimage.binary_erosion(mask, iterations=2)
        outside = ~ndimage.binary_dilation(mask, iterations=2)
        assert error[inside].mean() < 5 < 20 < error[outside].mean()


def test_hidden_objects_are_not_rendered():
    """Far more objects than fit: some are left out, and those rendered are all well visible."""
    _, labels, objects = render_scene(np.random.default_rng(0), (96, 96), count=40)
    assert 1 < len(objects) < 40
    for i, shape in enumerate(objects, start=1):
        assert (labels == i).sum() > 0.4 * shape.full_area


def test_polygons_by_hand():
    (square,) = polygons(np.array([[1]]))
    assert square.tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]
    (corner,) = polygons(np.array([[1, 0], [1, 1]]))
    assert corner.tolist() == [[0, 0], [0, 2], [2, 2], [2, 1], [1, 1], [1, 0]]
    assert len(polygons(np.array([[1, 0, 1]]))) == 2
    assert polygons(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])) == []  # a hole


@pytest.mark.parametrize("seed", range(20))
def test_polygons_give_the_mask_again(seed):
    mask = ndimage.binary_fill_holes(np.random.default_rng(seed).random((11, 13)) < 0.5)
    total = np.zeros(mask.shape, int)
    for loop in polygons(mask):
        # Signed winding number of each pixel's middle: edges crossed by a ray to the left.
        for (x0, y0), (x1, y1) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1)
            if x0 == x1:
                total[min(y0, y1) : max(y0, y1), x0:] += np.sign(y1 - y0)
    assert (np.abs(total) == mask).all()


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": 0}, {"seed": -1}, {"size": 63}, {"size": 5000}]
)
def test_arguments_out_of_range(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be between .* got {value}"):
        write_coco(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_by_accident(tmp_path):
    out = tmp_path / "data"
    out.mkdir()
    write_coco(out, train=1, val=1)  # an empty folder will do
    before = tree(out)
    with pytest.raises(ValueError, match="is not empty.*--force"):
        write_coco(out, train=1, val=1, seed=1)
    assert tree(out) == before
    write_coco(out, train=1, val=1, seed=1, overwrite=True)
    assert tree(out).keys() == before.keys() and tree(out) != before
    # Not even with overwrite, when there is anything in it that we did not write.
    (out / "thesis.tex").write_text("five years")
    with pytest.raises(ValueError, match="thesis.tex.*not replaced"):
        write_coco(out, train=1, val=1, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        write_coco(out / "thesis.tex", train=1, val=1, overwrite=True)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        new_folder(tmp_path / "data", overwrite=False, holds=("a",)) as folder,
    ):
        (folder / "a").write_text("half")
        assert not (tmp_path / "data").exists()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path):
    def run(*arguments):
        command = [sys.executable, str(ROOT / "tools" / "sample_data.py"), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )

    done = run("coco", tmp_path / "a", "--train", 2, "--val", 1, "--seed", 5, "--size", 96)
    assert done.returncode == 0, done.stderr
    assert "2 training and 1 held-out" in done.stdout
    assert tree(tmp_path / "a") == tree(write_coco(tmp_path / "b", train=2, val=1, seed=5, size=96))
    again = run("coco", tmp_path / "a", "--train", 2, "--val", 1)
    assert again.returncode == 2
    assert "is not empty" in again.stderr and "Traceback" not in again.stderr
