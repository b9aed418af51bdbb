"""Crops and augmentation: image, 2D, 3D and intrinsics move together."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose

from fastvit_dense.hand.geometry import crop_matrix, invert_map, map_points, project, warp_crop
from fastvit_dense.hand.model import HandDataSample
from fastvit_dense.hand.transforms import ColorNoise, HandCrop, PackHandInputs, RandomHandCrop


def annotated(rng: np.random.Generator, *, size: int = 224) -> dict[str, Any]:
    """A hand of random points about 0.6 m away, with focal lengths that differ and a centre that is off."""
    K = np.array(
        [
            [rng.uniform(400, 600), 0, size / 2 + rng.uniform(-20, 20)],
            [0, rng.uniform(400, 600), size / 2 + rng.uniform(-20, 20)],
            [0, 0, 1],
        ],
        np.float32,
    )
    points = rng.uniform(-0.06, 0.06, (799, 3)).astype(np.float32) + np.float32([0, 0, 0.6])
    return {
        "img": np.zeros((size, size, 3), np.uint8),
        "img_path": "hand.jpg",
        "index": 3,
        "ori_shape": (size, size),
        "K": K,
        "scale": 0.03,
        "keypoints": points[:21],
        "vertices": points[21:],
    }


def pixels_of(results: dict[str, Any], name: str = "keypoints") -> np.ndarray:
    points, K = torch.as_tensor(results[name]).double(), torch.as_tensor(results["K"]).double()
    return project(points[None], K[None])[0].numpy()


def test_projection_of_the_turned_hand_is_the_turned_projection() -> None:
    rng = np.random.default_rng(0)
    np.random.seed(0)
    crop, rotations = RandomHandCrop(), []
    for _ in range(300):
        before = annotated(rng)
        after = crop(before)
        expected = map_points(after["crop_matrix"], pixels_of(before))
        np.testing.assert_allclose(after["keypoints_2d"], expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(pixels_of(after), expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(
            pixels_of(after, "vertices"),
            map_points(after["crop_matrix"], pixels_of(before, "vertices")),
            rtol=0,
            atol=1e-4,
        )
        # Turned about the optical axis, nothing else.
        assert np.array_equal(after["keypoints"][:, 2], before["keypoints"][:, 2])
        np.testing.assert_allclose(
            np.linalg.norm(after["vertices"], axis=1),
            np.linalg.norm(before["vertices"], axis=1),
            rtol=1e-6,
        )
        rotations.append(after["rotation"])
    assert np.ptp(rotations) > 200


def test_packed_float32_keeps_the_projection() -> None:
    np.random.seed(4)
    rng = np.random.default_rng(4)
    for _ in range(50):
        sample = PackHandInputs()(RandomHandCrop(upright=0)(annotated(rng)))["data_samples"]
        K = torch.as_tensor(sample.K)[None]
        pixels = project(sample.gt.keypoints[None].double(), K)[0]
        assert (pixels - sample.gt.keypoints_2d).abs().max() < 1e-4


@pytest.mark.parametrize("size", [224, 900], ids=["as is", "areas averaged first"])
def test_image_follows_the_points(size: int) -> None:
    """A dot drawn at a keypoint is found where the keypoint went."""
    rng, found = np.random.default_rng(1), 0
    np.random.seed(1)
    crop = RandomHandCrop() if size == 224 else RandomHandCrop(center=None, size=None)
    for _ in range(40):
        results = annotated(rng, size=size)
        x, y = pixels_of(results)[0]
        ys, xs = np.mgrid[:size, :size]
        radius = 2.5 * size / 224
        dot = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2))
        results["img"] = np.repeat(np.rint(dot)[..., None], 3, -1).astype(np.uint8)
        results = crop(results)
        u, v = results["keypoints_2d"][0]
        if not (12 < u < 212 and 12 < v < 212):
            continue
        weight = results["img"][..., 0].astype(float)
        ys, xs = np.mgrid[:224, :224]
        centroid = (xs * weight).sum() / weight.sum(), (ys * weight).sum() / weight.sum()
        np.testing.assert_allclose(centroid, (u, v), rtol=0, atol=0.1)
        found += 1
    assert found > 25


def test_crop_matrix_by_hand() -> None:
    # METRO's: 180 pixels become 224, and the centre stays.
    matrix = crop_matrix((112, 112), 180, 224)
    corners = map_points(matrix, [[112, 112], [22, 202]])
    np.testing.assert_allclose(corners, [[112, 112], [0, 224]], atol=1e-12)
    # A quarter turn clockwise takes what is right of the centre to below it.
    matrix = crop_matrix((50, 40), 100, 200, rotation=90)
    np.testing.assert_allclose(map_points(matrix, [[60, 40]]), [[100, 120]], atol=1e-12)
    np.testing.assert_array_equal(crop_matrix((112, 112), 224, 224), [[1, 0, 0], [0, 1, 0]])


def test_uncropped_is_exact() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        matrix = crop_matrix(
            tuple(rng.uniform(0, 1000, 2)),
            rng.uniform(20, 2000),
            224,
            rotation=rng.uniform(-180, 180),
        )
        points = rng.uniform(-500, 1500, (50, 2))
        back = map_points(invert_map(matrix), map_points(matrix, points))
        np.testing.assert_allclose(back, points, rtol=0, atol=1e-9)


def test_quarter_turn_of_the_image_is_exact() -> None:
    """About the middle of the pixels, which for an even size lies between four of them."""
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    matrix = crop_matrix((111.5, 111.5), 224, 224, rotation=90) - [[0, 0, 0.5], [0, 0, 0.5]]
    turned = warp_crop(image, matrix, 224)
    assert np.array_equal(turned, cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE))


def test_outside_is_black() -> None:
    white = {"img": np.full((224, 224, 3), 255, np.uint8)}
    crop = HandCrop(size=448)(white)["img"]
    assert (crop[:50] == 0).all() and (crop[60:160, 60:160] == 255).all()


def test_large_images_are_averaged() -> None:
    """Stripes of one pixel: sampled, they would stay black and white; averaged, they are grey."""
    stripes = np.zeros((1792, 1792, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = HandCrop(None, None)({"img": stripes})["img"][1:-1, 1:-1]
    assert np.abs(crop.astype(int) - 127.5).max() <= 1


@pytest.mark.parametrize("shape", [(480, 640, 3), (640, 480, 3), (100, 100, 3)])
def test_whole_image_is_square_and_centred(shape: tuple[int, int, int]) -> None:
    height, width, _ = shape
    results = HandCrop(None, None, 96)({"img": np.full(shape, 200, np.uint8)})
    corners = map_points(results["crop_matrix"], [[0, 0], [width, height]])
    assert corners.min() == pytest.approx(0) and corners.max() == pytest.approx(96)
    assert corners.mean(0) == pytest.approx([48, 48])
    assert results["img"].shape == (96, 96, 3) and (results["img"][48, 48] == 200).all()


def test_crop_misused() -> None:
    with pytest.raises(ValueError, match="expected both, or None for both"):
        HandCrop(None, 180)
    with pytest.raises(ValueError, match="hand.jpg is 80x60 pixels .* lies outside"):
        HandCrop()({"img": np.zeros((60, 80, 3), np.uint8), "img_path": "hand.jpg"})


def test_random_numbers_are_those_of_metro() -> None:
    np.random.seed(0)
    crop, results = RandomHandCrop(), {"img": np.zeros((224, 224, 3), np.uint8)}
    drawn = [crop(results) for _ in range(4000)]
    rotations = np.array([d["rotation"] for d in drawn])
    sides = np.array([1 / _scale(d) for d in drawn])
    turned = rotations[rotations != 0]
    assert len(turned) / len(drawn) == pytest.approx(0.4, abs=0.03)
    assert np.abs(turned).max() == 180 and np.mean(np.abs(turned) == 180) == pytest.approx(
        0.0455, abs=0.02
    )
    assert np.mean(np.abs(turned) < 90) == pytest.approx(0.683, abs=0.04)
    assert (sides.min(), sides.max()) == pytest.approx((0.75, 1.25))
    assert np.mean((sides > 0.75 + 1e-9) & (sides < 1.25 - 1e-9)) == pytest.approx(0.683, abs=0.03)


def _scale(results: dict[str, Any]) -> float:
    """How much larger the crop shows the hand than METRO's evaluation crop does."""
    return float(np.sqrt(np.linalg.det(results["crop_matrix"][:, :2])) * 180 / 224)


