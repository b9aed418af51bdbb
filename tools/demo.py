"""The whole way in one command: draw a dataset, train Mask R-CNN on it, test, and make pictures.

Each step is a command of this project, printed before it runs, so that it can be typed by hand.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from fastvit_dense.report import contact_sheet, plot_training, read_scalars

CONFIG = "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py"
DATA = "data/shapes"


def run(*command: str) -> None:
    print(f"\n$ python {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="work_dirs/demo", help="folder for model and pictures")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    args = parser.parse_args()
    out, start = Path(args.out), time.perf_counter()

    run("tools/sample_data.py", "coco", DATA, "--size", "384", "--force")
    run("tools/train.py", CONFIG, "--work-dir", str(out), *(["--resume"] if args.resume else []))
    checkpoint = (out / "last_checkpoint").read_text().strip()
    run("tools/test.py", CONFIG, checkpoint, "--work-dir", str(out / "test"),
        "--show-dir", str(out / "pictures"))  # fmt: skip

    pictures = sorted((out / "pictures").glob("*.jpg"))
    contact_sheet(pictures[:12], out / "predictions.jpg")
    scalars = read_scalars(out)
    plot_training(scalars, out / "training.png")

    ap50 = {kind: scalars[f"coco/{kind}_mAP_50"][-1][1] for kind in ("bbox", "segm")}
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\nHeld-out images: box AP50 {ap50['bbox']:.2f}, mask AP50 {ap50['segm']:.2f}; "
        f"{minutes:.1f} minutes.\n"
        f"Look at {out}/predictions.jpg (ground truth left, prediction right), {out}/training.png, "
        f"and all {len(pictures)} pictures in {out}/pictures."
    )


if __name__ == "__main__":
    main()
