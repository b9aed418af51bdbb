"""Training speed and memory of detectors, segmentors and hand models, by default of Mask R-CNN with
FastViT-SA12 and ResNet-50.

python tools/benchmark_training.py --shape 320 320
python tools/benchmark_training.py --device cuda --amp --shape 800 1333
"""

import _environment  # noqa: F401
import argparse
import sys

import torch

from fastvit_dense.benchmark.training import Workload, detectors, device_name, measure, table
from fastvit_dense.compat import mmcv_ops
from fastvit_dense.deploy.runtimes import arithmetic
from fastvit_dense.engine.devices import check_device
from fastvit_dense.engine.errors import end_in_one_line

CONFIGS = [
    "configs/det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py",
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="configs")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--shape", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="float16 on a GPU, bfloat16 on a CPU")
    parser.add_argument("--channels-last", action="store_true", help="this memory format")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    args = parser.parse_args()
    check_device(args.device)

    work = Workload(
        args.batch, tuple(args.shape), args.device, args.amp, channels_last=args.channels_last
    )
    results = measure(detectors(args.configs), work, steps=args.steps)
    print(
        f"{device_name(work.device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{mmcv_ops.describe()}{''.join(f', {k} {v}' for k, v in arithmetic(work.device).items())}\n"
        f"{work.batch} images of {work.shape[0]} x {work.shape[1]}, {work.objects} objects each, "
        f"{'mixed precision' if work.amp else 'float32'}"
        f"{', channels_last' if work.channels_last else ''}, {args.steps} interleaved steps\n"
    )
    print(table(results, work))


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
