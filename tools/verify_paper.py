"""Count parameters and MACs of the models and compare them with the paper's tables 2 and 9.

Exit status 1 when a figure is not what it is said to be.
"""

import _environment  # noqa: F401
import argparse
import sys
from pathlib import Path

import fastvit_dense  # noqa: F401  (registers FastViT)
from fastvit_dense.benchmark.paper import backbone_rows, segmentor_rows, table
from fastvit_dense.engine.errors import end_in_one_line

CONFIG = Path(__file__).parents[1] / "configs/seg/fpn_fastvit-{arch}_8xb4-40k_ade20k-512x512.py"


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = backbone_rows() + segmentor_rows(str(CONFIG))
    print(table(rows))
    off = [row for row in rows if not row.passes]
    if off:
        print(f"\n{len(off)} of {len(rows)} figures are off", file=sys.stderr)
    return bool(off)


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
