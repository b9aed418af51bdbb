"""Images, folders, videos and webcams, in and out; image files checked without being decoded."""

from __future__ import annotations

import math
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from .files import why_unwritable

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


class Frames(ABC):
    """Named images of one input, to be iterated over once, in a ``with`` statement.

    Yields (name, image): the file's name, or for videos and webcams a stem and the number of the
    frame, from 0; the image is (H, W, 3) uint8 BGR.

    Attributes:
        source: what the user named.
        kind: images, video or webcam.
        total: number of images; of a video what its header says, which may be an estimate; None where
            it is unknown.
        fps: frames a second of a video or webcam, None where it is unknown.
        files: the files that are read.
        stem: name for what is made of all of it, without a suffix.
    """

    def __init__(
        self,
        source: str,
        kind: Literal["images", "video", "webcam"],
        *,
        files: Sequence[Path] = (),
        stem: str = "",
        total: int | None = None,
        fps: float | None = None,
    ) -> None:
        self.source, self.kind = source, kind
        self.files, self.stem, self.total, self.fps = tuple(files), stem, total, fps

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, image)."""

    def close(self) -> None:  # noqa: B027  (files of images are not held open)
        """Let go of the camera or file."""

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ImageFrames(Frames):
    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for file in self.files:
            yield file.name, read_image(file)


class _StreamFrames(Frames):
    """Frames of a cv2.VideoCapture, the first of which has been read to see whether there are any."""

    def __init__(self, capture: cv2.VideoCapture, first: np.ndarray, **kwargs: object) -> None:
        fps = capture.get(cv2.CAP_PROP_FPS)
        total = capture.get(cv2.CAP_PROP_FRAME_COUNT) if kwargs["kind"] == "video" else 0
        super().__init__(
            fps=fps if math.isfinite(fps) and fps > 0 else None,
            total=int(total) if math.isfinite(total) and total > 0 else None,
            **kwargs,  # type: ignore[arg-type]
        )
        self._capture, self._first = capture, first

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        frame: np.ndarray | None = self._first
        number = 0
        while frame is not None:
            yield f"{self.stem}_{number:06d}", frame
            number += 1
            frame = _next_frame(self._capture)

    def close(self) -> None:
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
        FileNotFoundError: there is no such file or folder.
        ValueError: a folder without images; a file, also one in a folder and then while iterating, that
            cannot be read; a video without a frame; a camera that cannot be opened.
    """
    source = str(source)
    webcam = _WEBCAM.fullmatch(source)
    if webcam:
        return _open_webcam(source, webcam["index"])
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if _is_image_name(f) and f.is_file())
        if not files:
            raise ValueError(
                f"folder {source} holds no images: expected files ending in "
                f"{', '.join(IMAGE_SUFFIXES)} (folders in it are not searched)"
            )
        return _ImageFrames(source, "images", files=files, stem=path.name, total=len(files))
    if not path.exists():
        raise FileNotFoundError(
            f"{source} does not exist: expected an image, a folder of images, a video, or webcam"
        )
    if _is_image_name(path):
        read_image(path)  # to fail before a model is loaded
        return _ImageFrames(source, "images", files=[path], stem=path.stem, total=1)
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise ValueError(
            f"{source} is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video that OpenCV can "
            "read; ffmpeg may convert it: ffmpeg -i INPUT OUTPUT.mp4"
        )
    first = _next_frame(capture)
    if first is None:
        capture.release()
        raise ValueError(
            f"video {source} opens but gives no frame: is it damaged or without images?"
        )
    return _StreamFrames(capture, first, source=source, kind="video", files=[path], stem=path.stem)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file.

    Args:
        path: the file.

    Returns:
        (H, W, 3) uint8 BGR, turned as its EXIF orientation says.

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error as error:
        reason = too_large_for_opencv(Path(path).read_bytes()) or f"OpenCV: {error}"
        raise ValueError(f"{path} cannot be read: {reason.strip()}") from error
    if image is None:
        size = os.path.getsize(path)
        raise ValueError(
            f"{path} ({size} bytes) is not an image that OpenCV can read: "
            + ("it may be damaged or named wrongly" if size else "it is empty")
        )
    return image


