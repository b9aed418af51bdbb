"""Hand meshes of images, videos and webcams as tools/hand_demo.py shows them."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ..engine.devices import describe_device
from ..io.files import write_atomically
from ..io.media import Frames, FrameWriter, Preview, open_input
from .mano.topology import KEYPOINT_NAMES, ROOT
from .predictor import HandPredictor, HandResult, check_intrinsics
from .visualization import DrawnHand, hand_picture, write_mesh

DEMO_MODEL = Path("work_dirs/demo-hand")
FRAME = "metres; x right, y down, z forward"
_DECIMALS = 6  # micrometres


def run_demo(
    source: str,
    *,
    checkpoint: str | None = None,
    config: str | None = None,
    mano: str | None = None,
    bbox: Sequence[float] | None = None,
    left: bool = False,
    K: np.ndarray | None = None,
    out: str = "work_dirs/predictions/hand",
    mesh: str | None = None,
    skeleton: bool = False,
    device: str | None = None,
    show: bool = False,
) -> str:
    """Predict the hands of an input; write pictures, meshes and parameters.

    Args:
        source: as of :func:`fastvit_dense.io.media.open_input`.
        checkpoint: a trained hand model; None is the one that ``make demo-hand`` leaves.
        config: file of its config; None is what the checkpoint holds.
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
        Number of frames, speed and where the results are, in a few lines.

    Raises:
        FileNotFoundError, ValueError, OSError: as of what it calls; no model is loaded for an input or a
            folder that cannot be used.
    """
    K = None if K is None else check_intrinsics(K)
    checkpoint = checkpoint or demo_checkpoint()
    with open_input(source) as frames:
        writer = FrameWriter(out, frames)  # it may refuse: before the model is loaded
        files = HandFiles(out, frames, mesh=mesh)
        predictor = HandPredictor(checkpoint, config, mano=mano, device=device)
        predictor(np.zeros((224, 224, 3), np.uint8))  # the first pass is slow, and not to be timed
        start = time.perf_counter()
        with writer, files, Preview("hand") if show else nullcontext() as preview:
            seconds = predict_frames(
                predictor, frames, writer, files,
                bbox=bbox, left=left, K=K, skeleton=skeleton, preview=preview,
            )  # fmt: skip
        elapsed = time.perf_counter() - start
    if not seconds:
        return "0 frames: stopped before the first was done"
    each = statistics.median(seconds)
    head: Any = predictor.model.head
    lines = [
        f"{len(seconds)} frames on {describe_device(str(predictor.device))}, backbone fused",
        f"image to mesh: {1 / each:.1f} frames/s (median {each * 1000:.1f} ms a frame, drawing excluded)",
        f"end to end, with reading, drawing and writing: {len(seconds) / elapsed:.1f} frames/s",
        f"hand model: {head.mano_source}",
        f"results: {writer.folder}",
    ]
    if frames.total and len(seconds) < frames.total:
        lines.insert(
            1, f"of {frames.total} that {source} should have: stopped, or the file is damaged"
        )
    if bbox is None:
        lines.append(
            "The hand was expected to fill the image. Where it does not, name a box around it: "
            "--bbox x y width height"
        )
    return "\n".join(lines)


def demo_checkpoint() -> str:
    """The checkpoint that ``make demo-hand`` leaves.

    Raises:
        FileNotFoundError: there is none; the message has the cure.
    """
    pointer = DEMO_MODEL / "last_checkpoint"
    path = Path(pointer.read_text(encoding="utf-8").strip()) if pointer.is_file() else None
    if path is not None and not path.is_file():
        path = DEMO_MODEL / path.name  # the folder was moved
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"there is no trained model in {DEMO_MODEL}: `make demo-hand` trains one in about 10 minutes, "
            "or name yours with --checkpoint"
        )
    return str(path)


def read_intrinsics(values: Sequence[str]) -> np.ndarray:
    """Intrinsics as a user gives them.

    Args:
        values: fx, fy, cx, cy in pixels; or one name of a JSON file with a 3x3 matrix.

    Returns:
        (3, 3) float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the values are neither, or are no intrinsics.
    """
    expected = "expected fx fy cx cy in pixels, or a JSON file with one 3x3 matrix"
    try:
        if len(values) == 1:
            K = np.array(json.loads(Path(values[0]).read_text(encoding="utf-8")), np.float64)
        else:
            fx, fy, cx, cy = map(float, values)
            K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    except FileNotFoundError as e:
        raise FileNotFoundError(f"--K: {values[0]} does not exist; {expected}") from e
    except (ValueError, TypeError) as e:
        raise ValueError(f"--K {' '.join(values)}: {expected} ({e})") from e
    return check_intrinsics(K)


def predict_frames(
    predictor: HandPredictor,
    frames: Frames,
    writer: FrameWriter,
    files: HandFiles,
    *,
    bbox: Sequence[float] | None = None,
    left: bool = False,
    K: np.ndarray | None = None,
    skeleton: bool = False,
    preview: Preview | None = None,
) -> list[float]:
    """Predict the hands of frames, write all results, and show progress.

    A webcam ends with Ctrl-C; anything does with q in the window. What was made until then is kept.
    Ctrl-C in a video goes on to the caller, and with it the writers leave no file of it.

    Args:
        predictor: the model.
        frames: the input, opened.
        writer: where the pictures go, entered.
        files: where meshes and parameters go, entered.
        bbox, left, K, skeleton: as of :func:`run_demo`.
        preview: a window, entered.

    Returns:
        Seconds from image to mesh, for each frame.

    Raises:
        ValueError: the box lies outside of an image, which is named; as of reading and writing.
    """
    seconds = list[float]()
    try:
        for name, image in tqdm(frames, total=frames.total, unit="frame"):
            start = time.perf_counter()
            try:
                hand = predictor(image, bbox, left=left, K=K)
            except ValueError as e:
                raise ValueError(f"{name}: {e}") from e
            seconds.append(time.perf_counter() - start)
            drawn = DrawnHand(
                hand.vertices, hand.vertices_2d, hand.keypoints_2d if skeleton else None
            )
            picture = hand_picture(image, drawn, hand.faces)
            writer.write(name, picture)
            files.write(name, hand, size=image.shape[:2], K=K)
            if preview is not None and preview.show(picture):
                break
    except KeyboardInterrupt:
        if frames.kind != "webcam":
            raise
    return seconds


class HandFiles:
    """Writes meshes and parameters beside the pictures, in a ``with`` statement.

    Of an image: ``NAME.json``, and the mesh, ``NAME.obj`` or what is asked for. (Two images that would get
    one name, as a.png and a.jpg do, keep their suffix in it.) Of a video or webcam: ``NAME.jsonl`` with a
    line for each frame, and meshes only if asked for. Files get their names when they are complete.

    Args:
        out: the folder; it exists on entry.
        frames: where the images come from.
        mesh: obj, ply, glb or none; None is obj for images, none for a video or webcam.
    """

    def __init__(self, out: str | Path, frames: Frames, *, mesh: str | None = None) -> None:
        self.folder = Path(out)
        self._is_video = frames.kind != "images"
        self._mesh = mesh or ("none" if self._is_video else "obj")
        stems = Counter(file.stem.lower() for file in frames.files)
        self._names = {
            file.name: file.stem if stems[file.stem.lower()] == 1 else file.name
            for file in frames.files
        }
        self._lines_path = self.folder / f"{frames.stem}.jsonl"
        self._aside = self.folder / f"{frames.stem}.jsonl.unfinished"
        self._lines: TextIO | None = None

    def write(
        self, name: str, hand: HandResult, *, size: tuple[int, int], K: np.ndarray | None = None
    ) -> None:
        """Write the hand of one frame.

        Args:
            name: as the frames gave it.
            hand: the prediction.
            size: height and width of the image.
            K: the intrinsics that were given.
        """
        stem = name if self._is_video else self._names[name]
        content = hand_as_json(name, hand, size=size, K=K)
        if self._lines is not None:
            self._lines.write(json.dumps(content) + "\n")
        else:
            lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in content.items())
            write_atomically(self.folder / f"{stem}.json", f"{{\n{lines}\n}}\n".encode())
        if self._mesh != "none":
            vertices = hand.vertices if hand.vertices_camera is None else hand.vertices_camera
            write_mesh(self.folder / f"{stem}.{self._mesh}", vertices, hand.faces)

    def __enter__(self) -> HandFiles:
        if self._is_video:
            self._lines = self._aside.open("w", encoding="utf-8")
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._lines is None:
            return
        self._lines.close()
        self._lines = None
        if error is None:
            self._aside.replace(self._lines_path)
        else:
            self._aside.unlink()


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
