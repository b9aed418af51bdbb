"""Train a model: python tools/train.py configs/det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py."""

import _environment  # noqa: F401
import argparse
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until training begins, Ctrl-C ends it at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from _arguments import add_run_arguments, read_run_config

from fastvit_dense.doctor.preflight import check_run
from fastvit_dense.engine.config import enable_amp
from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.engine.runner import Runner


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    add_run_arguments(parser)
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 on a CPU"
    )
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the batch"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from CHECKPOINT, or from the newest in the work folder",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = read_run_config(args)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise ValueError(f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size")
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    check_run(cfg, train=True)
    Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
