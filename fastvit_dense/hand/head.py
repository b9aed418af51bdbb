"""The regression head: features to MANO's parameters in three fully connected layers (appendix B.5).

Shape legend: B batch, C channels of the features, H and W height and width of the map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .camera import project_weak_perspective
from .mano import ManoLayer
from .mano_file import get_mano
from .rotation import rotation_6d_to_matrix
from .topology import NUM_BETAS, NUM_ROTATIONS, ROOT

# One unit of the camera layer's outputs: scale in 1/m, translation in m. A hand at 0.65 m in front of
# FreiHAND's cameras (480 px) is about 8 half images a metre large in a crop of 180 px, and its root some
# centimetres from the middle. With these units all outputs of the head are of order 1, as Adam likes it.
CAMERA_UNITS = (8.0, 0.1, 0.1)
_INITIAL_STD = 1e-3


class HandPrediction(NamedTuple):
    """What the model predicts of a batch of hands.

    Vertices and keypoints are in metres, relative to the root keypoint, in the axes of the camera (x
    right, y down, z forward): the first rotation turns MANO's hand into them.

    Attributes:
        vertices: (B, 778, 3).
        keypoints: (B, 21, 3), in FreiHAND's order.
        keypoints_2d: (B, 21, 2), in [-1, 1] over the image.
        camera: (B, 3), weak perspective: scale in 1/m, translation x and y in m.
        rotations: (B, 16, 3, 3), in MANO's order.
        betas: (B, 10).
    """

    vertices: Tensor
    keypoints: Tensor
    keypoints_2d: Tensor
    camera: Tensor
    rotations: Tensor
    betas: Tensor


@MODELS.register_module()
class ManoHead(nn.Module):
    """Global average pooling, then one fully connected layer each for pose, shape and camera.

    The layers start where a network has seen nothing yet: MANO's template, upright, in the middle of the
    image. Everything is computed in float32 at least, also under autocast: bfloat16 would move fingertips
    by millimetres.

    Args:
        in_channels: channels of the last map.
        mano: path of the MANO file, ``.pkl`` or ``.npz``, or ``synthetic`` for the procedural hand.

    Attributes:
        mano_source: the argument `mano`.
        faces: (1538, 3) int64 numpy array, vertices of each triangle.

    Raises:
        FileNotFoundError: there is no such MANO file; the message says where to get it.
    """

    def __init__(self, in_channels: int, *, mano: str = "synthetic") -> None:
        super().__init__()
        self.in_channels = in_channels
        self.pose = nn.Linear(in_channels, NUM_ROTATIONS * 6)
        self.shape = nn.Linear(in_channels, NUM_BETAS)
        self.camera = nn.Linear(in_channels, len(CAMERA_UNITS))
        hand = get_mano(mano)
        self.mano = ManoLayer(hand)
        self.mano_source, self.faces = mano, hand.faces
        self.register_buffer("camera_units", torch.tensor(CAMERA_UNITS), persistent=False)
        self.camera_units: Tensor
        self._initialise()

    def _initialise(self) -> None:
        for layer in (self.pose, self.shape, self.camera):
            nn.init.normal_(layer.weight, std=_INITIAL_STD)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            # The first two columns of the identity.
            self.pose.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(NUM_ROTATIONS))
            self.camera.bias.copy_(torch.tensor([1.0, 0, 0]))

    def forward(self, features: Sequence[Tensor]) -> HandPrediction:
        """Predict the hands of a batch.

        Args:
            features: maps of the backbone; the last, (B, C, H, W), is read.

        Raises:
            ValueError: the map has another number of channels than `in_channels`.
        """
        x = features[-1]
        if x.shape[1] != self.in_channels:
            raise ValueError(
                f"the backbone's last map has {x.shape[1]} channels, the head expects "
                f"{self.in_channels}: set model.head.in_channels"
            )
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.pose.weight.dtype).mean(dim=(2, 3))  # (B, C)
            rotations = rotation_6d_to_matrix(self.pose(x).unflatten(1, (NUM_ROTATIONS, 6)))
            return self.pose_hands(rotations, self.shape(x), self.camera(x) * self.camera_units)

    def pose_hands(self, rotations: Tensor, betas: Tensor, camera: Tensor) -> HandPrediction:
        """The hands of given parameters.

        Args:
            rotations: (B, 16, 3, 3), in MANO's order.
            betas: (B, 10).
            camera: (B, 3), scale in 1/m, translation in m.
        """
        mesh = self.mano(rotations, betas)
        root = mesh.keypoints[:, ROOT : ROOT + 1]  # (B, 1, 3)
        keypoints = mesh.keypoints - root
        return HandPrediction(
            vertices=mesh.vertices - root,
            keypoints=keypoints,
            keypoints_2d=project_weak_perspective(keypoints, camera),
            camera=camera,
            rotations=rotations,
            betas=betas,
        )
