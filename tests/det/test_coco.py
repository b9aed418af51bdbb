"""All that a COCO-format dataset can have wrong: an error or a line in the log, never silence."""

import copy
import json
import logging
import pickle

import cv2
import numpy as np
import pytest
from conftest import stated_size
from PIL import Image

pytest.importorskip("mmdet")

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.registry import DefaultScope

from fastvit_dense.compat.transforms import CheckImage
from fastvit_dense.det import annotations as coco_annotations
from fastvit_dense.det.coco import CheckedCocoDataset
from fastvit_dense.io.media import is_truncated_jpeg
from fastvit_dense.synthetic.coco import write_coco

BOX = [10.0, 5.0, 20.0, 10.0]
POLYGON = [[10, 5, 30, 5, 30, 15, 10, 15]]
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="CheckImage"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs"),
]


def ann(number, image_id=7, **changes):
    base = dict(id=number, image_id=image_id, category_id=3, bbox=BOX, area=200.0, iscrowd=0)
    return {k: v for k, v in (base | {"segmentation": POLYGON} | changes).items() if v is not ...}


def content(*annotations, **changes):
    """An annotation file with one image; `...` leaves a key out, a number of images makes more."""
    number = changes.pop("images") if isinstance(changes.get("images"), int) else 1
    data = dict(
        images=[
            dict(id=i, file_name=f"{i}.jpg", width=80, height=60) for i in range(7, 7 + number)
        ],
        annotations=list(annotations) or [ann(1)],
        categories=[dict(id=3, name="person"), dict(id=9, name="dog")],
    )
    return {k: v for k, v in (data | changes).items() if v is not ...}


def picture(height=60, width=80):
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return cv2.GaussianBlur(ramp.astype(np.uint8), (5, 5), 0)


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope("mmdet"):  # as mmdet's configs set it
        yield


@pytest.fixture
def messages(monkeypatch):
    """(level, text) of what is logged."""
    found = []
    monkeypatch.setattr(
        coco_annotations, "print_log", lambda text, logger, level: found.append((level, text))
    )
    return found


def warnings_of(messages):
    return [text for level, text in messages if level == logging.WARNING]


@pytest.fixture
def build(tmp_path, messages):
    """Write `data` (a dict, or text as it stands) and images; build a dataset of it."""

    def build(data, *, classes=("person", "dog"), cls=CheckedCocoDataset, **options):
        text = data if isinstance(data, str) else json.dumps(data)
        (tmp_path / "ann.json").write_text(text)
        for number in range(7, 10):
            if not (tmp_path / f"{number}.jpg").exists():
                cv2.imwrite(str(tmp_path / f"{number}.jpg"), picture())
        settings = dict(
            ann_file="ann.json",
            data_root=str(tmp_path),
            data_prefix=dict(img=""),
            metainfo=dict(classes=classes),
            pipeline=copy.deepcopy(PIPELINE),
        )
        return cls(**settings | options)

    return build


