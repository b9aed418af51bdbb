"""Train a model: python tools/train.py configs/det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py."""

import _environment  # noqa: F401
import argparse
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until training begins, Ctrl-C ends it at once, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from fastvit_dense.doctor.preflight import KeyValues, check_run, read_config
from fastvit_dense.engine.config import check_launcher, enable_amp
from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.engine.runner import Runner


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    parser.add_argument(
        "--data-root",
        metavar="FOLDER",
        help="where the data lie, in place of the config's data_root",
    )
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
        help="go on from CHECKPOINT, or from the newest in the work folder",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help='override settings, such as train_cfg.max_epochs=3 or key="[(a,b),(c,d)]"',
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_launcher(args.launcher, local_rank=args.local_rank)
    cfg = read_config(
        args.config,
        args.cfg_options,
        data_root=args.data_root,
        work_dir=args.work_dir,
        launcher=args.launcher,
    )
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
