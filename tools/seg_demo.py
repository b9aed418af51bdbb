"""Segment an image, a folder of images, a video or a webcam, and write pictures of it.

python tools/seg_demo.py INPUT --config CONFIG --checkpoint CHECKPOINT
"""

import _environment  # noqa: F401
import argparse
import sys

import fastvit_dense  # noqa: F401  (before mmseg: it serves mmcv's operators)
from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.seg.demo import run_demo


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "input", help="image, folder of images, video, webcam, or webcam:1 for the second one"
    )
    parser.add_argument("--config", required=True, help="config file")
    parser.add_argument("--checkpoint", required=True, help="checkpoint that tools/train.py wrote")
    parser.add_argument(
        "--out",
        default="work_dirs/predictions/seg",
        help="folder for the pictures (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument(
        "--opacity", type=float, default=0.5, help="of the classes over the image, 0 to 1"
    )
    parser.add_argument(
        "--show", action="store_true", help="show pictures in a window, too; q ends"
    )
    args = parser.parse_args()
    text, status = run_demo(
        args.input,
        args.config,
        checkpoint=args.checkpoint,
        out=args.out,
        device=args.device,
        opacity=args.opacity,
        show=args.show,
    )
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
