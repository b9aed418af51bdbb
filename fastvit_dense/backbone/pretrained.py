"""Weights from Apple, timm and this project into the backbone: their keys rewritten, strict, audited.

=================  ==================================  =====================================
family             a key of it                         here
=================  ==================================  =====================================
fastvit_dense      ``stages.1.blocks.0.mlp.fc1.weight``    the same
timm               ``stages.1.blocks.0.mlp.fc1.weight``    the same; classifier left out
timm features      ``stages_1.blocks.0.mlp.fc1.weight``    ``stages_1`` -> ``stages.1``
apple              ``network.2.0.convffn.fc1.weight``      renamed; classifier left out
=================  ==================================  =====================================
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from ..io.weights import read_content

StateDict = dict[str, Tensor]
CLASSIFIER = ("final_conv.", "conv_exp.", "head.", "head_dist.", "dist_head.")
_APPLE_NAMES = (
    ("patch_embed.", "stem."),
    ("rbr_conv.", "conv_kxk."),
    ("rbr_scale.", "conv_scale."),
    ("rbr_skip.", "identity."),
    ("lkb_origin.", "large_conv."),
    ("lkb_reparam.", "reparam_conv."),
    ("convffn.", "mlp."),
)


def to_backbone_keys(state_dict: StateDict) -> tuple[str, StateDict]:
    """Rename the keys of one classifier or backbone, prefix already removed.

    Args:
        state_dict: tensors by the names of any family in the table above.

    Returns:
        The family's name, and the same tensors by this project's names (the classifier's included).
    """
    keys = list(state_dict)
    if any(k.startswith("patch_embed.") for k in keys):
        family, rename = "apple", _apple_renamer(keys)
    elif any(k.startswith("stem_0.") for k in keys):
        family, rename = "timm features", lambda k: re.sub(r"^(stem|stages)_", r"\1.", k)
    elif any(k.startswith(CLASSIFIER) for k in keys):
        family, rename = "timm", lambda k: k
    else:
        family, rename = "fastvit_dense", lambda k: k
    converted = {rename(k): v for k, v in state_dict.items()}
    return (f"{family}, fused" if _is_fused(converted) else family), converted


def arch_of(given: StateDict) -> str | None:
    """The variant that tensors with this project's names are of, a key of ``ARCHS``; None for none."""
    from .archs import ARCHS  # here, since backbone.py needs this module to be whole

    seen = structure(given)
    for arch, spec in ARCHS.items():
        if seen == (spec.depths, spec.widths[0], spec.attention, spec.ffn_ratio):
            return arch
    return None


def structure(given: StateDict) -> tuple[tuple[int, ...], int, bool, int]:
    """Depths, first width, whether the last stage has attention, and the ratio of the FFNs."""
    depths = tuple(
        len({k.split(".")[3] for k in given if k.startswith(f"stages.{i}.blocks.")})
        for i in range(4)
    )
    width = next((v.shape[0] for k, v in given.items() if k.startswith("stem.0.")), 0)
    attention = any(k.startswith("stages.3.blocks.0.token_mixer.qkv") for k in given)
    hidden = next((v.shape[0] for k, v in given.items() if k.endswith("0.mlp.fc1.weight")), 0)
    return depths, width, attention, hidden // max(width, 1)


def finish_folds(state_dict: StateDict) -> StateDict:
    """Fold what Apple's and timm's own fusion leaves: FFN and attention norms, layer scales.

    A no-op on this project's fused checkpoints, which hold none of them.
    """
    out = dict(state_dict)

    def affine(bn: str) -> tuple[Tensor, Tensor]:
        """BatchNorm in eval mode as y = scale * x + shift; its tensors leave ``out``."""
        weight, bias, mean, var = (
            out.pop(f"{bn}.{name}") for name in ("weight", "bias", "running_mean", "running_var")
        )
        out.pop(f"{bn}.num_batches_tracked", None)
        scale = weight / torch.sqrt(var + nn.BatchNorm2d(1).eps)
        return scale, bias - scale * mean

    for key in state_dict:
        block, _, name = key.rpartition(".blocks.")
        number, _, name = name.partition(".")
        block = f"{block}.blocks.{number}"
        if name == "mlp.conv.bn.weight":
            scale, shift = affine(f"{block}.mlp.conv.bn")
            kernel = out.pop(f"{block}.mlp.conv.conv.weight")
            out[f"{block}.mlp.conv.weight"] = kernel * scale[:, None, None, None]
            out[f"{block}.mlp.conv.bias"] = shift
        elif name == "norm.weight":
            scale, shift = affine(f"{block}.norm")
            qkv = out[f"{block}.token_mixer.qkv.weight"]
            out[f"{block}.token_mixer.qkv.weight"] = qkv * scale
            out[f"{block}.token_mixer.qkv.bias"] = qkv @ shift
        elif name in ("layer_scale.gamma", "layer_scale_1.gamma", "layer_scale_2.gamma"):
            gamma = out.pop(key).flatten()
            last = f"{block}.token_mixer.proj" if "scale_1" in name else f"{block}.mlp.fc2"
            weight = out[f"{last}.weight"]
            out[f"{last}.weight"] = weight * gamma.reshape(-1, *[1] * (weight.dim() - 1))
            out[f"{last}.bias"] = out[f"{last}.bias"] * gamma
    return out


def _apple_renamer(keys: Iterable[str]) -> Callable[[str], str]:
    """Apple numbers stages, downsamplings and position encodings in one list, ``network``."""
    parts: dict[int, set[str]] = {}
    for key in keys:
        if m := re.match(r"network\.(\d+)\.(\w+)\.", key):
            parts.setdefault(int(m[1]), set()).add(m[2])
    names, stage = {}, 0
    for number, children in sorted(parts.items()):
        if "proj" in children:
            stage += 1
            names[number] = f"stages.{stage}.downsample"
        elif "pe" in children or "reparam_conv" in children:
            names[number] = f"stages.{stage}.pos_emb"
        else:
            names[number] = f"stages.{stage}.blocks"

    def rename(key: str) -> str:
        key = re.sub(r"^network\.(\d+)", lambda m: names[int(m[1])], key)
        key = key.replace(".pos_emb.pe.", ".pos_emb.pos_enc.")
        for apple, ours in _APPLE_NAMES:
            key = key.replace(apple, ours)
        return re.sub(r"(layer_scale(?:_\d)?)$", r"\1.gamma", key)

    return rename


def _is_fused(state_dict: Mapping[str, Tensor]) -> bool:
    return "stem.0.reparam_conv.weight" in state_dict


# The stem's first convolution, in whatever family and structure; what precedes it is the prefix.
_STEM = re.compile(
    r"^(?P<prefix>.*?)(?P<stem>stem\.0|stem_0|patch_embed\.0)\."
    r"(?P<conv>conv_kxk\.0\.conv|rbr_conv\.0\.conv|reparam_conv)\.weight$"
)


class LoadReport(NamedTuple):
    """What loading did, by the backbone's own key names except for ``left_out``.

    Attributes:
        family: fastvit_dense, timm, timm features or apple, with "fused" where it is.
        loaded: keys of the backbone that were filled.
        left_out: keys of the checkpoint that were passed over on purpose.
        new: keys of the backbone that the checkpoint does not have and need not have.
    """

    family: str
    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    new: tuple[str, ...]


class Recognised(NamedTuple):
    """A FastViT in a checkpoint.

    Attributes:
        family: as of LoadReport.
        arch: a key of ``ARCHS``; None where it is none of them.
        prefix: what its keys begin with, such as ``backbone.``; empty for a bare one.
    """

    family: str
    arch: str | None
    prefix: str


def recognise(content: Any, *, checkpoint: str) -> Recognised:
    """Say which FastViT a checkpoint holds, by its keys and shapes.

    Args:
        content: what the file holds.
        checkpoint: its name, for messages.

    Raises:
        ValueError: it holds no FastViT.
    """
    state_dict = _state_dict_of(content, checkpoint)
    prefix = _find_prefix(state_dict, None, checkpoint)
    inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    family, converted = to_backbone_keys(inside)
    return Recognised(family, arch_of(converted), prefix)


def is_pretrained_cfg(cfg: Any) -> bool:
    """Whether an ``init_cfg`` is one ``dict(type='Pretrained', checkpoint=...)``."""
    return isinstance(cfg, Mapping) and cfg.get("type") in ("Pretrained", PretrainedInit)


def load_pretrained(
    model: nn.Module, checkpoint: str, *, prefix: str | None = None, map_location: str = "cpu"
) -> LoadReport:
    """Load a published or own checkpoint into a FastViT backbone.

    Left out on purpose are the classifier, the stages and norms that the backbone does not have, and
    modules beside the backbone. New, and allowed to be missing, are the output norms. Anything else
    that is missing, unexpected, of another shape or not finite is an error, and the backbone is then
    unchanged.

    Args:
        model: a :class:`fastvit_dense.FastViT`.
        checkpoint: a path, a URL, or ``timm://MODEL.TAG``.
        prefix: the backbone's prefix in the checkpoint, such as ``backbone.``; None finds it.
        map_location: as in :func:`torch.load`.

    Returns:
        What was loaded, left out and new; also logged.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: there is no network and no cached copy.
        ValueError: the checkpoint cannot be read, or does not fit; the message names keys and the likely
            cause.
    """
    state_dict = _state_dict_of(read_content(checkpoint, map_location=map_location), checkpoint)
    state_dict, beside = _without_prefix(state_dict, prefix, checkpoint)
    family, converted = to_backbone_keys(state_dict)
    expected = model.state_dict()
    fused = "fused" in family
    if fused and model.deploy:
        converted = finish_folds(converted)

    left_out = [k for k in converted if k.startswith(CLASSIFIER)]
    left_out += [
        k
        for k in converted
        if (m := re.match(r"(?:stages\.|norm)(\d)\.", k))
        and not any(e.startswith(m.group()) for e in expected)
    ]
    left = set(left_out)
    given = {k: v for k, v in converted.items() if k not in left}
    new = [k for k in expected if k not in given and _may_be_new(k)]
    missing = [k for k in expected if k not in given and not _may_be_new(k)]
    unexpected = [k for k in given if k not in expected]
    misshapen = [
        f"{k}: {tuple(v.shape)} in the checkpoint, {tuple(expected[k].shape)} in the model"
        for k, v in given.items()
        if k in expected and v.shape != expected[k].shape
    ]
    bad = [k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()]
    problems = [
        f"{len(keys)} {what}, such as {'; '.join(keys[:3])}"
        for what, keys in (
            ("tensors missing", missing),
            ("tensors unexpected", unexpected),
            ("tensors of another shape", misshapen),
            ("tensors with NaN or infinity", bad),
        )
        if keys
    ]
    if problems:
        cause = _likely_cause(model, converted, fused)
        raise ValueError(
            f"{checkpoint} ({family}) does not fit FastViT-{str(model.arch).upper()}: "
            + ". ".join(problems)
            + f". Likely cause: {cause}"
        )

    model.load_state_dict(given, strict=False)
    report = LoadReport(family, tuple(given), tuple(left_out) + tuple(beside), tuple(new))
    print_log(
        f"FastViT-{str(model.arch).upper()} from {checkpoint} ({family}): {len(given)} of {len(expected)} "
        f"tensors loaded; left out on purpose: {_summary(report.left_out)}; "
        f"new, to be trained: {_summary(report.new)}",
        logger="current",
    )
    return report


def refuse_wrong_structure(state_dict: Mapping[str, Tensor], prefix: str, *, deploy: bool) -> None:
    """Raise where a state dict holds this backbone in the other structure, fused or unfused.

    Args:
        state_dict: what is about to be loaded, possibly a whole detector.
        prefix: the backbone's prefix in it.
        deploy: whether the backbone at hand is fused.

    Raises:
        ValueError: the structures differ; the message has the cure.
    """
    stem = f"{prefix}stem.0."
    fused, unfused = f"{stem}reparam_conv.weight", f"{stem}conv_kxk.0.conv.weight"
    if fused in state_dict and not deploy:
        raise ValueError(
            f"the checkpoint holds a fused backbone ({fused}), the model is unfused. Set deploy=True "
            "to run a bare backbone; for a whole model use the config that tools/reparameterize.py wrote "
            "beside it (X.py for X.pth). To train on, load the unfused checkpoint."
        )
    if unfused in state_dict and deploy:
        raise ValueError(
            f"the checkpoint holds an unfused backbone ({unfused}), the model was built with "
            "deploy=True. Build it with deploy=False, as the config does that it was trained with, or fuse "
            "the checkpoint with tools/reparameterize.py."
        )


def _state_dict_of(content: Any, checkpoint: str) -> StateDict:
    for name in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"{checkpoint} holds no state dict: expected named tensors, bare or under 'state_dict' or "
            f"'model'; got {type(content).__name__}"
            + (f" with {list(content)[:5]}" if isinstance(content, Mapping) else "")
        )
    return {k.removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}


