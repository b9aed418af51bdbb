"""Test a checkpoint: python tools/test.py CONFIG CHECKPOINT [--show-dir FOLDER]."""

import _environment  # noqa: F401
import argparse
import os.path as osp
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback

from _arguments import add_run_arguments, read_run_config
from mmengine.evaluator import DumpResults

from fastvit_dense.doctor.preflight import check_run
from fastvit_dense.engine.config import enable_tta
from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.engine.runner import Runner


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint that tools/train.py wrote")
    add_run_arguments(parser)
    parser.add_argument("--out", metavar="F.pkl", help="write the predictions to this pickle")
    parser.add_argument("--show", action="store_true", help="show pictures in a window")
    parser.add_argument(
        "--show-dir", help="write pictures here: ground truth left, prediction right"
    )
    parser.add_argument("--wait-time", type=float, default=2, help="seconds a picture is shown")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation of the config")
    args = parser.parse_args()
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        parser.error("--out must end in .pkl or .pickle")
    if args.out and osp.isdir(args.out):
        parser.error(f"--out {args.out} is a folder: expected a file")
    return args


def main() -> None:
    args = parse_args()
    cfg = read_run_config(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        hook = cfg.default_hooks.visualization
        hook.update(draw=True, show=args.show, wait_time=args.wait_time)
        if args.show_dir:
            hook.test_out_dir = osp.abspath(args.show_dir)
    if args.tta:
        enable_tta(cfg)

    out_folder = osp.dirname(osp.abspath(args.out)) if args.out else None
    check_run(cfg, train=False, outputs={"--show-dir": args.show_dir, "--out": out_folder})
    runner = Runner.from_cfg(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(DumpResults(args.out))
    runner.test()


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
