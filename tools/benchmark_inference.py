"""Throughput of mmseg's inference_model from file to labels, with the share of each step.

python tools/benchmark_inference.py IMAGE|FOLDER [...] [--config CONFIG] [--fuse]
"""

import _environment  # noqa: F401
import argparse
import sys

import torch

import fastvit_dense
from fastvit_dense.benchmark.model import measure_steps, step_table
from fastvit_dense.benchmark.training import device_name
from fastvit_dense.compat import mmcv_ops
from fastvit_dense.engine.devices import check_device
from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.io.media import open_input

CONFIG = "configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", help="image files, or folders of them")
    parser.add_argument("--config", default=CONFIG, help="segmentation config")
    parser.add_argument("--checkpoint", help="weights; speed does not depend on them")
    parser.add_argument("--fuse", action="store_true", help="reparameterize the model first")
    parser.add_argument("--channels-last", action="store_true", help="this memory format")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10, help="times each image is timed")
    args = parser.parse_args()
    check_device(args.device)

    inputs = [open_input(source) for source in args.images]
    if streams := [frames.source for frames in inputs if frames.kind != "images"]:
        raise ValueError(f"expected image files or folders of them, got {streams[0]}")
    images = [file for frames in inputs for file in frames.files]

    from mmseg.apis import init_model

    model = init_model(args.config, args.checkpoint, device=args.device)
    if args.fuse:
        model = fastvit_dense.reparameterize(model)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    seconds = measure_steps(model, images, rounds=args.rounds)
    print(
        f"{device_name(args.device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{mmcv_ops.describe()}\n{args.config}, {'fused' if args.fuse else 'not fused'}\n"
    )
    print(step_table(seconds))


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
