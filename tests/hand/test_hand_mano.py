"""MANO's layer, against plain loops, smplx where it is installed, and what must not change."""

from pathlib import Path

import numpy as np
import pytest
import torch
from random_mano import random_mano
from scipy.spatial.transform import Rotation
from torch import nn

from fastvit_dense.hand.geometry import rotation_6d_to_matrix
from fastvit_dense.hand.mano import get_mano
from fastvit_dense.hand.mano.arrays import Mano
from fastvit_dense.hand.mano.file import save_mano
from fastvit_dense.hand.mano.layer import ManoLayer, pose_to_rotations
from fastvit_dense.hand.mano.topology import PARENTS

DOUBLE = torch.float64


def random_pose(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations (B, 16, 3, 3) of any angle, and betas (B, 10), in float64."""
    rotations = Rotation.random(16 * batch, rng=np.random.default_rng(0)).as_matrix()
    return torch.tensor(rotations).unflatten(0, (batch, 16)), torch.randn(batch, 10, dtype=DOUBLE)


@pytest.fixture(params=["random", "synthetic"])
def mano(request: pytest.FixtureRequest) -> Mano:
    return random_mano() if request.param == "random" else get_mano("synthetic")


def pose_by_loops(
    mano: Mano, rotations: np.ndarray, betas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (778, 3) and keypoints (21, 3) of one hand: the first as SMPL's paper has them, step by
    step; the second as FreiHAND's toolbox has them, from the posed vertices.
    """
    shaped = mano.template.copy()
    for k in range(10):
        shaped += betas[k] * mano.shape_directions[:, :, k]
    joints = np.array(
        [sum(w * v for w, v in zip(row, shaped, strict=True)) for row in mano.joint_regressor]
    )
    number = 0
    for joint in range(1, 16):
        for row in range(3):
            for column in range(3):
                bend = rotations[joint, row, column] - (row == column)
                shaped += bend * mano.pose_directions[:, :, number]
                number += 1
    world = []  # 4x4, from a joint's own frame to that of the hand
    for joint, parent in enumerate(PARENTS):
        own = np.eye(4)
        own[:3, :3] = rotations[joint]
        own[:3, 3] = joints[joint] - (joints[parent] if joint else 0)
        world.append(world[parent] @ own if joint else own)
    vertices = np.zeros((778, 3))
    for v in range(778):
        for joint in range(16):
            local = np.append(shaped[v] - joints[joint], 1)
            vertices[v] += mano.skinning_weights[v, joint] * (world[joint] @ local)[:3]
    wrist, *fingers = mano.joint_regressor @ vertices
    index, middle, little, ring, thumb = (fingers[i : i + 3] for i in range(0, 15, 3))
    return vertices, np.array(
        [
            wrist,
            *thumb, vertices[744], *index, vertices[320], *middle, vertices[443],
            *ring, vertices[555], *little, vertices[672],
        ]
    )  # fmt: skip


def test_equals_plain_loops(mano: Mano) -> None:
    rotations, betas = random_pose(2)
    vertices, keypoints = ManoLayer(mano, dtype=DOUBLE)(rotations, betas)
    assert vertices.shape == (2, 778, 3) and keypoints.shape == (2, 21, 3)
    for i in range(2):
        wanted = pose_by_loops(mano, rotations[i].numpy(), betas[i].numpy())
        np.testing.assert_allclose(vertices[i], wanted[0], atol=1e-13)
        np.testing.assert_allclose(keypoints[i], wanted[1], atol=1e-13)


def test_equals_smplx(mano: Mano, tmp_path: Path) -> None:
    """smplx's licence forbids to depend on it: install it by hand, `pip install --no-deps smplx`."""
    smplx = pytest.importorskip(
        "smplx", reason="smplx, whose licence is restrictive, is not installed"
    )
    save_mano(mano, tmp_path / "MANO_RIGHT.npz")
    layer = smplx.MANOLayer(
        str(tmp_path / "MANO_RIGHT.npz"), ext="npz", is_rhand=True, use_pca=False, dtype=DOUBLE
    )
    rotations, betas = random_pose(8)
    wanted = layer(betas=betas, global_orient=rotations[:, :1], hand_pose=rotations[:, 1:])
    vertices, keypoints = ManoLayer(mano, dtype=DOUBLE)(rotations, betas)
    assert (vertices - wanted.vertices).abs().max() < 1e-6
    # smplx's own joints are those of the kinematic chain: the keypoints are regressed from its vertices.
    of_joints = [0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3]
    regressed = layer.J_regressor @ wanted.vertices
    assert (keypoints[:, of_joints] - regressed).abs().max() < 1e-6
    assert (keypoints[:, of_joints] - wanted.joints[:, :16]).norm(dim=-1).max() > 1e-3


def test_identity_gives_the_template(mano: Mano) -> None:
    vertices, _ = ManoLayer(mano, dtype=DOUBLE)(
        torch.eye(3, dtype=DOUBLE).expand(1, 16, 3, 3), torch.zeros(1, 10)
    )
    np.testing.assert_allclose(vertices[0], mano.template, atol=1e-15)


def test_first_rotation_turns_the_hand_about_the_wrist(mano: Mano) -> None:
    layer, (rotations, betas) = ManoLayer(mano, dtype=DOUBLE), random_pose(3)
    turned = layer(rotations, betas)
    straight = rotations.clone()
    straight[:, 0] = torch.eye(3)
    unturned = layer(straight, betas)
    # About the joint that the skeleton turns at, which the regressor gives of the unposed vertices.
    shaped = mano.template + np.einsum("vck,bk->bvc", mano.shape_directions, betas)
    wrist = torch.tensor(mano.joint_regressor[:1] @ shaped)  # (3, 1, 3)
    for found, before in zip(turned, unturned, strict=True):
        wanted = (before - wrist) @ rotations[:, 0].mT + wrist
        torch.testing.assert_close(found, wanted)


def test_gradients() -> None:
    layer, (rotations, betas) = ManoLayer(random_mano(), dtype=DOUBLE), random_pose(2)
    inputs = rotations.requires_grad_(), betas.requires_grad_()
    assert torch.autograd.gradcheck(layer, inputs, fast_mode=True)


def test_nothing_of_mano_enters_a_checkpoint() -> None:
    layer = ManoLayer(random_mano())
    assert layer.state_dict() == {} and list(layer.parameters()) == []
    assert {b.dtype for b in layer.buffers()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(dtype: torch.dtype) -> None:
    layer, (rotations, betas) = ManoLayer(random_mano()), random_pose(2)
    wanted = layer(rotations.float(), betas.float())
    with torch.autocast("cpu", dtype=dtype):
        found = layer(rotations.float(), betas.float())
        assert layer(rotations.to(dtype), betas.to(dtype)).vertices.dtype == torch.float32
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    exact = ManoLayer(random_mano(), dtype=DOUBLE)(rotations, betas)
    assert (found.vertices - exact.vertices).abs().max() < 1e-6


def test_hands_of_a_batch_are_apart() -> None:
    layer, (rotations, betas) = ManoLayer(random_mano(), dtype=DOUBLE), random_pose(4)
    together = layer(rotations, betas)
    for i in range(4):
        alone = layer(rotations[i : i + 1], betas[i : i + 1])
        torch.testing.assert_close(together.vertices[i], alone.vertices[0])
        torch.testing.assert_close(together.keypoints[i], alone.keypoints[0])


class FromNumbers(nn.Module):
    """What a network's head does with its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ManoLayer(random_mano())

    def forward(self, numbers: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.layer(rotation_6d_to_matrix(numbers), betas)


# What converters' packages say on import, and torch of its exporter.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_exported_graph_is_the_layer(tmp_path: Path, package: str) -> None:
    runtime = pytest.importorskip(package, reason=f"{package} is not installed: extra `export`")
    model = FromNumbers().eval()
    example = torch.randn(1, 16, 6), torch.randn(1, 10)
    inputs = torch.randn(3, 16, 6), torch.randn(3, 10)
    if package == "openvino":
        graph = runtime.convert_model(model, example_input=example)
        compiled = runtime.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = list(compiled([x.numpy() for x in inputs]).values())
    else:
        pytest.importorskip("onnx", reason="onnx is not installed: extra `export`")
        path = tmp_path / "mano.onnx"
        names = ["numbers", "betas"]
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(model, example, path, input_names=names, dynamic_axes=axes, dynamo=False)
        session = runtime.InferenceSession(path)
        found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    for a, b in zip(found, model(*inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_poses_of_freihand_are_relative_to_the_mean() -> None:
    pose = torch.randn(2, 5, 48, dtype=DOUBLE)
    mean = np.random.default_rng(1).normal(size=45)
    found = pose_to_rotations(pose, mean)
    assert found.shape == (2, 5, 16, 3, 3)
    absolute = pose.numpy().reshape(10, 48) + np.concatenate([np.zeros(3), mean])
    wanted = Rotation.from_rotvec(absolute.reshape(-1, 3)).as_matrix().reshape(2, 5, 16, 3, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert pose_to_rotations(pose.float(), torch.tensor(mean)).dtype == torch.float32