def _without_prefix(
    state_dict: StateDict, prefix: str | None, checkpoint: str
) -> tuple[StateDict, list[str]]:
    """Split into the backbone's tensors, prefix removed, and the names of all others."""
    prefix = _find_prefix(state_dict, prefix, checkpoint)
    inside = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    return inside, [k for k in state_dict if not k.startswith(prefix)]


def _find_prefix(state_dict: StateDict, prefix: str | None, checkpoint: str) -> str:
    found = [m["prefix"] for k in state_dict if (m := _STEM.match(k))]
    if not found:
        raise ValueError(
            f"{checkpoint} holds no FastViT: expected a key such as stem.0.conv_kxk.0.conv.weight "
            f"(timm, fastvit_dense) or patch_embed.0.rbr_conv.0.conv.weight (Apple); its "
            f"{len(state_dict)} keys begin with {', '.join(list(state_dict)[:3])}"
        )
    if prefix is None:
        # A trained model may hold the backbone twice, the second time as an average of weights.
        prefix = min(found, key=lambda p: (p != "backbone.", len(p)))
    elif prefix not in found:
        raise ValueError(
            f"{checkpoint} holds no FastViT under the prefix {prefix!r}; it has one under "
            + " and ".join(repr(p) for p in found)
        )
    return prefix


def _may_be_new(key: str) -> bool:
    return re.match(r"norm\d\.", key) is not None or key.endswith("num_batches_tracked")


def _likely_cause(model: nn.Module, given: StateDict, fused: bool) -> str:
    if fused and not model.deploy:
        return (
            "the checkpoint is fused and cannot be trained or loaded into the train-time structure; "
            "use the unfused checkpoint, or deploy=True for inference."
        )
    if not fused and model.deploy:
        return (
            "the checkpoint is unfused and the model was built with deploy=True; use deploy=False."
        )
    arch = arch_of(given)
    if arch is None:
        depths, width, *_ = structure(given)
        return (
            f"the checkpoint has depths {depths} and a first width of {width}, "
            "which is none of this project's variants."
        )
    if arch == model.arch:
        return (
            "the arch is the same, so the file is damaged or was changed by hand, or "
            "in_channels differs."
        )
    return f"the checkpoint is a FastViT-{arch.upper()}; set arch={arch!r} or its file."


def _summary(keys: tuple[str, ...]) -> str:
    groups = sorted({k.split(".")[0] for k in keys})
    return f"{len(keys)} ({', '.join(groups)})" if keys else "none"
