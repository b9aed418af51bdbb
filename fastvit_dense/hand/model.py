"""From an image of a hand to its mesh: FastViT, the regression head, and MANO (section 4.3, figure 5).

Shape legend: B batch, S side of the square image in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor

from .camera import lift_translation, to_normalised, to_pixels
from .crop import axis_rotation
from .data_sample import HandDataSample
from .head import HandPrediction
from .losses import HandTargets
from .topology import ROOT


@MODELS.register_module()
class HandMeshModel(BaseModel):
    """Predicts the mesh, keypoints and camera of the hand in a crop.

    Args:
        backbone: config of a FastViT with ``out_indices=(3,)``.
        head: config of a :class:`fastvit_dense.hand.head.ManoHead`.
        loss: config of a :class:`fastvit_dense.hand.losses.HandLoss`.
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
            ValueError: there is no such mode, or ``loss`` without annotations.
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

    Where the intrinsics of the crop are known (`K`), the hand also gets its place in front of the camera,
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
    """Least squares of the predicted 2D keypoints; then the crop's rotation is taken back."""
    if not samples:
        return
    vertices, keypoints, pixels = (
        torch.stack([getattr(sample.pred, name) for sample in samples])
        for name in ("vertices", "keypoints", "keypoints_2d")
    )
    K = torch.from_numpy(np.stack([np.asarray(sample.K, np.float64) for sample in samples]))
    turn = torch.from_numpy(np.stack([axis_rotation(sample.rotation) for sample in samples]))
    turn = turn.to(keypoints)  # (B, 3, 3)
    place = lift_translation(keypoints, pixels, K)[:, None]  # (B, 1, 3)
    for name, points in (("vertices", vertices), ("keypoints", keypoints)):
        # Points are rows: x @ turn is the inverse of turn applied to x.
        for sample, in_camera in zip(samples, (points + place) @ turn, strict=True):
            setattr(sample.pred, f"{name}_camera", in_camera)
