"""Head, losses, model and test-time augmentation, against cases computed by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import randomise, run_tool
from mmengine.structures import BaseDataElement
from torch import nn

from fastvit_dense import reparameterize
from fastvit_dense.hand.geometry import axis_angle_to_matrix, project, to_pixels
from fastvit_dense.hand.mano.layer import pose_to_rotations
from fastvit_dense.hand.mano.synthetic import synthetic_hand
from fastvit_dense.hand.mano.topology import ROOT
from fastvit_dense.hand.model import (
    HandDataSample,
    HandLoss,
    HandMeshModel,
    HandPrediction,
    HandTargets,
    ManoHead,
    add_predictions,
    targets_of,
)
from fastvit_dense.hand.transforms import HandTTAModel
from fastvit_dense.synthetic.hands import sample_betas, sample_pose

TERM = dict(criterion="mse")
K = torch.tensor([[480.0, 0, 112], [0, 490, 110], [0, 0, 1]])


@pytest.fixture(scope="module")
def head() -> ManoHead:
    return ManoHead(8)


def build(arch: str = "t8", channels: int = 384) -> HandMeshModel:
    return HandMeshModel(
        backbone=dict(type="FastViT", arch=arch, out_indices=(3,), out_norm=False),
        head=dict(type="ManoHead", in_channels=channels),
        loss=dict(type="HandLoss", vertices=TERM, keypoints=TERM, keypoints_2d=TERM),
        data_preprocessor=dict(
            type="ImgDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
    )  # fmt: skip


def drawn_hands(head: ManoHead, count: int) -> HandPrediction:
    """Hands of plausible pose and shape, with cameras that see them."""
    rng = np.random.default_rng(0)
    pose = torch.from_numpy(sample_pose(rng, count)).float()
    rotations = pose_to_rotations(pose, synthetic_hand().pose_mean)
    camera = torch.tensor([8.0, 0.01, -0.02]) + torch.rand(count, 3) * torch.tensor(
        [2.0, 0.02, 0.02]
    )
    betas = torch.from_numpy(sample_betas(rng, count)).float()
    return head.pose_hands(rotations, betas, camera)


def crop_matrix(degrees: float, *, zoom: float, shift: tuple[float, float]) -> np.ndarray:
    """(2, 3): turned about the origin, zoomed and shifted."""
    c, s = zoom * math.cos(math.radians(degrees)), zoom * math.sin(math.radians(degrees))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def test_three_single_layers_and_nothing_of_mano_in_the_checkpoint() -> None:
    model = build()
    own = {k: tuple(v.shape) for k, v in model.state_dict().items() if "backbone" not in k}
    assert own == {
        "head.pose.weight": (96, 384), "head.pose.bias": (96,),
        "head.shape.weight": (10, 384), "head.shape.bias": (10,),
        "head.camera.weight": (3, 384), "head.camera.bias": (3,),
    }  # fmt: skip
    assert all(p.requires_grad for p in model.parameters())


def test_the_head_starts_with_the_template_in_the_middle(head: ManoHead) -> None:
    hand = synthetic_hand()
    found = head([torch.zeros(2, 8, 7, 7)])
    template = torch.tensor(hand.template).float()
    assert torch.allclose(
        found.vertices[1] - found.vertices[1, 0], template - template[0], atol=1e-6
    )
    assert torch.allclose(found.keypoints[0, ROOT], torch.zeros(3))
    assert found.camera[0].tolist() == [8.0, 0.0, 0.0]
    assert torch.allclose(found.keypoints_2d, 8 * found.keypoints[..., :2])
    # Features of order one move it little.
    moved = head([torch.randn(16, 8, 7, 7).mean((2, 3), keepdim=True).expand(-1, -1, 7, 7)])
    assert (moved.vertices - found.vertices[:1]).abs().max() < 0.005


def test_the_head_averages_its_map(head: ManoHead) -> None:
    x = torch.randn(2, 8, 5, 6)
    pooled = x.double().mean((2, 3))
    expected = pooled @ head.shape.weight.double().T + head.shape.bias.double()
    assert torch.allclose(head([x]).betas.double(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_geometry_is_float32_under_autocast(head: ManoHead, dtype: torch.dtype) -> None:
    x = torch.randn(3, 8, 7, 7)
    with torch.autocast("cpu", dtype=dtype):
        found = head([x.to(dtype)])
    expected = head([x.to(dtype).float()])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_camera_projects_the_root_relative_keypoints(head: ManoHead) -> None:
    hands = drawn_hands(head, 2)
    s, tx, ty = hands.camera[1].tolist()
    x, y, _ = hands.keypoints[1, 8].tolist()
    assert hands.keypoints_2d[1, 8].tolist() == pytest.approx(
        [s * (x + tx), s * (y + ty)], abs=1e-5
    )


def test_losses_by_hand() -> None:
    zero = HandPrediction(*(torch.zeros(1, 1, n) for n in (3, 3, 2, 1, 1, 1)))
    targets = HandTargets(
        torch.tensor([[[0.1, 0.0, -0.2]]]),
        torch.tensor([[[0.3, 0.0, 0.0]]]),
        torch.tensor([[[0.5, -1.0]]]),
    )
    loss = HandLoss(
        vertices=dict(criterion="l1", weight=2.0),
        keypoints=TERM,
        keypoints_2d=dict(criterion="mse"),
    )
    found = loss(zero, targets)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {"loss_vertices": 2 * 0.1, "loss_keypoints": 0.03, "loss_keypoints_2d": 0.625}
    )
    l1 = HandLoss(**dict.fromkeys(HandTargets._fields, dict(criterion="l1")))(zero, targets)
    assert {k: v.item() for k, v in l1.items()} == pytest.approx(
        {"loss_vertices": 0.1, "loss_keypoints": 0.1, "loss_keypoints_2d": 0.75}
    )
    for wrong in (dict(criterion="l2"), dict(criterion="l1", weight=-1.0)):
        with pytest.raises(ValueError, match="loss of keypoints: expected a criterion of l1, mse"):
            HandLoss(vertices=TERM, keypoints=wrong, keypoints_2d=TERM)


def annotated(
    hands: HandPrediction, i: int, *, place: tuple[float, ...] = (0, 0, 0)
) -> HandDataSample:
    sample = HandDataSample(metainfo=dict(img_path=f"{i:08d}.jpg"))
    sample.gt = BaseDataElement(
        vertices=hands.vertices[i] + torch.tensor(place),
        keypoints=hands.keypoints[i] + torch.tensor(place),
        keypoints_2d=to_pixels(hands.keypoints_2d[i], 224),
    )
    return sample


def test_targets_are_relative_to_the_root_and_normalised(head: ManoHead) -> None:
    hands = drawn_hands(head, 2)
    samples = [annotated(hands, 0), annotated(hands, 1, place=(0.1, -0.2, 0.7))]
    targets = targets_of(samples, size=224)
    for name in HandTargets._fields:
        assert torch.allclose(getattr(targets, name), getattr(hands, name), atol=1e-6)
    with pytest.raises(ValueError, match="img.jpg has no annotation to train on"):
        targets_of([HandDataSample(metainfo=dict(img_path="img.jpg"))], size=224)


def test_model_modes(head: ManoHead) -> None:
    model = build()
    images = torch.randn(2, 3, 64, 64)
    samples = [annotated(drawn_hands(head, 2), i) for i in range(2)]
    losses = model(images, samples, mode="loss")
    assert list(losses) == ["loss_vertices", "loss_keypoints", "loss_keypoints_2d"]
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())

    model.eval()
    with torch.no_grad():
        tensors = model(images)
        without, predicted = model(images, mode="predict"), model(images, samples, mode="predict")
    assert [tuple(t.shape) for t in tensors] == [
        (2, 778, 3), (2, 21, 3), (2, 21, 2), (2, 3), (2, 16, 3, 3), (2, 10)
    ]  # fmt: skip
    assert predicted[1] is samples[1]
    for sample in (without[1], predicted[1]):
        assert torch.equal(sample.pred.vertices, tensors.vertices[1])
        assert torch.equal(sample.pred.keypoints_2d, to_pixels(tensors.keypoints_2d[1], 64))
        assert "vertices_camera" not in sample.pred
    with pytest.raises(ValueError, match="mode must be tensor, loss or predict; got 'train'"):
        model(images, mode="train")


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="last map has 384 channels, the head expects 512"):
        build(channels=512)(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("degrees", [0.0, 35.0, -170.0])
def test_place_before_the_camera_is_in_the_original_frame(head: ManoHead, degrees: float) -> None:
    """A prediction that is right in a turned crop is right in the original image."""
    hands = drawn_hands(head, 1)
    place = torch.tensor([0.03, -0.02, 0.65])
    matrix = crop_matrix(degrees, zoom=1.3, shift=(70.0, -30.0))
    angle = torch.tensor([0, 0, math.radians(degrees)])
    turn = axis_angle_to_matrix(angle)  # about the optical axis
    affine = torch.from_numpy(np.vstack([matrix, [0, 0, 1]])).float()
    crop_K = affine @ K @ turn.T

    keypoints, vertices = hands.keypoints + place, hands.vertices + place
    # What the augmentation promises.
    original = torch.cat([project(keypoints, K[None]), torch.ones(1, 21, 1)], 2) @ affine.T
    pixels = project(keypoints @ turn.T, crop_K[None])
    assert torch.allclose(original[..., :2], pixels, atol=1e-3)

    turned = hands._replace(
        vertices=hands.vertices @ turn.T, keypoints=hands.keypoints @ turn.T,
        keypoints_2d=pixels / 112 - 1,
    )  # fmt: skip
    sample = HandDataSample(metainfo=dict(K=crop_K.numpy(), crop_matrix=matrix, rotation=degrees))
    (found,) = add_predictions([sample], turned, size=224)
    assert torch.allclose(found.pred.keypoints_camera, keypoints[0], atol=1e-4)
    assert torch.allclose(found.pred.vertices_camera, vertices[0], atol=1e-4)
    assert found.pred.vertices_camera.dtype == torch.float32


def test_hands_of_a_batch_have_places_of_their_own(head: ManoHead) -> None:
    hands = drawn_hands(head, 4)

    def placed(chosen: list[int]) -> list[HandDataSample]:
        infos = [dict(K=(K * (1 + 0.2 * i)).numpy(), rotation=40.0 * i) for i in chosen]
        infos = [{} if i == 2 else info for i, info in zip(chosen, infos, strict=True)]
        samples = [HandDataSample(metainfo=info) for info in infos]
        return add_predictions(samples, HandPrediction(*(x[chosen] for x in hands)), size=224)

    for i, sample in enumerate(placed([0, 1, 2, 3])):
        (alone,) = placed([i])
        assert ("vertices_camera" in sample.pred) == (i != 2)
        for name in ("vertices_camera", "keypoints_camera") if i != 2 else ():
            torch.testing.assert_close(sample.pred.get(name), alone.pred.get(name))


def test_views_of_one_hand_merge_into_it(head: ManoHead) -> None:
    """Views that all see the hand as it is are brought to the first view exactly."""
    hands = drawn_hands(head, 2)
    turns = (10.0, -80.0, 60.0)
    zooms_and_shifts = ((1.2, (5.0, -9.0)), (0.9, (200.0, 60.0)), (1.5, (0.0, 7.0)))
    crops = [
        crop_matrix(degrees, zoom=zoom, shift=shift)
        for degrees, (zoom, shift) in zip(turns, zooms_and_shifts, strict=True)
    ]
    batch = []
    for i in range(2):
        views = []
        for degrees, matrix in zip(turns, crops, strict=True):
            last = np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(np.vstack([crops[0], [0, 0, 1]]))
            linear, shift = torch.from_numpy(last[:2]).float().split([2, 1], 1)
            angle = torch.tensor([0, 0, math.radians(degrees - turns[0])])
            turn = axis_angle_to_matrix(angle)
            rotations = hands.rotations[i].clone()
            rotations[0] = turn @ rotations[0]
            scale = hands.camera[i, 0] * linear.det().sqrt()
            # Where the first view's root pixel is seen in this one.
            pixel = to_pixels(hands.camera[i, 0] * hands.camera[i, 1:], 224)
            root = (linear @ pixel + shift[:, 0]) / 112 - 1
            camera = torch.cat([scale[None], root / scale])
            seen = head.pose_hands(rotations[None], hands.betas[i : i + 1], camera[None])
            expected = to_pixels(hands.keypoints_2d[i], 224) @ linear.T + shift[:, 0]
            assert torch.allclose(to_pixels(seen.keypoints_2d[0], 224), expected, atol=1e-3)
            view = HandDataSample(metainfo=dict(crop_matrix=matrix, rotation=degrees))
            views += add_predictions([view], seen, size=224)
        batch.append(views)
    module = SimpleNamespace(head=head, image_size=(224, 224))
    merged = HandTTAModel.merge_preds(SimpleNamespace(module=module), batch)
    for i, sample in enumerate(merged):
        assert sample is batch[i][0]
        assert torch.allclose(sample.pred.vertices, hands.vertices[i], atol=1e-6)
        assert torch.allclose(sample.pred.camera, hands.camera[i], atol=1e-4)
        wanted = to_pixels(hands.keypoints_2d[i], 224)
        assert torch.allclose(sample.pred.keypoints_2d, wanted, atol=1e-2)


def test_views_that_differ_are_averaged(head: ManoHead) -> None:
    """The mean of turns by a and -a about one axis is no turn."""
    turns = axis_angle_to_matrix(0.5 * torch.nn.functional.normalize(torch.randn(16, 3), dim=1))
    rotations = torch.stack([turns, turns.mT])
    betas, camera = torch.randn(2, 10), torch.tensor([[8.0, 0.01, 0.0], [10.0, 0.03, 0.02]])
    seen = head.pose_hands(rotations, betas, camera)
    crop = dict(crop_matrix=np.eye(2, 3), rotation=0.0)
    views = add_predictions([HandDataSample(metainfo=crop) for _ in range(2)], seen, size=224)
    module = SimpleNamespace(head=head, image_size=(224, 224))
    (merged,) = HandTTAModel.merge_preds(SimpleNamespace(module=module), [views])
    assert torch.allclose(merged.pred.rotations, torch.eye(3).expand(16, 3, 3), atol=1e-6)
    assert torch.allclose(merged.pred.betas, betas.mean(0))
    # The scale, and where the root is seen: 0.08 and 0.3 half images to the right, 0 and 0.2 down.
    assert merged.pred.camera.tolist() == pytest.approx([9, 0.19 / 9, 0.1 / 9], abs=1e-5)


@pytest.mark.parametrize(("arch", "channels"), [("t8", 384), ("sa12", 512)])
def test_fused_and_unfused_give_the_same_mesh(arch: str, channels: int) -> None:
    model = randomise(build(arch, channels)).eval()
    for layer in (model.head.pose, model.head.shape, model.head.camera):
        nn.init.normal_(layer.weight, std=0.3)  # so that the image decides
    images = torch.randn(2, 3, 96, 96) * torch.tensor([0.5, 3.0]).view(2, 1, 1, 1)
    with torch.no_grad():
        expected = model(images)
        fused = reparameterize(model)
        found = fused(images)
    assert (expected.vertices[0] - expected.vertices[1]).abs().max() > 0.01
    assert 0 < (found.vertices - expected.vertices).abs().max() < 1e-5
    assert (found.keypoints_2d - expected.keypoints_2d).abs().max() < 1e-4
    assert fused.backbone.deploy and not model.backbone.deploy


def test_without_openmmlabs_packages_but_mmengine() -> None:
    """Imported, built from a config, trained a step and fused where mmcv, mmdet and mmseg are missing."""
    script = """
import sys
for name in ("mmcv", "mmdet", "mmseg"):
    sys.modules[name] = None
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
import fastvit_dense.hand
from fastvit_dense import reparameterize
from fastvit_dense.engine.config import load_config
cfg = load_config("configs/hand/mano_fastvit-t8_demo-hands.py")
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model)
prediction = model(torch.zeros(1, 3, 64, 64))
prediction.vertices.square().sum().backward()
reparameterize(model.eval())(torch.zeros(1, 3, 64, 64), mode="predict")
print("works without")
"""
    assert "works without" in run_tool("-c", script)
