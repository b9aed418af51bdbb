"""How long it takes from an image of a hand to its mesh, which step takes it, in which runtime.

Before anything is timed, the mesh is compared with that of the unfused model. Then all models and runtimes
take turns, with a matrix product among them that tells what else the machine does.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone.archs import ARCHS
from ..deploy.compare import randomise_statistics
from ..deploy.runtimes import Setting, Unavailable, configure, prepare
from ..engine.devices import check_device, wait_for
from ..hand.geometry import crop_from_box
from ..hand.model import HandMeshModel
from ..hand.predictor import HandPredictor, HandResult
from ..hand.visualization import DrawnHand, hand_picture
from .timing import interleave, noise, probe, timing

PARTS = ("crop", "network", "MANO")
SHAPE = (224, 224)  # of FreiHAND's images
TOLERANCE = 1e-5  # metres between fused and unfused meshes, whatever runtime
PAPER_FPS = {"ma36": 218}  # table 8, on an RTX 2080 Ti
_HEAD_STD = 0.02  # of random weights: outputs of order 1
_CHANNELS_LAST = (
    "eager",
    "cuda-graph",
    "compile",
    "openvino",
)  # the others take (B, C, H, W) in that order
_DRAWN_EVERY = 10  # rounds: drawing takes longer than all else, and does not count


class Row(NamedTuple):
    """One model in one runtime.

    Attributes:
        arch: of the backbone.
        backend: a key of ``backends.BACKENDS``, that the backbone is run in.
        error: greatest distance of a vertex from the unfused model's, in metres; None without output.
        problem: why it was not timed; None where it was.
        seconds: of each timed pass, for each of `PARTS`; under "drawing" of some passes.
    """

    arch: str
    backend: str
    error: float | None
    problem: str | None
    seconds: dict[str, list[float]]

    @property
    def whole(self) -> list[float]:
        """Seconds of each pass from image to mesh, drawing excluded."""
        return [sum(parts) for parts in zip(*(self.seconds[p] for p in PARTS), strict=True)]


def measure(
    archs: Sequence[str],
    backends: Sequence[str],
    *,
    device: str = "cpu",
    threads: int,
    warmup: int = 100,
    runs: int = 100,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Row], list[str]]:
    """Check and time hand models with random weights and the synthetic hand, batch 1.

    Args:
        archs: keys of ``ARCHS``.
        backends: keys of ``backends.BACKENDS``, for the backbone; the rest is PyTorch's.
        device: cpu or cuda.
        threads: of the CPU, for each runtime.
        warmup: rounds before the timed ones.
        runs: timed rounds.
        clock: gives seconds.

    Returns:
        A row for each model and runtime, and warnings about the machine: none where it was quiet.

    Raises:
        ValueError: there is no such variant, backend or device.
    """
    check_device(device)
    configure(device)
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    rows, passes = list[Row](), dict[int, _Pass]()
    for arch in archs:
        model = random_model(arch)
        for backend in backends:
            row, predictor = check(model, image, Setting(backend, "float32", device, threads))
            rows.append(row._replace(arch=arch))
            if predictor is not None:
                passes[len(rows) - 1] = _Pass(predictor, image, clock)
    calls: dict[Any, Callable[[], object]] = {"probe": probe(device), **passes}
    products = interleave(calls, warmup=warmup, runs=runs, clock=clock)["probe"]
    for i, timed in passes.items():
        rows[i] = rows[i]._replace(seconds=timed.seconds(warmup))
    return rows, noise(products)


def random_model(arch: str) -> HandMeshModel:
    """A hand model with random weights, BatchNorms and layer scales that matter, for the synthetic hand.

    Args:
        arch: a key of ``ARCHS``.

    Raises:
        ValueError: there is no such variant.
    """
    if arch not in ARCHS:
        raise ValueError(f"--arch must be of {', '.join(ARCHS)}; got {arch}")
    term = dict(criterion="l1")
    model = HandMeshModel(
        backbone=dict(type="FastViT", arch=arch, out_indices=(3,), out_norm=False),
        head=dict(type="ManoHead", in_channels=ARCHS[arch].widths[-1], mano="synthetic"),
        loss=dict(type="HandLoss", vertices=term, keypoints=term, keypoints_2d=term),
        data_preprocessor=dict(
            type="ImgDataPreprocessor",
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
        ),
    )
    head: Any = model.head
    randomise_statistics(model.backbone)
    for layer in (head.pose, head.shape, head.camera):
        # As they begin, they would hide whatever the backbone gets wrong.
        nn.init.normal_(layer.weight, std=_HEAD_STD)
    return model.eval()


def check(
    model: HandMeshModel, image: np.ndarray, setting: Setting
) -> tuple[Row, HandPredictor | None]:
    """Fuse a model, bring its backbone into a runtime, and compare the mesh with the unfused model's.

    Args:
        model: unfused, on the CPU; it is left as it is.
        image: (H, W, 3) uint8 BGR.
        setting: runtime of the backbone.

    Returns:
        Its row without times, and the predictor to time; None where it cannot be had or is wrong, which
        the row's `problem` tells.
    """
    # The second image tells a runtime that keeps returning the maps of the first.
    images = [image[::-1].copy(), image]
    unfused = HandPredictor(copy.deepcopy(model), device="cpu", fuse=False)
    expected = [unfused(x) for x in images]
    error, problem = None, None
    try:
        predictor = HandPredictor(model, device=setting.device)
        if setting.backend != "eager":
            predictor.features = in_runtime(predictor, setting)
        error = max(map(_distance, map(predictor, images), expected))
        if not error <= TOLERANCE:
            problem = f"WRONG OUTPUT: {error:.1e} m off, at most {TOLERANCE:g} expected"
    except Unavailable as e:
        problem = str(e)
    row = Row("", setting.backend, error, problem, {})
    return row, predictor if problem is None else None


def in_runtime(predictor: HandPredictor, setting: Setting) -> Callable[[Tensor], list[Tensor]]:
    """The backbone of a predictor in another runtime.

    Args:
        predictor: the model.
        setting: the runtime.

    Returns:
        A function from a crop (1, 3, S, S) to the backbone's maps.

    Raises:
        Unavailable: it cannot be had.
    """
    # Runtimes run one image in its place, if it is in the order they take: each crop is copied there.
    order = torch.channels_last if setting.backend in _CHANNELS_LAST else torch.contiguous_format
    x = torch.zeros(1, 3, predictor.size, predictor.size, device=predictor.device)
    x = x.contiguous(memory_format=order)
    run = prepare(predictor.model.backbone, x, setting)

    def features(crop: Tensor) -> list[Tensor]:
        x.copy_(crop)
        return [m.to(predictor.device) for m in run()]

    return features


def table(rows: Sequence[Row], warnings: Sequence[str], *, device: str) -> str:
    """A Markdown table of all rows, and what could not be measured and why.

    Args:
        rows: of :func:`measure`.
        warnings: likewise.
        device: cpu or cuda.
    """
    shares = " | ".join(f"{part}, ms (share)" for part in PARTS)
    lines = [
        f"| model | backbone in | error, m | ms (median) | p10 | p90 | FPS | {shares} | drawing, ms |",
        "|" + "---|" * (8 + len(PARTS)),
    ]
    for row in rows:
        if not row.seconds:
            continue
        whole = timing(row.whole)
        medians = {part: timing(seconds).median for part, seconds in row.seconds.items()}
        total = sum(medians[part] for part in PARTS)
        cells = [f"fastvit_{row.arch}", row.backend, f"{row.error or 0:.1e}"]
        cells += [f"{1e3 * s:.2f}" for s in (whole.median, whole.p10, whole.p90)]
        cells += [f"{1 / whole.median:.1f}"]
        cells += [f"{1e3 * medians[p]:.2f} ({medians[p] / total:.0%})" for p in PARTS]
        cells += [f"{1e3 * medians['drawing']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "FPS from image to mesh, batch 1, fused; drawing is not in it."]
    lines += [f"Not measured: {r.arch}, {r.backend}: {r.problem}" for r in rows if r.problem]
    if device == "cuda":
        for arch in {row.arch for row in rows} & set(PAPER_FPS):
            lines.append(
                f"Paper: fastvit_{arch} {PAPER_FPS[arch]} FPS on an RTX 2080 Ti (table 8)."
            )
    return "\n".join([*lines, *(f"WARNING: {warning}" for warning in warnings)])


def write_json(
    path: str | Path,
    rows: Sequence[Row],
    warnings: Sequence[str],
    *,
    conditions: Mapping[str, str],
    arguments: Mapping[str, Any],
) -> None:
    """Write everything that was measured, each pass included, in seconds and metres.

    Args:
        path: file to write.
        rows: of :func:`measure`.
        warnings: likewise.
        conditions: processor, threads, versions.
        arguments: what the run was asked for.
    """
    content = dict(
        conditions=conditions,
        arguments=arguments,
        warnings=list(warnings),
        rows=[row._asdict() for row in rows],
    )
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class _Pass:
    """One image to its mesh with a predictor, timed part by part each time it is called."""

    def __init__(
        self, predictor: HandPredictor, image: np.ndarray, clock: Callable[[], float]
    ) -> None:
        self._predictor, self._image, self._clock = predictor, image, clock
        self._passes: list[dict[str, float]] = []
        self._drawing: list[float] = []
        self._posing = 0.0
        head: Any = predictor.model.head
        self._pose_hands, head.pose_hands = head.pose_hands, self._timed_pose

    def __call__(self) -> None:
        predictor, start = self._predictor, self._now()
        with torch.inference_mode():
            matrix = crop_from_box(SHAPE, out_size=predictor.size)
            crop = predictor.crop(self._image, matrix)
            cropped = self._now()
            prediction = predictor.model.head(predictor.features(crop))
            predicted = self._now()
            hand = predictor.place(prediction, matrix, left=False, K=None)
        placed = self._now()
        mano = self._posing + placed - predicted
        parts = (cropped - start, predicted - cropped - self._posing, mano)
        self._passes.append(dict(zip(PARTS, parts, strict=True)))
        if len(self._passes) % _DRAWN_EVERY == 1:
            self._draw(hand)

    def seconds(self, warmup: int) -> dict[str, list[float]]:
        """Of each pass but the first `warmup`, by part, and of what was drawn."""
        found = {part: [p[part] for p in self._passes[warmup:]] for part in PARTS}
        return {**found, "drawing": self._drawing}

    def _timed_pose(self, *args: Tensor) -> Any:
        start = self._now()
        prediction = self._pose_hands(*args)
        self._posing = self._now() - start
        return prediction

    def _draw(self, hand: HandResult) -> None:
        start = self._now()
        hand_picture(self._image, DrawnHand(hand.vertices, hand.vertices_2d), hand.faces)
        self._drawing.append(self._now() - start)

    def _now(self) -> float:
        wait_for(self._predictor.device)
        return self._clock()


def _distance(hand: HandResult, other: HandResult) -> float:
    distance = float(np.linalg.norm(hand.vertices - other.vertices, axis=1).max())
    return math.inf if math.isnan(distance) else distance
