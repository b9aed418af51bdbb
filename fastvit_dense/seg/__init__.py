"""Segmentation: mmseg's datasets with checks, pictures, tiles.

Importing it registers what configs/seg name.
"""

from ..compat.transforms import CheckImage
from . import datasets, tiled, visualization

__all__ = ["CheckImage", "datasets", "tiled", "visualization"]
