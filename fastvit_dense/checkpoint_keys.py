"""The keys of published FastViT weights, rewritten to those of :class:`fastvit_dense.FastViT`.

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

import torch
from torch import Tensor, nn

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
    from .backbone import ARCHS  # here, since backbone.py needs this module to be whole

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
