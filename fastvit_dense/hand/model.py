"""From an image of a hand to its mesh: FastViT, the regression head and MANO, and the three losses.

Paper section 4.3, figure 5 and appendix B.5.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from .geometry import (
    axis_rotation,
    place_before_camera,
    project_weak_perspective,
    rotation_6d_to_matrix,
    to_normalised,
    to_pixels,
)
from .mano import get_mano
from .mano.layer import ManoLayer
from .mano.topology import NUM_BETAS, NUM_ROTATIONS, ROOT


class HandDataSample(BaseDataElement):
    """One crop of a hand.

    The crop has a camera frame of its own: that of the original turned about the optical axis by
    `rotation`, so that the crop is the picture that a camera with the intrinsics `K` takes.

    Attributes:
        gt: what is annotated; there is none where the evaluation set comes without labels. Tensors of
            float32:
            vertices (778, 3) and keypoints (21, 3), metres, camera frame of the crop;
            keypoints_2d (21, 2), pixels of the crop.
        pred: what the model predicts. Tensors:
            vertices (778, 3) and keypoints (21, 3), metres, axes of the crop's camera, relative to the
            root keypoint; keypoints_2d (21, 2), pixels of the crop;
            camera (3,), betas (10,), rotations (16, 3, 3), as of the head;
            where `K` is known: vertices_camera (778, 3) and keypoints_camera (21, 3), metres, in the
            camera frame of the original image, as FreiHAND's benchmark wants them.

    Of the metainfo, `img_path` and `index` say which image of the dataset it is, `ori_shape` its height and
    width; `crop_matrix` (2, 3) takes pixels of the original to those of the crop, `rotation` is in
    degrees, clockwise as seen in the image, and `K` (3, 3) is of the crop.
    """

    gt: BaseDataElement
    pred: BaseDataElement


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
        FileNotFoundError: the MANO file does not exist; the message says where to get it.
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


CRITERIA = {"l1": F.l1_loss, "mse": F.mse_loss}


class HandTargets(NamedTuple):
    """Annotations of a batch, in the frames of :class:`HandPrediction`.

    Attributes:
        vertices: (B, 778, 3) metres, relative to the root keypoint.
        keypoints: (B, 21, 3) metres, likewise.
        keypoints_2d: (B, 21, 2), in [-1, 1] over the image.
    """

    vertices: Tensor
    keypoints: Tensor
    keypoints_2d: Tensor


class Term(NamedTuple):
    """One loss: its distance, a key of ``CRITERIA``, and its weight."""

    criterion: str
    weight: float = 1.0


@MODELS.register_module()
class HandLoss(nn.Module):
    """Weighted distances of predicted and annotated hands, each a mean over all coordinates.

    Args:
        vertices: of the root-aligned vertices, in metres: ``dict(criterion="l1" or "mse", weight=...)``.
        keypoints: of the root-aligned 3D keypoints, in metres.
        keypoints_2d: of the projected keypoints, in half images.

    Raises:
        ValueError: a criterion does not exist, or a weight is negative.
    """

    def __init__(
        self, *, vertices: dict[str, Any], keypoints: dict[str, Any], keypoints_2d: dict[str, Any]
    ) -> None:
        super().__init__()
        self.terms = {
            name: Term(**term)
            for name, term in zip(
                HandTargets._fields, (vertices, keypoints, keypoints_2d), strict=True
            )
        }
        for name, term in self.terms.items():
            if term.criterion not in CRITERIA or not term.weight >= 0:
                raise ValueError(
                    f"loss of {name}: expected a criterion of {', '.join(CRITERIA)} and a weight of at "
                    f"least 0; got {term.criterion!r} and {term.weight}"
                )

    def forward(self, prediction: HandPrediction, targets: HandTargets) -> dict[str, Tensor]:
        """The losses by name, ``loss_vertices`` and so on, each already weighted."""
        return {
            f"loss_{name}": term.weight
            * CRITERIA[term.criterion](getattr(prediction, name), getattr(targets, name))
            for name, term in self.terms.items()
        }


@MODELS.register_module()
class HandMeshModel(BaseModel):
    """Predicts the mesh, keypoints and camera of the hand in a crop.

    Args:
        backbone: config of a FastViT with ``out_indices=(3,)``.
        head: config of a :class:`fastvit_dense.hand.model.ManoHead`.
        loss: config of a :class:`fastvit_dense.hand.model.HandLoss`.
        data_preprocessor: config of mmengine's ``ImgDataPreprocessor``.
        image_size: S, side of the crops that the config trains at: what the predictor makes of an image.
        init_cfg: as for any mmengine module.

    Attributes:
        image_size: height and width of a crop; export and reparameterize compare at it, too.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        head: dict[str, Any],
        loss: dict[str, Any],
        data_preprocessor: dict[str, Any] | None = None,
        image_size: int = 224,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.image_size = (image_size, image_size)
        self.backbone = MODELS.build(backbone)
        self.head = MODELS.build(head)
        self.loss = MODELS.build(loss)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[HandDataSample] | None = None,
        mode: str = "tensor",
    ) -> HandPrediction | dict[str, Tensor] | list[HandDataSample]:
        """Run the model, as mmengine calls it.

        Args:
            inputs: (B, 3, S, S) normalised images.
            data_samples: of the B images: annotations for ``loss``; for ``predict`` what is known of the
                crops, or None.
            mode: ``tensor``, ``loss`` or ``predict``.

        Returns:
            The tensors of the prediction, the losses by name, or the data samples with `pred`.

        Raises:
            ValueError: the mode does not exist, or ``loss`` without annotations.
        """
        prediction: HandPrediction = self.head(self.backbone(inputs))
        if mode == "tensor":
            return prediction
        if mode == "predict":
            samples = data_samples or [HandDataSample() for _ in inputs]
            return add_predictions(samples, prediction, size=inputs.shape[-1])
        if mode == "loss":
            return self.loss(prediction, targets_of(data_samples or [], size=inputs.shape[-1]))
        raise ValueError(f"mode must be tensor, loss or predict; got {mode!r}")


