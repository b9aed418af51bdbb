"""Predict the mesh of a hand in an image, a folder of images, a video or a webcam.

python tools/hand_demo.py INPUT [--config CONFIG --checkpoint CHECKPOINT] [--bbox X Y WIDTH HEIGHT] [--left]

Writes the mesh over the image and from the side (as an image or a video), a mesh file, and keypoints and
MANO's parameters as JSON. No intrinsics are needed; with --K the mesh is placed before the camera.
"""

import _environment  # noqa: F401
import argparse
import os
import sys

# Idle OpenMP threads that spin slow down whatever else runs on the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fastvit_dense.engine.errors import end_in_one_line  # noqa: E402
from fastvit_dense.hand.demo import read_intrinsics, run_demo  # noqa: E402
from fastvit_dense.hand.visualization import FORMATS  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="INPUT",
        help="image, folder of images, video, webcam, or webcam:1 for the second one",
    )  # fmt: skip
    parser.add_argument("--config", help="config of the model (default: make demo-hand's)")
    parser.add_argument(
        "--checkpoint", help="what tools/train.py wrote with it (default: what make demo-hand left)"
    )
    parser.add_argument(
        "--mano",
        metavar="FILE",
        help="MANO_RIGHT.npz or .pkl, or synthetic (default: the config's)",
    )
    parser.add_argument(
        "--bbox", type=float, nargs=4, metavar=("X", "Y", "WIDTH", "HEIGHT"),
        help="box around the hand in pixels, in every frame (default: the whole image; of images of "
        "224x224, which are taken for FreiHAND's, the middle 180)",
    )  # fmt: skip
    parser.add_argument("--left", action="store_true", help="it is a left hand")
    parser.add_argument(
        "--K", nargs="+", metavar="NUMBER",
        help="intrinsics in pixels: fx fy cx cy, or a JSON file with a 3x3 matrix",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        default="work_dirs/predictions/hand",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--mesh", choices=[*FORMATS, "none"],
        help="format of the mesh files (default: obj for images, none for videos)",
    )  # fmt: skip
    parser.add_argument("--skeleton", action="store_true", help="draw the keypoints, too")
    parser.add_argument("--device", help="cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument(
        "--show", action="store_true", help="show pictures in a window, too; q ends"
    )
    return parser.parse_args()


def main() -> int:
    options = vars(parse_args())
    if options["K"]:
        options["K"] = read_intrinsics(options["K"])
    text, status = run_demo(options.pop("source"), **options)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(end_in_one_line(main))
