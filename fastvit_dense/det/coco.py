"""mmdet's COCO dataset, with checks in place of silence."""

from __future__ import annotations

import os
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from ..compat.transforms import why_unreadable
from .annotations import check_annotations, check_classes, log, read_annotations


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's CocoDataset, which checks its annotation file and names the image that fails.

    Takes the same arguments. The file is parsed once; the checks cost a few seconds for COCO's
    860 000 training annotations.

    Raises:
        FileNotFoundError: The annotation file or, when it is asked for, an image does not exist.
        ValueError: The annotation file is not one, or does not hold the classes; nothing is left
            after filtering; an image cannot be prepared.
    """

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
            reason = why_unreadable(path, error=error) if os.path.isfile(path) else repr(error)
            raise ValueError(f"{path} cannot be prepared ({where}): {reason}") from error
