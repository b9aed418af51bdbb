"""The counts of parameters and MACs, by hand and beside the paper's tables."""

import runpy

import pytest
from conftest import ROOT
from torch import nn

from fastvit_dense import ARCHS, FastViT, reparameterize
from fastvit_dense.benchmark import paper
from fastvit_dense.engine.models import count_macs, count_parameters

CONFIG = str(ROOT / "configs/seg/fpn_fastvit-{arch}_8xb4-40k_ade20k-512x512.py")


def test_macs_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 7, padding=3, groups=8)
    )
    # Outputs of 5 x 4 pixels: 8 channels of 3 * 3 * 3, then 8 of 7 * 7.
    assert count_macs(model, (2, 3, 10, 8)) == 2 * 20 * (8 * 27 + 8 * 49)
    assert count_parameters(model) == 8 * 27 + 8 + 8 * 49 + 8
    assert model[0].weight.device.type == "cpu"


def test_attention_counts_its_two_products() -> None:
    fused = reparameterize(FastViT("sa12", out_norm=False).eval())
    block = fused.stages[3].blocks[0].token_mixer
    c, n = 512, 2 * 3
    assert count_macs(block, (1, c, 2, 3)) == n * c * 4 * c + 2 * n * n * c


def test_backbones() -> None:
    rows = paper.backbone_rows()
    assert len(rows) == 2 * len(ARCHS)
    assert [row for row in rows if not row.passes] == []


def test_segmentors() -> None:
    pytest.importorskip("mmseg")
    rows = paper.segmentor_rows(CONFIG)
    assert len(rows) == 2 * len(paper.SEGMENTORS)
    assert [row for row in rows if not row.passes] == []


def test_blocks_of_sa12_to_sa36_are_equal() -> None:
    """Why no count can meet the paper's column of parameters, which does not grow evenly."""
    counts = [
        count_parameters(FastViT(arch, out_norm=False, deploy=True))
        for arch in ("sa12", "sa24", "sa36")
    ]
    assert counts[1] - counts[0] == counts[2] - counts[1]


def test_exit_status_when_a_figure_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("mmseg")
    monkeypatch.setitem(paper.BACKBONES, "t8", (9.99, 0.68, 3.6, 0.7))
    monkeypatch.setattr("sys.argv", ["verify_paper.py"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools/verify_paper.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert end.value.code == 1
    assert "expected 9.99" in printed.out and "1 of 22 figures" in printed.err
