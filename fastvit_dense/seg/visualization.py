"""Pictures of semantic segmentation: classes over the image, with a legend beside it.

Shapes: H, W image height and width. Colours of palettes are RGB, images BGR as OpenCV's unless said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine import fileio
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmseg.registry import HOOKS, VISUALIZERS
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

_FONT, _TEXT_HEIGHT = cv2.FONT_HERSHEY_SIMPLEX, 18  # pixels a line of the legend takes
_LEGEND_WIDTH = 150


def draw_segmentation(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    alpha: float = 0.5,
    legend: bool = True,
) -> np.ndarray:
    """Lay the colours of classes over an image.

    Args:
        image: (H, W, 3) uint8 BGR.
        labels: (H, W) integers, index into `classes`; anything else (255) is left as it is.
        classes: names.
        palette: an RGB colour for each name.
        alpha: 0 shows the image alone, 1 the colours alone.
        legend: add the names and colours of the classes that occur at the right, the most frequent
            first.

    Returns:
        (H, W, 3) uint8 BGR, with a legend (H, W + 150, 3).

    Raises:
        ValueError: `labels` is of another size than the image.
    """
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"labels are {labels.shape[1]}x{labels.shape[0]}, the image is {image.shape[1]}x"
            f"{image.shape[0]} (width x height): they must be of the same size"
        )
    known = (labels >= 0) & (labels < len(classes))
    colours = np.array(palette, np.uint8)[:, ::-1]
    painted = image.copy()
    over = colours[labels[known]] * alpha + image[known] * (1 - alpha)
    painted[known] = np.round(over).astype(np.uint8)
    if not legend:
        return painted
    return np.hstack([painted, draw_legend(labels, image.shape[0], classes, palette)])


def draw_legend(
    labels: np.ndarray, height: int, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Names and colours of the classes in `labels` (any shape), the most frequent first.

    Returns:
        (height, 150, 3) uint8 BGR. What does not fit is counted in the last line.
    """
    counts = np.bincount(labels[(labels >= 0) & (labels < len(classes))], minlength=len(classes))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    rows = height // _TEXT_HEIGHT
    lines = [(classes[i][:18], tuple(int(c) for c in palette[i][::-1])) for i in order]
    if len(lines) > rows:
        lines[max(rows - 1, 0) :] = [(f"and {len(lines) - rows + 1} more", (255, 255, 255))]
    panel = np.full((height, _LEGEND_WIDTH, 3), 255, np.uint8)
    for row, (name, bgr) in enumerate(lines):
        y = row * _TEXT_HEIGHT
        cv2.rectangle(panel, (5, y + 3), (17, y + 15), bgr, -1)
        cv2.putText(panel, name, (22, y + 14), _FONT, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return panel


@VISUALIZERS.register_module()
class LegendVisualizer(SegLocalVisualizer):
    """mmseg's visualizer, with one legend beside the picture instead of a name in every region.

    Takes the same arguments; unlabelled pixels keep the image.
    """

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: SegDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
        with_labels: bool | None = True,
    ) -> None:
        """Draw ground truth (left) and prediction (right), whichever there is, and a legend.

        Args:
            name: identifier of the picture.
            image: (H, W, 3) uint8 RGB.
            data_sample: with `gt_sem_seg` and `pred_sem_seg` (1, H, W), either may be missing.
            draw_gt: draw the ground truth.
            draw_pred: draw the prediction.
            show: show it in a window and store nothing.
            wait_time: seconds it is shown, 0 until a key is pressed.
            out_file: write it to this file instead of the visualizer's backends.
            step: step it is stored under in the backends.
            with_labels: draw the legend.
        """
        maps = [
            data_sample.get(key).data[0].cpu().numpy()
            for key, wanted in (("gt_sem_seg", draw_gt), ("pred_sem_seg", draw_pred))
            if wanted and data_sample is not None and key in data_sample
        ]
        picture = image
        if maps:
            picture = draw_segmentation(
                np.hstack([image[:, :, ::-1]] * len(maps)),
                np.hstack(maps).astype(np.int64),
                classes=self.dataset_meta["classes"],
                palette=self.dataset_meta["palette"],
                alpha=self.alpha,
                legend=bool(with_labels),
            )[:, :, ::-1]
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        elif out_file is not None:
            mmcv.imwrite(picture[:, :, ::-1], out_file)
        else:
            self.add_image(name, picture, step)


@HOOKS.register_module()
class SegPicturesHook(Hook):
    """Writes or shows a picture of every tested image, ground truth left and prediction right.

    Takes what `tools/test.py` sets for detection too, so that ``--show-dir`` is the same everywhere.

    Args:
        draw: draw at all.
        show: show in a window.
        wait_time: seconds a picture is shown.
        test_out_dir: folder for pictures; None gives them to the visualizer's backends.
    """

    def __init__(
        self,
        draw: bool = False,
        show: bool = False,
        wait_time: float = 0.0,
        test_out_dir: str | None = None,
    ) -> None:
        self.draw, self.show, self.wait_time = draw, show, wait_time
        self.test_out_dir = test_out_dir

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the batch just tested."""
        if not self.draw:
            return
        for i, sample in enumerate(outputs):
            file = None
            if self.test_out_dir is not None:
                file = str(Path(self.test_out_dir, Path(sample.img_path).stem + ".jpg"))
            runner.visualizer.add_datasample(
                Path(sample.img_path).name,
                mmcv.imfrombytes(fileio.get(sample.img_path), channel_order="rgb"),
                sample,
                show=self.show,
                wait_time=self.wait_time,
                out_file=file,
                step=batch_idx * len(outputs) + i,
            )
