"""The whole way in one command: render a dataset, train on it, test, and make pictures.

Each step is a command of this project, printed before it runs, so that it can be typed by hand.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from _environment import activation
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback

from fastvit_dense.benchmark.report import contact_sheet, plot_training, read_scalars
from fastvit_dense.engine.preemption import CTRL_C, PREEMPTED


def mean_hand_figure(data: str) -> str:
    """What the best constant prediction gives: what a model that sees nothing would reach."""
    from fastvit_dense.hand.freihand import read_annotations
    from fastvit_dense.hand.metric import mean_hand, template_error

    training, held_out = (
        read_annotations(data, split).vertices for split in ("training", "evaluation")
    )
    assert training is not None and held_out is not None  # sample data have labels
    return f"mean hand: PV, mm {template_error(mean_hand(training), held_out):.2f}"


# Config; arguments of tools/sample_data.py: kind, folder, options; work folder; logged figures: name, key,
# factor.
DEMOS: dict[str, tuple[str, tuple[str, ...], str, Any]] = {
    "det": (
        "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py",
        ("coco", "data/shapes", "--size", "384"),
        "work_dirs/demo",
        (("box AP50", "coco/bbox_mAP_50", 1.0), ("mask AP50", "coco/segm_mAP_50", 1.0)),
    ),
    "seg": (
        "configs/seg/fpn_fastvit-t8_demo-regions.py",
        ("ade20k", "data/regions", "--size", "256"),
        "work_dirs/demo-seg",
        (("mIoU", "mIoU", 0.01), ("pixel accuracy", "aAcc", 0.01)),
    ),
    "hand": (
        "configs/hand/mano_fastvit-t8_demo-hands.py",
        ("freihand", "data/hands", *"--train 1200 --poses closing --views 30".split()),
        "work_dirs/demo-hand",
        (("aligned PJ, mm", "freihand/PJ", 1.0), ("PV, mm", "freihand/PV", 1.0)),
    ),
}


def run(*command: str) -> None:
    """Run a step. From then on Ctrl-C is for steps to act on, as by saving a training."""
    print(f"\n$ python {' '.join(command)}", flush=True)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # which the step would inherit
        signal.signal(signal.SIGINT, lambda *_: None)
    status = subprocess.run([sys.executable, *command]).returncode
    if status in (CTRL_C, PREEMPTED, -signal.SIGINT):
        resume = [] if "--resume" in sys.argv else ["--resume"]
        print(f"\ndemo: stopped. Go on with: {shlex.join(['python', *sys.argv, *resume])}")
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", choices=DEMOS, default="det", help="default: det")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    args = parser.parse_args()
    config, sample_data, folder, figures = DEMOS[args.task]
    out, start = Path(folder), time.perf_counter()

    run("tools/sample_data.py", *sample_data, "--force")
    resume = ["--resume"] if args.resume else []
    run("tools/train.py", config, "--work-dir", str(out), *resume)
    checkpoint = (out / "last_checkpoint").read_text().strip()
    run("tools/test.py", config, checkpoint, "--work-dir", str(out / "test"),
        "--show-dir", str(out / "pictures"))  # fmt: skip

    pictures = sorted((out / "pictures").glob("*.jpg"))
    contact_sheet(pictures[:: max(1, len(pictures) // 12)][:12], out / "predictions.jpg")
    scalars = read_scalars(out)
    plot_training(scalars, out / "training.png")

    told = [f"{name} {scalars[key][-1][1] * scale:.2f}" for name, key, scale in figures]
    if args.task == "hand":
        told.append(mean_hand_figure(sample_data[1]))
    print(
        f"\nHeld-out images: {', '.join(told)}; {(time.perf_counter() - start) / 60:.1f} minutes.\n"
        f"Look at {out}/predictions.jpg (ground truth first), {out}/training.png, "
        f"and all {len(pictures)} pictures in {out}/pictures."
    )
    if command := activation():
        print(f"Before other commands of this project, type `{command}`.")


if __name__ == "__main__":
    main()
