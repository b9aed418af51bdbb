"""Fuse a trained model: python tools/reparameterize.py CONFIG CHECKPOINT OUT.pth.

Writes OUT.pth and its config OUT.py, which all tools take in place of CONFIG and CHECKPOINT, and prints
how far the fused model is from the unfused one. Beyond rounding, nothing is written.
"""

import _environment  # noqa: F401
import argparse
import sys

from fastvit_dense.deploy.fuse import fuse_checkpoint
from fastvit_dense.engine.errors import end_in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint that tools/train.py wrote with it")
    parser.add_argument("out", metavar="OUT.pth", help="the fused checkpoint")
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="pixels of the image compared on (default: 800 1333 for detectors, 224 224 for hands, "
        "else 512 512)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.pth and OUT.py")
    args = parser.parse_args()
    print(
        fuse_checkpoint(
            args.config,
            args.checkpoint,
            out=args.out,
            shape=args.shape and tuple(args.shape),
            force=args.force,
        )
    )
    print(f"\nwritten: {args.out} and its config {args.out.removesuffix('.pth')}.py")


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
