"""Pictures of what a hand model predicts, while it is validated and tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..runtime import unwrap
from .camera import project, project_weak_perspective, to_pixels
from .crop import warp_crop
from .data_sample import HandDataSample
from .topology import ROOT
from .visualizer import DrawnHand, hand_picture

_SMALLEST = 224  # side of a drawn crop in pixels, at least


@HOOKS.register_module()
class HandPicturesHook(Hook):
    """Writes or shows each tested crop: ground truth where there is one, prediction, side view.

    Takes what `tools/test.py` sets for detection too, so that ``--show-dir`` is the same everywhere. The
    first images of each validation go to the visualizer's backends, such as TensorBoard.

    Args:
        draw: draw tested images at all.
        show: show them in a window.
        wait_time: seconds a picture is shown.
        test_out_dir: folder for pictures of tested images; None gives them to the visualizer's backends.
        val_pictures: how many of each validation, of its first batch at most.
    """

    def __init__(
        self,
        draw: bool = False,
        show: bool = False,
        wait_time: float = 0.0,
        test_out_dir: str | None = None,
        val_pictures: int = 4,
    ) -> None:
        self.draw, self.show, self.wait_time = draw, show, wait_time
        self.test_out_dir = None if test_out_dir is None else Path(test_out_dir)
        self.val_pictures = val_pictures

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[HandDataSample] | None = None,
    ) -> None:
        """Hand the first pictures of a validation to the visualizer."""
        if batch_idx > 0:
            return
        pictures = self._pictures(runner, data_batch, (outputs or [])[: self.val_pictures])
        for name, picture in pictures.items():
            runner.visualizer.add_image(f"val_{name}", picture[..., ::-1], runner.iter)

    def after_test_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[HandDataSample] | None = None,
    ) -> None:
        """Draw the batch just tested."""
        if not self.draw:
            return
        for name, picture in self._pictures(runner, data_batch, outputs or []).items():
            if self.show:
                runner.visualizer.show(
                    np.ascontiguousarray(picture[..., ::-1]), name, wait_time=self.wait_time
                )
            elif self.test_out_dir is None:
                runner.visualizer.add_image(f"test_{name}", picture[..., ::-1], runner.iter)
            else:
                self.test_out_dir.mkdir(parents=True, exist_ok=True)
                path = self.test_out_dir / f"{name}.jpg"
                if not cv2.imwrite(str(path), picture):
                    raise OSError(f"{path} could not be written")

    def _pictures(
        self, runner: Any, data_batch: Mapping[str, Any], outputs: Sequence[HandDataSample]
    ) -> dict[str, np.ndarray]:
        """A picture, uint8 BGR, by the stem of each sample's image."""
        head: Any = unwrap(runner.model).head
        inputs = data_batch["inputs"]
        if not isinstance(
            inputs[0], torch.Tensor
        ):  # views of test-time augmentation: the plain one
            inputs = inputs[0]
        return {
            Path(sample.img_path).stem: draw_sample(sample, image, head.faces)
            for sample, image in zip(outputs, inputs, strict=False)
        }


def draw_sample(sample: HandDataSample, image: torch.Tensor, faces: np.ndarray) -> np.ndarray:
    """Draw a predicted data sample in its crop.

    Args:
        sample: with `pred`; with `gt` and `K` the ground truth is drawn beside it.
        image: (3, S, S) uint8 BGR, the crop.
        faces: (1538, 3), vertices of each triangle.

    Returns:
        (P, 2 P, 3) uint8 BGR, with ground truth (P, 3 P, 3): P is S, at least 224.
    """
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())  # (S, S, 3)
    scale = max(1.0, _SMALLEST / len(pixels))
    size = round(scale * len(pixels))
    pixels = warp_crop(pixels, scale * np.eye(2, 3), size)
    pred = sample.pred.cpu()
    flat = project_weak_perspective(pred.vertices[None], pred.camera[None])[0]  # (778, 2)
    predicted = DrawnHand(
        pred.vertices.numpy(), to_pixels(flat, size).numpy(), scale * pred.keypoints_2d.numpy()
    )
    annotated = None
    if "gt" in sample and sample.get("K") is not None:
        gt = sample.gt.cpu()
        K = torch.as_tensor(sample.K, dtype=gt.vertices.dtype)
        annotated = DrawnHand(
            (gt.vertices - gt.keypoints[ROOT]).numpy(),
            scale * project(gt.vertices[None], K[None])[0].numpy(),
            scale * gt.keypoints_2d.numpy(),
        )
    return hand_picture(pixels, predicted, faces, annotated=annotated)