def test_a_good_file_gives_what_mmdet_gives(tmp_path):
    folder = write_coco(tmp_path / "shapes", train=30, val=2)
    settings = dict(
        ann_file="annotations/instances_train2017.json",
        data_root=str(folder),
        data_prefix=dict(img="train2017/"),
        metainfo=dict(classes=("disc", "square", "triangle", "star", "ring")),
        pipeline=PIPELINE,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
    ours = DATASETS.build(dict(type="CheckedCocoDataset", **settings))
    theirs = DATASETS.build(dict(type="CocoDataset", **settings))
    assert len(ours) == len(theirs) < 30
    for i in range(len(ours)):
        assert ours.get_data_info(i) == theirs.get_data_info(i)
    assert ours[0]["inputs"].shape == theirs[0]["inputs"].shape
    assert len(pickle.loads(pickle.dumps(ours))) == len(ours)  # for workers that are spawned
    wrapped = DATASETS.build(
        dict(
            type="ConcatDataset",
            datasets=[
                dict(
                    type="RepeatDataset",
                    times=2,
                    dataset=dict(type="CheckedCocoDataset", **settings),
                ),
                dict(type="CheckedCocoDataset", lazy_init=True, **settings),
            ],
        )
    )
    assert len(wrapped) == 3 * len(ours)
    assert wrapped.metainfo["classes"] == settings["metainfo"]["classes"]


@pytest.mark.parametrize("ann_file", ["", "none.json"])
@pytest.mark.parametrize("test_mode", [False, True])
def test_no_annotation_file(build, ann_file, test_mode):
    with pytest.raises(FileNotFoundError, match=f"{ann_file}.*does not exist.*data_root"):
        build(content(), ann_file=ann_file, test_mode=test_mode)


@pytest.mark.parametrize(
    "text, message",
    [
        (json.dumps(content())[:-20], r"ann.json \(\d+ bytes\) is not valid JSON.*truncated"),
        (json.dumps(content())[:60], "not valid JSON"),
        ("", "not valid JSON"),
        ('{"images": [1, 2,, 3], "annotations": []}', "not valid JSON.*line 1 column 18"),
        ("7", "instances_.*got a int"),
        ("[]", "instances_.*got a list"),
        (json.dumps([dict(image_id=1, score=0.5)]), "instances_.*got a list"),
        (json.dumps(dict(metainfo={}, data_list=[])), "instances_.*'data_list'"),
    ],
)
def test_not_an_annotation_file(build, text, message):
    with pytest.raises(ValueError, match=message):
        build(text)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_list_is_missing(build, key):
    for missing in (..., {}):
        with pytest.raises(ValueError, match=f"ann.json has no list '{key}'"):
            build(content(**{key: missing}))


@pytest.mark.parametrize(
    "number, message",
    [
        ("9" * 5000, "ann.json .*not valid JSON.*limit"),
        ("[" * 10**5 + "]" * 10**5, "ann.json .*not valid JSON.*recursion"),
    ],
)
def test_numbers_and_lists_beyond_reason(build, number, message):
    with pytest.raises(ValueError, match=message):
        build(json.dumps(content()).replace("200.0", number))


@pytest.mark.parametrize("name", [None, 7, ["7.jpg"]])
def test_names_that_are_none(build, name):
    images = [dict(id=7, file_name=name, width=80, height=60)]
    with pytest.raises(ValueError, match="1 of 1 images .*'file_name'.*: 7"):
        build(content(images=images))


def test_other_files_of_coco_are_refused(build):
    caption = dict(id=1, image_id=7, caption="A dog.")
    with pytest.raises(ValueError, match=r"instances_\*"):
        build(content(caption, categories=...))
    with pytest.raises(ValueError, match="'id'.*segments_info"):
        build(content(dict(image_id=7, segments_info=[])))


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox", "area"])
def test_a_key_is_missing(build, key):
    with pytest.raises(ValueError, match=f"1 of 2 annotations .*'{key}'.*2"):
        build(content(ann(1), ann(2, **{key: ...})))


def test_iscrowd_is_needed_to_evaluate_only(build):
    assert len(build(content(ann(1, iscrowd=...)))) == 1
    with pytest.raises(ValueError, match="1 annotations .*'iscrowd': 1"):
        build(content(ann(1, iscrowd=...)), test_mode=True)


def test_images_without_size_or_name(build):
    with pytest.raises(ValueError, match="1 of 1 images .*'height'.*: 7"):
        build(content(images=[dict(id=7, file_name="7.jpg", width=80)]))
    with pytest.raises(ValueError, match="1 of 1 images .*'height'.*: 7"):
        build(content(images=[dict(id=7, file_name="7.jpg", width=80, height=0)]))


def test_ids(build):
    with pytest.raises(ValueError, match="annotations .*twice: 4"):
        build(content(ann(4), ann(4)))
    with pytest.raises(ValueError, match="images .*twice: 7"):
        build(content(images=content()["images"] * 2))
    with pytest.raises(ValueError, match="2 annotations .*image_id.*: 5, 6"):
        build(content(ann(4), ann(5, image_id=1), ann(6, image_id="7")))
    with pytest.raises(ValueError, match="1 annotations .*category_id.*: 4"):
        build(content(ann(4, category_id=0)))


def test_classes_that_the_file_does_not_have(build):
    with pytest.raises(ValueError, match="1 of the 2 classes.*'Person'.*'person', 'dog'"):
        build(content(), classes=("Person", "dog"))
    with pytest.raises(ValueError, match="79 of the 80|78 of the 80.*COCO's 80 classes"):
        build(content(), metainfo=None)
    with pytest.raises(ValueError, match="twice: 'dog'"):
        build(content(categories=[dict(id=i, name="dog") for i in (3, 4)]))
    # The silence this is about:
    silent = build(content(), classes=("Person", "dog"), cls=CocoDataset)
    assert silent.cat_ids == [9] and silent.get_data_info(0)["instances"] == []


def test_order_of_classes(build):
    with pytest.raises(ValueError, match=r"order.*classes=\('person', 'dog'\)"):
        build(content(), classes=("dog", "person"))
    # What it protects from: mmdet calls a person, label 0, by classes[0], 'dog'.
    silent = build(content(), classes=("dog", "person"), cls=CocoDataset)
    assert silent.get_data_info(0)["instances"][0]["bbox_label"] == 0


def test_categories_left_out_are_logged(build, messages):
    build(content(ann(1), ann(2, category_id=9)), classes=("person",))
    (text,) = warnings_of(messages)
    assert "1 categories" in text and "1 annotations are left out" in text and "'dog'" in text


def test_classes_as_a_string(build, tmp_path):
    with pytest.raises(ValueError, match=r"'p', 'e', 'r'.*classes=\(\.\.\.,\)"):
        build(content(), classes=("person"))
    (tmp_path / "names.txt").write_text("person\ndog\n")  # mmengine reads such files
    assert build(content(), classes=str(tmp_path / "names.txt")).metainfo["classes"] == [
        "person",
        "dog",
    ]
    for classes in (("dog", "dog"), ()):
        with pytest.raises(ValueError, match="metainfo"):
            build(content(), classes=classes)


@pytest.mark.parametrize(
    "changes, count, message",
    [
        (dict(bbox=[10, 5, 0, 10]), 0, "below 1 pixel"),
        (dict(bbox=[10, 5, -4, 10]), 0, "below 1 pixel"),
        (dict(bbox=[10, 5, 20, 0.5]), 0, "below 1 pixel"),
        (dict(area=0), 0, "below 1 pixel"),
        (dict(bbox=[90, 5, 20, 10]), 0, "outside"),
        (dict(bbox=[10, -20, 20, 10]), 0, "outside"),
        (dict(bbox=[80, 5, 20, 10]), 0, "outside"),  # touches
        (dict(bbox=[-20, 5, 20, 10]), 0, "outside"),
        (dict(ignore=1), 0, "'ignore'"),
        (dict(bbox=[70, 5, 20, 10]), 1, "reaching out"),
        (dict(segmentation=[[1, 2, 3, 4]]), 1, "mask"),
        (dict(iscrowd=1, segmentation=dict(counts=[4800], size=[60, 80])), 1, None),
    ],
)
def test_odd_annotations_are_counted(build, messages, changes, count, message):
    """And what is said to be dropped is what mmdet drops."""
    dataset = build(content(ann(1), ann(2, **changes)))
    assert len(dataset.get_data_info(0)["instances"]) == 1 + count
    found = warnings_of(messages)
    assert len(found) == (message is not None)
    assert all(
        message in text and "1 annotations" in text and text.endswith(": 2") for text in found
    )
    summary = f"{1 - count} dropped, {int(message is None)} crowds"
    assert messages[-1][0] == logging.INFO and summary in messages[-1][1]


def test_summary_of_a_clean_file(build, messages):
    build(content(ann(1), images=3))
    assert [level for level, _ in messages] == [logging.INFO]
    assert "3 images, 2 of them" in messages[0][1] and "0 dropped" in messages[0][1]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(bbox=[10, 5, float("inf"), 10]), "'bbox'"),
        (dict(bbox=[float("nan"), 5, 10, 10]), "'bbox'"),
        (dict(bbox=[10, 5, 1e308, 10]), "'bbox'"),
        (dict(bbox=[10, 5, 10]), "'bbox'"),
        (dict(bbox=["10", "5", "10", "10"]), "'bbox'"),
        (dict(bbox=None), "'bbox'"),
        (dict(area="big"), "'area'"),
        (dict(area=float("nan")), "'area'"),
        (dict(area=10**400), "'area'"),
        (dict(segmentation=...), "no 'segmentation'"),
        (dict(segmentation=[]), "no 'segmentation'"),
        (dict(segmentation=POLYGON[0]), "fail or crash"),
        (dict(segmentation="PPP"), "fail or crash"),
        # With each of these pycocotools crashes, fails without a reason, or writes where it must not.
        (dict(segmentation=[[1e9, 5, 30, 5, 30, -1e9]]), "fail or crash"),
        (dict(segmentation=[[1, 5, 30, float("nan"), 30, 9]]), "fail or crash"),
        (dict(segmentation=[[1, 5, 30, "5", 30, 9]]), "fail or crash"),
        (dict(segmentation=dict(counts=[4800], size=[80, 60])), "fail or crash"),
        (dict(segmentation=dict(counts=[4801], size=[60, 80])), "fail or crash"),
        (dict(segmentation=dict(counts=[4801, -1], size=[60, 80])), "fail or crash"),
        (dict(segmentation=dict(counts="P", size=[60, 80])), "fail or crash"),
        (dict(segmentation=dict(counts="a b", size=[60, 80])), "fail or crash"),
        (dict(image_id=[7]), "'image_id'"),
    ],
)
def test_unusable_annotations(build, changes, message):
    with pytest.raises(ValueError, match=f"ann.json: 1 .*annotations .*{message}.*: 2"):
        build(content(ann(1), ann(2, **changes)))


