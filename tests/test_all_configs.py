"""What holds for the configs of every task."""

from pathlib import Path

import pytest
from conftest import ROOT as REPOSITORY

ROOT = REPOSITORY / "configs"
CONFIGS = sorted(ROOT.rglob("*.py"))
REFERENCES = {
    "mask-rcnn_fastvit-sa12_fpn_1x_coco", "mask-rcnn_fastvit-sa12_fpn_3x-lsj_coco",
    "retinanet_fastvit-sa12_fpn_1x_coco", "mask-rcnn_fastvit-t8_fpn_demo-shapes",
    "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512", "fpn_fastvit-sa12_4xb4-80k_ade20k-512x512",
    "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512_tiled", "fpn_fastvit-sa12_4xb2-80k_cityscapes-512x1024",
    "upernet_fastvit-sa24_8xb2-160k_ade20k-512x512", "fpn_fastvit-t8_demo-regions",
    "mano_fastvit-ma36_8xb32-200e_freihand-224x224", "mano_fastvit-t8_demo-hands",
}  # fmt: skip


def test_which() -> None:
    assert {p.parent.name for p in CONFIGS} <= {"det", "hand", "seg"}  # each has a count of its own
    assert {p.stem for p in CONFIGS} > REFERENCES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_variants_are_small_diffs(path: Path) -> None:
    if path.stem not in REFERENCES:
        lines = path.read_text().splitlines()
        assert len([line for line in lines if not line.startswith("#")]) <= 6
