"""The backbones whose latency is compared: FastViT, fused or not, and baselines, timm's models by name."""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..backbone.archs import ARCHS, STRIDES
from ..backbone.fastvit import FastViT
from ..backbone.reparameterize import reparameterize, split_patch_embeddings
from ..deploy.compare import randomise_statistics

TIMM_PREFIX = "timm:"
_BatchNorm = nn.modules.batchnorm._BatchNorm


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
    """A baseline: a backbone of timm with random weights, maps of strides 4 to 32, fused.

    Train-time branches are fused by timm's function, then each BatchNorm after a convolution is folded
    into it. What has neither, such as PoolFormer and ConvNeXt, is measured as it is.

    Args:
        name: of timm. With the prefix ``timm:`` the model is measured the way timm's users run it:
            after ``timm.utils.reparameterize_model``, in eager, NCHW and float32, whatever is asked.

    Raises:
        ValueError: timm has no such model, it gives no feature maps, or it cannot be fused.
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
    try:
        model = timm.utils.reparameterize_model(original).eval()
        if not as_users_do:
            model = _fold_batch_norms(model)
    except Exception as e:  # whatever fusing and tracing meet in other people's models
        cure = (
            ""
            if as_users_do
            else f", or name it {TIMM_PREFIX}{name}: as timm's users run it, not folded"
        )
        raise ValueError(
            f"baseline {name} cannot be fused ({type(e).__name__}: {e}), and a comparison with it unfused "
            f"would flatter FastViT: leave it out of --against{cure}"
        ) from e
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


def _fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold each BatchNorm after a convolution into it.

    Raises:
        ValueError: that leaves such a BatchNorm, or branches that one convolution could stand for.
        Exception: whatever tracing meets.
    """
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return model  # nothing to fold: train-time branches have BatchNorms, too
    from timm.layers import BatchNormAct2d
    from torch.fx.experimental.optimization import fuse

    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNormAct2d):  # torch.fx knows nn.BatchNorm2d alone
                norm = nn.BatchNorm2d(child.num_features, child.eps).eval()
                for key in ("weight", "bias", "running_mean", "running_var"):
                    setattr(norm, key, getattr(child, key))
                setattr(parent, name, nn.Sequential(norm, child.drop, child.act))
    fused: Any = fuse(model, inplace=True)  # a fx.GraphModule
    if left := list(_left_to_fuse(fused)):
        raise ValueError(f"{len(left)} places are left to fuse, the first is {left[0]}")
    return fused.eval()


def _left_to_fuse(model: fx.GraphModule) -> Iterator[str]:
    """A line for each BatchNorm that alone reads a convolution, and each sum of two convolutions (or of
    a convolution and a BatchNorm) of the same map.
    """
    modules = dict(model.named_modules())

    def is_a(node: Any, kind: type[nn.Module], functions: tuple[Callable[..., Any], ...]) -> bool:
        if node.op == "call_module":
            return isinstance(modules[node.target], kind)
        return node.op == "call_function" and node.target in functions

    def is_norm(node: fx.Node) -> bool:
        return is_a(node, _BatchNorm, (F.batch_norm, torch.batch_norm))

    def is_conv(node: fx.Node) -> bool:
        return is_a(node, nn.Conv2d, (F.conv2d, torch.conv2d))

    def terms(node: fx.Node) -> Iterator[fx.Node]:
        adds = node.target in (operator.add, operator.iadd, torch.add, "add", "add_")
        if adds or is_a(node, nn.Identity, ()):
            for operand in node.all_input_nodes:
                yield from terms(operand)
        else:
            yield node

    for node in model.graph.nodes:
        inputs = node.all_input_nodes
        if is_norm(node) and is_conv(inputs[0]) and len(inputs[0].users) == 1:
            yield f"the BatchNorm {node.name} after the convolution {inputs[0].name}"
        read = Counter(t.all_input_nodes[0] for t in terms(node) if is_norm(t) or is_conv(t))
        if len(inputs) > 1 and read and max(read.values()) > 1:
            yield f"the branches that {node.name} adds up"
