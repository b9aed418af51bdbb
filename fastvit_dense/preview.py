"""A window that shows pictures while they are made."""

from __future__ import annotations

import os
import sys

import cv2
import numpy as np


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
