"""Speed, checked and side by side: of fused backbones (the default), of the parts of a whole detector or
segmentor, from an image of a hand to its mesh, of training steps.

python tools/benchmark.py --arch sa12 --backend eager onnxruntime openvino --dtype float32 bfloat16 \\
    --against resnet50 poolformer_s12 repvit_m1_1 timm:fastvit_sa12
python tools/benchmark.py model configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py [CHECKPOINT]
python tools/benchmark.py hand --arch t8 sa12 --backend eager onnxruntime openvino
python tools/benchmark.py training --shape 320 320 [CONFIG ...]
"""

import _environment  # noqa: F401
import argparse
import os
import sys
import tempfile

# Idle OpenMP threads that spin slow down whatever else runs on the same cores, here the other runtimes.
# The library reads it once, when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from fastvit_dense.benchmark import backbone, hand, model, report, training  # noqa: E402
from fastvit_dense.benchmark.timing import Candidate, measure  # noqa: E402
from fastvit_dense.deploy.runtimes import BACKENDS, DTYPES, Setting  # noqa: E402
from fastvit_dense.engine.devices import check_device  # noqa: E402
from fastvit_dense.engine.errors import end_in_one_line  # noqa: E402

OURS = "configs/det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py"
THEIRS = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"


def parse(arguments: list[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    common.add_argument("--threads", type=int, help="threads of the CPU for every backend")
    common.add_argument("--reference", metavar="NAME", help="model that speed-ups refer to")
    common.add_argument("--json", metavar="FILE", help="write everything that was measured")
    common.add_argument("--plot", metavar="FILE", help="draw the latencies")
    common.add_argument("--warmup", type=int, default=100, help="rounds before the timed ones")
    common.add_argument("--runs", type=int, default=100, help="timed rounds")

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="subject", required=True)
    add = lambda name, text: commands.add_parser(name, help=text, parents=[common])  # noqa: E731
    of_backbone = add("backbone", "backbones in several runtimes (the default)")
    of_backbone.add_argument("--arch", nargs="*", default=["sa12"], help="variants of FastViT")
    against = "models of timm; timm:NAME is run as timm's users do: eager, NCHW"
    of_backbone.add_argument("--against", nargs="+", default=[], metavar="NAME", help=against)
    of_backbone.add_argument("--unfused", action="store_true", help="also unfused, and not split")
    of_backbone.add_argument("--dtype", nargs="+", default=["float32"], choices=list(DTYPES))
    of_model = add("model", "the parts of a detector or segmentor, from image file to result")
    of_model.add_argument("config", help="its config")
    of_model.add_argument("checkpoint", nargs="?", help="weights; random ones if not given")
    of_model.add_argument("--images", nargs="+", help="files, folders; a random one if not given")
    of_hand = add("hand", "from an image of a hand to its mesh")
    of_hand.add_argument("--arch", nargs="+", default=["t8", "sa12"], help="variants of FastViT")
    for command in of_backbone, of_hand:
        command.add_argument("--backend", nargs="+", default=["eager"], choices=list(BACKENDS))
    of_training = add("training", "training steps of detectors, segmentors and hand models")
    of_training.add_argument("configs", nargs="*", default=[OURS, THEIRS], help="their configs")
    of_training.add_argument("--amp", action="store_true", help="mixed precision")
    of_training.add_argument("--channels-last", action="store_true", help="this memory format")
    of_training.set_defaults(warmup=2, runs=10, batch=2)
    for command in of_backbone, of_model, of_training:
        command.add_argument("--shape", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    for command in of_backbone, of_training:
        command.add_argument("--batch", type=int, default=1, help="images per pass or step")
    if not arguments or arguments[0] not in (*commands.choices, "-h", "--help"):
        arguments = ["backbone", *arguments]
    args = parser.parse_args(arguments)
    if args.runs < 1 or args.warmup < 0:
        parser.error(f"expected --runs 1 and --warmup 0 or more, got {args.runs}, {args.warmup}")
    return args


def candidates(args: argparse.Namespace, threads: int, folder: str) -> list[Candidate]:
    """What the command line asks for, ready to be timed; random images go to `folder`."""
    if args.subject == "training":
        work = training.Workload(args.batch, tuple(args.shape), args.device, args.amp)
        work = work._replace(channels_last=args.channels_last)
        return training.candidates(args.configs, work)
    if args.subject == "model":
        sources = args.images or [model.random_image(folder, tuple(args.shape))]
        return model.candidates(args.config, args.checkpoint, sources=sources, device=args.device)
    dtypes = args.dtype if args.subject == "backbone" else ["float32"]
    settings = [Setting(b, d, args.device, threads) for b in args.backend for d in dtypes]
    if args.subject == "hand":
        return hand.candidates(args.arch, settings)
    models = backbone.backbones(args.arch, args.against, unfused=args.unfused)
    return backbone.candidates(models, settings, batch=args.batch, shape=tuple(args.shape))


def main() -> None:
    args = parse(sys.argv[1:])
    check_device(args.device)
    report.check_outputs(json=args.json, plot=args.plot)
    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        ready = candidates(args, threads, folder)
        report.reference_row([row for row, _ in ready], args.reference)
        rows, warnings = measure(ready, args.device, warmup=args.warmup, runs=args.runs)
    conditions = report.environment(args.device, threads, getattr(args, "backend", []))
    for facts in conditions, {k: v for k, v in vars(args).items() if v not in (None, False)}:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"\n{report.table(rows, warnings, reference=args.reference)}")
    if args.json:
        report.write_json(args.json, rows, warnings, conditions, vars(args))
    if args.plot:
        report.plot(rows, args.plot, title=f"{args.subject}, {conditions['device']}")


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
