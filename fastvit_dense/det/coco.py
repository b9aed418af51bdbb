"""mmdet's COCO data set, with checks in place of silence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine import fileio

from ..io.media import is_truncated_jpeg, too_large_for_opencv
from .annotations import (
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
                else:
                    reason = too_large_for_opencv(content) or reason
            raise ValueError(f"{path} cannot be prepared ({where}): {reason}") from error
