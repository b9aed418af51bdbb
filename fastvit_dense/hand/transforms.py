"""From an annotated photograph to a crop for the model: METRO's set-up (paper appendix B.5).

A pipeline is LoadHandImage, HandCrop or RandomHandCrop with ColorNoise, PackHandInputs. Each takes and
returns the dict of one image. Random numbers come from ``numpy.random``, which mmengine seeds in each
worker. Images are (H, W, 3) uint8 in BGR order; lengths are in metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..io.media import read_image
from .geometry import (
    CROP_CENTER,
    CROP_SIDE,
    CROP_SIZE,
    axis_rotation,
    crop_matrix,
    homogeneous,
    invert_map,
    map_points,
    warp_crop,
    whole_image_box,
)
from .model import HandDataSample, add_predictions

_METAINFO = ("img_path", "index", "ori_shape", "crop_matrix", "rotation", "K")
_ANNOTATED = ("vertices", "keypoints", "keypoints_2d")


def load_image(path: str | Path) -> np.ndarray:
    """Read a photograph of a dataset, as its pixels are stored: annotations belong to those.

    Args:
        path: the file.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no image, is truncated, or has other than three channels of 8 bits.
    """
    image = read_image(path, flags=cv2.IMREAD_UNCHANGED)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"{path} is {image.dtype} of shape {image.shape}: expected a colour image, 3 channels of uint8"
        )
    return image


@TRANSFORMS.register_module()
class LoadHandImage:
    """Read the file `img_path`: adds `img` and `ori_shape`, its height and width. See `load_image`."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = load_image(results["img_path"])
        return results | {"img": image, "ori_shape": image.shape[:2]}


@TRANSFORMS.register_module()
class HandCrop:
    """Cut a square out of the image and bring its annotation along.

    Adds `crop_matrix` (2, 3), `rotation` and, where annotated, `keypoints_2d` (21, 2) in pixels of the
    crop. `vertices` and `keypoints` are turned about the optical axis as the image is, by R, and `K`
    becomes ``A @ K @ R^T`` with the crop's map A: the new points projected by the new K are in pixels of
    the crop, whatever the focal lengths and principal point.

    Args:
        center: x, y of the middle of the square, in pixels; None: the whole image.
        size: its side in pixels; None: the whole image. METRO's square is for FreiHAND's 224x224 pixels.
        out_size: side of the crop.

    Raises:
        ValueError: only one of center and size is None; on use: the center is not inside the image.
    """

    def __init__(
        self,
        center: tuple[float, float] | None = CROP_CENTER,
        size: float | None = CROP_SIDE,
        out_size: int = CROP_SIZE,
    ) -> None:
        if (center is None) != (size is None):
            raise ValueError(
                f"center ({center}) and size ({size}) of a crop: expected both, or None for both, which "
                "takes the whole image"
            )
        self.center, self.size, self.out_size = center, size, out_size

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return self._crop(results)

    def _crop(
        self, results: dict[str, Any], *, scale: float = 1.0, rotation: float = 0.0
    ) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        if self.center is None or self.size is None:
            center, size = whole_image_box(height, width)
        else:
            center, size = self.center, self.size
        if not (0 <= center[0] < width and 0 <= center[1] < height):
            raise ValueError(
                f"{results.get('img_path', 'the image')} is {width}x{height} pixels (width x height), the "
                f"center {tuple(center)} of the crop lies outside: expected 224x224 pixels as of FreiHAND, "
                "or center=None, size=None for the whole of any image"
            )
        matrix = crop_matrix(center, size * scale, self.out_size, rotation=rotation)
        results = results | {
            "img": warp_crop(results["img"], matrix, self.out_size),
            "crop_matrix": matrix,
            "rotation": rotation,
        }
        turn = axis_rotation(rotation)
        if "keypoints" in results:
            pixels = results["keypoints"] @ np.asarray(results["K"], np.float64).T  # (21, 3)
            results["keypoints_2d"] = map_points(matrix, pixels[:, :2] / pixels[:, 2:])
        for name in ("vertices", "keypoints"):
            if name in results:
                results[name] = results[name] @ turn.T
        if "K" in results:
            results["K"] = homogeneous(matrix) @ results["K"] @ turn.T
        return results


