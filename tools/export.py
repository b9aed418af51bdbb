"""Export a fused model to ONNX, OpenVINO or Core ML, run the file and compare it with PyTorch.

python tools/export.py CONFIG CHECKPOINT --format onnx --out model.onnx
python tools/export.py sa12 timm://fastvit_sa12.apple_in1k --format openvino --out sa12.xml
"""

import _environment  # noqa: F401
import argparse
import sys

from fastvit_dense.deploy.export import export_model, load_model
from fastvit_dense.engine.errors import end_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file, or a bare backbone such as sa12")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="checkpoint that tools/train.py wrote (default: random weights)",
    )
    parser.add_argument("--format", required=True, choices=["onnx", "openvino", "coreml"])
    parser.add_argument("--out", required=True, help="F.onnx, F.xml or F.mlpackage")
    parser.add_argument("--part", choices=["model", "backbone"], default="model")
    parser.add_argument(
        "--shape", type=int, nargs=2, metavar=("H", "W"),
        help="of the image in pixels (default: what a hand model was trained at, else 512 512)",
    )  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--dynamic", action="store_true", default=None,
        help="leave batch, height and width open (default, except for coreml)",
    )  # fmt: skip
    size.add_argument(
        "--static", dest="dynamic", action="store_false", help="batch 1 and --shape alone"
    )
    parser.add_argument(
        "--half", action="store_true", help="float16; for openvino, weights in float16"
    )
    parser.add_argument(
        "--no-normalise", dest="normalise", action="store_false",
        help="expect the normalised image instead of grey levels 0 to 255 in BGR",
    )  # fmt: skip
    parser.add_argument(
        "--head-size", dest="full_size", action="store_false",
        help="segmentor: logits as the head gives them, not resized to the image",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    model, about = load_model(args.config, args.checkpoint)
    report = export_model(
        model,
        args.out,
        format=args.format,
        part=args.part,
        shape=args.shape and tuple(args.shape),
        dynamic=args.dynamic,
        half=args.half,
        normalise=args.normalise,
        full_size=args.full_size,
        force=args.force,
        about=about,
    )
    print(report)


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
