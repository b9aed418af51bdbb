"""FreiHAND's protocol, against a transcription of it sample by sample."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from conftest import ROOT
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement
from scipy.integrate import trapezoid
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from fastvit_dense.hand.freihand import load_json_array
from fastvit_dense.hand.geometry import axis_rotation
from fastvit_dense.hand.metric import (
    FreiHANDMetric,
    f_scores,
    hand_metrics,
    mean_hand,
    pck_auc,
    procrustes_align,
    template_error,
)
from fastvit_dense.hand.model import HandDataSample

REAL = ROOT / "data" / "freihand"


def align_one(target: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """The protocol's alignment of one sample (P, 3)."""
    t1, t2 = target.mean(0), pred.mean(0)
    a, b = target - t1, pred - t2
    s1, s2 = np.linalg.norm(a) + 1e-8, np.linalg.norm(b) + 1e-8
    rotation, scale = orthogonal_procrustes(a / s1, b / s2)
    return (b / s2) @ rotation.T * scale * s1 + t1


def f_score_one(target: np.ndarray, pred: np.ndarray, threshold: float) -> float:
    distances = cdist(pred, target)
    precision = np.mean(distances.min(1) < threshold)
    recall = np.mean(distances.min(0) < threshold)
    both = precision + recall
    return 2 * precision * recall / both if both > 0 else 0.0


def auc_of_keypoints(errors: np.ndarray) -> float:
    thresholds = np.linspace(0, 0.05, 100)
    curves = [[np.mean(errors[:, k] <= t) for t in thresholds] for k in range(errors.shape[1])]
    width = trapezoid(np.ones(100), thresholds)
    return float(np.mean([trapezoid(c, thresholds) / width for c in curves]))


def protocol(pred: dict[str, np.ndarray], target: dict[str, np.ndarray]) -> dict[str, float]:
    """All figures, one sample after the other."""
    figures = {}
    for suffix in ("", "_raw"):
        moved = {
            key: np.array(
                [
                    align_one(t, p) if not suffix else p
                    for p, t in zip(pred[key], target[key], strict=True)
                ]
            )
            for key in pred
        }
        for key in ("J", "V"):
            errors = np.linalg.norm(moved[key] - target[key], axis=-1)
            figures[f"P{key}{suffix}"] = 1000 * errors.mean()
            figures[f"AUC_{key}{suffix}"] = auc_of_keypoints(errors)
        for name, threshold in (("F@5", 0.005), ("F@15", 0.015)):
            scores = [
                f_score_one(t, p, threshold) for p, t in zip(moved["V"], target["V"], strict=True)
            ]
            figures[f"{name}{suffix}"] = float(np.mean(scores))
    return figures


