"""The backbones whose latency is compared: FastViT, fused or not, and timm's models by name."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from .backbone import ARCHS, STRIDES, FastViT
from .depthwise import split_patch_embeddings
from .random_statistics import randomise_statistics
from .reparam import reparameterize

TIMM_PREFIX = "timm:"


class Contestant(NamedTuple):
    """A backbone that is measured.

    Attributes:
        name: as tables show it.
        original: the model as it was trained, whose maps count; eval mode, float32, on the CPU.
        model: the same function, fused: what is run.
        backends: the only backends it is measured in, with float32; None means those asked for.
    """

    name: str
    original: nn.Module
    model: nn.Module
    backends: tuple[str, ...] | None = None


def ours(arch: str, *, variants: bool = False) -> list[Contestant]:
    """FastViT with random weights: fused, patch embeddings split into depthwise convolutions.

    Args:
        arch: a key of ``ARCHS``.
        variants: also as it was trained (measured in eager alone), and fused but not split.

    Raises:
        ValueError: there is no such variant.
    """
    if arch not in ARCHS:
        raise ValueError(f"--arch must be of {', '.join(ARCHS)}; got {arch}")
    model = randomise_statistics(FastViT(arch)).eval()
    fused = reparameterize(model)
    name = f"fastvit_{arch}"
    found = [Contestant(name, model, split_patch_embeddings(fused))]
    if variants:
        found.append(Contestant(f"{name}, not split", model, fused))
        found.append(Contestant(f"{name}, not fused", model, model, ("eager",)))
    return found


def peer(name: str) -> Contestant:
    """A backbone of timm with random weights, maps of strides 4 to 32.

    Train-time branches are fused by timm's function, and convolutions with the BatchNorm behind them
    where the model can be traced.

    Args:
        name: of timm. With the prefix ``timm:`` the model is measured the way timm's users run it:
            after ``timm.utils.reparameterize_model``, in eager, NCHW and float32, whatever is asked.

    Raises:
        ValueError: timm has no such model, or it gives no feature maps.
    """
    import timm

    timm_name = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(timm_name):
        near = ", ".join(timm.list_models(f"*{timm_name.split('_')[0]}*")[:8])
        raise ValueError(
            f"--against expects names of timm's models, got {name!r}"
            + (f"; near it are {near}" if near else "; timm.list_models() lists them")
        )
    try:
        probe = timm.create_model(timm_name, features_only=True)
        strides = probe.feature_info.reduction()
        indices = [i for i, stride in enumerate(strides) if stride in STRIDES]
        original = timm.create_model(timm_name, features_only=True, out_indices=indices)
    except (RuntimeError, AttributeError) as e:
        raise ValueError(
            f"{timm_name} gives no feature maps in timm ({e}): only a backbone that does can be compared"
        ) from e
    original = randomise_statistics(original).eval()
    as_users_do = name.startswith(TIMM_PREFIX)
    model = timm.utils.reparameterize_model(original).eval()
    if not as_users_do:
        model = _fuse_conv_bn(model)
    label = f"timm's {name}" if name.startswith("fastvit") else name  # beside ours of that name
    return Contestant(label, original, model, ("eager-nchw",) if as_users_do else None)


def line_up(
    archs: Sequence[str], peers: Sequence[str], *, unfused: bool = False
) -> list[Contestant]:
    """All contestants, FastViT first.

    Args:
        archs: keys of ``ARCHS``.
        peers: names for :func:`peer`.
        unfused: measure FastViT as it was trained, too, and fused without the last step.

    Raises:
        ValueError: a name does not exist.
    """
    found = [contestant for arch in archs for contestant in ours(arch, variants=unfused)]
    return found + [peer(name) for name in peers]


def _fuse_conv_bn(model: nn.Module) -> nn.Module:
    """Convolutions with their BatchNorm folded in, as all runtimes do by themselves; else as it is."""
    from torch.fx.experimental.optimization import fuse

    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return model
    trace: Callable[..., Any] = fuse
    try:
        return trace(copy.deepcopy(model)).eval()
    except Exception:  # whatever tracing meets in other people's models
        return model
