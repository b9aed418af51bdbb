"""What holds for the configs of every task."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT as REPOSITORY

ROOT = REPOSITORY / "configs"
CONFIGS = sorted(ROOT.rglob("*.py"))
# All others are diffs of a few lines.
LONG = {
    "mask-rcnn_fastvit-sa12_fpn_1x_coco", "mask-rcnn_fastvit-sa12_fpn_3x-lsj_coco",
    "retinanet_fastvit-sa12_fpn_1x_coco", "mask-rcnn_fastvit-t8_fpn_demo-shapes",
    "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512", "fpn_fastvit-sa12_4xb4-80k_ade20k-512x512",
    "fpn_fastvit-sa12_8xb4-40k_ade20k-512x512_tiled", "fpn_fastvit-sa12_4xb2-80k_cityscapes-512x1024",
    "upernet_fastvit-sa24_8xb2-160k_ade20k-512x512", "fpn_fastvit-t8_demo-regions",
    "mano_fastvit-ma36_8xb32-200e_freihand-224x224", "mano_fastvit-t8_demo-hands",
}  # fmt: skip


def test_which() -> None:
    assert {p.parent.name for p in CONFIGS} <= {"det", "hand", "seg"}  # each has a count of its own
    assert {p.stem for p in CONFIGS} > LONG


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_variants_are_small_diffs(path: Path) -> None:
    if path.stem not in LONG:
        lines = path.read_text().splitlines()
        assert len([line for line in lines if not line.startswith("#")]) <= 6


def bases(path: Path) -> list[Path]:
    """Configs of this project that a config is a diff of, the nearest first."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_base_":
            named = ast.literal_eval(node.value)
            if isinstance(named, str):
                return [path.parent / named, *bases(path.parent / named)]
    return []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_changes_are_seen_in_two_files(path: Path) -> None:
    """A config and its base say all that differs from the reference of the task."""
    chain = bases(path)
    assert len(chain) <= 2 and all(base.stem in LONG for base in chain)
    if not chain:
        assert "The reference" in path.read_text() or "retinanet" in path.stem


@pytest.mark.parametrize("name", sorted(LONG))
def test_long_configs_open_with_their_command(name: str) -> None:
    (path,) = ROOT.rglob(f"{name}.py")
    head = path.read_text().split("_base_ =")[0].split("default_scope =")[0]
    assert str(path.relative_to(REPOSITORY)) in head or "make demo" in head
    if "demo" not in name and "tiled" not in name:
        assert "GPUs x" in head and re.search(r"[\d,]{5,} iterations|= [\d,]{5,}", head)
