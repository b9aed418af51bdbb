"""Latency breakdown of a whole detector or segmentor, from an image file to its result."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.utils import get_installed_path

from ..backbone.fastvit import FastViT
from ..backbone.reparameterize import reparameterize
from ..deploy.runtimes import configure
from ..engine.config import read_config_file
from ..engine.models import build_model, count_parameters, load_model
from ..io.media import open_input
from .timing import Breakdown, Candidate, Row

PARTS = (
    "decoding", "transforms", "preprocessing", "backbone", "neck", "heads", "post-processing",
)  # fmt: skip
HAND = "HandMeshModel"
_SCOPES = ("mmdet", "mmseg")
_DECODING = ("LoadImageFromFile", "CheckImage")
_PART_OF = {"data_preprocessor": "preprocessing", "backbone": "backbone", "neck": "neck"}


def candidates(
    config: str, checkpoint: str | None = None, *, sources: Sequence[str], device: str
) -> list[Candidate]:
    """The model of a config unfused, fused, and fused in channels_last; without FastViT only unfused.

    Time inside the heads' layers is the heads'; what is in no part, such as proposals, suppression of
    overlapping boxes, pasting of masks and the argmax, is post-processing.

    Args:
        config: of a detector or a segmentor, a file or ``mmdet::...``.
        checkpoint: file with weights, random ones if None. They decide how much there is to
            post-process.
        sources: image files and folders of them, all of which a pass takes, one by one.
        device: cpu, cuda or cuda:0.

    Raises:
        FileNotFoundError: the config, the checkpoint or an image does not exist.
        ValueError: the config is of another kind of model, the checkpoint does not fit, or a source
            is no image.
    """
    configure(device)
    files = [file for source in sources for file in _image_files(source)]
    cfg = read_model_config(config)
    if cfg.model.type == HAND:
        raise ValueError(f"{config} is of a hand model: benchmark.py hand measures that")
    if checkpoint is None:
        model = build_model(cfg, device=device)
    else:
        model = load_model(cfg, checkpoint, device=device)
    models = {"unfused": model}
    if any(isinstance(module, FastViT) for module in model.modules()):
        models["fused"] = fused = reparameterize(model)
        # Weights in that format are enough: the maps of convolutions take the format of their weights.
        last = copy.deepcopy(fused).to(memory_format=torch.channels_last)
        models["fused, channels_last"] = last
    found: list[Candidate] = []
    for name, model in models.items():
        figures = dict(parameters=count_parameters(model))
        row = Row(name, "eager", "float32", len(files), figures)
        found.append((row, image_to_result(model, cfg, files, device)))
    return found


def image_to_result(
    model: Any, cfg: Config, files: Sequence[str | Path], device: str, **clock: Any
) -> Breakdown:
    """What the inference functions of mmdet and mmseg do, part by part.

    Args:
        model: in eval mode, on the device.
        cfg: its config, whose test pipeline is used.
        files: images.
        device: cpu, cuda or cuda:0.

    Returns:
        A call that gives the results of all files, and notes the time of each of `PARTS`.
    """
    pipeline = cfg.test_dataloader.dataset.pipeline
    steps = [step for step in pipeline if not step["type"].startswith("LoadAnnotations")]
    decode = Compose([step for step in steps if step["type"] in _DECODING])
    transform = Compose([step for step in steps if step["type"] not in _DECODING])

    def run() -> list[Any]:
        results = []
        for file in files:
            with breakdown.part("decoding"):
                image = decode(dict(img_path=str(file), img_id=0))
            with breakdown.part("transforms"):
                sample = transform(image)
            with torch.no_grad():
                results += model.test_step({key: [value] for key, value in sample.items()})
        return results

    breakdown = Breakdown(run, PARTS, rest=PARTS[-1], device=device, **clock)
    for name, child in model.named_children():
        part = _PART_OF.get(name, "heads")
        # Heads are run by calling them, their layers, and their `forward`.
        for module in child.modules() if part == "heads" else [child]:
            breakdown.watch(module, "forward", part)
    return breakdown


def read_model_config(path: str) -> Config:
    """A config of a detector, segmentor or hand model, whose pretrained weights are left out.

    Args:
        path: a file; ``mmdet::...`` names one inside mmdet.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is no config, or of another kind of model.
    """
    package, found, name = path.partition("::")
    file = f"{get_installed_path(package)}/.mim/configs/{name}" if found else path
    cfg = read_config_file(file)
    model = cfg.get("model", {})
    if "backbone" not in model or not (model.type == HAND or cfg.default_scope in _SCOPES):
        raise ValueError(
            f"{path} is of {model.get('type', 'no model')}, expected a detector of mmdet or a segmentor "
            "of mmseg with a backbone, or a hand model"
        )
    cfg.model.backbone.init_cfg = None
    if "pretrained" in cfg.model:  # mmseg's configs name the backbone's weights there
        cfg.model.pretrained = None
    return cfg


def random_image(folder: str, shape: tuple[int, int]) -> str:
    """Write a random image (height, width) to a folder, and give the file."""
    file = f"{folder}/random.png"
    cv2.imwrite(file, np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    return file


def _image_files(source: str) -> Sequence[Any]:
    frames = open_input(source)
    if frames.kind != "images":
        raise ValueError(f"expected image files or folders of them, got {source}")
    return frames.files
