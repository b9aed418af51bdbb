"""Damaged files: what reads them gives something whole, or an error that names the file.

Each case is a file that ``mutations`` damages with a seed of its own, read in another process: one that
crashes or hangs is seen. 500 cases a reader; FUZZ=5000 makes it 5000, and FUZZ_FROM=1000 others.
"""

import argparse
import gc
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mutations import mutate_bytes, mutate_json
from safetensors.torch import save_file
from torch import nn

from fastvit_dense.doctor.data import Unread, read_all
from fastvit_dense.doctor.preflight import quiet
from fastvit_dense.engine.models import read_checkpoint
from fastvit_dense.io.weights import read_content
from fastvit_dense.synthetic.ade20k import write_ade20k
from fastvit_dense.synthetic.coco import write_coco

CASES, FIRST = int(os.environ.get("FUZZ", 500)), int(os.environ.get("FUZZ_FROM", 0))
SECONDS = 10.0  # a case; most take milliseconds
# Bytes that a process may take beyond what it has: an absurd size is to be an error, not the machine's end.
MEMORY = 6 * 2**30

Read, Check = Callable[[Path], Any], Callable[[Any], None]


class Case:
    """Damages a file and reads it; gives what happened in a word, or what is wrong in a sentence."""

    def __init__(
        self, path: Path, folder: Path, read: Read, check: Check, also: tuple[str, ...]
    ) -> None:
        self.path, self.folder, self.read, self.check, self.also = path, folder, read, check, also
        self.original = path.read_bytes()

    def content(self, seed: int) -> bytes:
        if self.path.suffix == ".json" and seed % 2:
            return mutate_json(self.original.decode(), seed).encode()
        return mutate_bytes(self.original, seed)

    def __call__(self, seed: int) -> str:
        _limit_memory()
        path = self.folder / str(seed) / self.path.name
        path.parent.mkdir()
        path.write_bytes(self.content(seed))
        try:
            with quiet():
                return self.outcome(path)
        finally:
            shutil.rmtree(path.parent)

    def outcome(self, path: Path) -> str:
        try:
            result = self.read(path)
        except (ValueError, OSError) as error:
            if any(name in str(error) for name in (path.name, *self.also)):
                return "refused"
            return f"wrong: {type(error).__name__} does not name the file: {str(error)[:300]}"
        except BaseException as error:
            return f"wrong: {type(error).__name__}: {str(error)[:300]}"
        try:
            self.check(result)
        except Exception as error:
            return f"wrong: loaded, but {type(error).__name__}: {str(error)[:300]}"
        return "loaded"


def _limit_memory() -> None:
    statistics = Path("/proc/self/statm")
    if statistics.exists():  # on Linux
        import resource

        used = int(statistics.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))


def fuzz(
    path: Path, folder: Path, read: Read, check: Check, *, also: tuple[str, ...] = ()
) -> Counter[str]:
    """Read all the cases; fails with the seeds of those that go wrong.

    Args:
        path: of the file as it should be.
        folder: for damaged ones.
        read: as a training does.
        check: raises where what was read is not whole.
        also: an error may name these in place of the file.
    """
    folder.mkdir(exist_ok=True)
    case = Case(path, folder, read, check, also)
    check(read(path))  # as it is, it can be read
    gc.freeze()  # mmengine collects garbage for each dataset: a fifth of a second, of what pytest holds
    results = dict(read_all(case, range(FIRST, FIRST + CASES), workers=2, limit=SECONDS))
    gc.unfreeze()
    assert len(results) == CASES
    wrong = {s: r for s, r in results.items() if isinstance(r, Unread) or r.startswith("wrong")}
    assert not wrong, f"{len(wrong)} of {CASES}:\n" + "\n".join(
        f"seed {seed}: {result}" for seed, result in sorted(wrong.items())
    )
    counts = Counter(results.values())
    print(f"{path.name}: {dict(counts)}")
    assert counts["refused"] > CASES / 4
    return counts


CLASSES = ("disc", "square", "triangle", "star", "ring")


