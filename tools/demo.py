"""The whole way in one command: draw a dataset, train on it, test, and make pictures.

Each step is a command of this project, printed before it runs, so that it can be typed by hand.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from _environment import activation
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback

from fastvit_dense.benchmark.report import contact_sheet, plot_training, read_scalars
from fastvit_dense.engine.preemption import CTRL_C, PREEMPTED


class Demo(NamedTuple):
    """What is trained on what, and what to end with.

    Attributes:
        config: the config.
        kind: of sample data.
        data: folder of the sample data.
        options: of tools/sample_data.py.
        out: work folder.
        figures: logged ones: (name, key, factor).
        compare: makes a figure to compare them with, from the folder of the data.
        panels: what a picture shows.
    """

    config: str
    kind: str
    data: str
    options: tuple[str, ...]
    out: str
    figures: tuple[tuple[str, str, float], ...]
    compare: Callable[[str], str] | None = None
    panels: str = "ground truth left, prediction right"


def mean_hand_figure(data: str) -> str:
    """What the best constant prediction gives: what a model that sees nothing would reach."""
    from fastvit_dense.hand.freihand import read_annotations
    from fastvit_dense.hand.metric import mean_hand, template_error

    training, held_out = (
        read_annotations(data, split).vertices for split in ("training", "evaluation")
    )
    assert training is not None and held_out is not None  # sample data have labels
    return f"mean hand: PV, mm {template_error(mean_hand(training), held_out):.2f}"


DEMOS = {
    "det": Demo(
        "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py", "coco", "data/shapes",
        ("--size", "384"), "work_dirs/demo",
        (("box AP50", "coco/bbox_mAP_50", 1.0), ("mask AP50", "coco/segm_mAP_50", 1.0)),
    ),
    "seg": Demo(
        "configs/seg/fpn_fastvit-t8_demo-regions.py", "ade20k", "data/regions", ("--size", "256"),
        "work_dirs/demo-seg", (("mIoU", "mIoU", 0.01), ("pixel accuracy", "aAcc", 0.01)),
    ),
    "hand": Demo(
        "configs/hand/mano_fastvit-t8_demo-hands.py", "freihand", "data/hands",
        ("--train", "1200", "--poses", "closing", "--views", "30"),
        "work_dirs/demo-hand",
        (("aligned PJ, mm", "freihand/PJ", 1.0), ("PV, mm", "freihand/PV", 1.0)),
        mean_hand_figure, "ground truth, prediction, both from the side",
    ),
}  # fmt: skip


def run(*command: str) -> None:
    """Run a step; Ctrl-C is for it to act on, as saving a training."""
    print(f"\n$ python {' '.join(command)}", flush=True)
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # what is ignored would be ignored in the step, too
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = subprocess.run([sys.executable, *command]).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if status in (CTRL_C, PREEMPTED, -signal.SIGINT):
        resume = [] if "--resume" in sys.argv else ["--resume"]
        print(f"\ndemo: stopped. Go on with: {shlex.join(['python', *sys.argv, *resume])}")
    if status:
        raise SystemExit(status if status > 0 else 128 - status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", choices=DEMOS, default="det", help="default: det")
    parser.add_argument("--out", help="folder for model and pictures, default work_dirs/demo...")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted training")
    args = parser.parse_args()
    demo = DEMOS[args.task]
    out, start = Path(args.out or demo.out), time.perf_counter()

    run("tools/sample_data.py", demo.kind, demo.data, *demo.options, "--force")
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
    figures += [demo.compare(demo.data)] if demo.compare else []
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\nHeld-out images: {', '.join(figures)}; {minutes:.1f} minutes.\n"
        f"Look at {out}/predictions.jpg ({demo.panels}), {out}/training.png, "
        f"and all {len(pictures)} pictures in {out}/pictures."
    )
    if command := activation():
        print(f"Before other commands of this project, type `{command}`.")


if __name__ == "__main__":
    main()
