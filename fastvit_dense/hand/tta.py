"""Test-time augmentation: one hand seen in several turned and scaled crops, its parameters averaged.

Its figures are never those of a single view: configs report them under another prefix.

Shape legend: B batch, N views.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS, TRANSFORMS
from torch import Tensor

from .crop import axis_rotation, homogeneous, invert_map
from .data_sample import HandDataSample
from .model import add_predictions
from .transforms import HandCrop, PackHandInputs


@TRANSFORMS.register_module()
class HandViews(HandCrop):
    """Take several crops of one hand, packed: the last transform of a pipeline for HandTTAModel.

    Args:
        center: as of HandCrop.
        size: as of HandCrop.
        out_size: as of HandCrop.
        rotations: degrees, clockwise as seen in the image.
        scales: factors on `size`. There is a view of each rotation at each scale; results are in the
            frame of the first.
    """

    def __init__(
        self,
        center: tuple[float, float] | None = (112.0, 112.0),
        size: float | None = 180.0,
        out_size: int = 224,
        *,
        rotations: Sequence[float] = (0.0,),
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(center, size, out_size)
        self.rotations, self.scales = tuple(rotations), tuple(scales)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        pack = PackHandInputs()
        views = [
            pack(self._crop(results, scale=scale, rotation=rotation))
            for scale in self.scales
            for rotation in self.rotations
        ]
        return {key: [view[key] for view in views] for key in views[0]}


@MODELS.register_module()
class HandTTAModel(BaseTTAModel):
    """Averages the predictions of several views of a hand; the first view is the one that is kept.

    Every view's rotations, betas and camera are brought into the frame of the first view, which is exact,
    and averaged there; MANO makes the mesh of the means. Rotations are averaged as matrices, taken back to
    the nearest rotation.
    """

    def test_step(self, data: Any) -> list[HandDataSample]:
        """Predict hands from all of their views.

        Args:
            data: ``inputs`` and ``data_samples``, each a list of N views with B entries.

        Raises:
            ValueError: the views have another size than the model's crops.
        """
        size = self.module.image_size
        if others := {tuple(x.shape[-2:]) for view in data["inputs"] for x in view} - {size}:
            height, width = others.pop()
            raise ValueError(
                f"--tta: HandViews makes crops of {width}x{height} pixels, expected the "
                f"{size[1]}x{size[0]} that the model was trained at: set out_size={size[0]} in the "
                "config's tta_pipeline"
            )
        return super().test_step(data)

    def merge_preds(
        self, data_samples_list: Sequence[Sequence[HandDataSample]]
    ) -> list[HandDataSample]:
        """Merge the predictions of each hand's views.

        Args:
            data_samples_list: B hands, each with its N views.

        Returns:
            The B data samples of the first views, with the merged predictions.
        """
        head: Any = self.module.head
        size = self.module.image_size[0]
        with torch.no_grad():
            merged = [_mean_parameters(views, size=size) for views in data_samples_list]
            device = data_samples_list[0][0].pred.rotations.device
            stacked = (torch.stack(part).to(device) for part in zip(*merged, strict=True))
            prediction = head.pose_hands(*stacked)
        return add_predictions([views[0] for views in data_samples_list], prediction, size=size)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotations nearest to matrices, in the sum of squares.

    Args:
        matrix: (..., 3, 3), such as a mean of rotations.

    Returns:
        (..., 3, 3).
    """
    u, _, vt = torch.linalg.svd(matrix)
    # Without a reflection: the least singular value's column is turned round where needed.
    sign = torch.linalg.det(u @ vt)
    last = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)  # (..., 3)
    return (u * last[..., None, :]) @ vt


def _mean_parameters(views: Sequence[HandDataSample], *, size: int) -> tuple[Tensor, ...]:
    """Rotations (16, 3, 3), betas (10,) and camera (3,) of a hand, in the frame of its first view.

    On the CPU: they are a few numbers, and Apple's GPU has no singular value decomposition.
    """
    rotations, betas, scales, roots = [], [], [], []
    first = views[0]
    for view in views:
        turns, betas_of_view, camera = (
            view.pred.get(name).cpu() for name in ("rotations", "betas", "camera")
        )
        turn = torch.from_numpy(axis_rotation(first.rotation - view.rotation)).to(turns)
        rotations.append(torch.cat([turn @ turns[:1], turns[1:]]))
        betas.append(betas_of_view)
        # From pixels of this view to those of the first: p becomes L p + m. In half images, where
        # x = 2 p / S - 1, that is L x + (L 1 + 2 m / S - 1).
        matrix = homogeneous(first.crop_matrix) @ homogeneous(invert_map(view.crop_matrix))
        linear, shift = torch.from_numpy(matrix[:2]).to(camera).split([2, 1], 1)
        offset = linear.sum(1) + shift[:, 0] * (2 / size) - 1
        scale, translation = camera[:1], camera[1:]
        scales.append(scale * torch.linalg.det(linear).sqrt())
        roots.append(linear @ (scale * translation) + offset)  # where the root is seen
    scale = torch.stack(scales).mean(0)  # (1,)
    camera = torch.cat([scale, torch.stack(roots).mean(0) / scale])
    mean_rotation = torch.stack(rotations).mean(0)
    return nearest_rotation(mean_rotation), torch.stack(betas).mean(0), camera
