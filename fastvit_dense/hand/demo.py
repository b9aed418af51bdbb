"""Hand meshes of images, videos and webcams as tools/hand_demo.py shows them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.devices import describe_device
from ..io.files import atomic_write
from ..io.media import Frames, FrameWriter, for_each_frame, open_input
from .mano.topology import KEYPOINT_NAMES, ROOT
from .predictor import HandPredictor, HandResult, check_intrinsics
from .visualization import DrawnHand, hand_picture, write_mesh

DEMO_FOLDER = Path("work_dirs/demo-hand")
FRAME = "metres; x right, y down, z forward"
_DECIMALS = 6  # micrometres


def run_demo(
    source: str,
    *,
    config: str | None = None,
    checkpoint: str | None = None,
    mano: str | None = None,
    bbox: Sequence[float] | None = None,
    left: bool = False,
    K: np.ndarray | None = None,
    out: str = "work_dirs/predictions/hand",
    mesh: str | None = None,
    skeleton: bool = False,
    device: str | None = None,
    show: bool = False,
) -> tuple[str, int]:
    """Predict the hands of an input; write pictures, meshes and parameters.

    Args:
        source: as of :func:`fastvit_dense.io.media.open_input`.
        config: of the model, together with `checkpoint`; None for both is the model of ``make demo-hand``.
        checkpoint: what tools/train.py wrote with it.
        mano: path of the MANO file, or ``synthetic``, in place of the config's.
        bbox: x, y, width, height in pixels around the hand, the same in all frames; None is the whole
            image, or FreiHAND's evaluation crop of images of 224x224.
        left: it is a left hand.
        K: (3, 3) intrinsics of the images; with them meshes are placed before the camera.
        out: folder for the results.
        mesh: obj, ply, glb or none; None is obj for images, none for a video or webcam.
        skeleton: draw the keypoints, too.
        device: cpu or cuda:0; None is the GPU if there is one.
        show: show the pictures in a window, too.

    Returns:
        Number of frames, speed and where the results are, in a few lines; and the status to exit with,
        1 if images could not be read.

    Raises:
        FileNotFoundError, ValueError, OSError: as of what it calls; no model is loaded for an input or a
            folder that cannot be used.
    """
    K = None if K is None else check_intrinsics(K)
    if (config is None) != (checkpoint is None):
        raise ValueError(
            f"config {config} and checkpoint {checkpoint}: expected both, --config and --checkpoint, or "
            "neither for the model of `make demo-hand`"
        )
    model = (config, checkpoint) if config is not None and checkpoint is not None else demo_model()
    with open_input(source) as frames:
        writer = FrameWriter(out, frames)  # it may refuse: before the model is loaded
        predictor = HandPredictor(*model, mano=mano, device=device)
        predictor(np.zeros((224, 224, 3), np.uint8))  # the first pass is slow, and not to be timed

        def predict(image: np.ndarray) -> HandResult:
            return predictor(image, bbox, left=left, K=K)

        def finish(name: str, image: np.ndarray, hand: HandResult) -> np.ndarray:
            write(name, hand, hand_as_json(name, hand, size=image.shape[:2], K=K))
            keypoints = hand.keypoints_2d if skeleton else None
            drawn = DrawnHand(hand.vertices, hand.vertices_2d, keypoints)
            return hand_picture(image, drawn, hand.faces)

        with hand_files(writer, frames, mesh=mesh) as write:
            report = for_each_frame(
                frames, writer, predict, finish, window="hand" if show else None
            )
    head: Any = predictor.model.head
    more = [f"hand model: {head.mano_source}", f"results: {writer.folder}"]
    if bbox is None:
        more.append(
            "The hand was expected to fill the image. If it does not, name a box around it: "
            "--bbox x y width height"
        )
    where = f"{describe_device(str(predictor.device))}, backbone fused"
    text = report.text(where, task="image to mesh", timed="drawing excluded", more=more)
    return text, report.status


def demo_model() -> tuple[str, str]:
    """Config and checkpoint that ``make demo-hand`` leaves.

    Raises:
        FileNotFoundError: there are none; the message says how to get them.
    """
    config, pointer = DEMO_FOLDER / "mano_fastvit-t8_demo-hands.py", DEMO_FOLDER / "last_checkpoint"
    if pointer.is_file():
        # By its name alone: the folder may have been moved.
        checkpoint = DEMO_FOLDER / Path(pointer.read_text(encoding="utf-8").strip()).name
        if checkpoint.is_file() and config.is_file():
            return str(config), str(checkpoint)
    raise FileNotFoundError(
        f"{DEMO_FOLDER} has no trained model: `make demo-hand` trains one in about 10 minutes, or name "
        "yours with --config and --checkpoint"
    )


def read_intrinsics(values: Sequence[str]) -> np.ndarray:
    """Intrinsics as a user gives them.

    Args:
        values: fx, fy, cx, cy in pixels; or one name of a JSON file with a 3x3 matrix.

    Returns:
        (3, 3) float64.

    Raises:
        ValueError: the values are neither, the file cannot be read, or these are no intrinsics.
    """
    expected = "expected fx fy cx cy in pixels, or a JSON file with one 3x3 matrix"
    try:
        if len(values) == 1:
            K = np.array(json.loads(Path(values[0]).read_text(encoding="utf-8")), np.float64)
        else:
            fx, fy, cx, cy = map(float, values)
            K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    except (OSError, ValueError, TypeError) as e:
        raise ValueError(f"--K {' '.join(values)}: {expected} ({e})") from e
    return check_intrinsics(K)


@contextmanager
def hand_files(
    writer: FrameWriter, frames: Frames, *, mesh: str | None = None
) -> Iterator[Callable[[str, HandResult, dict[str, Any]], None]]:
    """Write meshes and parameters beside the pictures.

    Of an image: ``NAME.json``, and the mesh, ``NAME.obj`` or what is asked for. Of a video or webcam:
    ``NAME.jsonl`` with a line for each frame, complete or not there, and meshes only if asked for.

    Args:
        writer: of the pictures; files have their names.
        frames: where the images come from.
        mesh: obj, ply, glb or none; None is obj for images, none for a video or webcam.

    Yields:
        What writes the files of a frame, by its name, its hand and the hand as JSON.
    """
    folder, is_video = writer.folder, frames.kind != "images"
    mesh = mesh or ("none" if is_video else "obj")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if is_video:
            aside = stack.enter_context(atomic_write(folder / f"{frames.stem}.jsonl", sync=False))
            lines = stack.enter_context(aside.open("w", encoding="utf-8"))

        def write(name: str, hand: HandResult, content: dict[str, Any]) -> None:
            stem = name if is_video else writer.stems[name]
            if is_video:
                lines.write(json.dumps(content) + "\n")
            else:
                with atomic_write(folder / f"{stem}.json", sync=False) as aside:
                    aside.write_text(json.dumps(content) + "\n", encoding="utf-8")
            if mesh != "none":
                vertices = hand.vertices if hand.vertices_camera is None else hand.vertices_camera
                write_mesh(folder / f"{stem}.{mesh}", vertices, hand.faces)

        yield write


def hand_as_json(
    name: str, hand: HandResult, *, size: tuple[int, int], K: np.ndarray | None = None
) -> dict[str, Any]:
    """Keypoints and parameters of a hand as JSON has them; what each is stands in HandResult.

    Args:
        name: of the image.
        hand: the prediction.
        size: height and width of the image.
        K: the intrinsics that were given.
    """
    content: dict[str, Any] = dict(
        image=name,
        image_size=dict(height=size[0], width=size[1]),
        hand="left" if hand.left else "right",
        frame=FRAME,
        keypoint_names=list(KEYPOINT_NAMES),
        root=KEYPOINT_NAMES[ROOT],
        keypoints_2d=_rounded(hand.keypoints_2d),
        keypoints_root_relative=_rounded(hand.keypoints),
        mano=dict(
            hand="right, of the mirrored image" if hand.left else "right",
            betas=_rounded(hand.betas),
            rotations=_rounded(hand.rotations),
        ),
        weak_perspective=dict(
            scale=_rounded(hand.camera[0]),
            translation=_rounded(hand.camera[1:]),
            image_to_crop=_rounded(hand.crop_matrix),
        ),
    )
    if K is not None and hand.keypoints_camera is not None:
        content |= dict(K=K.tolist(), keypoints_camera=_rounded(hand.keypoints_camera))
    return content


def _rounded(array: Any) -> Any:
    return np.round(np.asarray(array, np.float64), _DECIMALS).tolist()
