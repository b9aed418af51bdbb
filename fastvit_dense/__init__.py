"""FastViT for dense prediction on OpenMMLab: importing it registers the backbone ``FastViT``."""

from . import mmcv_ops
from .backbone import ARCHS, FastViT
from .reparam import reparameterize
from .strict_loading import guard_models
from .weights import allow_own_checkpoints

__version__ = "0.1.0"
__all__ = ["ARCHS", "FastViT", "__version__", "reparameterize"]

mmcv_ops.install()
allow_own_checkpoints()
guard_models()
