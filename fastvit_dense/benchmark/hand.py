"""How long it takes from an image of a hand to its mesh, which part takes it, in which runtime."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone.archs import ARCHS
from ..deploy.compare import randomise_statistics
from ..deploy.runtimes import Setting, configure, prepare
from ..engine.models import count_parameters
from ..hand.model import HandMeshModel
from ..hand.predictor import HandPredictor
from .backbone import check_arch
from .timing import Breakdown, Candidate, Row, Run, check

PARTS = ("crop", "network", "MANO")
SHAPE = (224, 224)  # of FreiHAND's images
_HEAD_STD = 0.02  # of random weights: outputs of order 1
_CHANNELS_LAST = ("eager", "cuda-graph", "compile")  # others take NCHW


def candidates(archs: Sequence[str], settings: Sequence[Setting]) -> list[Candidate]:
    """Fused hand models with random weights and the synthetic hand (speed depends on neither), batch 1,
    the backbone in several runtimes. Their vertices are compared with the unfused models'.

    Args:
        archs: keys of ``ARCHS``.
        settings: runtimes of the backbone, in float32 on one device; the rest is PyTorch's and numpy's.
    """
    configure(settings[0].device)
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    # The second image tells a runtime that keeps returning the maps of the first.
    images = [image[::-1].copy(), image]
    found: list[Candidate] = []
    for arch in archs:
        model = random_model(arch)
        unfused = HandPredictor(copy.deepcopy(model), device="cpu", fuse=False)
        expected = _meshes(unfused, images)
        for setting in settings:
            predictor = HandPredictor(model, device=setting.device)
            figures = dict(parameters=count_parameters(predictor.model))
            row = Row(f"fastvit_{arch}", setting.backend, setting.dtype, 1, figures)
            row, run = check(row, partial(_prepare, predictor, setting, images), expected)
            found.append((row, run and image_to_mesh(predictor, image)))
    return found


def image_to_mesh(predictor: HandPredictor, image: np.ndarray, **clock: Any) -> Breakdown:
    """A call that predicts the hand in an image (H, W, 3) and notes the time of each of `PARTS`."""
    device = str(predictor.device)
    breakdown = Breakdown(lambda: predictor(image), PARTS, rest="crop", device=device, **clock)
    head: Any = predictor.model.head
    for owner, function, part in (
        (predictor, "features", "network"), (head, "forward", "network"),
        (head, "pose_hands", "MANO"), (predictor, "place", "MANO"),
    ):  # fmt: skip
        breakdown.watch(owner, function, part)
    return breakdown


def random_model(arch: str) -> HandMeshModel:
    """A hand model with random weights, BatchNorms and layer scales that matter, for the synthetic hand.

    Args:
        arch: a key of ``ARCHS``.

    Raises:
        ValueError: the variant does not exist.
    """
    term = dict(criterion="l1")
    model = HandMeshModel(
        backbone=dict(type="FastViT", arch=check_arch(arch), out_indices=(3,), out_norm=False),
        head=dict(type="ManoHead", in_channels=ARCHS[arch].widths[-1], mano="synthetic"),
        loss=dict(type="HandLoss", vertices=term, keypoints=term, keypoints_2d=term),
        data_preprocessor=dict(
            type="ImgDataPreprocessor",
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
    )
    head: Any = model.head
    randomise_statistics(model.backbone)
    for layer in (head.pose, head.shape, head.camera):
        # As they begin, they would hide whatever the backbone gets wrong.
        nn.init.normal_(layer.weight, std=_HEAD_STD)
    return model.eval()


def in_runtime(predictor: HandPredictor, setting: Setting) -> Callable[[Tensor], list[Tensor]]:
    """The backbone of a predictor in another runtime.

    Args:
        predictor: the model.
        setting: the runtime.

    Returns:
        A function from a crop (1, 3, S, S) to the backbone's maps.

    Raises:
        Unavailable: the runtime is not available here.
    """
    # Runtimes run one image in its place, if it is in the order they take: each crop is copied there.
    order = torch.channels_last if setting.backend in _CHANNELS_LAST else torch.contiguous_format
    x = torch.zeros(1, 3, predictor.size, predictor.size, device=predictor.device)
    x = x.contiguous(memory_format=order)
    run = prepare(predictor.model.backbone, x, setting)

    def features(crop: Tensor) -> list[Tensor]:
        x.copy_(crop)
        return [m.to(predictor.device) for m in run()]

    return features


def _prepare(predictor: HandPredictor, setting: Setting, images: Sequence[np.ndarray]) -> Run:
    if setting.backend != "eager":
        predictor.features = in_runtime(predictor, setting)
    return lambda: _meshes(predictor, images)


def _meshes(predictor: HandPredictor, images: Sequence[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(predictor(image).vertices) for image in images]
