"""Images, folders, videos and webcams, in and out; image files checked without being decoded."""

from __future__ import annotations

import math
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from .files import atomic_write, why_unwritable

T = TypeVar("T")
# CV_IO_MAX_IMAGE_PIXELS in modules/imgcodecs/src/loadsave.cpp; above it, OpenCV fails with an assertion.
OPENCV_MAX_PIXELS = 2**30


def is_truncated_jpeg(content: bytes) -> bool:
    """Whether the bytes are a JPEG whose image data ends without an end-of-image marker.

    Thumbnails inside of segments and whatever follows the picture do not confuse it. A JPEG
    that ends before its image data counts too. Other formats: False.
    """
    if content[:2] != b"\xff\xd8":
        return False
    at = 2
    while content[at : at + 1] == b"\xff":
        marker = content[at + 1 : at + 2]
        if marker == b"\xff":  # fill byte
            at += 1
        elif marker == b"\xda":  # start of scan: in image data, 0xff is never followed by 0xd9
            return content.find(b"\xff\xd9", at) < 0
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return True


def stored_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in pixels that an image file states, whatever their size; None if it states none."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(BytesIO(content)) as image:  # reads the header alone
            return image.size
    except (OSError, SyntaxError, ValueError):
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def too_large_for_opencv(content: bytes) -> str:
    """Say that an image file has more pixels than OpenCV reads; empty if it has not."""
    width, height = stored_size(content) or (0, 0)
    if width * height <= OPENCV_MAX_PIXELS:
        return ""
    return (
        f"it is {width}x{height} pixels (width x height), more than the {OPENCV_MAX_PIXELS} that OpenCV "
        "reads: cut it into pieces, or scale it down"
    )


IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_WEBCAM = re.compile(r"webcam(?::(?P<index>.*))?")
_UNKNOWN_FPS = 30.0
# Of the frames that a video's header promises: the number may be an estimate, from duration and rate.
_ENOUGH = 0.95


@dataclass
class Frames:
    """Named images of one input, to be iterated over once, in a ``with`` statement.

    Yields (name, image): the file's name, or for videos and webcams a stem and the number of the
    frame, from 0; the image is (H, W, 3) uint8 BGR. Images of a folder that cannot be read are named
    on stderr and skipped.

    Attributes:
        source: what the user named.
        kind: images, video or webcam.
        stem: name for what is made of all of it, without a suffix.
        files: the files that are read.
        total: number of images; of a video what its header says, which may be an estimate; None if
            it is unknown.
        fps: frames per second of a video or webcam, None if it is unknown.
        skipped: number of images that could not be read.
    """

    source: str
    kind: Literal["images", "video", "webcam"]
    stem: str
    files: Sequence[Path] = ()
    total: int | None = None
    fps: float | None = None
    skipped: int = field(default=0, init=False)
    _capture: cv2.VideoCapture | None = field(default=None, init=False)
    _first: np.ndarray | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        if self._capture is not None:
            frame, number = self._first, 0
            while frame is not None:
                yield f"{self.stem}_{number:06d}", frame
                frame, number = _next_frame(self._capture), number + 1
            return
        for file in self.files:
            try:
                image = read_image(file)
            except (ValueError, OSError) as error:
                self.skipped += 1
                tqdm.write(f"skipped: {error}", file=sys.stderr)
            else:
                yield file.name, image

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        if self._capture is not None:
            self._capture.release()