def hands(n: int = 4, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Points as of a hand: 20 cm long, 1 cm thick, about 0.7 m away."""
    rng = np.random.default_rng(seed)
    vertices = rng.uniform(-1, 1, (n, 778, 3)) * (0.1, 0.04, 0.005)
    vertices = vertices @ Rotation.random(n, rng).as_matrix()
    vertices = vertices + rng.uniform(-0.05, 0.05, (n, 1, 3)) + (0, 0, 0.7)
    return {"J": vertices[:, :21], "V": vertices}


def noisy(target: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        k: v + rng.normal(0, 0.005, v.shape) + rng.normal(0, 0.01, 3) for k, v in target.items()
    }


def posed(target: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turned, scaled and moved: aligned, all but the noise is gone."""
    turn = Rotation.from_rotvec((1.0, -2.0, 0.5)).as_matrix()
    return {k: v @ turn * 1.7 + 0.3 for k, v in noisy(target).items()}


PREDICTIONS = {
    "perfect": lambda target: target,
    "noisy": noisy,
    "posed": posed,
    "mirrored": lambda target: {k: v * (-1, 1, 1) for k, v in noisy(target).items()},
    "zero": lambda target: {k: np.zeros_like(v) for k, v in target.items()},
    "a point": lambda target: {k: np.full_like(v, 0.1) for k, v in target.items()},
    "other hands": lambda target: hands(len(target["V"]), seed=5),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_figures_are_those_of_the_protocol(name: str) -> None:
    target = hands()
    pred = PREDICTIONS[name](target)
    found = hand_metrics(
        pred_keypoints=pred["J"],
        pred_vertices=pred["V"],
        keypoints=target["J"],
        vertices=target["V"],
    )
    expected = protocol(pred, target)
    assert set(found) == set(expected) and len(found) == 12
    if name == "perfect":
        # Aligned errors are rounding, which may or may not be 0 at the threshold of 0.
        assert found["AUC_V_raw"] == found["AUC_J_raw"] == 1
        for key in ("AUC_J", "AUC_V"):
            assert found.pop(key) == pytest.approx(expected.pop(key), abs=0.006)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_mirrored_hand_aligns_perfectly() -> None:
    target = hands()["V"]
    aligned = procrustes_align(target * (-1, 1, 1), target)
    np.testing.assert_allclose(aligned, target, rtol=0, atol=1e-8)


def test_float32_gives_the_figures_of_float64() -> None:
    target = {k: np.float32(v) for k, v in hands().items()}
    pred = {k: np.float32(v) for k, v in posed(target).items()}
    names = {"pred_keypoints": pred["J"], "pred_vertices": pred["V"]}
    names |= {"keypoints": target["J"], "vertices": target["V"]}
    exact = {k: np.float64(v) for k, v in names.items()}
    assert hand_metrics(**names) == hand_metrics(**exact)


def test_points_at_the_threshold_are_not_near() -> None:
    """Two points each, 1 m apart; one is off by exactly, just below or just above 5 mm."""
    target = np.zeros((3, 2, 3))
    target[:, 1, 1] = 1
    pred = target.copy()
    pred[:, 0, 0] = 0.005, np.nextafter(0.005, 0), np.nextafter(0.005, 1)
    np.testing.assert_array_equal(f_scores(pred, target, (0.005,)), [[0.5], [1], [0.5]])


def test_f_score_by_hand() -> None:
    # Of 4 predicted points 3 are near to the only target that is met, 1 of 2: P = 3/4, R = 1/2.
    target = np.array([[[0.0, 0, 0], [1, 0, 0]]])
    pred = np.array([[[0.001, 0, 0], [0.002, 0, 0], [0, 0.004, 0], [0.5, 0, 0]]])
    np.testing.assert_allclose(f_scores(pred, target), [[0.6, 0.6]])


def test_auc_by_hand() -> None:
    assert pck_auc(np.zeros((2, 3))) == 1
    assert pck_auc(np.full((2, 3), 0.06)) == 0
    # Correct from the threshold number 50 of 0 to 99 on: half a step before it, and 49 after.
    assert pck_auc(np.full((1, 1), np.linspace(0, 0.05, 100)[50])) == pytest.approx(49.5 / 99)


def test_mean_hand_beats_any_single_one() -> None:
    """Noisy copies of one hand in any pose: their mean is that hand, its error the noise."""
    shape = hands(1)["V"][0]
    rng = np.random.default_rng(0)
    turns = Rotation.random(60, rng).as_matrix()
    seen = shape @ turns * rng.uniform(0.8, 1.2, (60, 1, 1)) + rng.normal(0, 0.001, (60, 778, 3))
    train, test = seen[:40], seen[40:]
    mean = mean_hand(train)
    assert mean.shape == (778, 3) and np.abs(mean.mean(0)).max() < 1e-12
    residual = procrustes_align(mean[None], shape[None])[0] - shape
    assert np.linalg.norm(residual, axis=-1).mean() < 0.0005
    noise = 1000 * 0.001 * np.sqrt(8 / np.pi)  # mean length of a normal 3-vector of 1 mm
    assert template_error(mean, test) == pytest.approx(noise, rel=0.03)
    assert template_error(train[0], test) > 1.3 * noise


@pytest.mark.skipif(
    not (REAL / "evaluation_xyz.json").exists(),
    reason="needs FreiHAND's evaluation annotations in data/freihand",
)
def test_published_figures_of_the_zero_predictor() -> None:
    target = {
        "J": load_json_array(REAL / "evaluation_xyz.json", (21, 3)),
        "V": load_json_array(REAL / "evaluation_verts.json", (778, 3)),
    }
    if len(target["J"]) != 3960:
        pytest.skip("data/freihand holds other annotations than FreiHAND's 3,960")
    found = hand_metrics(
        pred_keypoints=np.zeros_like(target["J"]),
        pred_vertices=np.zeros_like(target["V"]),
        keypoints=target["J"],
        vertices=target["V"],
    )
    assert found["PJ"] / 10 == pytest.approx(4.73, abs=0.005)
    assert found["PV"] / 10 == pytest.approx(5.07, abs=0.005)
    assert found["F@5"] == pytest.approx(0.001, abs=0.0005)
    assert found["F@15"] == pytest.approx(0.031, abs=0.0005)


def samples_of(
    pred: dict[str, np.ndarray], target: dict[str, np.ndarray] | None, *, rotation: float = 0.0
) -> list[HandDataSample]:
    """Data samples as the model gives them; the annotation is turned with the crop."""
    turn = axis_rotation(rotation).T
    samples = []
    for i in range(len(pred["V"])):
        sample = HandDataSample(
            metainfo=dict(index=i, img_path=f"{i:08d}.jpg", rotation=rotation, K=np.eye(3))
        )
        sample.pred = BaseDataElement(
            keypoints_camera=torch.tensor(pred["J"][i], dtype=torch.float32),
            vertices_camera=torch.tensor(pred["V"][i], dtype=torch.float32),
        )
        if target is not None:
            sample.gt = BaseDataElement(
                keypoints=torch.tensor(target["J"][i] @ turn, dtype=torch.float32),
                vertices=torch.tensor(target["V"][i] @ turn, dtype=torch.float32),
            )
        samples.append(sample)
    return samples


def evaluate(samples: list[HandDataSample], *, size: int | None = None, **kwargs: Any) -> dict:
    evaluator = Evaluator([dict(type="FreiHANDMetric", **kwargs)])
    for start in range(0, len(samples), 3):
        evaluator.process(samples[start : start + 3])
    return evaluator.evaluate(len(samples) if size is None else size)


@pytest.mark.parametrize("rotation", [0.0, 137.0])
def test_under_mmengine(rotation: float) -> None:
    target = hands(7)
    pred = noisy(target)
    found = evaluate(samples_of(pred, target, rotation=rotation))
    expected = protocol(pred, target)
    assert found == pytest.approx({f"freihand/{k}": v for k, v in expected.items()}, abs=1e-3)


def test_prefix() -> None:
    target = hands(2)
    assert set(evaluate(samples_of(target, target), prefix="freihand_tta")) >= {"freihand_tta/PV"}


@pytest.mark.parametrize("labelled", [True, False])
def test_pred_json(tmp_path: Path, labelled: bool) -> None:
    target, path = hands(8), tmp_path / "new" / "pred.json"
    pred = noisy(target)
    samples = samples_of(pred, target if labelled else None)
    found = evaluate([samples[i] for i in (5, 0, 7, 2, 1, 6, 3, 4)], pred_json=str(path))
    assert bool(found) == labelled
    xyz, verts = json.loads(path.read_text())
    np.testing.assert_allclose(xyz, pred["J"], rtol=0, atol=6e-7)
    np.testing.assert_allclose(verts, pred["V"], rtol=0, atol=6e-7)
    assert path.stat().st_size / pred["V"].size < 12  # characters a number
    assert [p.name for p in path.parent.iterdir()] == ["pred.json"]


def test_pred_json_keeps_the_older_one_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, target = tmp_path / "pred.json", hands(2)
    path.write_text("older")
    monkeypatch.setattr("fastvit_dense.hand.metric.os.replace", None)
    with pytest.raises(TypeError):
        evaluate(samples_of(target, target), pred_json=path)
    assert path.read_text() == "older" and len(list(tmp_path.iterdir())) == 1


def test_samples_given_twice_count_once(tmp_path: Path) -> None:
    target = hands(4)
    pred = noisy(target)
    samples = samples_of(pred, target)
    metric = FreiHANDMetric()
    metric.process(None, [s.to_dict() for s in [*samples, samples[0], samples[0]]])
    assert metric.compute_metrics(metric.results) == pytest.approx(protocol(pred, target), abs=1e-3)


def test_samples_missing(tmp_path: Path) -> None:
    target = hands(4)
    samples = samples_of(target, target)
    with pytest.raises(ValueError, match="got predictions of 4 images, expected 5"):
        evaluate(samples, size=5)
    with pytest.raises(
        ValueError, match="pred.json needs all .* 1 of 4 have no .* first is number 2"
    ):
        evaluate([samples[i] for i in (0, 1, 3)], pred_json=tmp_path / "pred.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no predictions"):
        FreiHANDMetric().compute_metrics([])


def test_some_samples_without_labels() -> None:
    target = hands(4)
    samples = samples_of(target, target)
    del samples[1].gt
    with pytest.raises(ValueError, match="3 of 4 samples have labels: expected all or none"):
        evaluate(samples)


def test_prediction_without_camera_frame_or_not_finite() -> None:
    target = hands(2)
    samples = samples_of(target, target)
    samples[1].pred.vertices_camera[5] = float("nan")
    with pytest.raises(ValueError, match="00000001.jpg: predicted vertices are not finite"):
        evaluate(samples)
    del samples[1].pred.keypoints_camera
    with pytest.raises(ValueError, match="00000001.jpg: the prediction has no keypoints_camera"):
        evaluate(samples)


def _evaluate_in_process(rank: int, folder: str) -> None:
    """Every second sample in each of two processes, padded to one number as mmengine's sampler does."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    target = hands(5)
    samples = samples_of(noisy(target), target)
    metric = FreiHANDMetric(pred_json=f"{folder}/pred.json", collect_dir=f"{folder}/collect")
    metric.process(None, [samples[i % 5].to_dict() for i in range(rank, 6, 2)])
    figures = metric.evaluate(5)
    Path(folder, f"figures{rank}.json").write_text(json.dumps(figures))
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_evaluate_in_process, (str(tmp_path),), nprocs=2)
    target = hands(5)
    expected = {f"freihand/{k}": v for k, v in protocol(noisy(target), target).items()}
    for rank in (0, 1):
        found = json.loads((tmp_path / f"figures{rank}.json").read_text())
        assert found == pytest.approx(expected, abs=1e-3)
    _, verts = json.loads((tmp_path / "pred.json").read_text())
    np.testing.assert_allclose(verts, noisy(target)["V"], rtol=0, atol=6e-7)
