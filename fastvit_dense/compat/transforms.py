"""Checks of images as they are loaded, for detection and segmentation alike."""

from __future__ import annotations

import cv2
import mmcv
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.registry import TRANSFORMS

from ..io.media import is_truncated_jpeg, too_large_for_opencv


def why_unreadable(path: str, *, error: Exception) -> str:
    """Why an image could not be loaded: what is seen from its file, or else the error."""
    content = fileio.get(path)
    if not content:
        return "the file is empty"
    if is_truncated_jpeg(content):
        return f"it is a truncated JPEG of {len(content)} bytes; get it again"
    reason = too_large_for_opencv(content) if isinstance(error, cv2.error) else ""
    return reason or f"{type(error).__name__}: {error}"


@TRANSFORMS.register_module()
class CheckImage(BaseTransform):
    """Compare the image just loaded with its file and its annotation; goes after LoadImageFromFile.

    - A truncated JPEG is an error. (OpenCV 4 fills what is missing with grey, and so does
      OpenCV 5 if a download left zeros in its place.)
    - If height and width are swapped against the annotation file, and the file has an EXIF
      orientation, the annotations were made on the stored pixels: the image is loaded again
      without rotating it. (Mirrored and upside-down images keep their size: they cannot be told.)
    - Any other difference in size is an error: boxes would miss their objects.

    Reads `img` and, if present, `img_path`, `height` and `width`; an image that came as an array
    passes. May change `img`, `img_shape` and `ori_shape`.

    Args:
        backend_args: As of LoadImageFromFile.
    """

    def __init__(self, *, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        path = results.get("img_path")
        if not path:
            return results
        content = fileio.get(path, backend_args=self.backend_args)
        if is_truncated_jpeg(content):
            raise ValueError(
                f"{path} is a truncated JPEG ({len(content)} bytes, no end-of-image marker): get "
                "it again, or take it out of the annotation file"
            )
        wanted = results.get("height"), results.get("width")
        if None in wanted or wanted == results["img"].shape[:2]:
            return results
        found = results["img"].shape[:2]
        if wanted == found[::-1]:
            colour = "color" if results["img"].ndim == 3 else "grayscale"
            stored = mmcv.imfrombytes(content, flag=f"{colour}_ignore_orientation", backend="cv2")
            if stored.shape[:2] == wanted:
                results["img"] = stored.astype(results["img"].dtype)
                results["img_shape"] = results["ori_shape"] = wanted
                return results
        raise ValueError(
            f"{path} is {found[1]}x{found[0]} pixels (width x height), its annotation says "
            f"{wanted[1]}x{wanted[0]}: boxes would not fit. Is it the image that was annotated?"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(backend_args={self.backend_args})"