def open_input(source: str | Path) -> Frames:
    """Open what a user names as input of a demo.

    Args:
        source: an image file; a folder, whose images (jpg, jpeg, png, bmp, webp, tif, tiff) come in the
            order of their names, without those of folders in it; a video file; ``webcam`` or
            ``webcam:1`` for a camera by OpenCV's number. EXIF orientation is applied. Grey images,
            images of 16 bits and those with transparency become BGR of 8 bits; transparency is dropped.

    Returns:
        The frames, a context manager. Images are read while iterating.

    Raises:
        FileNotFoundError: the file or folder does not exist.
        ValueError: a folder without images; a file that cannot be read; a video without a frame; a camera
            that cannot be opened.
    """
    source = str(source)
    webcam = _WEBCAM.fullmatch(source)
    if webcam:
        index = webcam["index"] or "0"
        if not index.isdecimal():
            raise ValueError(f"{source}: expected webcam or webcam:NUMBER, such as webcam:1")
        why = (
            f"camera {index} cannot be opened. Is one connected, not in use by another program, and "
            "readable for this user? Others: webcam:1, webcam:2"
        )
        return _open_stream(int(index), Frames(source, "webcam", source.replace(":", "_")), why)
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if _is_image_name(f) and f.is_file())
        if not files:
            raise ValueError(
                f"folder {source} holds no images: expected files ending in "
                f"{', '.join(IMAGE_SUFFIXES)} (folders in it are not searched)"
            )
        return Frames(source, "images", path.name, files, total=len(files))
    if not path.exists():
        raise FileNotFoundError(
            f"{source} does not exist: expected an image, a folder of images, a video, or webcam"
        )
    if _is_image_name(path):
        read_image(path)  # to fail before a model is loaded
        return Frames(source, "images", path.stem, [path], total=1)
    why = (
        f"it is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video that OpenCV can read; ffmpeg "
        "may convert it: ffmpeg -i INPUT OUTPUT.mp4"
    )
    return _open_stream(source, Frames(source, "video", path.stem, [path]), why)