def test_all_boxes_wrong_at_once(build):
    """Equally many numbers in each, so that they do make an array."""
    with pytest.raises(ValueError, match="4 of 4 annotations .*'bbox'"):
        build(content(*[ann(i, bbox=[1, 2, 3]) for i in range(4)]))


def test_no_masks_needed(build, messages):
    pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True)]
    dataset = build(content(ann(1, segmentation=...)), pipeline=pipeline)
    assert len(dataset.get_data_info(0)["instances"]) == 1
    assert not warnings_of(messages)


def test_rle_with_a_pipeline_of_polygons(build, messages):
    pipeline = [dict(type="LoadAnnotations", with_mask=True, poly2mask=False)]
    rle = dict(counts=[0, 4800], size=[60, 80])
    build(content(ann(1), ann(2, segmentation=rle)), pipeline=pipeline)
    (text,) = warnings_of(messages)
    assert "mask" in text and text.endswith(": 2")


def test_nothing_left(build):
    filters = dict(filter_empty_gt=True, min_size=32)
    with pytest.raises(ValueError, match="no image is left to use of 1; 0 have"):
        build(content(annotations=[]), filter_cfg=filters)
    with pytest.raises(ValueError, match="no image is left.*1 have.*'min_size': 100"):
        build(content(), filter_cfg=dict(min_size=100))
    with pytest.raises(ValueError, match="no image is left"):
        build(content(images=[], annotations=[]), test_mode=True)