def targets_of(data_samples: Sequence[HandDataSample], *, size: int) -> HandTargets:
    """Gather the annotations of a batch, root-aligned and normalised.

    Args:
        data_samples: each with `gt`.
        size: S.

    Raises:
        ValueError: a sample has no annotation.
    """
    for sample in data_samples:
        if "gt" not in sample:
            raise ValueError(
                f"{sample.get('img_path', 'an image')} has no annotation to train on: expected a split "
                "with vertices and keypoints, such as FreiHAND's training"
            )
    vertices, keypoints, keypoints_2d = (
        torch.stack([getattr(sample.gt, name) for sample in data_samples])
        for name in HandTargets._fields
    )
    root = keypoints[:, ROOT : ROOT + 1]  # (B, 1, 3)
    return HandTargets(vertices - root, keypoints - root, to_normalised(keypoints_2d, size))


def add_predictions(
    data_samples: Sequence[HandDataSample], prediction: HandPrediction, *, size: int
) -> list[HandDataSample]:
    """Give each data sample its part of a prediction, as `pred`, with 2D keypoints in pixels of the crop.

    If the intrinsics of the crop are known (`K`), the hand also gets its place in front of the camera,
    in the frame of the original image: `vertices_camera` and `keypoints_camera`, in metres.

    Args:
        data_samples: B of them; changed in place.
        prediction: of the B images.
        size: S.
    """
    pixels = to_pixels(prediction.keypoints_2d, size)  # (B, 21, 2)
    prediction = prediction._replace(keypoints_2d=pixels)
    for i, sample in enumerate(data_samples):
        sample.pred = BaseDataElement(**{k: v[i] for k, v in prediction._asdict().items()})
    _place_before_camera([s for s in data_samples if s.get("K") is not None])
    return list(data_samples)


def _place_before_camera(samples: Sequence[HandDataSample]) -> None:
    """In the frame of the crop; then the crop's rotation is taken back."""
    if not samples:
        return
    vertices, keypoints, pixels = (
        torch.stack([getattr(sample.pred, name) for sample in samples])
        for name in ("vertices", "keypoints", "keypoints_2d")
    )
    K = torch.from_numpy(np.stack([np.asarray(sample.K, np.float64) for sample in samples]))
    turn = torch.from_numpy(np.stack([axis_rotation(sample.rotation) for sample in samples]))
    turn = turn.to(keypoints)  # (B, 3, 3)
    placed = place_before_camera(vertices, keypoints, pixels, K)
    for sample, *points in zip(samples, *(x @ turn for x in placed), strict=True):
        # Points are rows: x @ turn is the inverse of turn applied to x.
        sample.pred.vertices_camera, sample.pred.keypoints_camera = points
