"""The checks of segmentation data: files, label images, classes."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import stated_size
from mmengine.registry import init_default_scope
from PIL import Image

pytest.importorskip("mmseg")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmseg.registry import DATASETS

import fastvit_dense.compat.transforms  # noqa: E402, F401
from fastvit_dense.seg.datasets import ClassesFitHook  # noqa: E402
from fastvit_dense.synthetic.ade20k import write_ade20k  # noqa: E402

PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations"),
    dict(type="CheckLabels"),
    dict(type="PackSegInputs"),
]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ade20k(tmp_path_factory.mktemp("data") / "ade", train=2, val=1, size=128)


@pytest.fixture
def ade(rendered: Path, tmp_path: Path) -> Path:
    """A dataset to spoil."""
    return Path(shutil.copytree(rendered, tmp_path / "ade"))


def dataset(root: Path, **options):
    init_default_scope("mmseg")
    cfg = dict(
        type="CheckedADE20KDataset",
        data_root=str(root),
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=PIPELINE,
    )
    return DATASETS.build(cfg | options)


def files(root: Path) -> tuple[Path, Path]:
    return (
        root / "images/training/ADE_train_00000001.jpg",
        root / "annotations/training/ADE_train_00000001.png",
    )


def relabel(root: Path, change) -> None:
    path = files(root)[1]
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def test_labels_come_out_as_class_indices(ade: Path) -> None:
    sample = dataset(ade)[0]["data_samples"].gt_sem_seg.data.numpy()
    stored = np.array(Image.open(files(ade)[1])).astype(int)
    np.testing.assert_array_equal(sample[0], np.where(stored == 0, 255, stored - 1))


def test_part_of_the_classes(ade: Path) -> None:
    data = dataset(ade, metainfo=dict(classes=("sky", "water")))
    sample = data[0]["data_samples"].gt_sem_seg.data.numpy()[0]
    stored = np.array(Image.open(files(ade)[1]))
    expected = np.full(stored.shape, 255)
    expected[stored == 3] = 0  # sky
    expected[stored == 22] = 1  # water
    np.testing.assert_array_equal(sample, expected)


def test_palette_grey_and_deep_files_are_accepted(ade: Path) -> None:
    image, label = files(ade)
    expected = dataset(ade)[0]["data_samples"].gt_sem_seg.data
    with_palette = Image.open(label).copy()
    with_palette.putpalette(list(range(256)) * 3)
    assert with_palette.mode == "P"
    with_palette.save(label)
    Image.open(image).convert("L").save(image)
    item = dataset(ade)[0]
    assert (item["data_samples"].gt_sem_seg.data == expected).all()
    assert item["inputs"].shape[0] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: np.where(a == a.max(), 151, a).astype(np.uint8), "holds 151, .*1 to 150"),
        (lambda a: np.where(a == a.max(), 200, a).astype(np.uint8), "holds 200, "),
        (lambda a: a[:-3], r"is \d+x\d+ pixels .* its image"),
        (lambda a: np.stack([a] * 3, axis=2), "mode RGB"),
        (lambda a: a.astype(np.uint16) * 100, "mode I;16"),
    ],
)
def test_wrong_labels(ade: Path, change, message: str) -> None:
    data = dataset(ade)
    relabel(ade, change)
    with pytest.raises(ValueError, match=message) as error:
        data[0]
    assert "ADE_train_00000001.png" in str(error.value)


def test_checksums_of_labels(ade: Path) -> None:
    """Decoders pass over them: labels of which bits have changed would be trained on."""
    label = files(ade)[1]
    content = bytearray(label.read_bytes())
    content[-14] ^= 1  # in the checksum before the end, a chunk of 12 bytes
    label.write_bytes(content)
    Image.open(label).load()
    with pytest.raises(ValueError, match="ADE_train_00000001.png is damaged"):
        dataset(ade)[0]


def test_rotated_photograph(ade: Path) -> None:
    image, label = files(ade)
    labels = np.array(Image.open(label))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    Image.open(image).resize((128, 96)).save(image, exif=exif)
    Image.fromarray(np.resize(labels, (96, 128))).save(label)
    with pytest.raises(ValueError, match="color_ignore_orientation"):
        dataset(ade)[0]


def test_label_that_is_no_image(ade: Path) -> None:
    data = dataset(ade)
    files(ade)[1].write_bytes(b"not an image")
    with pytest.raises(ValueError, match="ADE_train_00000001.png cannot"):
        data[0]


def test_truncated_photograph(ade: Path) -> None:
    image = files(ade)[0]
    image.write_bytes(image.read_bytes()[:1500])
    with pytest.raises(ValueError, match="ADE_train_00000001.jpg.*truncated"):
        dataset(ade)[0]


def test_missing_files(ade: Path) -> None:
    files(ade)[1].unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 images .*00000001.png"):
        dataset(ade)
    with pytest.raises(FileNotFoundError, match="images/nowhere does not exist.*data_prefix"):
        dataset(ade, data_prefix=dict(img_path="images/nowhere", seg_map_path="annotations"))
    with pytest.raises(FileNotFoundError, match="list.txt does not exist"):
        dataset(ade, ann_file="list.txt")


def test_empty_folder(ade: Path) -> None:
    shutil.rmtree(ade / "images/training")
    (ade / "images/training").mkdir()
    with pytest.raises(ValueError, match="no image.*'.jpg'"):
        dataset(ade)


def test_image_that_vanishes_is_named(ade: Path) -> None:
    data = dataset(ade)
    files(ade)[0].unlink()
    with pytest.raises(FileNotFoundError, match="ADE_train_00000001.jpg"):
        data[0]


def test_labels_above_the_limit(ade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dataset(ade)[0]["data_samples"].gt_sem_seg.data
    pixels = expected.numel()
    for limit, refused in ((pixels // 2 - 1, True), (pixels, False)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if refused:
            with pytest.raises(ValueError, match="_00000001.png .*set max_pixels of the dataset"):
                dataset(ade)[0]
        # Deliberately, and no more than what is asked for; Pillow alone would read twice as many.
        for allowed in (pixels, 10 * pixels):
            item = dataset(ade, max_pixels=allowed)[0]
            assert (item["data_samples"].gt_sem_seg.data == expected).all()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in a training; here they are errors anyway
            with pytest.raises(ValueError, match=f"{pixels - 1} pixels"):
                dataset(ade, max_pixels=pixels - 1)[0]
        assert Image.MAX_IMAGE_PIXELS == limit


def test_large_labels(ade: Path) -> None:
    """Of a real file: 13 400 x 13 400 pixels in 100 KB."""
    Image.new("1", (13_400, 13_400)).save(files(ade)[1], compress_level=1)
    load = dict(pipeline=[dict(type="LoadAnnotations")])
    with pytest.raises(ValueError, match="_00000001.png .*179560000 pixels.*max_pixels"):
        dataset(ade, **load)[0]
    labels = dataset(ade, **load, max_pixels=179_560_000)[0]["gt_seg_map"]
    assert labels.shape == (13_400, 13_400) and labels.dtype == np.uint8 and labels[-1, -1] == 255


def test_photograph_above_the_limit_of_opencv(ade: Path) -> None:
    files(ade)[0].write_bytes(stated_size(40_000, 40_000))
    with pytest.raises(ValueError, match="_00000001.jpg .*40000x40000 .*OpenCV"):
        dataset(ade)[0]
    load = dict(type="LoadImageFromFile", imdecode_backend="pillow")
    with pytest.raises(ValueError, match="truncated"):  # so it is read
        dataset(ade, pipeline=[load], max_pixels=1_600_000_000)[0]


def test_own_classes(ade: Path) -> None:
    own = dict(type="CheckedSegDataset", reduce_zero_label=True)
    names = tuple(f"class {i}" for i in range(22))
    assert dataset(ade, **own, metainfo=dict(classes=names))[0] is not None
    few = dataset(ade, **own, metainfo=dict(classes=("a", "b")))
    with pytest.raises(ValueError, match="2 classes labels run from 1 to 2"):
        few[0]


def test_heads_must_predict_the_classes_of_the_dataset(ade: Path) -> None:
    class Runner:
        pass

    class Head:
        num_classes = 19

    class Model:
        def named_modules(self):
            return [("", self), ("backbone", object()), ("decode_head", Head())]

    runner = Runner()
    runner.model = Model()
    runner.train_dataloader = Runner()
    runner.train_dataloader.dataset = dataset(ade)
    with pytest.raises(ValueError, match="decode_head has num_classes=19, .* 150"):
        ClassesFitHook().before_train(runner)
    Head.num_classes = 150
    ClassesFitHook().before_train(runner)
