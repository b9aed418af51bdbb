"""Segmentation of images, videos and webcams as tools/seg_demo.py shows it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import mmseg.datasets  # noqa: F401  (registers what test pipelines and class names are made of)
import numpy as np
import torch
from mmseg.apis import inference_model
from mmseg.models import BaseSegmentor

from ..engine.config import read_config_file
from ..engine.devices import describe_device
from ..engine.models import load_model
from ..io.media import FrameReport, Frames, FrameWriter, for_each_frame, open_input
from .visualization import draw_segmentation


def load_segmentor(config: str, checkpoint: str, *, device: str) -> BaseSegmentor:
    """Build a segmentor and load its weights, all of them or none.

    Args:
        config: config file; its test_pipeline is applied to each frame.
        checkpoint: what tools/train.py wrote with it; a path or an address.
        device: cpu or cuda:0.

    Returns:
        The model in evaluation mode, with ``cfg``, and the ``classes`` and ``palette`` (RGB) of every
        class in ``dataset_meta``.

    Raises:
        FileNotFoundError: the config or checkpoint does not exist.
        ValueError: the device is not there; the config is not of a segmentor; the checkpoint cannot be
            read, or does not fit the config.
    """
    cfg: Any = read_config_file(config)
    if "decode_head" not in cfg.get("model", {}):
        raise ValueError(
            f"{config} describes a {cfg.get('model', {}).get('type')}, expected a segmentor with a "
            "decode_head, as configs/seg do"
        )
    if "test_pipeline" not in cfg:  # inference_model looks for it there
        cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
    model: Any = load_model(cfg, checkpoint, device=device)
    model.dataset_meta = _classes_and_palette(
        model.dataset_meta, int(model.num_classes), name=checkpoint
    )
    return model


def segment(
    model: BaseSegmentor,
    frames: Frames,
    writer: FrameWriter,
    *,
    opacity: float = 0.5,
    show: bool = False,
) -> FrameReport:
    """Segment frames and write pictures with a legend, see :func:`for_each_frame`.

    Args:
        model: of :func:`load_segmentor`.
        frames: the input, opened.
        writer: where the pictures go.
        opacity: of the colours over the image, 0 to 1.
        show: show the pictures in a window, too.

    Raises:
        ValueError: `opacity` is out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(
            f"opacity is {opacity}, expected 0 (the image alone) to 1 (the classes alone)"
        )
    meta = model.dataset_meta
    on_gpu = next(model.parameters()).is_cuda

    def predict(image: np.ndarray) -> Any:
        result = inference_model(model, image)
        if on_gpu:
            torch.cuda.synchronize()
        return result

    def finish(_: str, image: np.ndarray, result: Any) -> np.ndarray:
        labels = result.pred_sem_seg.data[0].cpu().numpy().astype(np.int64)  # (H, W)
        return draw_segmentation(
            image, labels, classes=meta["classes"], palette=meta["palette"], alpha=opacity
        )

    return for_each_frame(frames, writer, predict, finish, window="segmentation" if show else None)


def run_demo(
    source: str,
    config: str,
    *,
    checkpoint: str,
    out: str,
    device: str | None = None,
    opacity: float = 0.5,
    show: bool = False,
) -> tuple[str, int]:
    """Segment an input and write pictures of it.

    Args:
        source: as of :func:`fastvit_dense.io.media.open_input`.
        config: config file.
        checkpoint: checkpoint that tools/train.py wrote.
        out: folder for the pictures or the video.
        device: cpu or cuda:0; None is the GPU if there is one.
        opacity: of the colours over the image, 0 to 1.
        show: show the pictures in a window, too.

    Returns:
        Number of frames, speed and where the results are, in a few lines; and the status to exit with,
        1 if images could not be read.

    Raises:
        FileNotFoundError, ValueError, OSError: as of the functions above.
    """
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    with open_input(source) as frames:
        writer = FrameWriter(out, frames)  # it may refuse: before the model is loaded
        model = load_segmentor(config, checkpoint, device=device)
        report = segment(model, frames, writer, opacity=opacity, show=show)
    where = writer.paths[0] if len(writer.paths) == 1 else writer.folder
    text = report.text(
        describe_device(device), task="inference", timed="preparation included",
        more=[f"results: {where}"],
    )  # fmt: skip
    return text, report.status


def _classes_and_palette(meta: Mapping[str, Any], count: int, *, name: str) -> dict[str, Any]:
    """Names and RGB colours of the classes, numbers and random colours if there are none."""
    classes, palette = meta.get("classes"), meta.get("palette")
    if not classes:
        print(f"{name} names no classes: they are numbered", file=sys.stderr)
        classes = [str(i) for i in range(count)]
    if len(classes) != count:
        raise ValueError(
            f"{name} was trained on {len(classes)} classes, the config has num_classes={count}: use the "
            "config it was trained with"
        )
    if palette is None or len(palette) < count:
        palette = np.random.RandomState(42).randint(0, 256, (count, 3)).tolist()
    return dict(classes=tuple(classes), palette=[tuple(map(int, colour)) for colour in palette])
