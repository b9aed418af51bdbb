"""Write a small data set of rendered pictures, to try training and testing without a download.

python tools/sample_data.py {coco,ade20k} OUT [--train N] [--val N] [--seed S] [--size PX] [--force]
python tools/sample_data.py freihand OUT [--train N] [--val N] [--seed S] [--poses closing] [--views DEG]
    [--force]
"""

from __future__ import annotations

import _environment  # noqa: F401
import argparse
import signal
import sys

try:
    from fastvit_dense.engine.errors import end_in_one_line
    from fastvit_dense.synthetic.ade20k import write_ade20k
    from fastvit_dense.synthetic.coco import write_coco
    from fastvit_dense.synthetic.freihand import POSES, write_freihand
except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a small data set of rendered pictures.")
    formats = parser.add_subparsers(required=True, metavar="{coco,ade20k,freihand}")
    for name, write, what, train, val in (
        ("coco", write_coco, "images", 240, 60),
        ("ade20k", write_ade20k, "images", 240, 60),
        ("freihand", write_freihand, "hands", 500, 100),
    ):
        one = formats.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        one.set_defaults(write=write, what=what)
        one.add_argument("out", help="folder to write")
        times = ", with four pictures each" if name == "freihand" else ""
        one.add_argument("--train", type=int, default=train, help=f"{what} to train on{times}")
        one.add_argument("--val", type=int, default=val, help=f"held-out {what}")
        one.add_argument("--seed", type=int, default=0, help=f"other seeds give other {what}")
        one.add_argument(
            "--force", action="store_true", dest="overwrite", help="replace the data set in OUT"
        )
        if name == "freihand":
            one.add_argument("--poses", choices=POSES, default="all", help="closing: open to fist")
            text = "greatest turn from a palm that faces the camera, fingers up"
            one.add_argument("--views", type=float, default=180, metavar="DEGREES", help=text)
        else:
            size = 192 if name == "coco" else 256
            one.add_argument("--size", type=int, default=size, help="longer side in pixels")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = vars(parse_args(argv))
    write, out, what = (options.pop(name) for name in ("write", "out", "what"))
    folder = write(out, **options)
    print(f"wrote {options['train']} training and {options['val']} held-out {what} to {folder}")


if __name__ == "__main__":
    try:
        sys.exit(end_in_one_line(main))
    except KeyboardInterrupt:  # after what was written is removed
        sys.exit(128 + signal.SIGINT)
