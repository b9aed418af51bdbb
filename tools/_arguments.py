"""Arguments that tools/train.py and tools/test.py share, and the config they stand for."""

import argparse

from mmengine.config import Config

from fastvit_dense.doctor.preflight import KeyValues, read_config
from fastvit_dense.engine.config import check_launcher


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the work folder, the data's folder, overrides of the config and the launcher."""
    parser.add_argument("--work-dir", help="folder for logs, checkpoints and metrics")
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="where the data is, instead of the config's data_root"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help='override settings, such as train_cfg.max_epochs=3 or key="[(a,b),(c,d)]"',
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def read_run_config(args: argparse.Namespace) -> Config:
    """The config with the overrides, after a check that this process was started as ``--launcher`` says."""
    check_launcher(args.launcher, local_rank=args.local_rank)
    return read_config(
        args.config,
        args.cfg_options,
        data_root=args.data_root,
        work_dir=args.work_dir,
        launcher=args.launcher,
    )
