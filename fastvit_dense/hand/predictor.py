"""From an image of a hand to its mesh, with a trained model.

The frames are OpenCV's: pixels with whole numbers as centres; a camera with x to the right, y down and z
forward, in metres.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backbone.reparameterize import reparameterize, split_patch_embeddings
from ..engine.config import load_config
from ..engine.devices import check_device
from ..engine.models import load_model
from .geometry import (
    CROP_SIZE,
    are_intrinsics,
    crop_from_box,
    invert_map,
    map_points,
    place_before_camera,
    project_weak_perspective,
    to_pixels,
    warp_crop,
)
from .model import HandMeshModel, HandPrediction

_MIRROR = np.array([-1.0, 1.0, 1.0])


class HandResult(NamedTuple):
    """A hand as it was predicted, all in the frame of the original image.

    Root-relative points have the axes of a camera that looks at the middle of the crop; the root is
    keypoint 9, the base of the middle finger. Of a left hand, points are its own, and MANO's parameters
    are those of the right hand that is its mirror image.

    Attributes:
        vertices: (778, 3) metres, root-relative.
        keypoints: (21, 3) metres, root-relative, in FreiHAND's order.
        vertices_2d: (778, 2) pixels of the image.
        keypoints_2d: (21, 2) pixels of the image.
        faces: (1538, 3) vertices of each triangle, counterclockwise seen from outside.
        camera: (3,) weak perspective in the crop: scale in 1/m, translation x and y in m.
        rotations: (16, 3, 3), in MANO's order, the first of the whole hand.
        betas: (10,), MANO's shape.
        crop_matrix: (2, 3), from pixels of the image to those of the crop; it mirrors for a left hand.
        left: the hand is a left one.
        vertices_camera: (778, 3) metres, in the frame of the camera; None without intrinsics.
        keypoints_camera: (21, 3), likewise.
    """

    vertices: np.ndarray
    keypoints: np.ndarray
    vertices_2d: np.ndarray
    keypoints_2d: np.ndarray
    faces: np.ndarray
    camera: np.ndarray
    rotations: np.ndarray
    betas: np.ndarray
    crop_matrix: np.ndarray
    left: bool
    vertices_camera: np.ndarray | None = None
    keypoints_camera: np.ndarray | None = None


class HandPredictor:
    """Predicts the mesh of the hand in an image.

    Args:
        config: the model's config file; or a model in evaluation mode, which is moved to the device.
        checkpoint: what ``tools/train.py`` or ``tools/reparameterize.py`` wrote; None with a model.
        mano: path of the MANO file, or ``synthetic``, in place of what the config names.
        device: cpu or cuda:0; None is the GPU if there is one.
        fuse: reparameterize the backbone: the same function, faster.

    Attributes:
        model: the model that is run.
        size: S, side of the crops in pixels.
        features: from a crop (1, 3, S, S) to the maps that the head reads: the backbone, which another
            runtime can take the place of.

    Raises:
        FileNotFoundError: the config, checkpoint or MANO file does not exist.
        ValueError: the checkpoint cannot be read, does not fit, or is missing; the config is not of a hand
            model; the device is not there.
    """

    features: Callable[[Tensor], Sequence[Tensor]]

    def __init__(
        self,
        config: str | Path | HandMeshModel,
        checkpoint: str | Path | None = None,
        *,
        mano: str | None = None,
        device: str | None = None,
        fuse: bool = True,
    ) -> None:
        device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        check_device(device)
        if isinstance(config, HandMeshModel):
            model: Any = config
        elif checkpoint is None:
            raise ValueError(
                f"no checkpoint for {config}: expected HandPredictor(config, checkpoint)"
            )
        else:
            model = load_hand_model(str(config), str(checkpoint), mano=mano)
        if fuse:
            model = split_patch_embeddings(reparameterize(model))
        self.model = model.to(device=device, memory_format=torch.channels_last)
        self.features = self.model.backbone
        self.size = self.model.image_size[0]
        self.device = torch.device(device)

    def __call__(
        self,
        image: np.ndarray,
        bbox: Sequence[float] | None = None,
        *,
        left: bool = False,
        K: np.ndarray | None = None,
    ) -> HandResult:
        """Predict the hand in an image.

        Args:
            image: (H, W, 3) uint8 BGR.
            bbox: x, y, width, height in pixels, tight around the hand. None is the whole image, or
                FreiHAND's evaluation crop of an image of 224x224. See
                :func:`fastvit_dense.hand.geometry.crop_from_box`.
            left: it is a left hand.
            K: (3, 3), the intrinsics of the image in pixels, to place the hand before the camera.

        Raises:
            ValueError: the image is of another kind, the box is empty or outside of it, or K is no matrix
                of intrinsics.
        """
        matrix = crop_from_box(check_image(image), bbox, left=left, out_size=self.size)
        if K is not None:
            K = check_intrinsics(K)
        with torch.inference_mode():
            prediction = self.model.head(self.features(self.crop(image, matrix)))
            return self.place(prediction, matrix, left=left, K=K)

    def crop(self, image: np.ndarray, matrix: np.ndarray) -> Tensor:
        """What the network sees.

        Args:
            image: (H, W, 3) uint8 BGR.
            matrix: (2, 3), of :func:`fastvit_dense.hand.geometry.crop_from_box`.

        Returns:
            (1, 3, S, S) float32, normalised as in training, in the memory format channels_last.
        """
        pixels = torch.from_numpy(warp_crop(image, matrix, self.size)).permute(2, 0, 1)
        batch: Any = self.model.data_preprocessor(dict(inputs=[pixels]))
        return batch["inputs"].contiguous(memory_format=torch.channels_last)

    def place(
        self, prediction: HandPrediction, matrix: np.ndarray, *, left: bool, K: np.ndarray | None
    ) -> HandResult:
        """Bring a predicted hand into the frame of its image.

        Args:
            prediction: a batch of one.
            matrix: (2, 3), the crop it was predicted in.
            left: the crop is mirrored.
            K: (3, 3), the intrinsics of the image.
        """
        flat = project_weak_perspective(prediction.vertices, prediction.camera)
        numbers = prediction._asdict() | {
            "vertices_2d": to_pixels(flat, self.size),
            "keypoints_2d": to_pixels(prediction.keypoints_2d, self.size),
        }
        hand: dict[str, Any] = {name: x[0].cpu().numpy() for name, x in numbers.items()}
        for name in ("vertices_2d", "keypoints_2d"):
            hand[name] = map_points(invert_map(matrix), hand[name])
        hand["faces"] = self.model.head.faces
        if left:
            for name in ("vertices", "keypoints"):
                hand[name] = hand[name] * _MIRROR
            hand["faces"] = hand["faces"][:, ::-1]
        result = HandResult(**hand, crop_matrix=matrix, left=left)
        return result if K is None else place_hand(result, K, size=self.size)


def place_hand(hand: HandResult, K: np.ndarray, *, size: int = CROP_SIZE) -> HandResult:
    """Find where before the camera a hand is, by its size and its 2D keypoints.

    The network does not know where in the image its crop is from. It sees the hand as a camera does
    that looks straight at it: so the hand is first turned by the angle between this line of sight and the
    optical axis. (In FreiHAND's crops that angle is zero.)

    Args:
        hand: a prediction.
        K: (3, 3), the intrinsics of its image.
        size: side of the crop.

    Returns:
        The hand with `vertices_camera` and `keypoints_camera`.
    """
    middle = map_points(invert_map(hand.crop_matrix), np.full(2, size / 2))
    turn = _rotation_to(np.linalg.solve(K, [*middle, 1.0]))
    batch = (hand.vertices @ turn.T, hand.keypoints @ turn.T, hand.keypoints_2d, K)
    vertices, keypoints = place_before_camera(
        *(torch.from_numpy(np.asarray(x, np.float64))[None] for x in batch)
    )
    return hand._replace(vertices_camera=vertices[0].numpy(), keypoints_camera=keypoints[0].numpy())


def _rotation_to(direction: np.ndarray) -> np.ndarray:
    """(3, 3): the least rotation that takes the optical axis (0, 0, 1) to a direction before the camera."""
    x, y, z = direction / np.linalg.norm(direction)
    cross = np.array([[0, 0, x], [0, 0, y], [-x, -y, 0]])  # of the rotation's axis (-y, x, 0)
    return np.eye(3) + cross + cross @ cross / (1 + z)


def load_hand_model(config: str, checkpoint: str, *, mano: str | None = None) -> HandMeshModel:
    """Build a trained hand model and load its weights, all of them or none.

    Args:
        config: its config file.
        checkpoint: path or URL.
        mano: in place of the config's ``model.head.mano``.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: the checkpoint, config or MANO file does not exist.
        ValueError: the checkpoint cannot be read, or does not fit; the config is not of a hand model.
    """
    cfg = load_config(config)
    model_cfg: Any = cfg.get("model") or {}
    if model_cfg.get("type") != "HandMeshModel":
        raise ValueError(
            f"{config} describes a {model_cfg.get('type')}, expected a HandMeshModel, as configs/hand do"
        )
    if mano is not None:
        trained = model_cfg.head.get("mano")
        if (trained == "synthetic") != (mano == "synthetic"):  # a mix is a mesh, but a wrong one
            print(
                f"{config} trains with mano={trained}; with mano={mano} its meshes will be wrong",
                file=sys.stderr,
            )
        model_cfg.head.mano = mano
    model: Any = load_model(cfg, checkpoint)
    return model


def check_image(image: np.ndarray) -> tuple[int, int]:
    """Height and width of an image; a ValueError for what is not a (H, W, 3) uint8."""
    shape: Any = getattr(image, "shape", ())
    dtype = getattr(image, "dtype", type(image).__name__)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        raise ValueError(
            "expected an image (height, width, 3) of uint8, 0 to 255, BGR; got shape "
            f"{tuple(shape)}, {dtype}"
        )
    return shape[0], shape[1]


def check_intrinsics(K: np.ndarray) -> np.ndarray:
    """Intrinsics (3, 3) as float64; a ValueError for what cannot be a camera's."""
    K = np.asarray(K, np.float64)
    if K.shape != (3, 3) or not are_intrinsics(K):
        raise ValueError(
            "K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], in pixels, fx and fy above 0; got "
            f"{K.tolist()}"
        )
    return K
