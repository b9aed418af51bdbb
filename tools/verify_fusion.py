"""Fuse every variant, with random BatchNorm statistics and layer scales, and compare it with itself before.

Exit status 1 when a fused backbone computes something else.
"""

import _environment  # noqa: F401
import argparse
import sys

from tqdm import tqdm

from fastvit_dense import ARCHS
from fastvit_dense.deploy.compare import check_fusion, table
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
    off = 0
    for arch, shape in tqdm(cases, unit="backbone", disable=None):
        errors = check_fusion(arch, shape, seed=args.seed)
        off += any(not e.passes for e in errors)
        tqdm.write(f"{arch}, {shape[0]}x{shape[1]}:\n\n{table(errors)}\n", file=sys.stdout)
    if off:
        print(f"{off} of {len(cases)} backbones compute something else", file=sys.stderr)
    return bool(off)


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
