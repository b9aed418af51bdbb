"""Hand meshes from single photographs: MANO regression on FreiHAND (paper section 4.3, appendix B.5).

Importing it registers what configs/hand name, with mmengine alone: no mmcv, mmdet or mmseg.

Lengths are in metres. The camera frame has x to the right, y down and z forward. Pixels are OpenCV's:
whole numbers are the centres of pixels.
"""

from .dataset import FreiHAND
from .freihand_metric import FreiHANDMetric
from .head import HandPrediction, ManoHead
from .losses import HandLoss
from .mano import ManoLayer
from .mano_file import Mano, get_mano
from .model import HandMeshModel
from .predictor import HandPredictor, HandResult
from .transforms import ColorNoise, HandCrop, LoadHandImage, PackHandInputs, RandomHandCrop
from .tta import HandTTAModel, HandViews
from .visualization_hook import HandPicturesHook

__all__ = [
    "ColorNoise", "FreiHAND", "FreiHANDMetric", "HandCrop", "HandLoss", "HandMeshModel",
    "HandPicturesHook", "HandPrediction", "HandPredictor", "HandResult", "HandTTAModel", "HandViews",
    "LoadHandImage", "Mano", "ManoHead", "ManoLayer", "PackHandInputs", "RandomHandCrop", "get_mano",
]  # fmt: skip