class FrameWriter:
    """Writes the pictures made of :class:`Frames` into a folder, in a ``with`` statement.

    Images keep their names and JPEG its format; the others become PNG. (Two that would get one name,
    as a.png and a.bmp do, keep their suffix before the new one.) A video or webcam becomes one .mp4
    with the frame rate of its source, 30 where that is unknown; the format takes even sizes, so an odd
    last row or column is left out. Files of an earlier run are replaced.

    A file gets its name when it is complete: an exception in the ``with`` block, or the end of the
    process, leaves no video but ``NAME.unfinished.mp4`` at most.

    Args:
        out: the folder; made if it does not exist.
        frames: where the pictures come from.

    Attributes:
        paths: the files written so far; a video is in it once it is complete.

    Raises:
        ValueError: `out` cannot be written; an input would be overwritten.
    """

    def __init__(self, out: str | Path, frames: Frames) -> None:
        self.folder, self.paths = Path(out), list[Path]()
        if why := why_unwritable(out):
            raise ValueError(f"{out} {why}; expected a folder to write to")
        self._fps = frames.fps or _UNKNOWN_FPS
        self._is_video = frames.kind != "images"
        self._names = _output_names(frames.files)
        self._video = self.folder / f"{frames.stem}.mp4"
        self._aside = self.folder / f"{frames.stem}.unfinished.mp4"
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] | None = None
        made = [self._video, self._aside] if self._is_video else self._target_paths()
        for path in made:
            if any(path.exists() and os.path.samefile(path, file) for file in frames.files):
                raise ValueError(
                    f"{path} would overwrite the input: choose another folder for results"
                )

    def write(self, name: str, image: np.ndarray) -> None:
        """Write the picture of one frame.

        Args:
            name: as the frames gave it.
            image: (H, W, 3) uint8 BGR; of one size for all frames of a video.

        Raises:
            ValueError: a frame of a video is of another size than those before it.
            OSError: a file cannot be written.
        """
        if self._is_video:
            self._write_frame(name, image)
            return
        path = self.folder / self._names[name]
        done, content = cv2.imencode(path.suffix, image)
        if not done:
            raise OSError(f"{path}: OpenCV cannot encode an image of shape {image.shape}")
        aside = path.with_suffix(".unfinished")
        aside.write_bytes(content.tobytes())
        aside.replace(path)
        self.paths.append(path)

    def __enter__(self) -> FrameWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if error is not None:
            self._aside.unlink(missing_ok=True)
            return
        # release() does not tell; on a full disk there is no index of frames, and no reader.
        written = cv2.VideoCapture(str(self._aside))
        readable = written.isOpened()
        written.release()
        if not readable:
            raise OSError(f"{self._aside} could not be completed: is the disk full?")
        self._aside.replace(self._video)
        self.paths.append(self._video)

    def _write_frame(self, name: str, image: np.ndarray) -> None:
        size = image.shape[1], image.shape[0]
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._aside), codec, self._fps, size)
            self._size = size
            if not self._writer.isOpened():
                self._writer = None
                raise OSError(
                    f"{self._aside} cannot be opened for writing video (codec mp4v, "
                    f"{size[0]}x{size[1]}, {self._fps:g} frames a second): is the folder writable, "
                    "and was this OpenCV built with ffmpeg? Those of pip are."
                )
        if size != self._size:  # OpenCV leaves out such frames in silence
            assert self._size is not None
            raise ValueError(
                f"{name} makes a picture of {size[0]}x{size[1]} pixels (width x height), those before "
                f"it were {self._size[0]}x{self._size[1]}: frames of a video must be of one size"
            )
        self._writer.write(image)

    def _target_paths(self) -> list[Path]:
        return [self.folder / name for name in self._names.values()]


def _open_webcam(source: str, index: str | None) -> Frames:
    if index is not None and not index.isdecimal():
        raise ValueError(f"{source}: expected webcam or webcam:NUMBER, such as webcam:1")
    capture = cv2.VideoCapture(int(index or 0))
    first = _next_frame(capture) if capture.isOpened() else None
    if first is None:
        capture.release()
        raise ValueError(
            f"{source}: camera {int(index or 0)} cannot be opened or gives no image. Is one connected, "
            "not in use by another program, and readable for this user? Others: webcam:1, webcam:2"
        )
    return _StreamFrames(
        capture, first, source=source, kind="webcam", stem=source.replace(":", "_")
    )


def _next_frame(capture: cv2.VideoCapture) -> np.ndarray | None:
    there, frame = capture.read()
    if not there or frame is None:
        return None
    return cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR) if frame.ndim == 2 else frame


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _output_names(files: Sequence[Path]) -> dict[str, str]:
    names: dict[str, str] = {}
    for file in files:
        suffix = ".jpg" if file.suffix.lower() in (".jpg", ".jpeg") else ".png"
        name = file.stem + suffix
        # Compared without case, as file systems of macOS and Windows do.
        taken = {n.lower() for n in names.values()}
        names[file.name] = name if name.lower() not in taken else file.name + suffix
    return names


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
