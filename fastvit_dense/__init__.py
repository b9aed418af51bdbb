"""FastViT for dense prediction on OpenMMLab: importing it registers the backbone ``FastViT``."""

from .versions import require_suitable

require_suitable()

from . import mmcv_ops  # noqa: E402
from .backbone import ARCHS, FastViT  # noqa: E402
from .reparam import reparameterize  # noqa: E402
from .strict_loading import guard_models  # noqa: E402
from .weights import allow_own_checkpoints  # noqa: E402

__version__ = "0.1.0"
__all__ = ["ARCHS", "FastViT", "__version__", "reparameterize"]

mmcv_ops.install()
allow_own_checkpoints()
guard_models()
