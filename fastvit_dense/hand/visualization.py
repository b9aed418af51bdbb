"""Pictures of hand meshes: laid over an image, from the side, and beside their ground truth.

Drawn in numpy and OpenCV, without a screen, a GPU or OpenGL. Images are (H, W, 3) uint8 BGR, colours BGR,
the camera frame is OpenCV's: x right, y down, z forward.

Shape legend: V vertices, F faces, h and w height and width of the region that the mesh covers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import trimesh
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..engine.models import unwrap
from ..io.files import atomic_write
from .geometry import project, project_weak_perspective, to_pixels, warp_crop
from .mano.topology import BONES, FINGERS, ROOT
from .model import HandDataSample
from .render import rasterize, shade, unit, vertex_normals

Colour = tuple[int, int, int]
PREDICTED: Colour = (235, 178, 120)
ANNOTATED: Colour = (130, 205, 130)
FINGER_COLOURS: dict[str, Colour] = {
    "thumb": (60, 76, 231), "index": (18, 156, 243), "middle": (113, 204, 46),
    "ring": (219, 152, 52), "little": (182, 89, 155),
}  # fmt: skip
# That the shorter side of a side view spans: any hand, however it is turned.
SIDE_VIEW_METRES = 0.28
_PAPER: Colour = (250, 248, 246)
_INK: Colour = (70, 70, 70)
# The mesh is drawn with about this many pixels along its longer side, then resized: smooth outlines on
# small images, and one time for images of any size.
_RENDERED_SIDE, _MOST_MAGNIFIED = 448, 3.0
_DEPTH_JUMP = 0.008  # metres between neighbouring pixels that count as an outline within the mesh
_OUTLINE_WIDTH = 1.5  # pixels of the image
_OUTLINE = 0.35  # brightness of outlines on a surface, in parts of its colour
# Unit vector, from above and the left, behind the camera.
_TO_LIGHT = np.array([-0.35, -0.55, -0.76])
_SUBPIXEL_BITS = 4


class DrawnHand(NamedTuple):
    """A hand as it is drawn.

    Attributes:
        vertices: (V, 3) metres in the axes of the camera, relative to anything.
        pixels: (V, 2) where they are in the image.
        keypoints: (21, 2) pixels, for a skeleton over the mesh; None for none.
    """

    vertices: np.ndarray
    pixels: np.ndarray
    keypoints: np.ndarray | None = None


def draw_overlay(
    image: np.ndarray,
    hand: DrawnHand,
    faces: np.ndarray,
    *,
    colour: Colour = PREDICTED,
    opacity: float = 0.75,
) -> np.ndarray:
    """Lay a shaded mesh with dark outlines over an image, and its skeleton over that.

    Args:
        image: (H, W, 3) uint8 BGR; it is left as it is.
        hand: what to draw; it may reach out of the image.
        faces: (F, 3) vertices of each triangle, counterclockwise seen from outside.
        colour: of the mesh.
        opacity: of its surface, 0 to 1; 0 draws the outlines alone.

    Returns:
        A new (H, W, 3) uint8.
    """
    painted = image.copy()
    region = _region(hand.pixels, image.shape[:2])
    if region is not None:
        top, left, height, width = region
        layer, alpha = _paint(hand, faces, region, colour, opacity)
        below = painted[top : top + height, left : left + width]
        below[:] = np.round(layer + below * (1 - alpha[..., None])).astype(np.uint8)
    if hand.keypoints is not None:
        painted = draw_keypoints(painted, hand.keypoints)
    return painted


def draw_keypoints(image: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Draw the skeleton of 21 keypoints, each finger in a colour of its own.

    Args:
        image: (H, W, 3) uint8 BGR; it is left as it is.
        keypoints: (21, 2) pixels, FreiHAND's order; they may lie outside of the image.

    Returns:
        A new (H, W, 3) uint8.
    """
    painted = image.copy()
    extent = float(np.ptp(keypoints, axis=0).max())
    thick = max(1, round(extent / 80))
    at = [tuple(np.round(p * 2**_SUBPIXEL_BITS).astype(int).tolist()) for p in keypoints]
    colour_of = {k: FINGER_COLOURS[name] for name, ks in FINGERS.items() for k in ks if k}
    rim = thick + (1 if thick == 1 else 2)
    for width, coloured in ((rim, False), (thick, True)):
        for parent, child in BONES:
            colour = colour_of[child] if coloured else _INK
            cv2.line(painted, at[parent], at[child], colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)
        for i, point in enumerate(at):
            colour = colour_of.get(i, _PAPER) if coloured else _INK
            radius = width * 2**_SUBPIXEL_BITS
            cv2.circle(painted, point, radius, colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    return painted


def draw_side_view(
    hands: Sequence[tuple[np.ndarray, Colour]], faces: np.ndarray, *, size: tuple[int, int]
) -> np.ndarray:
    """Draw meshes as seen from the right of the camera: what is far is right, what is near is left.

    The scale is always the same, 28 cm along the shorter side of the picture, and a bar of 5 cm tells it.

    Args:
        hands: (V, 3) vertices in metres, relative to the root keypoint, in the axes of the camera, and a
            colour for each. The first is shaded, of the others the outlines are drawn over it.
        faces: (F, 3), as in :func:`draw_overlay`.
        size: height and width of the picture in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = size
    panel = np.full((height, width, 3), _PAPER, np.uint8)
    pixels_a_metre = min(size) / SIDE_VIEW_METRES
    for i, (vertices, colour) in enumerate(hands):
        x, y, z = vertices.T
        turned = np.stack([z, y, -x], axis=1)  # (V, 3) in the axes of a camera that looks along -x
        pixels = turned[:, :2] * pixels_a_metre + ((width - 1) / 2, (height - 1) / 2)
        panel = draw_overlay(
            panel, DrawnHand(turned, pixels), faces, colour=colour, opacity=float(i == 0)
        )
    _draw_scale_bar(panel, pixels_a_metre)
    return panel


def hand_picture(
    image: np.ndarray,
    hand: DrawnHand,
    faces: np.ndarray,
    *,
    annotated: DrawnHand | None = None,
) -> np.ndarray:
    """Set side by side: ground truth if there is one, prediction, and the prediction from the side.

    In the side view the ground truth is an outline over the prediction.

    Args:
        image: (H, W, 3) uint8 BGR.
        hand: the prediction, vertices relative to the root keypoint.
        faces: (F, 3), as in :func:`draw_overlay`.
        annotated: the ground truth, likewise.

    Returns:
        (H, n * W + S, 3) uint8 with n = 1 or 2 and S = min(H, W).
    """
    height, width = image.shape[:2]
    panels = [draw_overlay(image, hand, faces)]
    sides = [(hand.vertices, PREDICTED)]
    if annotated is not None:
        panels.insert(0, draw_overlay(image, annotated, faces, colour=ANNOTATED))
        sides.append((annotated.vertices, ANNOTATED))
    return np.hstack([*panels, draw_side_view(sides, faces, size=(height, min(height, width)))])


def _region(pixels: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of the image's part that the mesh may cover; None if there is none."""
    if not np.isfinite(pixels).all():
        return None
    left, top = np.maximum(np.floor(pixels.min(axis=0)).astype(np.int64) - 2, 0)
    right, bottom = np.minimum(np.ceil(pixels.max(axis=0)).astype(np.int64) + 3, (size[1], size[0]))
    if right <= left or bottom <= top:
        return None
    return int(top), int(left), int(bottom - top), int(right - left)


def _paint(
    hand: DrawnHand,
    faces: np.ndarray,
    region: tuple[int, int, int, int],
    colour: Colour,
    opacity: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What to lay over the region: colours (h, w, 3) times alpha, and alpha (h, w), both float32."""
    top, left, height, width = region
    magnified = min(_RENDERED_SIDE / max(height, width), _MOST_MAGNIFIED)
    rows, columns = (max(1, round(side * magnified)) for side in (height, width))
    # Pixel centres are integers, so that the edge of the region is at -0.5 in both grids.
    scale = np.array([columns / width, rows / height])
    xy = (hand.pixels - (left, top) + 0.5) * scale - 0.5
    points = np.concatenate([xy, hand.vertices[:, 2:]], axis=1)  # (V, 3)
    fragments = rasterize(points, faces, (rows, columns))

    inside = fragments.face >= 0  # (rows, columns)
    layer = np.zeros((rows, columns, 4), np.float32)
    if opacity > 0:
        normals = fragments.interpolate(vertex_normals(hand.vertices, faces), faces)  # (n, 3)
        layer[inside, :3] = np.minimum(_lit(normals, colour), 255) * opacity
        layer[inside, 3] = opacity
    outline = _outline(fragments.depth, inside, width=max(1, round(_OUTLINE_WIDTH * magnified)))
    layer[outline] = (*((_OUTLINE if opacity > 0 else 1) * np.array(colour)), 1)

    how = cv2.INTER_AREA if magnified > 1 else cv2.INTER_LINEAR
    resized = cv2.resize(layer, (width, height), interpolation=how)
    return resized[..., :3], resized[..., 3]


def _lit(normals: np.ndarray, colour: Colour) -> np.ndarray:
    """Colours (n, 3) of a surface: darker where it turns away, and inside of the open wrist."""
    normals = unit(normals)
    inner = normals[:, 2:] > 0  # seen from behind
    lit = shade(
        np.where(inner, -normals, normals), np.array(colour, np.float32), to_light=_TO_LIGHT,
        diffuse=0.63, ambient=0.35, specular=80.0,
    )  # fmt: skip
    lit *= 0.75 + 0.5 * np.minimum(np.abs(normals[:, 2:]), 0.5)
    return np.where(inner, 0.45 * lit, lit)


def _outline(depth: np.ndarray, inside: np.ndarray, *, width: int) -> np.ndarray:
    """(rows, columns) bool: the mesh's pixels along its silhouette, and before what lies farther back."""
    far = np.where(inside, depth, 1e3).astype(np.float32)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1,) * 2)
    behind = cv2.dilate(far, kernel, borderType=cv2.BORDER_REPLICATE)
    return inside & (behind - far > _DEPTH_JUMP)


