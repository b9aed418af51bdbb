"""The sample data set of hands is a FreiHAND directory whose annotations fit its pictures."""

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from scipy.spatial.transform import Rotation

from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.hand.freihand import read_annotations
from fastvit_dense.hand.mano.layer import ManoLayer, pose_to_rotations
from fastvit_dense.hand.mano.synthetic import synthetic_hand, wrist_opening
from fastvit_dense.synthetic import freihand as sample_freihand
from fastvit_dense.synthetic.freihand import write_freihand
from fastvit_dense.synthetic.hands import Scene, sample_annotation
from fastvit_dense.synthetic.skin import sample_arm

TRAIN, VAL = 12, 5
VERSIONS = range(4)
SHAPES = {"K": (3, 3), "mano": (1, 61), "scale": (), "verts": (778, 3), "xyz": (21, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_freihand(tmp_path_factory.mktemp("data") / "hands", train=TRAIN, val=VAL, seed=3)


def load(folder: Path, split: str) -> dict[str, np.ndarray]:
    return {k: np.array(json.loads((folder / f"{split}_{k}.json").read_text())) for k in SHAPES}


def picture(folder: Path, name: str, number: int) -> np.ndarray:
    return np.array(Image.open(folder / name / f"{number:08d}.jpg"))


def project(points: np.ndarray, K: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            K[0, 0] * points[:, 0] / points[:, 2] + K[0, 2],
            K[1, 1] * points[:, 1] / points[:, 2] + K[1, 2],
        ],
        axis=1,
    )


def silhouette(
    vertices: np.ndarray, K: np.ndarray, *, shift: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """(224, 224) bool: all faces filled by OpenCV, eight times finer; `shift` in pixels."""
    fine = np.zeros((8 * 224, 8 * 224), np.uint8)
    pixels = np.rint((8 * (project(vertices, K) + shift) + 3.5) * 16).astype(np.int32)
    for face in synthetic_hand().faces:
        cv2.fillConvexPoly(fine, pixels[face], 255, cv2.LINE_8, 4)
    return cv2.resize(fine, (224, 224), interpolation=cv2.INTER_AREA) > 127


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return (a & b).sum() / (a | b).sum()


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_layout(folder: Path) -> None:
    wanted = {f"training/rgb/{i:08d}.jpg" for i in range(4 * TRAIN)}
    wanted |= {f"training/mask/{i:08d}.jpg" for i in range(TRAIN)}
    wanted |= {f"evaluation/rgb/{i:08d}.jpg" for i in range(VAL)}
    wanted |= {f"{split}_{k}.json" for split in ("training", "evaluation") for k in SHAPES}
    assert set(tree(folder)) == wanted
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            mode = "L" if path.parent.name == "mask" else "RGB"
            assert (image.format, image.mode, image.size) == ("JPEG", mode, (224, 224))
    for split, count in (("training", TRAIN), ("evaluation", VAL)):
        for name, values in load(folder, split).items():
            assert values.shape == (count, *SHAPES[name]) and np.isfinite(values).all()


@pytest.mark.parametrize(("split", "count"), [("training", TRAIN), ("evaluation", VAL)])
def test_it_is_read_as_freihand_is(folder: Path, split: str, count: int) -> None:
    found = read_annotations(folder, split)
    assert len(found) == count and found.vertices is not None


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_annotations_fit_each_other(folder: Path, split: str) -> None:
    data = load(folder, split)
    xyz = data["xyz"]
    assert data["scale"] == pytest.approx(np.linalg.norm(xyz[:, 9] - xyz[:, 10], axis=1), abs=1e-7)
    assert np.array_equal(xyz[:, [4, 8, 12, 16, 20]], data["verts"][:, [744, 320, 443, 555, 672]])
    # MANO's joints, regressed from the vertices as they are in the file: wrist, index, middle, little, ...
    joints = synthetic_hand().joint_regressor @ data["verts"]
    of_joints = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]
    assert np.allclose(xyz[:, of_joints], joints, rtol=0, atol=1.1e-8)  # the files have 8 decimals
    # FreiHAND's mano entry: the mesh, about the root that its pixel and scale tell.
    pose, betas, pixel, scale = np.split(data["mano"][:, 0], [48, 58, 60], axis=1)
    layer = ManoLayer(synthetic_hand(), dtype=torch.float64)
    out = layer(
        pose_to_rotations(torch.tensor(pose), synthetic_hand().pose_mean), torch.tensor(betas)
    )
    focal = (data["K"][:, 0, 0] + data["K"][:, 1, 1]) / 2
    root = np.column_stack([pixel - data["K"][:, :2, 2], focal]) / scale
    assert np.allclose(root, xyz[:, 9], atol=1e-4)
    for found, wanted in ((out.vertices, data["verts"]), (out.keypoints, xyz)):
        relative = found.numpy() - out.keypoints[:, 9:10].numpy()
        assert np.allclose(relative, wanted - xyz[:, 9:10], atol=1e-6)


def test_cameras_are_like_freihand_s() -> None:
    inside, square = [], []
    for i in range(80):
        hand = sample_annotation(np.random.default_rng([7, i]))
        assert (hand.K[[0, 1, 2, 2], [1, 0, 0, 1]] == 0).all() and hand.K[2, 2] == 1
        assert 445 < hand.K[0, 0] < 605 and hand.K[1, 1] == pytest.approx(hand.K[0, 0], rel=0.005)
        square.append(hand.K[0, 0] == hand.K[1, 1])
        assert np.abs(hand.K[:2, 2] - 112).max() < 15 and 0.5 <= hand.keypoints[9, 2] <= 0.8
        assert hand.vertices[:, 2].min() > 0.3
        root = project(hand.keypoints[9:10], hand.K)[0]
        assert np.allclose(root, hand.mano[58:60]) and np.abs(root - 112).max() <= 20
        inside.append((np.abs(project(hand.vertices, hand.K) - 112) < 90).all(1).mean())
    assert np.mean(square) < 0.05
    assert np.min(inside) > 0.85 and np.mean(inside) > 0.98


def test_masks_are_where_the_vertices_project(folder: Path) -> None:
    data, overlaps = load(folder, "training"), []
    for i in range(TRAIN):
        mask = picture(folder, "training/mask", i)
        assert ((mask < 30) | (mask > 225)).mean() > 0.99  # JPEG
        filled = silhouette(data["verts"][i], data["K"][i])
        overlaps.append(overlap(filled, mask > 127))
        at = np.rint(project(data["verts"][i], data["K"][i])).astype(int)
        near = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 127
        assert near[at[:, 1], at[:, 0]].mean() > 0.9
    # The arm may hide a part of the hand.
    assert np.median(overlaps) > 0.975 and np.min(overlaps) > 0.85


def test_pixels_are_where_the_camera_says_to_half_a_pixel() -> None:
    shifts = [(0, 0), (0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)]
    overlaps = []
    for i in range(6):
        rng = np.random.default_rng([11, i])
        hand = sample_annotation(rng)
        mask = Scene(rng, hand).mask
        overlaps.append([overlap(silhouette(hand.vertices, hand.K, shift=s), mask) for s in shifts])
    best, *others = np.mean(overlaps, axis=0)
    assert best > max(others) + 0.005


def test_four_pictures_of_each_hand(folder: Path) -> None:
    for i in range(TRAIN):
        shots = [picture(folder, "training/rgb", v * TRAIN + i).astype(int) for v in VERSIONS]
        mask = picture(folder, "training/mask", i) > 127
        behind = ~cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
        green = [np.median(s[behind][:, 1] - s[behind][:, [0, 2]].max(1)) for s in shots]
        assert green[0] > 30  # gs
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
        for shot in shots[1:]:
            assert np.abs(shot[behind] - shots[0][behind]).mean() > 15
            assert np.abs(shot[inner] - shots[0][inner]).mean() > 3  # other light
    backgrounds = [
        np.median(picture(folder, "training/rgb", v * TRAIN + i)[:20, :20], axis=(0, 1))
        for v in (1, 2, 3)
        for i in range(TRAIN)
    ]
    assert np.std(backgrounds, axis=0).min() > 20


def test_hands_stand_out_and_have_skin_of_all_tones() -> None:
    tones, textures = [], []
    for i in range(24):
        rng = np.random.default_rng([5, i])
        scene = Scene(rng, sample_annotation(rng))
        shot = scene.photograph(rng, "gs")
        assert shot.shape == (224, 224, 3) and shot.dtype == np.uint8
        inner = cv2.erode(scene.mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
        blue, _, red = np.median(shot[inner], axis=0)
        assert red > blue  # skin
        tones.append(red)
        textures.append(cv2.cvtColor(shot, cv2.COLOR_BGR2GRAY)[inner].std())
    assert min(tones) < 100 and max(tones) > 190
    assert min(textures) > 5  # shaded, not flat


def test_the_arm_goes_on_from_the_wrist() -> None:
    opening, kinds = wrist_opening(), set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        hand = sample_annotation(rng)
        turn = Rotation.from_rotvec(hand.mano[:3])
        arm = sample_arm(rng, hand.vertices[opening], synthetic_hand().template[opening], turn)
        assert np.allclose(arm.vertices[:16], hand.vertices[opening])
        away = arm.vertices[-16:].mean(0) - arm.vertices[:16].mean(0)
        assert 0.25 < away @ turn.apply([1, 0, 0]) < 0.45
        kinds.add((bool(arm.is_sleeve.any()), bool(arm.is_sleeve.all())))
    assert len(kinds) >= 2  # bare, in a sleeve


def test_the_same_arguments_give_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_freihand, "_WORTH_PROCESSES", 2)  # `folder` is of one process
    again = write_freihand(tmp_path / "again", train=3, val=2, seed=3)
    more, fewer = tree(folder), tree(again)
    # Fewer hands are the first of more, with their pictures.
    for split, count in (("training", 3), ("evaluation", 2)):
        for name, values in load(again, split).items():
            assert np.array_equal(values, load(folder, split)[name][:count])
    for i in range(3):
        assert fewer[f"training/mask/{i:08d}.jpg"] == more[f"training/mask/{i:08d}.jpg"]
        for v in VERSIONS:
            of_fewer, of_more = (f"training/rgb/{v * n + i:08d}.jpg" for n in (3, TRAIN))
            assert fewer[of_fewer] == more[of_more]
    for i in range(2):
        assert fewer[f"evaluation/rgb/{i:08d}.jpg"] == more[f"evaluation/rgb/{i:08d}.jpg"]
    other = load(write_freihand(tmp_path / "other", train=1, val=1, seed=4), "training")
    assert not np.allclose(other["xyz"][0], load(folder, "training")["xyz"][0], atol=1e-3)
    splits = [load(folder, split)["xyz"][0] for split in ("training", "evaluation")]
    assert not np.allclose(*splits, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(train=0), "train must be between 1 and 1000000, got 0"),
        (dict(val=0), "val must be between 1"),
        (dict(seed=-1), "seed must be between 0"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_freihand(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_only_data_sets_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "hands"
    write_freihand(out, train=1, val=1)
    before = tree(out)
    with pytest.raises(ValueError, match="is not empty"):
        write_freihand(out, train=1, val=1, seed=1)
    assert tree(out) == before
    write_freihand(out, train=1, val=1, seed=1, overwrite=True)
    assert tree(out).keys() == before.keys() and tree(out) != before
    (out / "thesis.tex").touch()
    with pytest.raises(ValueError, match="thesis.tex.*not replaced"):
        write_freihand(out, train=1, val=1, overwrite=True)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_freihand, "write_jpeg", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_freihand(tmp_path / "hands", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "tools" / "sample_data.py"))["main"]

    def command(options: list[str]) -> int:
        return end_in_one_line(lambda: main(options))

    options = ["freihand", str(tmp_path / "a"), "--train", "2", "--val", "1", "--seed", "5"]
    assert command(options) == 0
    assert f"wrote 2 training and 1 held-out hands to {tmp_path}" in capsys.readouterr().out
    assert tree(tmp_path / "a") == tree(write_freihand(tmp_path / "b", train=2, val=1, seed=5))
    assert command(options) == 2
    assert "is not empty" in capsys.readouterr().err
    assert command([*options, "--force"]) == 0


def test_replaces_a_data_set_that_was_read(tmp_path: Path) -> None:
    write_freihand(tmp_path / "hands", train=1, val=1)
    (tmp_path / "hands" / "training_verts.json.123-456.npy").touch()  # as readers leave it
    write_freihand(tmp_path / "hands", train=1, val=1, poses="closing", views=30, overwrite=True)
    assert not list((tmp_path / "hands").glob("*.npy"))
    (tmp_path / "hands" / "notes.txt").touch()
    with pytest.raises(ValueError, match="notes.txt"):
        write_freihand(tmp_path / "hands", train=1, val=1, overwrite=True)
    with pytest.raises(ValueError, match="poses must be one of all, closing"):
        write_freihand(tmp_path / "other", poses="open")
