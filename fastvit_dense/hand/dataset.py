"""FreiHAND for mmengine: images of single right hands with their meshes (Zimmermann et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from .annotations import VERSIONS, Annotations, read_annotations


@DATASETS.register_module()
class FreiHAND(BaseDataset):
    """The training or evaluation split of FreiHAND, or of a data set in its layout.

    Each image comes as a dict: img_path; index, its number in the split; K (3, 3), scale; and where
    annotated, keypoints (21, 3) and vertices (778, 3), in metres, camera frame, float32. The arrays
    stay in one place for all workers of a data loader.

    Args:
        data_root: the folder that holds ``training/rgb``, ``training_K.json`` and so on.
        split: training or evaluation. The latter may come without labels.
        versions: which of the four images of each hand to train on, of gs, hom, sample, auto.
        pipeline: transforms.
        **kwargs: of mmengine's BaseDataset, such as ``indices`` and ``lazy_init``. ``test_mode`` is on for
            evaluation unless given.

    Attributes:
        annotations: of all hands of the split.

    Raises:
        FileNotFoundError: a file or image is missing.
        ValueError: there is no such split or version, or annotations are wrong, see `read_annotations`.
    """

    METAINFO = {"dataset_name": "FreiHAND"}

    def __init__(
        self,
        data_root: str | Path,
        split: str = "training",
        *,
        versions: Sequence[str] = VERSIONS,
        pipeline: Sequence[dict | Callable] = (),
        **kwargs: Any,
    ) -> None:
        if split not in ("training", "evaluation"):
            raise ValueError(f"split must be training or evaluation, got {split!r}")
        unknown = set(versions) - set(VERSIONS)
        if isinstance(versions, str) or not versions or unknown:
            raise ValueError(f"versions must be some of {VERSIONS}, got {versions!r}")
        if split == "evaluation" and set(versions) != set(VERSIONS):
            raise ValueError(f"evaluation has one image of each hand, got versions={versions!r}")
        self.split, self.versions = split, tuple(versions)
        self.annotations: Annotations
        kwargs.setdefault("test_mode", split == "evaluation")
        super().__init__(data_root=str(data_root), pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read and check the annotations; the list holds no more than the numbers of the images."""
        self.annotations = read_annotations(self.data_root, self.split)
        count = len(self.annotations)
        if self.split == "evaluation":
            return [{"index": i} for i in range(count)]
        starts = [count * i for i, version in enumerate(VERSIONS) if version in self.versions]
        return [{"index": i} for start in starts for i in range(start, start + count)]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """What is known of an image of the dataset, for the pipeline."""
        info = super().get_data_info(idx)
        known, row = self.annotations, info["index"] % len(self.annotations)
        info["img_path"] = f"{self.data_root}/{self.split}/rgb/{info['index']:08d}.jpg"
        info["K"] = np.array(known.K[row])
        info["scale"] = float(known.scale[row])
        if known.keypoints is not None and known.vertices is not None:
            info["keypoints"] = np.array(known.keypoints[row])
            info["vertices"] = np.array(known.vertices[row])
        return info
