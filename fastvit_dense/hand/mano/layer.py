"""MANO as a layer: rotations and betas in, a mesh and its keypoints out (Romero et al. 2017).

Shape legend: B batch, V = 778 vertices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry import axis_angle_to_matrix
from .arrays import Mano
from .topology import NUM_ROTATIONS

# MANO's joints after the wrist are five chains of three, one after the other (topology.PARENTS).
_CHAINS = (5, 3)


class ManoOutput(NamedTuple):
    """What :class:`ManoLayer` returns, in metres.

    Attributes:
        vertices: (B, 778, 3).
        keypoints: (B, 21, 3), FreiHAND's: regressed from these vertices, see `Mano.keypoint_regressor`.
    """

    vertices: Tensor
    keypoints: Tensor


class ManoLayer(nn.Module):
    """Linear blend skinning of a hand: differentiable, without parameters.

    It computes in the dtype of its buffers, also under autocast: in half precision vertices would move
    by up to 0.1 mm for rounding alone. The buffers are not persistent, so that MANO's arrays, which may
    not be passed on, enter no checkpoint. (An exported graph does contain them.)

    Args:
        mano: the model's arrays.
        dtype: of the buffers.
    """

    template: Tensor
    directions: Tensor
    joint_template: Tensor
    joint_directions: Tensor
    skinning_weights: Tensor
    keypoint_weights: Tensor
    identity: Tensor

    def __init__(self, mano: Mano, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        # All x, then all y and z: rows of 778 numbers are what vector units take.
        directions = np.concatenate([mano.shape_directions, mano.pose_directions], axis=2)
        shaped_joints = np.einsum("jv,vcb->bjc", mano.joint_regressor, mano.shape_directions)
        buffers = {
            "template": mano.template.T.reshape(-1),  # (3 V,)
            "directions": directions.transpose(2, 1, 0).reshape(145, -1),  # (145, 3 V)
            "joint_template": (mano.joint_regressor @ mano.template).reshape(-1),  # (48,)
            "joint_directions": shaped_joints.reshape(10, -1),  # (10, 48)
            "skinning_weights": mano.skinning_weights.T,  # (16, V)
            "keypoint_weights": mano.keypoint_regressor.T,  # (V, 21)
            "identity": np.eye(3),
        }
        for name, array in buffers.items():
            # A copy: the arrays are read-only, which tensors cannot be.
            self.register_buffer(name, torch.tensor(array, dtype=dtype), persistent=False)

    def forward(self, rotations: Tensor, betas: Tensor) -> ManoOutput:
        """Pose a hand.

        Args:
            rotations: (B, 16, 3, 3), in the order of MANO's joints, each relative to its parent; the
                first turns the whole hand about the skeleton's wrist, which is near keypoint 0. MANO's mean
                pose is not added: see :func:`pose_to_rotations`.
            betas: (B, 10), shape.

        Returns:
            Vertices and keypoints in MANO's frame, where the template is with rotations of identity.
        """
        with torch.autocast(rotations.device.type, enabled=False):
            return self._pose(rotations.to(self.template.dtype), betas.to(self.template.dtype))

    def _pose(self, rotations: Tensor, betas: Tensor) -> ManoOutput:
        bends = (rotations[:, 1:] - self.identity).flatten(1)  # (B, 135)
        shaped = torch.addmm(self.template, torch.cat([betas, bends], 1), self.directions)
        shaped = shaped.unflatten(1, (1, 3, -1))  # (B, 1, 3, V)
        joints = torch.addmm(self.joint_template, betas, self.joint_directions)
        joints = joints.unflatten(1, (NUM_ROTATIONS, 3))  # (B, 16, 3)
        turned, placed = _follow_chains(rotations, joints)
        # A vertex v follows joint j to turned_j (v - joint_j) + placed_j.
        shift = placed - (turned @ joints[..., None]).squeeze(-1)
        motions = torch.cat([turned, shift[..., None]], -1)  # (B, 16, 3, 4)
        # transpose() and not mT, which OpenVINO does not convert.
        blended = motions.flatten(2).transpose(1, 2) @ self.skinning_weights  # (B, 12, V)
        blended = blended.unflatten(1, (3, 4))  # (B, 3, 4, V)
        vertices = (blended[:, :, :3] * shaped).sum(2) + blended[:, :, 3]  # (B, 3, V)
        keypoints = vertices @ self.keypoint_weights  # (B, 3, 21)
        return ManoOutput(
            vertices.transpose(1, 2).contiguous(), keypoints.transpose(1, 2).contiguous()
        )


def _follow_chains(rotations: Tensor, joints: Tensor) -> tuple[Tensor, Tensor]:
    """The rotations (B, 16, 3, 3) and places (B, 16, 3) of all joints in the frame of the hand.

    It goes from the wrist outwards, through the five fingers at once.

    Args:
        rotations: (B, 16, 3, 3), relative to the parent.
        joints: (B, 16, 3), without rotation.
    """
    local = rotations[:, 1:].unflatten(1, _CHAINS)  # (B, 5, 3, 3, 3)
    rest = joints[:, 1:].unflatten(1, _CHAINS)  # (B, 5, 3, 3)
    turn, place, parent = rotations[:, :1], joints[:, :1], joints[:, :1]
    turns, places = [], []
    for level in range(_CHAINS[1]):
        bone = rest[:, :, level] - parent
        place = place + (turn @ bone[..., None]).squeeze(-1)  # (B, 5, 3)
        turn = turn @ local[:, :, level]  # (B, 5, 3, 3)
        parent = rest[:, :, level]
        turns.append(turn)
        places.append(place)
    return (
        torch.cat([rotations[:, :1], torch.stack(turns, 2).flatten(1, 2)], 1),
        torch.cat([joints[:, :1], torch.stack(places, 2).flatten(1, 2)], 1),
    )


def pose_to_rotations(pose: Tensor, pose_mean: np.ndarray | Tensor) -> Tensor:
    """Turn poses as FreiHAND stores them into what :class:`ManoLayer` takes.

    Args:
        pose: (..., 48), axis-angle in radians: the whole hand, then the 15 joints of the fingers relative
            to MANO's mean pose.
        pose_mean: (45,), that mean: ``Mano.pose_mean``.

    Returns:
        (..., 16, 3, 3).
    """
    if isinstance(pose_mean, np.ndarray):
        pose_mean = torch.tensor(pose_mean)
    whole, fingers = pose.split([3, 45], -1)
    fingers = fingers + pose_mean.to(pose)
    return axis_angle_to_matrix(torch.cat([whole, fingers], -1).unflatten(-1, (-1, 3)))