def _open_stream(address: str | int, frames: Frames, why: str) -> Frames:
    """Open a video or camera; `why` tells why it may not open."""
    capture = cv2.VideoCapture(address)
    is_open = capture.isOpened()
    first = _next_frame(capture) if is_open else None
    if first is None:
        capture.release()
        raise ValueError(
            f"{frames.source}: {'it opens but gives no frame: is it damaged?' if is_open else why}"
        )
    frames.fps = _positive(capture.get(cv2.CAP_PROP_FPS))
    frames._capture, frames._first = capture, first
    if frames.kind == "video" and (total := _positive(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        frames.total = int(total)
    return frames


def _positive(number: float) -> float | None:
    return number if math.isfinite(number) and number > 0 else None


def _next_frame(capture: cv2.VideoCapture) -> np.ndarray | None:
    there, frame = capture.read()
    if not there or frame is None:
        return None
    return cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR) if frame.ndim == 2 else frame


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_image(path: str | Path, *, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Read an image file.

    Args:
        path: the file.
        flags: OpenCV's. By default grey and deeper images become BGR of 8 bits, turned as their EXIF
            orientation says; ``cv2.IMREAD_UNCHANGED`` gives the pixels as they are stored.

    Returns:
        (H, W, 3) uint8 BGR by default.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read, or is a truncated JPEG, which OpenCV fills up with grey. The message
            names it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"image {path} does not exist: is the data unpacked completely?")
    content = path.read_bytes()
    reason = ""
    if is_truncated_jpeg(content):
        reason = "it is a truncated JPEG, without an end-of-image marker: get it again"
    elif not content:
        reason = "it is empty"
    else:
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error as error:
            reason = too_large_for_opencv(content) or f"OpenCV: {error}"
        else:
            if image is not None:
                return image
            reason = "it may be damaged or named wrongly"
    raise ValueError(
        f"{path} ({len(content)} bytes) is not an image that OpenCV can read: {reason.strip()}"
    )


class FrameWriter:
    """Writes the pictures made of :class:`Frames` into a folder, in a ``with`` statement.

    Images keep their names and JPEG its format; the others become PNG. (Those of one stem, as a.png and
    a.bmp, keep their suffix before the new one.) A video or webcam becomes one .mp4 with the frame rate
    of its source, 30 if that is unknown; the format takes even sizes, so an odd last row or column is
    left out. Files of an earlier run are replaced.

    Writes are atomic: an exception in the ``with`` block leaves no video.

    Args:
        out: the folder; made if it does not exist.
        frames: where the pictures come from.

    Attributes:
        paths: the files written so far; a video is in it once it is complete.
        stems: of the files that are made of each image, by the name of the image.

    Raises:
        ValueError: `out` cannot be written; an input would be overwritten.
    """

    def __init__(self, out: str | Path, frames: Frames) -> None:
        self.folder, self.paths = Path(out), list[Path]()
        if why := why_unwritable(out):
            raise ValueError(f"{out} {why}; expected a folder to write to")
        self._fps = frames.fps or _UNKNOWN_FPS
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] | None = None
        self._open = ExitStack()
        # Compared without case, as file systems of macOS and Windows do.
        count = Counter(file.stem.lower() for file in frames.files)
        self.stems = {
            f.name: f.stem if count[f.stem.lower()] == 1 else f.name for f in frames.files
        }
        if frames.kind == "images":
            self._video = None
            made = [self._picture(file.name) for file in frames.files]
        else:
            self._video = self.folder / f"{frames.stem}.mp4"
            made = [self._video]
        for path in made:
            if any(path.exists() and os.path.samefile(path, file) for file in frames.files):
                raise ValueError(
                    f"{path} would overwrite the input: choose another folder for results"
                )

    def _picture(self, name: str) -> Path:
        suffix = ".jpg" if name.lower().endswith((".jpg", ".jpeg")) else ".png"
        return self.folder / f"{self.stems[name]}{suffix}"

    def write(self, name: str, image: np.ndarray) -> None:
        """Write the picture of one frame.

        Args:
            name: as the frames gave it.
            image: (H, W, 3) uint8 BGR; of one size for all frames of a video.

        Raises:
            ValueError: a frame of a video is of another size than those before it.
            OSError: a file cannot be written.
        """
        if self._video is not None:
            self._write_frame(self._video, name, image)
            return
        path = self._picture(name)
        done, content = cv2.imencode(path.suffix, image)
        if not done:
            raise OSError(f"{path}: OpenCV cannot encode an image of shape {image.shape}")
        with atomic_write(path, sync=False) as aside:
            aside.write_bytes(content.tobytes())
        self.paths.append(path)

    def __enter__(self) -> FrameWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]
        if self._video is not None and self._writer is not None and error[0] is None:
            self.paths.append(self._video)

    def _write_frame(self, path: Path, name: str, image: np.ndarray) -> None:
        size = image.shape[1], image.shape[0]
        if self._writer is None or self._size is None:
            self._writer = self._open_video(path, size)
            self._size = size
        if size != self._size:  # OpenCV leaves out such frames in silence
            raise ValueError(
                f"{name} makes a picture of {size[0]}x{size[1]} pixels (width x height), those before "
                f"it were {self._size[0]}x{self._size[1]}: frames of a video must be of one size"
            )
        self._writer.write(image)

    def _open_video(self, path: Path, size: tuple[int, int]) -> cv2.VideoWriter:
        aside = self._open.enter_context(atomic_write(path, suffix=path.suffix, sync=False))
        writer = cv2.VideoWriter(str(aside), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
        if not writer.isOpened():
            raise OSError(
                f"{path} cannot be opened for writing video (codec mp4v, {size[0]}x{size[1]}, "
                f"{self._fps:g} frames per second): is the folder writable, and was this OpenCV built "
                "with ffmpeg? Those of pip are."
            )

        def finish(error: object, *_: object) -> None:
            writer.release()
            # release() does not tell; on a full disk there is no index of frames, and no reader.
            if error is None and not cv2.VideoCapture(str(aside)).isOpened():
                raise OSError(f"{path} could not be completed: is the disk full?")

        self._open.push(finish)
        return writer


@dataclass
class FrameReport:
    """What became of the frames of an input.

    Attributes:
        seconds: that `predict` took, of each frame that was done.
        elapsed: seconds of all, with reading, drawing and writing.
        remark: that frames are missing, and why; empty if none are.
        status: to exit with: 1 if frames could not be read.
    """

    seconds: list[float]
    elapsed: float
    remark: str
    status: int

    def text(self, device: str, *, task: str, timed: str, more: Sequence[str] = ()) -> str:
        """A few lines for the user.

        Args:
            device: that was used.
            task: what `predict` does.
            timed: what is in its time, or is not.
            more: lines to end with.
        """
        lines = [f"{len(self.seconds)} frames on {device}", self.remark]
        if self.seconds:
            each = statistics.median(self.seconds)
            lines += [
                f"{task}: {1 / each:.1f} frames/s (median {each * 1000:.1f} ms per frame, {timed})",
                "end to end, with reading, drawing and writing: "
                f"{len(self.seconds) / self.elapsed:.1f} frames/s",
                *more,
            ]
        return "\n".join(filter(None, lines))


def for_each_frame(
    frames: Frames,
    writer: FrameWriter,
    predict: Callable[[np.ndarray], T],
    finish: Callable[[str, np.ndarray, T], np.ndarray],
    *,
    window: str | None = None,
) -> FrameReport:
    """Predict all frames, write a picture of each, and show progress.

    A webcam ends with Ctrl-C; anything does with q in the window. What was made until then is kept.
    Ctrl-C in a video goes on to the caller, and leaves no video.

    Args:
        frames: the input, opened.
        writer: where the pictures go; it is entered here.
        predict: from an image to a result; this is timed.
        finish: from name, image and result to the picture; it may write more.
        window: title of a window to show the pictures in.

    Raises:
        ValueError: of `predict`, with the name of the frame; no window can be shown; as of writing.
    """
    seconds, stopped = list[float](), False
    start = time.perf_counter()
    with Preview(window) if window else nullcontext() as preview, writer:
        try:
            for name, image in tqdm(frames, total=frames.total, unit="frame"):
                before = time.perf_counter()
                try:
                    result = predict(image)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                seconds.append(time.perf_counter() - before)
                picture = finish(name, image, result)
                writer.write(name, picture)
                if preview is not None and preview.show(picture):
                    stopped = True
                    break
        except KeyboardInterrupt:
            if frames.kind != "webcam":
                raise
            stopped = True
    elapsed = time.perf_counter() - start
    done, total = len(seconds), frames.total or 0
    remark, status = "", 0
    if frames.skipped:
        remark, status = f"{frames.skipped} of {total} images could not be read, see above", 1
    elif stopped:
        remark = f"stopped, of {total}" if total else "stopped"
    elif done < total:
        remark = f"{frames.source} should have {total}: is the file damaged?"
        status = int(done < _ENOUGH * total)
    return FrameReport(seconds, elapsed, remark, status)


class Preview:
    """A window, in a ``with`` statement.

    Args:
        title: of the window.

    Raises:
        ValueError: on entry: no window can be shown.
    """

    def __init__(self, title: str) -> None:
        self.title = f"{title}, q ends"

    def __enter__(self) -> Preview:
        if sys.platform == "linux" and not (os.getenv("DISPLAY") or os.getenv("WAYLAND_DISPLAY")):
            raise ValueError("no window can be shown: there is no display (DISPLAY is not set)")
        try:
            cv2.namedWindow(self.title)
        except cv2.error as e:
            raise ValueError(
                "no window can be shown: this OpenCV was built without (opencv-python-headless). Replace "
                "it with opencv-python, or look at the files that are written"
            ) from e
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()

    def show(self, picture: np.ndarray) -> bool:
        """Show a picture, (H, W, 3) uint8 BGR; returns whether q was pressed."""
        cv2.imshow(self.title, picture)
        return cv2.waitKey(1) & 0xFF == ord("q")