def test_filtered_images_are_counted(build, messages):
    assert len(build(content(images=3), filter_cfg=dict(filter_empty_gt=True))) == 1
    assert messages[-1][0] == logging.INFO and "leaves out 2 images" in messages[-1][1]


def test_images_without_annotations_list_can_be_tested(build):
    """COCO's test-dev file."""
    dataset = build(content(annotations=...), test_mode=True)
    assert len(dataset) == 1 and dataset[0]["inputs"].shape == (3, 60, 80)


# ---- images -------------------------------------------------------------------------------------


def test_missing_image(build, tmp_path):
    for test_mode in (False, True):
        dataset = build(content(), test_mode=test_mode)
        (tmp_path / "7.jpg").unlink()
        with pytest.raises(
            FileNotFoundError, match="7.jpg does not exist.*image id 7.*data_prefix"
        ):
            dataset[0]


@pytest.mark.parametrize("test_mode", [False, True])
@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "7.jpg .*image id 7.*empty"),
        (b"no picture" * 99, "7.jpg .*image id 7.*failed to load"),
    ],
)
def test_no_image_in_the_file(build, tmp_path, data, message, test_mode):
    dataset = build(content(), test_mode=test_mode)
    (tmp_path / "7.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        dataset[0]


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg(build, tmp_path, part, progressive):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    dataset = build(content())
    Image.fromarray(noise).save(tmp_path / "7.jpg", quality=95, progressive=progressive)
    assert dataset[0]["inputs"].shape == (3, 60, 80)
    whole = (tmp_path / "7.jpg").read_bytes()
    (tmp_path / "7.jpg").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="7.jpg .*truncated JPEG"):
        dataset[0]


