"""Curves and picture sheets, from files as a Runner writes them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastvit_dense.benchmark.report import contact_sheet, plot_training, read_scalars


def write_log(folder: Path, run: str, entries: list[dict]) -> None:
    path = folder / run / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_scalars_of_the_newest_run(tmp_path: Path) -> None:
    write_log(tmp_path, "20260101_000000", [{"loss": 9.0, "iter": 1, "step": 1}])
    write_log(
        tmp_path,
        "20260102_000000",
        [
            {"loss": 2.0, "lr": 0.1, "epoch": 1, "iter": 20, "step": 20},
            {"loss": 1.5, "lr": 0.2, "epoch": 1, "iter": 40, "step": 40},
            {"coco/bbox_mAP_50": 0.5, "step": 1},
        ],
    )
    scalars = read_scalars(tmp_path)
    assert scalars == {
        "loss": [(20, 2.0), (40, 1.5)], "lr": [(20, 0.1), (40, 0.2)], "coco/bbox_mAP_50": [(1, 0.5)],
    }  # fmt: skip


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="did a training run there"):
        read_scalars(tmp_path)


def test_plot_is_a_picture_with_its_curves(tmp_path: Path) -> None:
    steps = range(1, 11)
    scalars = {
        "loss": [(i, 2.0 / i) for i in steps],
        "loss_cls": [(i, 1.0 / i) for i in steps],
        "lr": [(i, 0.01) for i in steps],
    }
    plot_training(scalars, tmp_path / "curve.png")
    picture = cv2.imread(str(tmp_path / "curve.png"))
    assert picture.shape == (600, 960, 3)
    for bgr in ((180, 119, 31), (14, 127, 255)):  # matplotlib's first two colours
        assert (np.abs(picture.astype(int) - bgr).max(axis=2) < 3).sum() > 200


def test_sheet_holds_every_picture(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    paths = []
    for i, (colour, shape) in enumerate(
        zip(colours, [(60, 80), (120, 160), (60, 60)], strict=True)
    ):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), np.full((*shape, 3), colour, np.uint8))
    contact_sheet(paths, tmp_path / "sheet.png", columns=2, width=160)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 120, 2 * 160, 3)
    found = [np.argwhere((sheet == colour).all(axis=2)) for colour in colours]
    assert all(
        len(place) > 0.7 * 160 * 120 * share
        for place, share in zip(found, (1, 1, 0.75), strict=True)
    )
    middles = [place.mean(axis=0).round(-1).tolist() for place in found]
    assert middles == [[60, 80], [60, 240], [180, 80]]
    with pytest.raises(ValueError, match="at least one file"):
        contact_sheet([], tmp_path / "sheet.png")
