"""Latency of fused backbones in several runtimes, checked against eager float32; or of a whole detector,
segmentor or hand model, part by part.

python tools/benchmark.py --arch sa12 --backend eager onnxruntime openvino --dtype float32 bfloat16 \\
    --against resnet50 poolformer_s12 repvit_m1_1 timm:fastvit_sa12
python tools/benchmark.py --config configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py
"""

import _environment  # noqa: F401
import argparse
import os
import sys
import time

# Idle OpenMP threads that spin slow down whatever else runs on the same cores, here the other runtimes.
# The library reads it once, when torch loads it.
POLICY = "set from outside" if "OMP_WAIT_POLICY" in os.environ else "set by this tool"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from fastvit_dense.benchmark import model as part_times  # noqa: E402
from fastvit_dense.benchmark.baselines import line_up  # noqa: E402
from fastvit_dense.benchmark.report import check_reference, environment, plot, table, write_json  # noqa: E402
from fastvit_dense.benchmark.timing import measure  # noqa: E402
from fastvit_dense.deploy.runtimes import BACKENDS, DTYPES, Setting, configure  # noqa: E402
from fastvit_dense.engine.devices import check_device  # noqa: E402
from fastvit_dense.engine.errors import end_in_one_line  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--arch", nargs="*", default=["sa12"], help="variants of FastViT")
    what.add_argument("--config", help="measure the whole model of this config instead")
    parser.add_argument("--checkpoint", help="weights of --config; random ones if not given")
    parser.add_argument("--shape", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, help="images a pass (default: 2 on a GPU, 1 on a CPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", nargs="+", default=["eager"], choices=list(BACKENDS))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="NAME",
        help="backbones of timm; timm:NAME measures one as timm's users run it, in eager NCHW",
    )  # fmt: skip
    parser.add_argument(
        "--unfused", action="store_true", help="also unfused, and fused but not split"
    )
    parser.add_argument("--reference", metavar="NAME", help="model that speed-ups refer to")
    parser.add_argument("--warmup", type=int, default=100, help="rounds before the timed ones")
    parser.add_argument("--runs", type=int, default=100, help="timed rounds")
    parser.add_argument("--threads", type=int, help="threads of the CPU for every backend")
    parser.add_argument(
        "--cpu-time", action="store_true",
        help="measure CPU time, which other processes do not disturb; needs --threads 1",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", metavar="FILE", help="draw the latencies")
    args = parser.parse_args()
    if args.checkpoint and not args.config:
        parser.error("--checkpoint goes with --config: weights of --arch are random")
    check_device(args.device)

    if args.threads:
        torch.set_num_threads(args.threads)
    threads = torch.get_num_threads()
    batch = args.batch or (2 if args.device == "cuda" else 1)
    configure(args.device)
    conditions = environment(args.device, threads, args.backend)
    conditions["OMP_WAIT_POLICY"] += f" ({POLICY})"
    print(
        ", ".join(f"{k} {v}" for k, v in conditions.items())
        + f"\n{batch} x 3 x {args.shape[0]} x {args.shape[1]}, {args.warmup} passes to warm up, "
        f"{args.runs} timed, in turn{', CPU time' if args.cpu_time else ''}\n"
    )
    protocol = dict(warmup=args.warmup, runs=args.runs)
    if args.config:
        results = part_times.measure_config(
            args.config, batch=batch, shape=tuple(args.shape), device=args.device,
            checkpoint=args.checkpoint, **protocol,
        )  # fmt: skip
        print(part_times.table(results))
        if args.json:
            part_times.write_json(args.json, results, conditions=conditions, arguments=vars(args))
        if args.plot:
            part_times.plot(results, args.plot, title=f"{args.config}, {conditions['device']}")
        return
    settings = [Setting(b, d, args.device, threads) for b in args.backend for d in args.dtype]
    contestants = line_up(args.arch, args.against, unfused=args.unfused)
    check_reference(args.reference, [contestant.name for contestant in contestants])
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows, warnings = measure(
        contestants, settings, batch=batch, shape=tuple(args.shape), clock=clock, **protocol
    )
    print(table(rows, warnings, reference=args.reference))
    if args.json:
        write_json(args.json, rows, warnings, conditions=conditions, arguments=vars(args))
    if args.plot:
        title = f"{batch} x {args.shape[0]} x {args.shape[1]}, {conditions['device']}"
        plot(rows, args.plot, title=f"{title}, {threads} threads")


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