@TRANSFORMS.register_module()
class RandomHandCrop(HandCrop):
    """HandCrop of a random rotation and scale, both about its center.

    Args:
        rotation_std: standard deviation of the rotation in degrees, which is normal about zero and
            clipped at twice that.
        upright: probability of no rotation.
        scale_std: standard deviation of the factor on `size`, which is normal about one and clipped at
            once that.
        **crop: center, size and out_size, as of HandCrop.
    """

    def __init__(
        self,
        *,
        rotation_std: float = 90.0,
        upright: float = 0.6,
        scale_std: float = 0.25,
        **crop: Any,
    ) -> None:
        super().__init__(**crop)
        self.rotation_std, self.upright, self.scale_std = rotation_std, upright, scale_std

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        turn, zoom = np.random.normal(size=2)
        is_upright = np.random.uniform() < self.upright
        rotation = 0.0 if is_upright else float(np.clip(turn, -2, 2)) * self.rotation_std
        scale = 1 + float(np.clip(zoom, -1, 1)) * self.scale_std
        return self._crop(results, scale=scale, rotation=rotation)


@TRANSFORMS.register_module()
class ColorNoise:
    """Multiply each channel by a random factor of its own.

    Args:
        strength: factors are uniform in [1 - strength, 1 + strength].

    Raises:
        ValueError: the strength is not in [0, 1].
    """

    def __init__(self, strength: float = 0.4) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength of colour noise must be in [0, 1], got {strength}")
        self.strength = strength

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        factors = np.random.uniform(1 - self.strength, 1 + self.strength, 3)
        table = np.arange(256)[:, None, None] * factors  # (256, 1, 3)
        table = np.clip(np.rint(table), 0, 255).astype(np.uint8)
        return results | {"img": cv2.LUT(results["img"], table)}


@TRANSFORMS.register_module()
class PackHandInputs:
    """The last transform: what mmengine's data loader and the model take.

    Returns ``inputs``, a (3, S, S) uint8 tensor in BGR order, and ``data_samples``, a HandDataSample with
    `gt` where the image is annotated.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        metainfo = {name: results[name] for name in _METAINFO if name in results}
        sample = HandDataSample(metainfo=metainfo)
        if "keypoints" in results:
            sample.gt = BaseDataElement(
                **{k: torch.from_numpy(np.float32(results[k])) for k in _ANNOTATED}
            )
        image = np.ascontiguousarray(results["img"].transpose(2, 0, 1))  # (3, S, S)
        return {"inputs": torch.from_numpy(image), "data_samples": sample}


@TRANSFORMS.register_module()
class HandViews(HandCrop):
    """Take several crops of one hand, packed: the last transform of a pipeline for HandTTAModel.

    Args:
        rotations: degrees, clockwise as seen in the image.
        scales: factors on `size`. There is a view of each rotation at each scale; results are in the
            frame of the first.
        **crop: center, size and out_size, as of HandCrop.
    """

    def __init__(
        self,
        *,
        rotations: Sequence[float] = (0.0,),
        scales: Sequence[float] = (1.0,),
        **crop: Any,
    ) -> None:
        super().__init__(**crop)
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
    and averaged there; MANO makes the mesh of the means. The mean of rotations is the one nearest to the
    mean of their matrices.
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


def _mean_parameters(views: Sequence[HandDataSample], *, size: int) -> tuple[Tensor, ...]:
    """Rotations (16, 3, 3), betas (10,) and camera (3,) of a hand, in the frame of its first view.

    On the CPU, by SciPy: they are a few numbers.
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
    by_joint = torch.stack(rotations, 1).double().numpy()  # (16, N, 3, 3)
    means = np.stack([Rotation.from_matrix(turns).mean().as_matrix() for turns in by_joint])
    return torch.from_numpy(means).to(scale), torch.stack(betas).mean(0), camera
