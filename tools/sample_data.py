"""Write a small data set of drawn pictures, to try training, testing and drawing without a download.

python tools/sample_data.py {coco,ade20k} OUT [--train N] [--val N] [--seed S] [--size PX] [--force]
"""

from __future__ import annotations

import argparse
import sys

from fastvit_dense import sample_data


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a small data set of drawn pictures.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    coco = kinds.add_parser(
        "coco",
        help="instance segmentation in COCO layout",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    coco.set_defaults(write=sample_data.write_coco)
    coco.add_argument("--size", type=int, default=192, help="longer side of the images in pixels")

    ade20k = kinds.add_parser(
        "ade20k",
        help="semantic segmentation in ADE20K layout",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    ade20k.set_defaults(write=sample_data.write_ade20k)
    ade20k.add_argument("--size", type=int, default=256, help="longer side of the images in pixels")

    for kind in kinds.choices.values():
        kind.add_argument("out", help="folder to write")
        kind.add_argument("--train", type=int, default=240, help="images to train on")
        kind.add_argument("--val", type=int, default=60, help="held-out images")
        kind.add_argument("--seed", type=int, default=0, help="other seeds give other images")
        kind.add_argument(
            "--force", action="store_true", dest="overwrite", help="replace the data set in OUT"
        )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = vars(parse_args(argv))
    write, out = options.pop("write"), options.pop("out")
    options.pop("kind")
    try:
        folder = write(out, **options)
    except (ValueError, OSError) as error:
        print(f"sample_data: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options['train']} training and {options['val']} held-out images to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