def _draw_scale_bar(panel: np.ndarray, pixels_a_metre: float) -> None:
    height, width = panel.shape[:2]
    size = min(height, width) / 450
    length, margin = round(0.05 * pixels_a_metre), max(4, round(12 * size))
    thick = max(1, round(2 * size))
    start = margin, height - margin
    cv2.line(panel, start, (margin + length, height - margin), _INK, thick, cv2.LINE_AA)
    cv2.putText(
        panel, "5 cm, from the side", (margin, height - 2 * margin), cv2.FONT_HERSHEY_SIMPLEX,
        max(0.3, 0.5 * size), _INK, max(1, round(size)), cv2.LINE_AA,
    )  # fmt: skip


_SMALLEST = 224  # side of a drawn crop in pixels, at least


@HOOKS.register_module()
class HandPicturesHook(Hook):
    """Writes or shows each tested crop: ground truth if there is one, prediction, side view.

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
        # Of the views of test-time augmentation, the plain one.
        inputs = inputs if isinstance(inputs[0], torch.Tensor) else inputs[0]
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


# What makes trimesh write normals of vertices: without them, viewers show facets.
_WITH_NORMALS: dict[str, dict[str, Any]] = {
    "obj": dict(include_normals=True),
    "ply": dict(vertex_normal=True),
    "glb": dict(include_normals=True),
}
FORMATS = tuple(_WITH_NORMALS)
# The camera frame has y down and z forward; viewers have y up and look along -z. Half a turn about x.
TO_VIEWER = np.array([1.0, -1.0, -1.0])


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write a mesh in metres, y up: the camera's (x, y, z) becomes (x, -y, -z).

    That is a rotation, so that normals keep pointing outwards. What was seen by the camera faces a viewer
    that looks along -z, as viewers do; vertices before the camera are seen from the origin as in the image.
    Each vertex has its normal; their order is kept. The file appears when it is complete.

    Args:
        path: of the file; its suffix, one of ``FORMATS``, is the format.
        vertices: (V, 3) metres, camera frame (x right, y down, z forward).
        faces: (F, 3) vertices of each triangle, counterclockwise seen from outside.

    Raises:
        ValueError: the suffix is no known format.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: expected a mesh file ending in .{', .'.join(FORMATS)}")
    # Without processing: it would merge and reorder vertices.
    mesh = trimesh.Trimesh(vertices * TO_VIEWER, faces, process=False)
    content: Any = mesh.export(file_type=kind, **_WITH_NORMALS[kind])  # text or bytes
    with atomic_write(path, sync=False) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
