"""The three losses of the hand model (appendix B.5): vertices, 3D keypoints, projected keypoints.

The paper names the terms and weighs each by 1; it does not say which distance each is. METRO, whose
set-up it follows, takes L1 for vertices and squared errors for keypoints: hence the defaults.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .head import HandPrediction

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
        ValueError: there is no such criterion, or a weight is negative.
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