def test_random_crop_repeats_with_numpys_seed() -> None:
    def draw() -> np.ndarray:
        np.random.seed(7)
        results = annotated(np.random.default_rng(0))
        results["img"][:] = 100
        return Compose([RandomHandCrop(upright=0), ColorNoise()])(results)["img"]

    assert np.array_equal(draw(), draw())


def test_colour_noise_by_channel() -> None:
    np.random.seed(0)
    image = np.full((4, 5, 3), 200, np.uint8)
    image[0] = 10
    factors = []
    for _ in range(300):
        noisy = ColorNoise(0.4)({"img": image})["img"]
        assert noisy.shape == image.shape and noisy.dtype == np.uint8
        factors.append(noisy[0, 0] / 10)
        np.testing.assert_allclose(noisy[1, 0], np.minimum(noisy[0, 0] * 20.0, 255), atol=11)
    low, high = np.min(factors, 0), np.max(factors, 0)
    np.testing.assert_allclose(low, 0.6, atol=0.05)
    np.testing.assert_allclose(high, 1.4, atol=0.05)
    assert np.abs(np.corrcoef(np.array(factors).T) - np.eye(3)).max() < 0.2
    assert (image[1:] == 200).all()
    with pytest.raises(ValueError, match="must be in"):
        ColorNoise(1.5)