def test_image_above_the_limit_of_opencv(build, tmp_path):
    dataset = build(content())
    (tmp_path / "7.jpg").write_bytes(stated_size(40_000, 40_000))
    with pytest.raises(ValueError, match="7.jpg .*40000x40000.*OpenCV"):
        dataset[0]


def test_opencv_is_silent_about_truncation(tmp_path):
    """The reason for CheckImage; when this fails, it may go."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    encoded = cv2.imencode(".jpg", noise)[1].tobytes()
    half = encoded[: len(encoded) // 2].ljust(len(encoded), b"\0")  # a download that stopped
    assert cv2.imdecode(np.frombuffer(half, np.uint8), cv2.IMREAD_COLOR).shape == (60, 80, 3)
    assert is_truncated_jpeg(half)
    (tmp_path / "7.jpg").write_bytes(half)
    results = dict(img_path=str(tmp_path / "7.jpg"), img=np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(ValueError, match="7.jpg .*truncated JPEG"):
        CheckImage()(results)


def test_is_truncated_jpeg_looks_at_the_picture_itself():
    def jpeg(**options):
        from io import BytesIO

        stream = BytesIO()
        Image.fromarray(picture()).save(stream, "JPEG", **options)
        return stream.getvalue()

    small = jpeg()
    # A thumbnail in a segment has its own end marker; a trailer may hold anything.
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    with_thumbnail = small[:2] + segment + small[2:]
    assert cv2.imdecode(np.frombuffer(with_thumbnail, np.uint8), 1).shape == (60, 80, 3)
    for whole in (small, with_thumbnail, jpeg(progressive=True), jpeg(restart_marker_blocks=1)):
        assert not is_truncated_jpeg(whole)
        assert not is_truncated_jpeg(whole + b"\xff\xda trailer")
        for end in (2, 3, 30, len(whole) // 2, len(whole) - 2, len(whole) - 1):
            assert is_truncated_jpeg(whole[:end])
    assert not is_truncated_jpeg(b"\x89PNG")


def test_truncated_png(build, tmp_path, capfd):
    dataset = build(content(images=[dict(id=7, file_name="7.png", width=80, height=60)]))
    for part in (0.5, 0.95):
        Image.fromarray(picture()).save(tmp_path / "7.png")
        whole = (tmp_path / "7.png").read_bytes()
        (tmp_path / "7.png").write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(ValueError, match="7.png"):
            dataset[0]


@pytest.mark.parametrize("kind", ["grey", "cmyk", "rgba", "16 bit", "palette"])
def test_colours_are_those_pillow_sees(build, tmp_path, kind):
    rgb = picture()
    name = "7.jpg" if kind in ("grey", "cmyk") else "7.png"
    dataset = build(content(images=[dict(id=7, file_name=name, width=80, height=60)]))
    if kind == "16 bit":
        cv2.imwrite(str(tmp_path / name), rgb[..., ::-1].astype(np.uint16) * 257)
    else:
        mode = {"grey": "L", "cmyk": "CMYK", "rgba": "RGBA", "palette": "P"}[kind]
        Image.fromarray(rgb).convert(mode).save(tmp_path / name)
    wanted = np.asarray(Image.open(tmp_path / name).convert("RGB"), int)
    loaded = dataset[0]["inputs"].numpy()[::-1].transpose(1, 2, 0)  # (3, H, W) BGR -> (H, W, 3) RGB
    assert np.abs(loaded - wanted).max() <= 4  # CMYK: rounding differs


def test_a_single_pixel(build, tmp_path):
    images = [dict(id=7, file_name="7.jpg", width=1, height=1)]
    dataset = build(content(images=images, annotations=[]))
    cv2.imwrite(str(tmp_path / "7.jpg"), picture(1, 1))
    assert dataset[0]["inputs"].shape == (3, 1, 1)


def rotated(path, orientation):
    """80 x 60 stored pixels, and a note to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif, quality=95)
    return np.asarray(Image.open(path), int)  # Pillow does not turn unless asked


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_orientation(build, tmp_path, orientation):
    stored = rotated(tmp_path / "7.jpg", orientation)
    # Annotated on the stored pixels: 80 x 60, and so must be the image.
    sample = build(content())[0]
    loaded = sample["inputs"].numpy()[::-1].transpose(1, 2, 0)
    assert (loaded == stored).all()
    assert sample["data_samples"].ori_shape == sample["data_samples"].img_shape == (60, 80)
    # Annotated on the image as shown: 60 x 80.
    images = [dict(id=7, file_name="7.jpg", width=60, height=80)]
    assert build(content(images=images))[0]["inputs"].shape == (3, 80, 60)


