"""The whole way in one command: draw a dataset, train on it, test, and make pictures.

Each step is a command of this project, printed before it runs, so that it can be typed by hand.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from fastvit_dense.report import contact_sheet, plot_training, read_scalars


class Demo(NamedTuple):
    """What is trained on what, and which logged figures to end with (name, key, factor)."""

    config: str
    kind: str
    data: str
    size: str
    out: str
    figures: tuple[tuple[str, str, float], ...]


DEMOS = {
    "det": Demo(
        "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py", "coco", "data/shapes", "384",
        "work_dirs/demo",
        (("box AP50", "coco/bbox_mAP_50", 1.0), ("mask AP50", "coco/segm_mAP_50", 1.0)),
    ),
    "seg": Demo(
        "configs/seg/fpn_fastvit-t8_demo-regions.py", "ade20k", "data/regions", "256",
        "work_dirs/demo-seg", (("mIoU", "mIoU", 0.01), ("pixel accuracy", "aAcc", 0.01)),
    ),
}  # fmt: skip


def run(*command: str) -> None:
    print(f"\n$ python {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", choices=DEMOS, default="det", help="default: det")
    parser.add_argument("--out", help="folder for model and pictures, default work_dirs/demo...")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    args = parser.parse_args()
    demo = DEMOS[args.task]
    out, start = Path(args.out or demo.out), time.perf_counter()

    run("tools/sample_data.py", demo.kind, demo.data, "--size", demo.size, "--force")
    run("tools/train.py", demo.config, "--work-dir", str(out),
        *(["--resume"] if args.resume else []))  # fmt: skip
    checkpoint = (out / "last_checkpoint").read_text().strip()
    run("tools/test.py", demo.config, checkpoint, "--work-dir", str(out / "test"),
        "--show-dir", str(out / "pictures"))  # fmt: skip

    pictures = sorted((out / "pictures").glob("*.jpg"))
    contact_sheet(pictures[:: max(1, len(pictures) // 12)][:12], out / "predictions.jpg")
    scalars = read_scalars(out)
    plot_training(scalars, out / "training.png")

    figures = [f"{name} {scalars[key][-1][1] * scale:.2f}" for name, key, scale in demo.figures]
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\nHeld-out images: {', '.join(figures)}; {minutes:.1f} minutes.\n"
        f"Look at {out}/predictions.jpg (ground truth left, prediction right), {out}/training.png, "
        f"and all {len(pictures)} pictures in {out}/pictures."
    )


if __name__ == "__main__":
    main()
