"""Convert MANO's file: python tools/convert_mano.py MANO_RIGHT.pkl OUT.npz [--force].

Nothing that the pickle says to run is run, and OUT.npz loads without pickle, chumpy and scipy.
"""

import _environment  # noqa: F401
import argparse
import sys
from pathlib import Path

from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.hand.mano.file import load_mano, save_mano


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="MANO_RIGHT.pkl", help="MANO's file, or an .npz to check")
    parser.add_argument("out", metavar="OUT.npz", help="file to write; its folder is made")
    parser.add_argument("--force", action="store_true", help="replace OUT.npz")
    args = parser.parse_args()
    if Path(args.out).exists() and not args.force:
        raise ValueError(f"{args.out} exists; pass --force to replace it")
    mano = load_mano(args.source)
    save_mano(mano, args.out)
    print(f"{args.source}: a right hand, {len(mano.template)} vertices, {len(mano.faces)} faces")
    print(
        f"written: {args.out}\n"
        "MANO's licence (https://mano.is.tue.mpg.de/license.html) holds for this file as well: research "
        "only, not to be passed on."
    )


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
