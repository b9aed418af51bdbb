"""FreiHAND's layout on disk: what is read, and what is refused."""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from fastvit_dense.hand import freihand as json_arrays
from fastvit_dense.hand.freihand import FreiHAND

HANDS, EVALUATED = 3, 5
PIPELINE = [
    dict(type=t) for t in ("LoadHandImage", "RandomHandCrop", "ColorNoise", "PackHandInputs")
]


def write_split(root: Path, split: str, hands: int, images: int) -> None:
    """Random points in front of the camera; image i is of one grey, 10 * i."""
    rng = np.random.default_rng(len(split))
    vertices = rng.uniform(-0.08, 0.08, (hands, 778, 3)) + (0, 0, 0.7)
    xyz = vertices[:, :21]
    K = np.tile([[500.0, 0, 112], [0, 480, 110], [0, 0, 1]], (hands, 1, 1))
    for name, value in {"K": K, "xyz": xyz, "verts": vertices}.items():
        (root / f"{split}_{name}.json").write_text(json.dumps(value.tolist()))
    (root / split / "rgb").mkdir(parents=True)
    for i in range(images):
        image = np.full((224, 224, 3), 10 * i, np.uint8)
        cv2.imwrite(str(root / split / "rgb" / f"{i:08d}.jpg"), image)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("freihand")
    write_split(root, "training", HANDS, 4 * HANDS)
    write_split(root, "evaluation", EVALUATED, EVALUATED)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "freihand")


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.fixture
def log(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[pytest.LogCaptureFixture]:
    """What mmengine's current logger says; the current one is the one made last."""
    logger = MMLogger.get_instance(request.node.nodeid)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_training_has_each_hand_four_times(made: Path) -> None:
    dataset = FreiHAND(made)
    assert len(dataset) == 12 and dataset.metainfo["dataset_name"] == "FreiHAND"
    assert not dataset.test_mode
    xyz = np.array(json.loads((made / "training_xyz.json").read_text()), np.float32)
    verts = np.array(json.loads((made / "training_verts.json").read_text()), np.float32)
    for i in range(12):
        item = dataset[i]
        assert item["index"] == i and item["img_path"] == f"{made}/training/rgb/{i:08d}.jpg"
        assert (
            np.array_equal(item["keypoints"], xyz[i % 3]) and item["keypoints"].dtype == np.float32
        )
        assert np.array_equal(item["vertices"], verts[i % 3])
        assert item["K"].tolist() == [[500, 0, 112], [0, 480, 110], [0, 0, 1]]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [(("gs",), [0, 1, 2]), (("auto", "hom"), [3, 4, 5, 9, 10, 11]), (["sample"], [6, 7, 8])],
)
def test_versions(made: Path, versions: tuple[str, ...], expected: list[int]) -> None:
    dataset = FreiHAND(made, versions=versions)
    assert [item["index"] for item in dataset] == expected


@pytest.mark.parametrize("labelled", [True, False])
def test_evaluation(root: Path, labelled: bool) -> None:
    if not labelled:
        for name in ("xyz", "verts"):
            (root / f"evaluation_{name}.json").unlink()
    dataset = FreiHAND(
        root, "evaluation", pipeline=[*PIPELINE[:1], dict(type="HandCrop"), PIPELINE[-1]]
    )
    assert len(dataset) == EVALUATED and dataset.test_mode
    for i, item in enumerate(dataset):
        assert item["data_samples"].index == i and ("gt" in item["data_samples"]) == labelled
        assert item["inputs"].float().mean() == pytest.approx(10 * i, abs=1)


def test_built_from_a_config_and_loaded_by_workers(made: Path) -> None:
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=2,
            sampler=dict(type="DefaultSampler", shuffle=True),
            dataset=dict(type="FreiHAND", data_root=str(made), pipeline=PIPELINE),
        ),
        seed=0,
    )
    samples = [(x, s) for b in loader for x, s in zip(b["inputs"], b["data_samples"], strict=True)]
    assert sorted(s.index for _, s in samples) == list(range(12))
    rotations = [s.rotation for _, s in samples if s.rotation]
    assert len(set(rotations)) == len(rotations) > 1  # each worker draws on its own
    assert all(x.shape == (3, 224, 224) and x.dtype == torch.uint8 for x, _ in samples)
    assert isinstance(loader.dataset, FreiHAND) and "FreiHAND" in DATASETS


