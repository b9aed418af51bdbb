"""Hand meshes from single photographs: MANO regression on FreiHAND (paper section 4.3, appendix B.5).

Importing it registers what configs/hand name, with mmengine alone: no mmcv, mmdet or mmseg.

Lengths are in metres. The camera frame has x to the right, y down and z forward. Pixels are OpenCV's:
whole numbers are the centres of pixels.
"""

from .freihand import FreiHAND
from .mano import get_mano
from .mano.arrays import Mano
from .mano.layer import ManoLayer
from .metric import FreiHANDMetric
from .model import HandLoss, HandMeshModel, HandPrediction, ManoHead
from .predictor import HandPredictor, HandResult
from .transforms import (
    ColorNoise,
    HandCrop,
    HandTTAModel,
    HandViews,
    LoadHandImage,
    PackHandInputs,
    RandomHandCrop,
)
from .visualization import HandPicturesHook

__all__ = [
    "ColorNoise", "FreiHAND", "FreiHANDMetric", "HandCrop", "HandLoss", "HandMeshModel",
    "HandPicturesHook", "HandPrediction", "HandPredictor", "HandResult", "HandTTAModel", "HandViews",
    "LoadHandImage", "Mano", "ManoHead", "ManoLayer", "PackHandInputs", "RandomHandCrop", "get_mano",
]  # fmt: skip
