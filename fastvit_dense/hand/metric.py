"""FreiHAND's evaluation protocol: errors, F-scores and the area under the PCK curve, raw and aligned.

Points are in metres, figures of errors in millimetres. All is computed in float64.

Shape legend: N samples, P points of each.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from scipy.spatial import cKDTree
from torch import Tensor

from ..io.files import atomic_write
from .geometry import axis_rotation

F_THRESHOLDS = (0.005, 0.015)  # metres
PCK_THRESHOLDS = np.linspace(0, 0.05, 100)  # metres
_TINY = 1e-8  # metres; keeps the size of a prediction without extent from dividing by zero
_THREADS = 2


def procrustes_align(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Move, turn and scale each prediction onto its target, in the least squares (Schoenemann 1966).

    As in scipy.linalg.orthogonal_procrustes, reflections are allowed: a mirrored prediction aligns
    perfectly. A prediction without extent, such as all zeros, comes to the centroid of its target.

    Args:
        pred: (N, P, 3).
        target: (N, P, 3).

    Returns:
        (N, P, 3) float64.
    """
    pred, _, pred_size = _normalise(pred)
    target, center, size = _normalise(target)
    u, singular, vt = np.linalg.svd(target.swapaxes(1, 2) @ pred)  # of (N, 3, 3)
    turned = pred @ (u @ vt).swapaxes(1, 2)
    return turned * (singular.sum(-1)[:, None, None] * size) + center


def _normalise(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of mean zero and norm one, their means (N, 1, 3) and norms (N, 1, 1)."""
    points = np.asarray(points, np.float64)
    center = points.mean(1, keepdims=True)
    points = points - center
    size = np.linalg.norm(points, axis=(1, 2), keepdims=True) + _TINY
    return points / size, center, size


def point_errors(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Distances (N, P) of corresponding points (N, P, 3), in metres."""
    difference = np.asarray(pred, np.float64) - np.asarray(target, np.float64)
    return np.sqrt(np.square(difference).sum(-1))


def pck_auc(errors: np.ndarray) -> float:
    """Area under the curve of correct keypoints over thresholds up to 5 cm, 1 for a perfect prediction.

    Args:
        errors: (N, P), metres. The curve of each of the P keypoints is integrated by the trapezoid rule and
            divided by its width; the result is their mean.
    """
    # The mean of curves is the curve of all: each keypoint has as many samples.
    ordered = np.sort(errors, axis=None)
    correct = np.searchsorted(ordered, PCK_THRESHOLDS, side="right") / ordered.size
    steps = np.diff(PCK_THRESHOLDS)
    area = (steps * (correct[1:] + correct[:-1]) / 2).sum()
    return float(area / steps.sum())


def f_scores(
    pred: np.ndarray, target: np.ndarray, thresholds: Sequence[float] = F_THRESHOLDS
) -> np.ndarray:
    """F-scores of each sample: how many points have one of the other surface nearer than a threshold.

    Precision is the share of predicted points that are near to the target, recall that of the target's
    points near to the prediction; the score is their harmonic mean, 0 where both are 0.

    Args:
        pred: (N, P, 3), metres.
        target: (N, P, 3), metres.
        thresholds: T distances in metres. A point at exactly that distance is not near.

    Returns:
        (N, T).
    """
    nearest = functools.partial(_nearest_distances, bound=2 * max(thresholds))
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        both_ways = [list(pool.map(nearest, *ab)) for ab in ((pred, target), (target, pred))]
    limits = np.asarray(thresholds)[:, None]
    precision, recall = (
        np.array([(distances < limits).mean(-1) for distances in samples]) for samples in both_ways
    )  # (N, T) each
    total = precision + recall
    return 2 * precision * recall / np.where(total > 0, total, 1)


def _nearest_distances(points: np.ndarray, others: np.ndarray, *, bound: float) -> np.ndarray:
    """(P,): from each of the points (P, 3) to the nearest of the others (P, 3); inf beyond the bound.

    Beyond the thresholds it does not matter how far; the bound spares searches for distant points.
    """
    # Distances from a tree are exact; those by way of a matrix product are not at a threshold.
    return cKDTree(others, balanced_tree=False).query(points, distance_upper_bound=bound)[0]


def hand_metrics(
    *,
    pred_keypoints: np.ndarray,
    pred_vertices: np.ndarray,
    keypoints: np.ndarray,
    vertices: np.ndarray,
) -> dict[str, float]:
    """All figures of the protocol.

    Keypoints and vertices are aligned each on their own.

    Args:
        pred_keypoints: (N, 21, 3), metres, camera frame.
        pred_vertices: (N, 778, 3), likewise.
        keypoints: (N, 21, 3), the targets.
        vertices: (N, 778, 3), the targets.

    Returns:
        Aligned: PJ and PV, mean errors of keypoints and vertices in mm; F@5 and F@15, F-scores of the
        vertices; AUC_J and AUC_V, of keypoints and vertices. The same without alignment: PJ_raw and so on.
    """
    figures: dict[str, float] = {}
    aligned = (
        procrustes_align(pred_keypoints, keypoints),
        procrustes_align(pred_vertices, vertices),
    )
    for suffix, (joints, mesh) in (("", aligned), ("_raw", (pred_keypoints, pred_vertices))):
        errors = {"J": point_errors(joints, keypoints), "V": point_errors(mesh, vertices)}
        figures |= {f"P{key}{suffix}": 1000 * float(value.mean()) for key, value in errors.items()}
        for threshold, score in zip(F_THRESHOLDS, f_scores(mesh, vertices).mean(0), strict=True):
            figures[f"F@{1000 * threshold:.0f}{suffix}"] = float(score)
        figures |= {f"AUC_{key}{suffix}": pck_auc(value) for key, value in errors.items()}
    return figures


def mean_hand(vertices: np.ndarray, *, rounds: int = 3) -> np.ndarray:
    """The mean shape of hands after alignment to it (generalised Procrustes analysis, Gower 1975).

    Args:
        vertices: (N, P, 3), metres. A few thousand are plenty.
        rounds: how often hands are aligned and averaged; the first round takes the first hand for the mean.

    Returns:
        (P, 3), metres, centred.
    """
    vertices = np.asarray(vertices, np.float64)
    mean = vertices[0]
    for _ in range(rounds):
        mean = procrustes_align(vertices, np.broadcast_to(mean, vertices.shape)).mean(0)
        mean = mean - mean.mean(0)
    return mean


def template_error(template: np.ndarray, targets: np.ndarray) -> float:
    """PV, aligned, in mm, of predicting one and the same hand each time: what a model has to beat.

    Args:
        template: (P, 3), such as :func:`mean_hand` of the training split.
        targets: (N, P, 3), of the evaluation split.
    """
    pred = np.broadcast_to(template, np.shape(targets))
    return 1000 * float(point_errors(procrustes_align(pred, targets), targets).mean())


_DECIMALS = 6  # of a metre: a micrometre
_PARTS = ("keypoints", "vertices")


@METRICS.register_module()
class FreiHANDMetric(BaseMetric):
    """PJ, PV, F@5, F@15 and AUC, aligned and raw, see `hand_metrics`; and ``pred.json``.

    Predictions are taken in the camera frame of the original images. If samples have no `gt`, as those
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
        with atomic_write(path) as aside:
            aside.write_text("[[" + "],\n[".join(lists) + "]]\n", encoding="ascii")
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