def test_arrays_are_not_copied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into subsets they go as they are, to spawned workers by the name of the file."""
    monkeypatch.setattr(json_arrays, "_CACHE_FROM", 0)
    dataset = FreiHAND(root)
    subset = dataset.get_subset([7, 2])
    assert subset.annotations is dataset.annotations
    assert [item["index"] for item in subset] == [7, 2]
    message = pickle.dumps(dataset)
    assert len(message) < 10_000 < dataset.annotations.vertices.nbytes
    received = pickle.loads(message)
    assert np.array_equal(received[4]["vertices"], dataset[4]["vertices"])
    dataset[0]["vertices"][:] = 0  # an item is a copy
    assert dataset[0]["vertices"].any()


def test_pickled_without_cache(made: Path) -> None:
    received = pickle.loads(pickle.dumps(FreiHAND(made)))
    assert np.array_equal(received[4]["vertices"], FreiHAND(made)[4]["vertices"])


def test_indices(made: Path) -> None:
    assert [item["index"] for item in FreiHAND(made, indices=2)] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split must be training or evaluation, got 'test'"),
        ({"versions": ("gs", "color")}, "versions must be some of .*'color'"),
        ({"versions": "gs"}, "versions must be some of .*got 'gs'"),
        ({"versions": ()}, "versions must be some of"),
        ({"split": "evaluation", "versions": ("gs",)}, "evaluation has one image of each hand"),
    ],
)
def test_bad_argument(made: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreiHAND(made, **arguments)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="no/where does not exist: unpack .*sample_data.py freihand"
    ):
        FreiHAND(tmp_path / "no/where")


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (
            "training_xyz.json",
            "lacks training_xyz.json: expected training_K.json, training_xyz.json",
        ),
        ("evaluation_verts.json", "lacks evaluation_verts.json: .*neither xyz nor verts"),
        ("evaluation_K.json", "lacks evaluation_K.json"),
        (
            "training/rgb/00000007.jpg",
            "rgb has 11 images: expected 12, 4 for .*first is 00000007.jpg",
        ),
        (
            "evaluation/rgb/00000004.jpg",
            "rgb has 4 images: expected 5, 1 for .*first is 00000004.jpg",
        ),
    ],
)
def test_missing_file(root: Path, remove: str, message: str) -> None:
    (root / remove).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        FreiHAND(root, "training" if remove.startswith("training") else "evaluation")


def test_no_folder_of_images(root: Path) -> None:
    shutil.rmtree(root / "training")
    with pytest.raises(FileNotFoundError, match="training/rgb does not exist"):
        FreiHAND(root)


def test_more_images_than_annotations(root: Path) -> None:
    folder = root / "training" / "rgb"
    shutil.copy(folder / "00000000.jpg", folder / "00000012.jpg")
    (folder / "Thumbs.db").touch()  # is no image and does not count
    with pytest.raises(ValueError, match="has 13 images: expected 12, 4 for each of 3 annotations"):
        FreiHAND(root)


def test_images_of_another_size(root: Path) -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    cv2.imwrite(str(root / "training" / "rgb" / "00000000.jpg"), image)
    with pytest.raises(ValueError, match="00000000.jpg is 640x480 pixels .* expected 224x224"):
        FreiHAND(root)


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda value: (np.array(value) * factor).tolist()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("verts", lambda v: v[:-1], r"training_verts.json has 2 entries, training_K.json has 3"),
        (
            "verts",
            lambda v: [e[:777] for e in v],
            "verts.json .*entry 0: a list of 777, not 778",
        ),
        ("xyz", lambda v: [v[0], [[float("nan")] * 3] * 21, v[2]], "xyz.json .*entry 1: "),
        ("K", lambda v: [[[1, 2, 3]] * 3] * 3, "K.json: entry 0 is .*focal lengths above zero"),
        ("K", lambda v: [v[0], [[-500, 0, 9], [0, 500, 9], [0, 0, 1]], v[2]], "K.json: entry 1 is"),
        ("xyz", scaled(1000), "xyz.json: hands have a diagonal .* divide millimetres"),
        ("verts", scaled(100), "verts.json: hands have a diagonal"),
        ("verts", scaled(0), "verts.json: hands have a diagonal of 0"),
        ("xyz", scaled(-1), r"xyz.json: 3 of 3 hands are behind the camera \(z <= 0\)"),
    ],
)
def test_bad_annotations(root: Path, name: str, change: Callable[[Any], Any], message: str) -> None:
    edit(root / f"training_{name}.json", change)
    with pytest.raises(ValueError, match=message):
        FreiHAND(root)


def test_no_annotations(root: Path) -> None:
    for name in ("K", "xyz", "verts"):
        edit(root / f"training_{name}.json", lambda v: [])
    with pytest.raises(ValueError, match="has no annotation for training"):
        FreiHAND(root)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "K",
            lambda v: [v[0], v[1], [[500, 0, 900], [0, 500, 112], [0, 0, 1]]],
            "21 of 63 keypoints, of 1 of 3 hands, to outside of .* does K belong to these images",
        ),
    ],
)
def test_suspicious_annotations_are_named(
    root: Path, name: str, change: Callable, message: str, log: pytest.LogCaptureFixture
) -> None:
    edit(root / f"training_{name}.json", change)
    assert len(FreiHAND(root)) == 12
    (record,) = log.records
    assert record.levelname == "WARNING" and re.search(message, record.getMessage())


def test_good_annotations_are_silent(made: Path, log: pytest.LogCaptureFixture) -> None:
    FreiHAND(made)
    assert not log.records
