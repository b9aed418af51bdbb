"""Latency of fused backbones in several runtimes: FastViT, and baselines, timm's models by name."""

import copy
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..backbone.archs import ARCHS, STRIDES
from ..backbone.fastvit import FastViT
from ..backbone.reparameterize import reparameterize, split_patch_embeddings
from ..deploy.compare import randomise_statistics
from ..deploy.runtimes import Setting, configure, prepare
from ..engine.models import count_macs, count_parameters
from .timing import Candidate, Row, check

TIMM_PREFIX = "timm:"
_BatchNorm = nn.modules.batchnorm._BatchNorm


class Backbone(NamedTuple):
    """A backbone to measure.

    Attributes:
        name: as tables show it.
        original: the model as it was trained, whose maps count; eval mode, float32, on the CPU.
        model: the same function, fused: what is run.
        backend: the only one it is measured in, with float32; None means those asked for.
    """

    name: str
    original: nn.Module
    model: nn.Module
    backend: str | None = None


def backbones(
    archs: Sequence[str], against: Sequence[str] = (), *, unfused: bool = False
) -> list[Backbone]:
    """FastViT with random weights, fused, patch embeddings split; then the baselines.

    Args:
        archs: keys of ``ARCHS``.
        against: names for :func:`baseline`.
        unfused: FastViT also fused but not split, and as it was trained (in eager alone).

    Raises:
        ValueError: no name is given, or one does not exist.
    """
    found = []
    for arch in archs:
        model = randomise_statistics(FastViT(check_arch(arch))).eval()
        fused = reparameterize(model)
        name = f"fastvit_{arch}"
        found.append(Backbone(name, model, split_patch_embeddings(fused)))
        if unfused:
            found.append(Backbone(f"{name}, not split", model, fused))
            found.append(Backbone(f"{name}, not fused", model, model, "eager"))
    found += [baseline(name) for name in against]
    if not found:
        raise ValueError("expected at least one model, by --arch or --against; got none")
    return found


def check_arch(arch: str) -> str:
    """The same name; a ValueError if the variant does not exist."""
    if arch not in ARCHS:
        raise ValueError(f"--arch must be of {', '.join(ARCHS)}; got {arch}")
    return arch


def candidates(
    models: Sequence[Backbone], settings: Sequence[Setting], *, batch: int, shape: tuple[int, int]
) -> list[Candidate]:
    """Bring models into runtimes and compare their maps with those before fusion.

    Args:
        models: of :func:`backbones`.
        settings: what each is run in; all on one device.
        batch: images per pass.
        shape: height and width of the random images in pixels.
    """
    configure(settings[0].device)
    image = torch.rand(batch, 3, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    found = []
    for name, original, model, backend in models:
        with torch.inference_mode():
            expected = list(original(image))
        macs = count_macs(model, (batch, 3, *shape))
        figures = dict(parameters=count_parameters(model), macs=macs)
        only = backend and [settings[0]._replace(backend=backend, dtype="float32")]
        for setting in only or settings:
            row = Row(name, setting.backend, setting.dtype, batch, figures)
            found.append(check(row, partial(prepare, model, image, setting), expected))
    return found


def baseline(name: str) -> Backbone:
    """A backbone of timm with random weights, maps of strides 4 to 32, fused.

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
        raise ValueError(
            f"--against expects names of timm's models, got {name!r}; near it are "
            f"{', '.join(get_close_matches(timm_name, timm.list_models())) or 'none'}"
        )
    try:
        strides = timm.create_model(timm_name, features_only=True).feature_info.reduction()
        indices = [i for i, stride in enumerate(strides) if stride in STRIDES]
        original = timm.create_model(timm_name, features_only=True, out_indices=indices)
    except (RuntimeError, AttributeError) as e:
        raise ValueError(
            f"{name} gives no feature maps in timm ({e}): leave it out of --against"
        ) from e
    original = randomise_statistics(original).eval()
    as_users_do = name.startswith(TIMM_PREFIX)
    try:
        model = timm.utils.reparameterize_model(original).eval()
        if not as_users_do:
            model = _fold_batch_norms(model)
    except Exception as e:  # whatever fusing and tracing meet in other people's models
        hint = "" if as_users_do else f", or name it {TIMM_PREFIX}{name}: as timm's users run it"
        raise ValueError(
            f"baseline {name} cannot be fused ({type(e).__name__}: {e}), and a comparison with it unfused "
            f"would flatter FastViT: leave it out of --against{hint}"
        ) from e
    label = f"timm's {name}" if name.startswith("fastvit") else name  # beside ours of that name
    return Backbone(label, original, model, "eager-nchw" if as_users_do else None)


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
                norm.load_state_dict(child.state_dict(), strict=False)
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

    def is_a(node: Any, module: type[nn.Module], *functions: Any) -> bool:
        if node.op == "call_module":
            return isinstance(modules[node.target], module)
        return node.target in functions

    def is_norm(node: fx.Node) -> bool:
        return is_a(node, _BatchNorm, F.batch_norm, torch.batch_norm)

    def is_conv(node: fx.Node) -> bool:
        return is_a(node, nn.Conv2d, F.conv2d, torch.conv2d)

    def terms(node: fx.Node) -> Iterable[fx.Node]:
        if is_a(node, nn.Identity, operator.add, operator.iadd, torch.add, "add", "add_"):
            return chain.from_iterable(map(terms, node.all_input_nodes))
        return [node]

    for node in model.graph.nodes:
        inputs = node.all_input_nodes
        if is_norm(node) and is_conv(inputs[0]) and len(inputs[0].users) == 1:
            yield f"the BatchNorm {node.name} after the convolution {inputs[0].name}"
        read = Counter(t.all_input_nodes[0] for t in terms(node) if is_norm(t) or is_conv(t))
        if len(inputs) > 1 and read and max(read.values()) > 1:
            yield f"the branches that {node.name} adds up"
