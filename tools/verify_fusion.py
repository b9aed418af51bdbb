"""Fuse every variant, with drawn BatchNorm statistics and layer scales, and compare it with itself before.

Exit status 1 when a fused backbone computes something else.
"""

import _environment  # noqa: F401
import argparse
import sys

from tqdm import tqdm

from fastvit_dense import ARCHS
from fastvit_dense.deploy.compare import FARTHER, FLOAT32, FLOAT64, check_fusion, fusion_table
from fastvit_dense.engine.errors import end_in_one_line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=list(ARCHS), default=list(ARCHS))
    parser.add_argument(
        "--shape", type=int, nargs=2, action="append", metavar=("H", "W"),
        help="may be given several times (default: 512 512, 800 1333 and 333 517)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of weights and statistics")
    args = parser.parse_args()
    shapes = [tuple(shape) for shape in args.shape or ((512, 512), (800, 1333), (333, 517))]
    cases = [(arch, shape) for arch in args.arch for shape in shapes]
    rows = [
        check_fusion(arch, shape, seed=args.seed)
        for arch, shape in tqdm(cases, unit="backbone", disable=None)
    ]
    print(
        "Relative L2 errors of the worst map. Allowed between fused and unfused: "
        f"{FLOAT64:.0e} in float64, {FLOAT32:.1e} in float32,\nor {1 + FARTHER:g} times the unfused "
        "model's own distance from float64 where that is more;\nand the fused model may be "
        f"{FARTHER:g} times as far from float64 as the unfused one is.\n\n{fusion_table(rows)}"
    )
    off = [row for row in rows if not row.passes]
    if off:
        print(f"\n{len(off)} of {len(rows)} backbones compute something else", file=sys.stderr)
    return bool(off)


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
