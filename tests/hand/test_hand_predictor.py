"""From image to mesh: crops, mirroring, placing, loading. The model has random weights that matter."""

import copy
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT as REPOSITORY
from conftest import run_tool
from scipy.spatial.transform import Rotation

from fastvit_dense.benchmark.hand import random_model
from fastvit_dense.hand.geometry import BOX_FACTOR, crop_from_box, map_points, warp_crop
from fastvit_dense.hand.mano.topology import ROOT
from fastvit_dense.hand.model import HandMeshModel
from fastvit_dense.hand.predictor import (
    HandPredictor,
    HandResult,
    check_intrinsics,
    load_hand_model,
    place_hand,
)
from fastvit_dense.hand.transforms import HandCrop, PackHandInputs

CONFIGS = REPOSITORY / "configs" / "hand"
T8 = CONFIGS / "mano_fastvit-t8_8xb32-200e_freihand-224x224.py"
K = np.array([[500.0, 0, 160], [0, 510, 120], [0, 0, 1]])
BOX = (140, 60, 90, 70)


def photo(height: int = 240, width: int = 320) -> np.ndarray:
    """Smooth noise: a crop that is off by a part of a pixel hardly differs."""
    coarse = np.random.default_rng(0).random((height // 16, width // 16, 3)).astype(np.float32)
    return (
        (255 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.fixture(scope="module")
def model() -> HandMeshModel:
    torch.manual_seed(0)
    return random_model("t8")


@pytest.fixture(scope="module")
def predictor(model: HandMeshModel) -> HandPredictor:
    return HandPredictor(model, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(model: HandMeshModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tools/train.py writes it."""
    path = tmp_path_factory.mktemp("model") / "epoch_200.pth"
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the synthetic hand."""
    path = tmp_path_factory.mktemp("config") / "t8.py"
    path.write_text(f"_base_ = {str(T8)!r}\nmodel = dict(head=dict(mano='synthetic'))\n")
    return path


# Which square.


@pytest.mark.parametrize(
    ("size", "bbox", "center", "side"),
    [
        ((240, 320), BOX, (185, 95), BOX_FACTOR * 90),
        ((240, 320), (-20, 200, 60, 80), (10, 240), BOX_FACTOR * 80),  # partly outside
        ((240, 320), None, (160, 120), 320),
        ((500, 300), None, (150, 250), 500),
        ((224, 224), None, (112, 112), 180),  # FreiHAND's
        ((224, 224), (0, 0, 224, 224), (112, 112), BOX_FACTOR * 224),
    ],
)
def test_square(size: Any, bbox: Any, center: tuple[float, float], side: float) -> None:
    matrix = crop_from_box(size, bbox)
    assert map_points(matrix, np.array(center)) == pytest.approx((112, 112))
    assert matrix[:, :2] == pytest.approx(np.eye(2) * 224 / side)


@pytest.mark.parametrize(
    ("size", "bbox"), [((240, 320), BOX), ((240, 321), None), ((224, 224), None)]
)
def test_square_of_a_left_hand_is_that_of_the_mirrored_image(size: Any, bbox: Any) -> None:
    width = size[1]
    points = np.array([(0, 0), (width - 1, 30), (7.5, 100)])
    mirrored = (width - 1 - points[:, 0], points[:, 1])
    box = bbox and (width - bbox[0] - bbox[2], *bbox[1:])
    expected = map_points(crop_from_box(size, box), np.stack(mirrored, axis=1))
    assert map_points(crop_from_box(size, bbox, left=True), points) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ((10, 10, 0, 20), "neither empty nor outside of the image, which is 320x240"),
        ((10, 10, 20, -5), "neither empty nor outside of the image, which is 320x240"),
        ((320, 10, 20, 20), "neither empty nor outside of the image, which is 320x240"),
        ((-30, 10, 30, 20), "expected x y width height"),
        ((10, -20, 20, 20), "expected x y width height"),
        ((10, 240, 20, 20), "expected x y width height"),
        ((10, 10, 20), "expected x y width height"),
        ((10, math.nan, 20, 20), "expected x y width height"),
        ((10, 10, math.inf, 20), "expected x y width height"),
    ],
)
def test_boxes_that_are_none(predictor: HandPredictor, bbox: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(photo(), bbox)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 20), np.uint8), r"got shape \(20, 20\)"),
        (np.zeros((20, 20, 4), np.uint8), r"got shape \(20, 20, 4\)"),
        (np.zeros((0, 20, 3), np.uint8), r"got shape \(0, 20, 3\)"),
        (np.zeros((20, 20, 3), np.float32), "of uint8, 0 to 255, BGR; .*float32"),
        ("hand.jpg", "got .* str"),
    ],
)
def test_images_that_are_none(predictor: HandPredictor, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(image)


# What is predicted.


def test_same_as_evaluation(model: HandMeshModel, predictor: HandPredictor) -> None:
    """Pipeline, preprocessor and model as in tools/test.py, unfused, on an image of FreiHAND's size."""
    image = photo(224, 224)
    packed = PackHandInputs()(
        HandCrop()(dict(img=image, img_path="", index=0, K=K, ori_shape=(224, 224)))
    )
    batch = dict(inputs=[packed["inputs"]], data_samples=[packed["data_samples"]])
    with torch.no_grad():
        pred = copy.deepcopy(model).test_step(batch)[0].pred
    hand = predictor(image)
    assert np.abs(hand.vertices - pred.vertices.numpy()).max() < 1e-6
    assert np.abs(hand.keypoints - pred.keypoints.numpy()).max() < 1e-6
    in_crop = map_points(hand.crop_matrix, hand.keypoints_2d)
    assert np.abs(in_crop - pred.keypoints_2d.numpy()).max() < 1e-3
    for name in ("camera", "betas", "rotations"):
        assert np.abs(getattr(hand, name) - getattr(pred, name).numpy()).max() < 1e-4, name
    assert hand.keypoints[ROOT] == pytest.approx(np.zeros(3))
    assert hand.vertices_camera is None and hand.keypoints_camera is None


def test_fused_and_unfused_give_the_same_mesh(
    model: HandMeshModel, predictor: HandPredictor
) -> None:
    unfused = HandPredictor(copy.deepcopy(model), device="cpu", fuse=False)
    assert len(predictor.model.state_dict()) < 0.6 * len(unfused.model.state_dict())
    a, b = unfused(photo(), BOX), predictor(photo(), BOX)
    assert np.abs(a.vertices - b.vertices).max() < 1e-5
    # The weights matter: another image gives another mesh.
    assert np.abs(a.vertices - unfused(photo()[::-1].copy(), BOX).vertices).max() > 1e-4


def test_vertices_and_keypoints_are_of_one_projection(predictor: HandPredictor) -> None:
    hand = predictor(photo(), BOX)
    tip = int(np.argmin(np.linalg.norm(hand.vertices - hand.keypoints[8], axis=1)))
    assert hand.vertices[tip] == pytest.approx(hand.keypoints[8], abs=1e-6)
    assert hand.vertices_2d[tip] == pytest.approx(hand.keypoints_2d[8], abs=1e-3)
    # Weak perspective by hand, of one vertex: half images of the crop, pixels of it, pixels of the image.
    s, tx, ty = hand.camera
    crop = (s * (hand.vertices[5, :2] + (tx, ty)) + 1) * 112
    side = BOX_FACTOR * 90
    assert hand.vertices_2d[5] == pytest.approx((crop - 112) * side / 224 + (185, 95), abs=1e-3)


@pytest.mark.parametrize("shift", [(0, 0), (37, 11)])
def test_a_shifted_image_gives_a_shifted_hand(
    predictor: HandPredictor, shift: tuple[int, int]
) -> None:
    dx, dy = shift
    wide = np.zeros((240 + dy, 320 + dx, 3), np.uint8)
    wide[dy:, dx:] = photo()
    a, b = predictor(photo(), BOX), predictor(wide, (BOX[0] + dx, BOX[1] + dy, *BOX[2:]))
    assert np.abs(a.vertices - b.vertices).max() < 1e-5
    assert np.abs(a.vertices_2d + shift - b.vertices_2d).max() < 1e-2


@pytest.mark.parametrize(
    ("size", "bbox"), [((240, 320), BOX), ((240, 320), None), ((224, 224), None)]
)
def test_left_hand_is_the_mirror_image(predictor: HandPredictor, size: Any, bbox: Any) -> None:
    image = photo(*size)
    right = predictor(image, bbox, K=K)
    mirror_box = bbox and (size[1] - bbox[0] - bbox[2], *bbox[1:])
    mirrored_K = K.copy()
    mirrored_K[0, 2] = size[1] - 1 - K[0, 2]
    left = predictor(image[:, ::-1].copy(), mirror_box, left=True, K=mirrored_K)
    flip = np.array([-1, 1, 1])
    assert np.abs(left.vertices - right.vertices * flip).max() < 1e-4
    assert np.abs(left.keypoints - right.keypoints * flip).max() < 1e-4
    for name in ("vertices_2d", "keypoints_2d"):
        a, b = getattr(left, name), getattr(right, name)
        assert np.abs(a - np.stack([size[1] - 1 - b[:, 0], b[:, 1]], axis=1)).max() < 0.05, name
    assert np.abs(left.vertices_camera - right.vertices_camera * flip).max() < 2e-3
    assert np.array_equal(left.faces, right.faces[:, ::-1]) and left.left and not right.left
    assert np.abs(left.betas - right.betas).max() < 1e-3  # parameters stay those of the right hand


@pytest.mark.parametrize("left", [False, True])
def test_normals_point_outwards(predictor: HandPredictor, left: bool) -> None:
    hand = predictor(photo(), BOX, left=left)
    # Volume by the tetrahedra from the middle of the wrist's opening, as no face closes it.
    corners = hand.vertices[hand.faces] - hand.keypoints[0]
    assert np.linalg.det(corners).sum() / 6 > 5e-5  # cubic metres


def test_small_hands_in_large_images_are_averaged(predictor: HandPredictor) -> None:
    """A large image gives what the same image does that somebody shrank first."""
    large = np.random.default_rng(1).integers(0, 256, (1920, 2560, 3), np.uint8)
    small = cv2.resize(large, (320, 240), interpolation=cv2.INTER_AREA)
    crops = [
        warp_crop(image, crop_from_box(image.shape[:2], [v * f for v in (60, 20, 200, 150)]), 224)
        for image, f in ((large, 8), (small, 1))
    ]
    assert np.abs(crops[0].astype(int) - crops[1]).mean() < 12  # noise of 74 without averaging


# In front of the camera.


def seen(K: np.ndarray, turn: np.ndarray, place: np.ndarray, crop_middle: np.ndarray) -> HandResult:
    """A hand of known place whose axes are turned, as a prediction that is exact."""
    rng = np.random.default_rng(0)
    keypoints, vertices = rng.normal(size=(21, 3)) * 0.05, rng.normal(size=(778, 3)) * 0.05
    pixels = (keypoints @ turn.T + place) @ K.T
    unused: Any = None
    return HandResult(
        vertices, keypoints, unused, pixels[:, :2] / pixels[:, 2:], unused,
        unused, unused, unused, crop_from_box((2000, 2000), (*(crop_middle - 50), 100, 100)), False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("middle", "angles"),
    [((160, 120), (0, 0)), ((660, 120), (45, 0)), ((160, 630), (0, -45)), ((60, 120), (-11.31, 0))],
)
def test_place_before_the_camera(middle: tuple, angles: tuple[float, float]) -> None:
    """A crop beside the optical axis is seen by a camera that is turned, here by angles known by hand."""
    turn = Rotation.from_euler("yx", angles, degrees=True).as_matrix()
    place = turn @ (0, 0, 0.7) + (0.01, -0.02, 0.03)
    hand = place_hand(seen(K, turn, place, np.array(middle, float)), K)
    assert hand.vertices_camera == pytest.approx(hand.vertices @ turn.T + place, abs=1e-4)
    assert hand.keypoints_camera == pytest.approx(hand.keypoints @ turn.T + place, abs=1e-4)


def test_mesh_before_the_camera_fits_the_overlay(predictor: HandPredictor) -> None:
    hand = predictor(photo(), BOX, K=K)
    pixels = hand.keypoints_camera @ K.T
    off = np.linalg.norm(pixels[:, :2] / pixels[:, 2:] - hand.keypoints_2d, axis=1)
    assert off.mean() < 3 and hand.keypoints_camera[:, 2].min() > 0.1
    # The same hand at the same size: distances are kept.
    for a, b in ((hand.vertices, hand.vertices_camera), (hand.keypoints, hand.keypoints_camera)):
        assert np.linalg.norm(a[1:] - a[0], axis=1) == pytest.approx(
            np.linalg.norm(b[1:] - b[0], axis=1), abs=1e-6
        )


@pytest.mark.parametrize(
    "K",
    [
        np.eye(4),
        np.diag([0.0, 1, 1]),
        np.diag([500.0, -500, 1]),
        np.full((3, 3), np.nan),
        K.T,
        K[:2],
    ],
)
def test_intrinsics_that_are_none(K: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"K must be \[\[fx, 0, cx\], \[0, fy, cy\], \[0, 0, 1\]\]"
    ):
        check_intrinsics(K)


# Loading.


def test_config_and_checkpoint(config: Path, checkpoint: Path, predictor: HandPredictor) -> None:
    loaded = HandPredictor(config, checkpoint, device="cpu")
    assert np.array_equal(loaded(photo(), BOX).vertices, predictor(photo(), BOX).vertices)
    other_hand = HandPredictor(T8, checkpoint, mano="synthetic", device="cpu")
    assert np.array_equal(other_hand(photo(), BOX).vertices, predictor(photo(), BOX).vertices)
    with pytest.raises(ValueError, match=r"HandPredictor\(config, checkpoint\)"):
        HandPredictor(config)


def test_fused_checkpoint(
    config: Path, checkpoint: Path, predictor: HandPredictor, tmp_path: Path
) -> None:
    run_tool("tools/reparameterize.py", config, checkpoint, tmp_path / "fused.pth")
    (written,) = tmp_path.glob("*.py")
    fused = HandPredictor(written, tmp_path / "fused.pth", device="cpu")
    difference = fused(photo(), BOX).vertices - predictor(photo(), BOX).vertices
    assert np.abs(difference).max() < 1e-5


def test_mano_is_looked_for(config: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(FileNotFoundError, match='MANO_RIGHT.pkl.*mano="synthetic"'):
        load_hand_model(str(T8), str(checkpoint))
    assert capsys.readouterr().err == ""
    with pytest.raises(FileNotFoundError, match="none.npz"):
        load_hand_model(str(config), str(checkpoint), mano="none.npz")
    assert "with mano=none.npz its meshes will be wrong" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["MaskRCNN", None])
def test_config_of_something_else(checkpoint: Path, tmp_path: Path, kind: str | None) -> None:
    path = tmp_path / "other.py"
    path.write_text(f"model = dict(type={kind!r})" if kind else "train_cfg = dict()")
    with pytest.raises(ValueError, match=f"other.py describes a {kind}, expected a HandMeshModel"):
        load_hand_model(str(path), str(checkpoint))


def test_checkpoint_that_fits_in_part(config: Path, checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    del content["state_dict"]["head.camera.weight"]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x.pth does not fit .*missing \(head.camera.weight\)"):
        load_hand_model(str(config), str(tmp_path / "x.pth"))


def test_device_that_is_not_there(model: HandMeshModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device 'cuda:0' is not there"):
        HandPredictor(model, device="cuda:0")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'mps' is not there"):
        HandPredictor(model, device="mps")
    with pytest.raises(ValueError, match="device 'gpu' is unknown: expected cpu or cuda:0"):
        HandPredictor(model, device="gpu")
