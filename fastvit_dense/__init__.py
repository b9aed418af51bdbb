"""FastViT for dense prediction on OpenMMLab: importing it registers the backbone ``FastViT``."""

from .compat.versions import require_suitable

require_suitable()

from .backbone.archs import ARCHS  # noqa: E402
from .backbone.fastvit import FastViT  # noqa: E402
from .backbone.reparameterize import reparameterize  # noqa: E402
from .compat import mmcv_ops  # noqa: E402
from .engine.models import guard_models  # noqa: E402
from .io.weights import allow_own_checkpoints  # noqa: E402

__version__ = "0.1.0"
__all__ = ["ARCHS", "FastViT", "__version__", "reparameterize"]

mmcv_ops.install()
allow_own_checkpoints()
guard_models()