def test_check_image_keeps_type_and_channels(tmp_path):
    stored = rotated(tmp_path / "7.jpg", 6)
    for options, shape in (
        (dict(to_float32=True), (60, 80, 3)),
        (dict(color_type="grayscale"), (60, 80)),
    ):
        load = TRANSFORMS.build(dict(type="LoadImageFromFile", **options))
        results = load(dict(img_path=str(tmp_path / "7.jpg"), height=60, width=80))
        kind = results["img"].dtype
        results = CheckImage()(results)
        assert results["img"].shape == shape and results["img"].dtype == kind
    assert stored.shape == (60, 80, 3)


@pytest.mark.parametrize("width, height", [(81, 60), (60, 80), (160, 120)])
def test_wrong_size(build, width, height):
    """(60, 80) is swapped without an EXIF orientation to explain it."""
    images = [dict(id=7, file_name="7.jpg", width=width, height=height)]
    with pytest.raises(ValueError, match=f"7.jpg is 80x60 pixels.*says {width}x{height}"):
        build(content(images=images))[0]


def test_inference_input_passes(tmp_path):
    check = CheckImage()
    array = dict(img=picture(), img_path=None)
    assert check(dict(array))["img"] is array["img"]
    assert "img" in check(dict(img=picture()))
    cv2.imwrite(str(tmp_path / "a.jpg"), picture())
    by_path = dict(img=picture(), img_path=str(tmp_path / "a.jpg"))
    assert check(by_path) is by_path  # no annotation, so no size to compare


def test_other_failures_name_the_image(build, monkeypatch):
    def fail(results):
        raise RuntimeError("out of luck")

    dataset = build(content(images=2), pipeline=[fail])
    with pytest.raises(ValueError, match="8.jpg .*RuntimeError: out of luck"):
        dataset[1]
