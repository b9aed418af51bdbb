"""mmdet's COCO data set and image loading, with checks in place of silence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import mmcv
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine import fileio

from .coco_annotations import (
    check_annotations,
    check_classes,
    check_references,
    log,
    read_annotations,
    some,
)


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's CocoDataset, which checks its annotation file and names the image that fails.

    Takes the same arguments. The file is parsed once; the checks cost a few seconds for COCO's
    860 000 training annotations.

    Raises:
        FileNotFoundError: No annotation file; or, when it is asked for, no image.
        ValueError: `metainfo['classes']` is a string; the annotation file is not one, or does not
            hold the classes; nothing is left after filtering; an image cannot be prepared.
    """

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping | None = None) -> dict:
        classes = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
        if isinstance(classes, str) and not os.path.isfile(classes):
            raise ValueError(
                f"metainfo['classes'] is the string {classes!r}, which is neither a tuple nor a "
                f"file of names; a tuple of one takes a comma: dict(classes=({classes!r},))"
            )
        meta = super()._load_metainfo(metainfo)
        twice = [n for n, count in Counter(meta["classes"]).items() if count > 1]
        if twice or not meta["classes"]:
            raise ValueError(f"metainfo['classes'] is empty or names a class twice: {some(twice)}")
        return meta

    def load_data_list(self) -> list[dict]:
        # mmdet calls COCOAPI with the path of a local copy: checking there, it is parsed only once.
        self.COCOAPI = self._load_checked
        try:
            return super().load_data_list()
        finally:
            del self.COCOAPI

    def _load_checked(self, path: str) -> COCO:
        file, classes = self.ann_file or "", self._metainfo["classes"]
        data = read_annotations(path, name=file, need_annotations=not self.test_mode)
        check_references(data, file=file)
        check_classes(data, classes, file=file)
        loaders = [t for t in self.pipeline.transforms if getattr(t, "with_mask", False)]
        check_annotations(
            data,
            classes,
            file=file,
            masks=bool(loaders),
            polygons=any(not getattr(t, "poly2mask", True) for t in loaders),
            evaluates=self.test_mode,
        )
        api = COCO()
        api.dataset = data
        api.createIndex()
        # Aliases that mmdet's COCO sets before there is an index.
        api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
        return api

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:
            raise ValueError(
                f"{self.ann_file}: no image is left to use of {len(self.data_list)}; "
                f"{sum(bool(d['instances']) for d in self.data_list)} have a usable annotation, "
                f"filter_cfg is {self.filter_cfg} (filter_empty_gt leaves out images without an "
                "annotation of the classes, min_size those with a shorter side below it)"
            )
        if len(kept) < len(self.data_list):
            left_out = len(self.data_list) - len(kept)
            log(f"{self.ann_file}: filter_cfg leaves out {left_out} images", warn=False)
        return kept

    def prepare_data(self, idx: int) -> Any:
        """As BaseDataset's; an exception comes out with the name of the image in it."""
        try:
            return super().prepare_data(idx)
        except Exception as error:
            info = self.get_data_info(idx)
            path = info["img_path"]
            where = f"image id {info['img_id']} of {self.ann_file}"
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(
                    f"{path} does not exist ({where}); check data_root and data_prefix "
                    f"(now {self.data_prefix})"
                ) from error
            if isinstance(error, ValueError) and path in str(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            if os.path.isfile(path):
                content = fileio.get(path)
                if not content:
                    reason = "the file is empty"
                elif is_truncated_jpeg(content):
                    reason = f"it is a truncated JPEG of {len(content)} bytes; get it again"
            raise ValueError(f"{path} cannot be prepared ({where}): {reason}") from error


def is_truncated_jpeg(content: bytes) -> bool:
    """Whether the bytes are a JPEG whose image data ends without an end-of-image marker.

    Thumbnails inside of segments and whatever follows the picture do not confuse it. A JPEG
    that ends before its image data counts too. Other formats: False.
    """
    if content[:2] != b"\xff\xd8":
        return False
    at = 2
    while content[at : at + 1] == b"\xff":
        marker = content[at + 1 : at + 2]
        if marker == b"\xff":  # fill byte
            at += 1
        elif marker == b"\xda":  # start of scan: in image data, 0xff is never followed by 0xd9
            return content.find(b"\xff\xd9", at) < 0
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return True


@TRANSFORMS.register_module()
class CheckImage(BaseTransform):
    """Compare the image just loaded with its file and its annotation; goes after LoadImageFromFile.

    - A truncated JPEG is an error. (OpenCV 4 fills what is missing with grey, and so does
      OpenCV 5 where a download left zeros in its place.)
    - If height and width are swapped against the annotation file, and the file has an EXIF
      orientation, the annotations were made on the stored pixels: the image is loaded again
      without turning it. (Mirrored and half-turned images keep their size: they cannot be told.)
    - Any other difference in size is an error: boxes would lie beside their objects.

    Reads `img`, and where present `img_path`, `height` and `width`; an image that came as an array
    passes. May change `img`, `img_shape` and `ori_shape`.

    Args:
        backend_args: As of LoadImageFromFile.
    """

    def __init__(self, *, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        path = results.get("img_path")
        if not path:
            return results
        content = fileio.get(path, backend_args=self.backend_args)
        if is_truncated_jpeg(content):
            raise ValueError(
                f"{path} is a truncated JPEG ({len(content)} bytes, no end-of-image marker): get "
                "it again, or take it out of the annotation file"
            )
        wanted = results.get("height"), results.get("width")
        if None in wanted or wanted == results["img"].shape[:2]:
            return results
        found = results["img"].shape[:2]
        if wanted == found[::-1]:
            colour = "color" if results["img"].ndim == 3 else "grayscale"
            unturned = mmcv.imfrombytes(content, flag=f"{colour}_ignore_orientation", backend="cv2")
            if unturned.shape[:2] == wanted:
                results["img"] = unturned.astype(results["img"].dtype)
                results["img_shape"] = results["ori_shape"] = unturned.shape[:2]
                return results
        raise ValueError(
            f"{path} is {found[1]}x{found[0]} pixels (width x height), its annotation says "
            f"{wanted[1]}x{wanted[0]}: boxes would not fit. Is it the image that was annotated?"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(backend_args={self.backend_args})"
