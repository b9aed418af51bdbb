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

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset
from mmseg.registry import DATASETS, HOOKS, TRANSFORMS
from PIL import Image, UnidentifiedImageError

from ..engine.models import unwrap
from ..engine.resume import SeededDataset
from ..io.media import OPENCV_MAX_PIXELS, stored_size

IGNORED = 255  # the value mmseg gives pixels without a label


class CheckedFiles(BaseSegDataset):
    """A dataset whose images and label images are all there, and that names the one that fails.

    Takes the arguments of mmseg's dataset. Files are looked for once, when the dataset is made.

    Args:
        max_pixels: an image that Pillow reads, as it does label images, may have so many. None leaves
            Pillow's own limit, a guard against small files that unpack into all memory: it warns above
            89 478 485 pixels and refuses more than twice as many.

    Raises:
        FileNotFoundError: a folder, image list, or label image does not exist.
        ValueError: there is no image; `metainfo['classes']` is a string; an image cannot be prepared;
            max_pixels is no positive whole number.
    """

    def __init__(self, *args: Any, max_pixels: int | None = None, **kwargs: Any) -> None:
        if max_pixels is not None and not (isinstance(max_pixels, int) and max_pixels > 0):
            raise ValueError(
                f"max_pixels is {max_pixels!r}, expected a whole number above 0, or None for Pillow's limit"
            )
        self.max_pixels = max_pixels
        classes = (kwargs.get("metainfo") or {}).get("classes")
        if isinstance(classes, str) and not osp.isfile(classes):
            raise ValueError(
                f"metainfo['classes'] is the string {classes!r}, which is neither a tuple nor a "
                f"file of names; a tuple of one takes a comma: dict(classes=({classes!r},))"
            )
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
            if too_large := self._too_large(error, image=paths[0], labels=paths[1]):
                raise ValueError(too_large) from error
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(
                f"{paths[0]} with label image {paths[1]} cannot be prepared: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _too_large(self, error: Exception, *, image: str, labels: str) -> str:
        """What to say of an error that is about the size of an image; empty for others."""
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            path, limit = labels or image, self.max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 0)
            what = (
                f"more than the {limit} that are read, since a small file can unpack into all memory. If "
                "it is meant to be so large, raise the limit in the config of the dataset"
            )
        elif isinstance(error, cv2.error):
            path, limit = image, OPENCV_MAX_PIXELS
            what = (
                f"more than the {limit} that OpenCV reads. Let Pillow read it, with "
                "dict(type='LoadImageFromFile', imdecode_backend='pillow') and, in the dataset"
            )
        else:
            return ""
        width, height = stored_size(fileio.get(path)) or (0, 0)
        if width * height <= limit:
            return ""
        return f"{path} is {width}x{height} pixels (width x height), {what}: max_pixels={width * height}"


@contextmanager
def _pillow_limit(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow read images of up to `max_pixels` without a warning, and none above."""
    if max_pixels is None:
        yield
        return
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            # Pillow warns above its limit and fails above twice that.
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
        """Raises ValueError where the label image is not one; it names the file."""
        if "gt_seg_map" not in results:
            return results
        labels, path = results["gt_seg_map"], results["seg_map_path"]
        try:
            with Image.open(io.BytesIO(fileio.get(path, self.backend_args))) as image:
                mode = image.mode
                image.verify()  # checksums of a PNG, which its decoders pass over
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is not an image that can be read: {error}") from error
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is damaged, get it again: {error}") from error
        if mode not in ("L", "P", "1"):
            what = "16 or 32 bits a pixel" if mode.startswith("I") else f"mode {mode}"
            raise ValueError(
                f"{path} has {what}: expected a label image of one channel of 8 bits, class numbers "
                "as values. Convert colours or wider numbers to class numbers first."
            )
        wanted = tuple(results["ori_shape"][:2])
        if labels.shape != wanted:
            turned = (
                " If the photograph carries an EXIF orientation and was labelled as stored, load it "
                'with dict(type="LoadImageFromFile", color_type="color_ignore_orientation").'
                if labels.shape == wanted[::-1]
                else ""
            )
            raise ValueError(
                f"{path} is {labels.shape[1]}x{labels.shape[0]} pixels (width x height), its image "
                f"{results.get('img_path')} is {wanted[1]}x{wanted[0]}: they must be equal.{turned}"
            )
        occurs = np.zeros(256, bool)
        occurs[labels.ravel()] = True
        wrong = np.flatnonzero(occurs[results["num_classes"] : IGNORED]) + results["num_classes"]
        if wrong.size:
            shift = 1 if results.get("reduce_zero_label") else 0
            shown = ", ".join(str(v + shift) for v in wrong[:5])
            unlabelled = "0 or 255" if shift else "255"
            raise ValueError(
                f"{path} holds {shown}{', ...' if wrong.size > 5 else ''}, but with "
                f"{results['num_classes']} classes labels run from {shift} to "
                f"{results['num_classes'] - 1 + shift} ({unlabelled} for unlabelled). "
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
        self._check(runner, runner.train_dataloader.dataset)

    def before_val(self, runner: Any) -> None:
        """Check the validation dataset."""
        self._check(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Any) -> None:
        """Check the test dataset."""
        self._check(runner, runner.test_dataloader.dataset)

    def _check(self, runner: Any, dataset: Any) -> None:
        if isinstance(dataset, SeededDataset):
            dataset = dataset.dataset
        classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
        if classes is None:
            print_log(f"{type(dataset).__name__} names no classes: they are not checked", "current")
            return
        for name, module in unwrap(runner.model).named_modules():
            found = getattr(module, "num_classes", None)
            if name.split(".")[0] in ("decode_head", "auxiliary_head") and isinstance(found, int):
                if found != len(classes):
                    raise ValueError(
                        f"model.{name} has num_classes={found}, {type(dataset).__name__} has "
                        f"{len(classes)} classes ({', '.join(classes[:3])}, ...): set "
                        f"model.{name}.num_classes={len(classes)}, or metainfo.classes"
                    )
