"""The sample segmentation data is laid out as ADE20K, and takes more than colours to solve."""

import runpy

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy import ndimage

from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.synthetic.ade20k import CLASSES, HUES, TEXTURES, render_picture, write_ade20k

SPLITS = {"training": ("train", 44), "validation": ("val", 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ade20k(tmp_path_factory.mktemp("data") / "ade", train=44, val=20, seed=3)


@pytest.fixture(scope="module")
def pictures(folder):
    """Image (H, W, 3) and labels (H, W) of each file, by split."""
    return {
        split: [
            (np.array(Image.open(path)), np.array(Image.open(annotation(folder, path))))
            for path in sorted((folder / "images" / split).iterdir())
        ]
        for split in SPLITS
    }


def annotation(folder, image):
    return folder / "annotations" / image.parent.name / f"{image.stem}.png"


def tree(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("split", SPLITS)
def test_layout(folder, split):
    short, count = SPLITS[split]
    stems = [f"ADE_{short}_{i:08d}" for i in range(1, count + 1)]
    images = sorted((folder / "images" / split).iterdir())
    assert [p.name for p in images] == [f"{s}.jpg" for s in stems]
    names = sorted(p.name for p in (folder / "annotations" / split).iterdir())
    assert names == [f"{s}.png" for s in stems]
    sizes = set()
    for path in images:
        with Image.open(path) as image, Image.open(annotation(folder, path)) as labels:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert (labels.format, labels.mode) == ("PNG", "L")
            assert image.size == labels.size and max(image.size) == 256
            sizes.add(image.size)
    assert len(sizes) > 3
    assert {p.name for p in folder.iterdir()} == {"images", "annotations"}


def test_classes_are_ade20ks():
    datasets = pytest.importorskip("mmseg.datasets")
    names = datasets.ADE20KDataset.METAINFO["classes"]
    assert CLASSES == {name: names.index(name) + 1 for name in CLASSES}


@pytest.mark.parametrize("split", SPLITS)
def test_labels(pictures, split):
    labels = [labels for _, labels in pictures[split]]
    assert set(np.concatenate([np.unique(one) for one in labels])) == {0, *CLASSES.values()}
    share = {v: np.mean([(one == v).mean() for one in labels]) for v in (0, *CLASSES.values())}
    assert 0.005 < share.pop(0) < 0.06  # unlabelled
    assert min(share.values()) > 0.04 and max(share.values()) < 0.25, share
    for name, value in CLASSES.items():
        assert np.mean([(one == value).mean() > 0.01 for one in labels]) > 1 / 3, name
    assert min(len(np.unique(one)) for one in labels) >= 4
    # What is labelled is large enough to be seen.
    for one in labels:
        for value in set(CLASSES.values()) & set(one.ravel().tolist()):
            parts, count = ndimage.label(one == value, np.ones((3, 3)))
            assert np.bincount(parts.ravel())[1:].min() >= 12**2 and count < 8


def test_textures_and_colours_cover_the_classes():
    assert set(TEXTURES) == {None, *CLASSES}
    assert len(set(TEXTURES.values())) == len(TEXTURES)
    used = [name for *_, names in HUES.values() for name in names]
    assert set(used) == set(CLASSES)
    assert min(used.count(name) for name in CLASSES) >= 2
    assert min(len(names) for *_, names in HUES.values()) >= 3, "a colour gives a class away"


def regions(pictures):
    """Mean colour (n, 3), local statistics (n, 10) and class (n,) of the regions of pictures."""
    colours, textures, values = [], [], []
    for image, labels in pictures:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        responses = []
        for step in (1, 3):
            smooth = cv2.GaussianBlur(grey, (0, 0), step)
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                responses.append(smooth - np.roll(smooth, (dy * step, dx * step), (0, 1)))
            responses.append(grey - smooth)
        for name, value in CLASSES.items():
            mask = ndimage.binary_erosion(labels == value, iterations=5)
            if mask.sum() < 300:
                continue
            colours.append(image[mask].mean(axis=0))
            textures.append([np.log(r[mask].std() + 1) for r in responses])
            values.append(name)
    return np.array(colours), np.array(textures), np.array(values)


def test_it_takes_texture_to_tell_the_classes_apart(pictures):
    colours, textures, values = regions(pictures["training"])
    new_colours, new_textures, new_values = regions(pictures["validation"])

    means = np.stack([colours[values == name].mean(axis=0) for name in CLASSES])
    nearest = np.linalg.norm(new_colours[:, None] - means, axis=2).argmin(axis=1)
    by_mean = np.mean(np.array(list(CLASSES))[nearest] == new_values)
    nearest = np.linalg.norm(new_colours[:, None] - colours, axis=2).argmin(axis=1)
    by_colour = np.mean(values[nearest] == new_values)

    def features(colours, textures):
        return np.hstack([colours / 100, (textures - textures_mean) / textures_std])

    textures_mean, textures_std = textures.mean(axis=0), textures.std(axis=0)
    known, new = features(colours, textures), features(new_colours, new_textures)
    nearest = np.linalg.norm(new[:, None] - known, axis=2).argmin(axis=1)
    by_both = np.mean(values[nearest] == new_values)
    assert max(by_mean, by_colour) < 0.5, (by_mean, by_colour)
    assert by_both > 0.8, by_both


def test_borders_are_where_the_picture_changes():
    """The labels lie on the picture: across their borders it differs more than elsewhere."""
    inside, across = [], []
    for seed in range(4):
        image, labels = render_picture(np.random.default_rng(seed), (256, 256))
        step = np.abs(np.diff(image.astype(float), axis=0)).mean(axis=2)
        upper, lower = labels[:-1], labels[1:]
        border = (upper != lower) & (upper > 0) & (lower > 0)
        away = ndimage.distance_transform_edt(~(upper != lower)) > 6
        across.append(step[border].mean())
        inside.append(step[away].mean())
    assert np.mean(across) > 1.3 * np.mean(inside), (across, inside)


def test_same_seed_same_bytes(folder, tmp_path):
    before = tree(folder)
    # Fewer images: the same ones.
    fewer = tree(write_ade20k(tmp_path / "fewer", train=3, val=2, seed=3))
    assert len(fewer) == 2 * (3 + 2)
    assert all(before[name] == data for name, data in fewer.items())
    other = tree(write_ade20k(tmp_path / "other", train=3, val=2, seed=4))
    assert not set(other.values()) & set(before.values())
    assert len(set(before.values())) == len(before)


@pytest.mark.parametrize("size", [128, 400])
def test_other_sizes(tmp_path, size):
    data = write_ade20k(tmp_path / "data", train=2, val=1, size=size)
    for path in (data / "images" / "training").iterdir():
        with Image.open(path) as image:
            assert max(image.size) == size


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"val": 0}, {"seed": -1}, {"size": 127}, {"size": 5000}]
)
def test_arguments_out_of_range(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be between .* got {value}"):
        write_ade20k(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_by_accident(tmp_path):
    out = write_ade20k(tmp_path / "data", train=1, val=1, size=128)
    before = tree(out)
    with pytest.raises(ValueError, match="is not empty.*--force"):
        write_ade20k(out, train=1, val=1, seed=1, size=128)
    assert tree(out) == before
    write_ade20k(out, train=1, val=1, seed=1, size=128, overwrite=True)
    assert tree(out).keys() == before.keys() and tree(out) != before
    (out / "objectInfo150.txt").write_text("the real ADE20K has this")
    with pytest.raises(ValueError, match="objectInfo150.txt.*not replaced"):
        write_ade20k(out, train=1, val=1, size=128, overwrite=True)


def test_command(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "tools" / "sample_data.py"))["main"]

    def command(options: list[str]) -> int:
        return end_in_one_line(lambda: main(options))

    options = ["--train", "2", "--val", "1", "--seed", "5", "--size", "128"]
    assert command(["ade20k", str(tmp_path / "a"), *options]) == 0
    assert "2 training and 1 held-out" in capsys.readouterr().out
    wanted = write_ade20k(tmp_path / "b", train=2, val=1, seed=5, size=128)
    assert tree(tmp_path / "a") == tree(wanted)
    assert command(["ade20k", str(tmp_path / "a"), *options]) == 2
    assert "is not empty" in capsys.readouterr().err