def test_packed(tmp_path: Path) -> None:
    path = tmp_path / "hand.jpg"
    cv2.imwrite(str(path), np.full((224, 224, 3), (0, 0, 255), np.uint8))
    given = annotated(np.random.default_rng(0)) | {"img_path": str(path)}
    del given["img"], given["ori_shape"]
    pipeline = Compose([dict(type=t) for t in ("LoadHandImage", "HandCrop", "PackHandInputs")])
    packed = pipeline(given)
    inputs, sample = packed["inputs"], packed["data_samples"]
    assert inputs.shape == (3, 224, 224) and inputs.dtype == torch.uint8
    assert inputs[2].float().mean() > 250 and inputs[0].float().mean() < 5  # BGR
    assert isinstance(sample, HandDataSample) and "pred" not in sample
    assert {k: tuple(v.shape) for k, v in sample.gt.items()} == {
        "vertices": (778, 3),
        "keypoints": (21, 3),
        "keypoints_2d": (21, 2),
    }
    assert sample.gt.vertices.dtype == torch.float32
    assert sample.index == 3 and sample.ori_shape == (224, 224) and sample.rotation == 0
    assert sample.img_path == str(path) and sample.crop_matrix.shape == (2, 3)
    assert set(sample.to_dict()) > {"gt", "K", "index"}  # what mmengine's evaluator hands on


def test_packed_without_annotation() -> None:
    results = annotated(np.random.default_rng(0))
    del results["keypoints"], results["vertices"]
    packed = Compose([HandCrop(), PackHandInputs()])(results)
    assert "gt" not in packed["data_samples"] and packed["data_samples"].K.shape == (3, 3)


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image)[1].tobytes()


_NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_jpeg(_NOISE)[:-900], "truncated JPEG"),
        (_jpeg(_NOISE[..., 0]), r"\(64, 64\): expected a colour image"),
        (cv2.imencode(".png", _NOISE.astype(np.uint16))[1].tobytes(), "uint16"),
        (cv2.imencode(".png", np.dstack([_NOISE, _NOISE[..., :1]]))[1].tobytes(), r"\(64, 64, 4\)"),
        (b"GIF, honestly", "not an image that OpenCV can read: it may be damaged"),
        (b"", "it is empty"),
    ],
    ids=["truncated", "grey", "16 bits", "alpha", "text", "empty"],
)
def test_no_image(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "00000001.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"00000001.jpg.*{message}"):
        Compose([dict(type="LoadHandImage")])({"img_path": str(path)})


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="00000001.jpg does not exist"):
        Compose([dict(type="LoadHandImage")])({"img_path": str(tmp_path / "00000001.jpg")})
