"""Frames per second from an image of a hand to its mesh, batch 1, with the share of each step.

python tools/benchmark_hand.py --arch t8 sa12 --backend eager onnxruntime openvino

Fused models with random weights and the synthetic hand (speed depends on neither), compared with the
unfused ones before anything is timed; the backbone in the runtimes named, the rest in PyTorch and numpy.
"""

import _environment  # noqa: F401
import argparse
import os
import sys

# Idle OpenMP threads that spin slow down whatever else runs on the same cores, here the other runtimes.
POLICY = "set from outside" if "OMP_WAIT_POLICY" in os.environ else "set by this tool"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from fastvit_dense.benchmark.hand import SHAPE, measure, table, write_json  # noqa: E402
from fastvit_dense.benchmark.report import environment  # noqa: E402
from fastvit_dense.deploy.runtimes import BACKENDS, configure  # noqa: E402
from fastvit_dense.engine.devices import check_device  # noqa: E402
from fastvit_dense.engine.errors import end_in_one_line  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=["t8", "sa12"], help="variants of FastViT")
    parser.add_argument("--backend", nargs="+", default=["eager"], choices=list(BACKENDS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of the CPU for every runtime")
    parser.add_argument("--warmup", type=int, default=100, help="rounds before the timed ones")
    parser.add_argument("--runs", type=int, default=100, help="timed rounds")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    check_device(args.device)

    if args.threads:
        torch.set_num_threads(args.threads)
    threads = torch.get_num_threads()
    configure(args.device)
    conditions = environment(args.device, threads, args.backend)
    conditions["OMP_WAIT_POLICY"] += f" ({POLICY})"
    print(
        ", ".join(f"{k} {v}" for k, v in conditions.items())
        + f"\nimages of {SHAPE[1]}x{SHAPE[0]}, {args.warmup} passes to warm up, {args.runs} timed, in turn"
        "\n"
    )
    rows, warnings = measure(
        args.arch,
        args.backend,
        device=args.device,
        threads=threads,
        warmup=args.warmup,
        runs=args.runs,
    )
    print(table(rows, warnings, device=args.device))
    if args.json:
        write_json(args.json, rows, warnings, conditions=conditions, arguments=vars(args))


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
