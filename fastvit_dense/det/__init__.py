"""Detection on COCO: mmdet's dataset with checks. Importing it registers what configs/det name."""

from ..compat.transforms import CheckImage
from .coco import CheckedCocoDataset

__all__ = ["CheckImage", "CheckedCocoDataset"]
