"""mmseg's datasets, with checks in place of silence: of files, of label images, of the classes.

Shapes: H, W image height and width.
"""

from __future__ import annotations

import io
import os.path as osp
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset
from mmseg.registry import DATASETS, HOOKS, TRANSFORMS
from PIL import Image

from ..compat.transforms import why_unreadable
from ..engine.models import unwrap

IGNORED = 255  # the value mmseg gives pixels without a label


class CheckedFiles(BaseSegDataset):
    """A dataset whose images and label images all exist, and that names the one that fails.

    Takes the arguments of mmseg's dataset. Files are looked for once, when the dataset is made.

    Args:
        max_pixels: Pillow, which reads label images, refuses larger ones. None leaves Pillow's own
            limit of 178 956 970 pixels, a guard against small files that unpack into all memory.

    Raises:
        FileNotFoundError: a folder, image list, or label image does not exist.
        ValueError: the folder holds no image; an image cannot be prepared.
    """

    def __init__(self, *args: Any, max_pixels: int | None = None, **kwargs: Any) -> None:
        self.max_pixels = max_pixels
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The images with their label images, as mmseg's."""
        images, labels = (self.data_prefix.get(k) for k in ("img_path", "seg_map_path"))
        for key, folder in (("img_path", images), ("seg_map_path", labels)):
            if folder and "://" not in folder and not osp.isdir(folder):
                raise FileNotFoundError(
                    f"folder {folder} does not exist; check data_root ({self.data_root!r}) and "
                    f"data_prefix[{key!r}]"
                )
        if self.ann_file and not osp.isfile(self.ann_file):
            raise FileNotFoundError(f"list of images {self.ann_file} does not exist (ann_file)")
        data = super().load_data_list()
        if not data:
            raise ValueError(
                f"{self.ann_file or images} holds no image: expected names that end in "
                f"{self.img_suffix!r} (img_suffix)"
            )
        if labels and "://" not in labels:
            missing = [d["seg_map_path"] for d in data if not osp.isfile(d["seg_map_path"])]
            if missing:
                raise FileNotFoundError(
                    f"{len(missing)} of {len(data)} images have no label image, the first is "
                    f"{missing[0]}; check data_prefix and seg_map_suffix ({self.seg_map_suffix!r})"
                )
        return data

    def get_data_info(self, idx: int) -> dict:
        """As mmseg's, with the number of classes for :class:`CheckLabels`."""
        return super().get_data_info(idx) | {"num_classes": len(self._metainfo["classes"])}

    def prepare_data(self, idx: int) -> Any:
        """As mmseg's; an exception comes out with the names of the files in it."""
        try:
            with _pillow_limit(self.max_pixels):
                return super().prepare_data(idx)
        except Exception as error:
            info = self.get_data_info(idx)
            paths = [info["img_path"], info.get("seg_map_path", "")]
            if isinstance(error, ValueError) and any(p and p in str(error) for p in paths):
                raise
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
                reason += "; if it is meant to be so large, set max_pixels of the dataset"
            elif osp.isfile(paths[0]):
                reason = why_unreadable(paths[0], error=error)
            raise kind(
                f"{paths[0]} with label image {paths[1]} cannot be prepared: {reason}"
            ) from error


@contextmanager
def _pillow_limit(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow read images of up to `max_pixels` without a warning, and none above."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels or before
    try:
        with warnings.catch_warnings():
            if max_pixels:  # Pillow warns above its limit and fails above twice that
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@DATASETS.register_module()
class CheckedADE20KDataset(CheckedFiles, ADE20KDataset):
    """ADE20K (150 classes; label 0 is unlabelled) with the checks of :class:`CheckedFiles`."""


@DATASETS.register_module()
class CheckedCityscapesDataset(CheckedFiles, CityscapesDataset):
    """Cityscapes (19 classes) with the checks of :class:`CheckedFiles`."""


@DATASETS.register_module()
class CheckedSegDataset(CheckedFiles):
    """One's own images and label images; name the classes in `metainfo`, see CheckedFiles."""


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Compare the label image just loaded with its file and its photograph; after LoadAnnotations.

    A label image has one channel of 8 bits, each value the number of a class; a palette is fine. It
    has the size of the photograph as the file holds it. mmseg takes anything: of 16 bits it keeps
    the lower 8, of colours it makes a third dimension, and another size fails far away or not at all.

    Reads `gt_seg_map`, `seg_map_path`, `ori_shape` and `num_classes`; without labels (inference)
    there is nothing to check. Changes nothing.

    Args:
        backend_args: as of LoadAnnotations.
    """

    def __init__(self, *, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Raises ValueError if the label image is not one; it names the file."""
        if "gt_seg_map" not in results:
            return results
        labels, path = results["gt_seg_map"], results["seg_map_path"]
        try:
            with Image.open(io.BytesIO(fileio.get(path, self.backend_args))) as image:
                mode = image.mode
                image.verify()  # checksums of a PNG, which its decoders pass over
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is damaged, get it again: {error}") from error
        if mode not in ("L", "P", "1"):
            raise ValueError(
                f"{path} has Pillow's mode {mode}: expected a label image of one channel of 8 bits, "
                "class numbers as values. Convert colours or wider numbers to class numbers first."
            )
        wanted = tuple(results["ori_shape"][:2])
        if labels.shape != wanted:
            raise ValueError(
                f"{path} is {labels.shape[1]}x{labels.shape[0]} pixels (width x height), its image "
                f"{results.get('img_path')} is {wanted[1]}x{wanted[0]}: they must be equal. If an EXIF "
                "orientation swaps them, and the image was labelled as stored, load it with "
                'dict(type="LoadImageFromFile", color_type="color_ignore_orientation").'
            )
        occurs = np.zeros(256, bool)
        occurs[labels.ravel()] = True
        wrong = np.flatnonzero(occurs[results["num_classes"] : IGNORED]) + results["num_classes"]
        if wrong.size:
            shift = int(bool(results.get("reduce_zero_label")))
            raise ValueError(
                f"{path} holds {', '.join(str(v + shift) for v in wrong[:5])}, but with "
                f"{results['num_classes']} classes labels run from {shift} to "
                f"{results['num_classes'] - 1 + shift} ({'0 or ' * shift}255 for unlabelled). "
                "Is it the label image of this dataset, are metainfo['classes'] all of them, "
                "and is reduce_zero_label right?"
            )
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(backend_args={self.backend_args})"


@HOOKS.register_module()
class ClassesFitHook(Hook):
    """Refuses heads that predict another number of classes than the dataset has.

    Too few fail inside the loss, on a GPU without a reason; too many train in silence.
    """

    def before_train(self, runner: Any) -> None:
        """Check the training dataset."""
        _check_heads(runner.model, runner.train_dataloader.dataset)

    def before_val(self, runner: Any) -> None:
        """Check the validation dataset."""
        _check_heads(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner: Any) -> None:
        """Check the test dataset."""
        _check_heads(runner.model, runner.test_dataloader.dataset)


def _check_heads(model: Any, dataset: Any) -> None:
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if classes is None:
        print_log(f"{dataset!r:.80} names no classes: they are not checked", "current")
        return
    for name, module in unwrap(model).named_modules():
        found = getattr(module, "num_classes", len(classes))
        if name.split(".")[0] in ("decode_head", "auxiliary_head") and found != len(classes):
            raise ValueError(
                f"model.{name} has num_classes={found}, the dataset has {len(classes)} classes "
                f"({', '.join(classes[:3])}, ...): set model.{name}.num_classes={len(classes)}, or "
                "metainfo.classes"
            )
