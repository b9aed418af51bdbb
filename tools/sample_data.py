"""Write a small data set of drawn pictures, to try training, testing and drawing without a download.

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
    from fastvit_dense.synthetic import ade20k as ade20k_data
    from fastvit_dense.synthetic import coco as sample_data
    from fastvit_dense.synthetic.freihand import POSES, write_freihand
except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a small data set of drawn pictures.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    coco = kinds.add_parser(
        "coco",
        help="instance segmentation in COCO layout",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    coco.set_defaults(write=sample_data.write_coco, what="images")
    coco.add_argument("--size", type=int, default=192, help="longer side of the images in pixels")

    ade20k = kinds.add_parser(
        "ade20k",
        help="semantic segmentation in ADE20K layout",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    ade20k.set_defaults(write=ade20k_data.write_ade20k, what="images")
    ade20k.add_argument("--size", type=int, default=256, help="longer side of the images in pixels")

    freihand = kinds.add_parser(
        "freihand",
        help="synthetic hands in FreiHAND layout",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    freihand.set_defaults(write=write_freihand, what="hands")
    freihand.add_argument(
        "--poses", choices=POSES, default="all",
        help="closing: between open and a fist, all fingers alike",
    )  # fmt: skip
    freihand.add_argument(
        "--views", type=float, default=180, metavar="DEGREES",
        help="greatest turn of a hand from a palm that faces the camera, fingers up",
    )  # fmt: skip

    for kind, (train, val) in {coco: (240, 60), ade20k: (240, 60), freihand: (500, 100)}.items():
        what = kind.get_default("what")
        times = ", of which there are four pictures each" if kind is freihand else ""
        kind.add_argument("out", help="folder to write")
        kind.add_argument("--train", type=int, default=train, help=f"{what} to train on{times}")
        kind.add_argument("--val", type=int, default=val, help=f"held-out {what}")
        kind.add_argument("--seed", type=int, default=0, help=f"other seeds give other {what}")
        kind.add_argument(
            "--force", action="store_true", dest="overwrite", help="replace the data set in OUT"
        )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = vars(parse_args(argv))
    options.pop("kind")
    write, out, what = (options.pop(name) for name in ("write", "out", "what"))
    folder = write(out, **options)
    print(f"wrote {options['train']} training and {options['val']} held-out {what} to {folder}")


if __name__ == "__main__":
    try:
        sys.exit(end_in_one_line(main))
    except KeyboardInterrupt:  # after what was written is removed
        sys.exit(128 + signal.SIGINT)
