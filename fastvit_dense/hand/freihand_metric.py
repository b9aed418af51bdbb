"""FreiHAND's figures and the file for its benchmark, under mmengine."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from .crop import axis_rotation
from .metric import hand_metrics

_DECIMALS = 6  # of a metre: a micrometre
_PARTS = ("keypoints", "vertices")


@METRICS.register_module()
class FreiHANDMetric(BaseMetric):
    """PJ, PV, F@5, F@15 and AUC, aligned and raw, see `hand_metrics`; and ``pred.json``.

    Predictions are taken in the camera frame of the original images. Where samples have no `gt`, as those
    of an evaluation split without labels, there is ``pred.json`` only.

    Args:
        pred_json: file to write for the benchmark: ``[keypoints, vertices]`` of all images in order, in
            metres. It replaces an older one once it is complete.
        prefix: before the names of the figures; another one keeps those of test-time augmentation apart.
        **kwargs: of mmengine's BaseMetric.

    Raises:
        ValueError: predictions lack the camera frame; some samples have labels and others do not; for
            pred.json: images are missing.
    """

    default_prefix = "freihand"

    def __init__(
        self, *, pred_json: str | Path | None = None, prefix: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(prefix=prefix, **kwargs)
        self.pred_json = Path(pred_json) if pred_json is not None else None
        self._size: int | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep what the figures need of a batch, as float32 arrays."""
        for sample in data_samples:
            result: dict[str, Any] = {"index": int(sample["index"])}
            for part in _PARTS:
                result[f"pred_{part}"] = _camera_points(sample, part)
                if "gt" in sample:
                    # The annotation was turned with the crop: back into the original's frame.
                    turn = axis_rotation(sample.get("rotation", 0.0))
                    result[part] = np.float32(_to_array(sample["gt"][part]) @ turn)
            self.results.append(result)

    def evaluate(self, size: int) -> dict[str, float]:
        """As mmengine's; `size` is the number of images there should be."""
        self._size = size
        return super().evaluate(size)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the figures and write pred.json."""
        # A distributed sampler gives some images twice.
        ordered = [r for _, r in sorted({r["index"]: r for r in results}.items())]
        if not ordered:
            raise ValueError("there are no predictions to evaluate")
        if self._size is not None and len(ordered) != self._size:
            raise ValueError(f"got predictions of {len(ordered)} images, expected {self._size}")
        if self.pred_json is not None:
            self._write(ordered, self.pred_json)
        labelled = sum("vertices" in r for r in ordered)
        if labelled == 0:
            print_log("FreiHAND: no labels, hence no figures", logger="current")
            return {}
        if labelled != len(ordered):
            raise ValueError(
                f"{labelled} of {len(ordered)} samples have labels: expected all or none"
            )
        names = [f"{prefix}{part}" for prefix in ("", "pred_") for part in _PARTS]
        return hand_metrics(**{name: np.stack([r[name] for r in ordered]) for name in names})

    def _write(self, ordered: list[dict[str, Any]], path: Path) -> None:
        """Write pred.json in one go; results are sorted by index."""
        indices = [r["index"] for r in ordered]
        missing = sorted(set(range(indices[-1] + 1)) - set(indices))
        if missing:
            raise ValueError(
                f"{path} needs all images of the split: {len(missing)} of {indices[-1] + 1} have no "
                f"prediction, the first is number {missing[0]}"
            )
        # An entry at a time: json.dump() would go through Python for each of nine million numbers.
        lists = (",\n".join(_to_json(r[f"pred_{part}"]) for r in ordered) for part in _PARTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
        try:
            aside.write_text("[[" + "],\n[".join(lists) + "]]\n", encoding="ascii")
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        print_log(f"FreiHAND: predictions of {len(ordered)} images in {path}", logger="current")


def _camera_points(sample: dict[str, Any], part: str) -> np.ndarray:
    """Predicted keypoints or vertices (P, 3) of a sample, in metres, camera frame."""
    points = sample["pred"].get(f"{part}_camera")
    if points is None:
        raise ValueError(
            f"{sample.get('img_path')}: the prediction has no {part}_camera; FreiHAND's figures need the "
            "camera frame, and that the intrinsics K of the image"
        )
    array = _to_array(points)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{sample.get('img_path')}: predicted {part} are not finite; has training diverged?"
        )
    return array


def _to_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _to_json(points: np.ndarray) -> str:
    rounded = np.round(points.astype(np.float64), _DECIMALS)
    return json.dumps(rounded.tolist(), separators=(",", ":"))