def test_coco(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    from fastvit_dense.det.coco import CheckedCocoDataset

    root = write_coco(tmp_path / "coco", train=12, val=1, size=64)

    def read(path: Path) -> list[dict]:
        with DefaultScope.overwrite_default_scope("mmdet"):
            data = CheckedCocoDataset(
                ann_file=str(path),
                data_prefix=dict(img=str(root / "train2017")),
                metainfo=dict(classes=CLASSES),
                pipeline=[
                    dict(type="LoadImageFromFile"),
                    dict(type="CheckImage"),
                    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
                ],
            )
            return [data.prepare_data(i) for i in range(len(data))]

    def check(items: list[dict]) -> None:
        assert items
        for item in items:
            boxes = item["gt_bboxes"].numpy()
            assert np.isfinite(boxes).all() and len(boxes) == len(item["gt_masks"])
            assert item["gt_masks"].masks.shape[1:] == item["img"].shape[:2]
            assert set(item["gt_bboxes_labels"].tolist()) <= set(range(len(CLASSES)))

    # An image of another size than the file says is named itself.
    annotations = root / "annotations/instances_train2017.json"
    fuzz(annotations, tmp_path / "damaged", read, check, also=(".jpg is ",))


def test_label_images(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    import fastvit_dense.compat.transforms  # noqa: F401
    from fastvit_dense.seg.datasets import CheckedADE20KDataset

    root = write_ade20k(tmp_path / "ade", train=1, val=1, size=128)
    photograph = next((root / "images/training").iterdir())
    label = next((root / "annotations/training").iterdir())
    steps = ["LoadImageFromFile", "CheckImage", "LoadAnnotations", "CheckLabels"]

    def read(path: Path) -> np.ndarray:
        with DefaultScope.overwrite_default_scope("mmseg"):
            data = CheckedADE20KDataset(
                data_prefix=dict(img_path=str(photograph.parent), seg_map_path=str(path.parent)),
                pipeline=[dict(type=step) for step in steps],
            )
            return data.prepare_data(0)["gt_seg_map"]

    expected = read(label)

    def check(labels: np.ndarray) -> None:
        # Chunks beside the pixels may be damaged; pixels that differ would be trained on.
        np.testing.assert_array_equal(labels, expected)

    fuzz(label, tmp_path / "damaged", read, check)


def write_hands(root: Path, hands: int) -> None:
    """Points in front of a camera, in FreiHAND's files."""
    rng = np.random.default_rng(0)
    vertices = rng.uniform(-0.08, 0.08, (hands, 778, 3)) + (0, 0, 0.7)
    xyz = vertices[:, :21]
    K = np.tile([[500.0, 0, 112], [0, 480, 110], [0, 0, 1]], (hands, 1, 1))
    scale = np.linalg.norm(xyz[:, 9] - xyz[:, 10], axis=-1)
    for name, value in {"K": K, "scale": scale, "xyz": xyz, "verts": vertices}.items():
        (root / f"evaluation_{name}.json").write_text(json.dumps(value.round(5).tolist()))
    (root / "evaluation/rgb").mkdir(parents=True)
    for i in range(hands):
        cv2.imwrite(str(root / f"evaluation/rgb/{i:08d}.jpg"), np.zeros((224, 224, 3), np.uint8))


@pytest.mark.parametrize("name", ["K", "xyz", "verts"])
def test_freihand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvit_dense.hand import freihand as json_arrays
    from fastvit_dense.hand.freihand import Annotations, read_annotations

    monkeypatch.setattr(json_arrays, "_CACHE_FROM", 0)  # a cache for files as small as these
    root = tmp_path / "hands"
    root.mkdir()
    write_hands(root, 3)

    def read(path: Path) -> tuple[Annotations, Annotations]:
        for beside in root.iterdir():
            if not (path.parent / beside.name).exists():
                (path.parent / beside.name).symlink_to(beside)
        try:
            first = read_annotations(path.parent, "evaluation")
        except ValueError:
            for kept in path.parent.glob(f"{path.name}.*"):  # the whole file, or nothing
                array = np.load(kept)
                whole = json_arrays.parse_json_array(path, array.shape[1:])
                np.testing.assert_array_equal(array, whole)
            raise
        return first, read_annotations(path.parent, "evaluation")  # of the cache

    def check(results: tuple[Annotations, Annotations]) -> None:
        for a, b in zip(*map(vars, results), strict=True):
            one, other = getattr(results[0], a), getattr(results[1], b)
            assert one.dtype == np.float32 and np.isfinite(one).all() and len(one) == 3
            np.testing.assert_array_equal(one, other)

    # Where entries are missing, there are too many images.
    annotations = root / f"evaluation_{name}.json"
    fuzz(
        annotations,
        tmp_path / "damaged",
        read,
        check,
        also=("rgb has 3 images", "has no annotation for"),
    )


@pytest.mark.parametrize("format", ["zip", "legacy"])
def test_checkpoints(format: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    cfg = Config(dict(model=dict(type="Toy", width=4), train_cfg=dict(max_epochs=2)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = dict(
        meta=dict(epoch=1, iter=3, cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES)),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=dict(log_scalars={"loss": np.float64(0.5)}, random=np.arange(5)),
        args=argparse.Namespace(model="toy", lr=0.1),  # as timm's saver has it
    )
    path = tmp_path / "epoch_1.pth"
    torch.save(content, path, _use_new_zipfile_serialization=format == "zip")
    wanted = model.state_dict()

    def check(found: dict) -> None:
        assert all(
            isinstance(k, str) and isinstance(v, torch.Tensor)
            for k, v in found["state_dict"].items()
        )
        assert isinstance(found.get("meta", {}), dict)
        if format == "zip":  # which has checksums
            assert found["state_dict"].keys() == wanted.keys()
            assert all(torch.equal(found["state_dict"][k], v) for k, v in wanted.items())
        for tensor in found["state_dict"].values():
            tensor.clone()  # its memory is all there

    fuzz(path, tmp_path / "damaged", lambda path: read_checkpoint(str(path)), check)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save_file(model.state_dict(), path, metadata={"format": "pt"})

    def check(found: dict) -> None:
        assert len(found) == len(model.state_dict())
        for name, tensor in found.items():
            assert isinstance(name, str)
            tensor.clone()  # its memory is all there

    fuzz(path, tmp_path / "damaged", lambda path: read_content(str(path)), check)
