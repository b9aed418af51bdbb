"""Weights from Apple, timm and this project into the backbone: their keys renamed, strict, audited.

=================  ==================================  =====================================
format             a key of it                         here
=================  ==================================  =====================================
fastvit_dense      ``stages.1.blocks.0.mlp.fc1.weight``    the same
timm               ``stages.1.blocks.0.mlp.fc1.weight``    the same; classifier left out
timm features      ``stages_1.blocks.0.mlp.fc1.weight``    ``stages_1`` -> ``stages.1``
apple              ``network.2.0.convffn.fc1.weight``      renamed; classifier left out
=================  ==================================  =====================================

Only this project's fused checkpoints can be loaded: Apple's and timm's leave some layers unfused, and the
unfused ones are published.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit
from torch import Tensor, nn

from ..io.weights import mismatched_keys, read_content
from .archs import ARCHS

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
# The stem's first convolution, in any format and structure; what precedes it is the prefix.
_STEM = re.compile(
    r"^(?P<prefix>.*?)(?:stem\.0|stem_0|patch_embed\.0)\."
    r"(?:conv_kxk\.0\.conv|rbr_conv\.0\.conv|reparam_conv)\.weight$"
)
_NUMBERED = re.compile(r"(?:stages\.|norm)\d\.")
_FUSED, _UNFUSED = "stem.0.reparam_conv.weight", "stem.0.conv_kxk.0.conv.weight"


class LoadReport(NamedTuple):
    """What loading did, by the backbone's own key names except for ``left_out``.

    Attributes:
        format: fastvit_dense, timm, timm features or apple, with "fused" if it is.
        loaded: keys of the backbone that were filled.
        left_out: keys of the checkpoint that were passed over on purpose.
        new: keys of the backbone that the checkpoint does not have and need not have.
    """

    format: str
    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    new: tuple[str, ...]


class Detected(NamedTuple):
    """A FastViT in a checkpoint.

    Attributes:
        format: as of LoadReport.
        arch: a key of ``ARCHS``; None if it is none of them.
        prefix: what its keys begin with, such as ``backbone.``; empty for a bare one.
    """

    format: str
    arch: str | None
    prefix: str


def detect_format(content: Any, *, checkpoint: str) -> Detected:
    """Say which FastViT a checkpoint holds, by its keys and shapes.

    Args:
        content: what the file holds.
        checkpoint: its name, for messages.

    Raises:
        ValueError: it holds no FastViT.
    """
    inside, _, prefix = _split(content, None, checkpoint)
    format, converted = to_backbone_keys(inside)
    return Detected(format, _arch_of(_structure(converted)), prefix)


def to_backbone_keys(state_dict: StateDict) -> tuple[str, StateDict]:
    """Rename the keys of one classifier or backbone, prefix already removed.

    Args:
        state_dict: tensors by the names of any format in the table above.

    Returns:
        The format, and the same tensors by this project's names (the classifier's included).
    """
    keys = list(state_dict)
    if any(k.startswith("patch_embed.") for k in keys):
        format, rename = "apple", _apple_renamer(keys)
    elif any(k.startswith("stem_0.") for k in keys):
        format, rename = "timm features", lambda k: re.sub(r"^(stem|stages)_", r"\1.", k)
    elif any(k.startswith(CLASSIFIER) for k in keys):
        format, rename = "timm", lambda k: k
    else:
        format, rename = "fastvit_dense", lambda k: k
    converted = {rename(k): v for k, v in state_dict.items()}
    return (f"{format}, fused" if _FUSED in converted else format), converted


def is_pretrained_cfg(cfg: Any) -> bool:
    """Whether an ``init_cfg`` is one ``dict(type='Pretrained', checkpoint=...)``."""
    return isinstance(cfg, Mapping) and cfg.get("type") in ("Pretrained", PretrainedInit)


def load_pretrained(
    model: nn.Module, checkpoint: str, *, prefix: str | None = None, map_location: str = "cpu"
) -> LoadReport:
    """Load a published or own checkpoint into a FastViT backbone.

    Left out on purpose are the classifier, stages and norms that the backbone does not have, and modules
    beside the backbone. The output norms may be missing: they are new. Anything else that is missing,
    unexpected, of another shape or not finite is an error, and the backbone is then unchanged.

    Args:
        model: a :class:`fastvit_dense.FastViT`.
        checkpoint: a path, a URL, or ``timm://MODEL.TAG``.
        prefix: of the backbone's keys in a larger model, such as ``backbone.``; None finds it.
        map_location: as in :func:`torch.load`.

    Returns:
        What was loaded, left out and new; also logged.

    Raises:
        FileNotFoundError: the file does not exist.
        ConnectionError: it cannot be fetched and is not in the cache.
        ValueError: the checkpoint cannot be read, does not fit, or was fused by Apple's or timm's code;
            the message names keys and the likely cause.
    """
    inside, beside, _ = _split(
        read_content(checkpoint, map_location=map_location), prefix, checkpoint
    )
    format, converted = to_backbone_keys(inside)
    structure = _structure(converted)
    arch = _arch_of(structure)
    if _FUSED in converted and any(k.endswith(".mlp.conv.bn.weight") for k in converted):
        raise ValueError(
            f"{checkpoint} ({format}) was fused by timm's or Apple's code and is not read here: expected "
            f"the published unfused weights, such as timm://fastvit_{arch or model.arch}.apple_in1k; "
            "fastvit_dense.reparameterize fuses them"
        )
    refuse_wrong_structure(converted, "", deploy=bool(model.deploy), checkpoint=checkpoint)

    expected = model.state_dict()
    built = {m.group() for k in expected if (m := _NUMBERED.match(k))}
    left_out = [
        k
        for k in converted
        if k.startswith(CLASSIFIER) or (m := _NUMBERED.match(k)) and m.group() not in built
    ]
    given = {k: v for k, v in converted.items() if k not in set(left_out)}
    new = [
        k
        for k in expected
        if k not in given and (k.startswith("norm") or k.endswith("num_batches_tracked"))
    ]
    problems, _ = mismatched_keys({k: v for k, v in expected.items() if k not in new}, given)
    bad = [k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        problems.append(f"{len(bad)} tensors with NaN or infinity, such as {bad[0]}")
    if problems:
        raise ValueError(
            f"{checkpoint} ({format}) does not fit FastViT-{str(model.arch).upper()}: "
            f"{'. '.join(problems)}. Likely cause: {_likely_cause(model, arch, structure)}"
        )

    model.load_state_dict(given, strict=False)
    report = LoadReport(format, tuple(given), (*left_out, *beside), tuple(new))
    print_log(
        f"FastViT-{str(model.arch).upper()} from {checkpoint} ({format}): {len(given)} of {len(expected)} "
        f"tensors loaded; left out on purpose: {_summary(report.left_out)}; "
        f"new, to be trained: {_summary(report.new)}",
        logger="current",
    )
    return report


def refuse_wrong_structure(
    state_dict: Mapping[str, Tensor],
    prefix: str,
    *,
    deploy: bool,
    checkpoint: str = "the checkpoint",
) -> None:
    """Raise if a state dict holds this backbone in the other structure, fused or unfused.

    Args:
        state_dict: what is about to be loaded, possibly a whole detector.
        prefix: the backbone's prefix in it.
        deploy: whether the backbone at hand is fused.
        checkpoint: its name, for the message.

    Raises:
        ValueError: the structures differ; the message says what to do.
    """
    fused, unfused = prefix + _FUSED, prefix + _UNFUSED
    if fused in state_dict and not deploy:
        raise ValueError(
            f"{checkpoint} holds a fused backbone ({fused}), the model is unfused. Set deploy=True "
            "to run a bare backbone; for a whole model use the config that tools/reparameterize.py wrote "
            "beside it (X.py for X.pth). To train on, load the unfused checkpoint."
        )
    if unfused in state_dict and deploy:
        raise ValueError(
            f"{checkpoint} holds an unfused backbone ({unfused}), the model was built with "
            "deploy=True. Build it with deploy=False, as the config does that it was trained with, or fuse "
            "the checkpoint with tools/reparameterize.py."
        )


def _split(content: Any, prefix: str | None, checkpoint: str) -> tuple[StateDict, list[str], str]:
    """The backbone's tensors without their prefix, the names of all others, and the prefix."""
    for name in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    tensors: StateDict = {}
    if isinstance(content, Mapping):
        tensors = {
            k.removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)
        }
    if not tensors:
        raise ValueError(
            f"{checkpoint} holds no state dict: expected named tensors, bare or under 'state_dict' or "
            f"'model'; got {type(content).__name__}"
            + (f" with {list(content)[:5]}" if isinstance(content, Mapping) else "")
        )
    found = [m["prefix"] for k in tensors if (m := _STEM.match(k))]
    if not found:
        raise ValueError(
            f"{checkpoint} holds no FastViT: expected a key such as {_UNFUSED} (timm, fastvit_dense) or "
            f"patch_embed.0.rbr_conv.0.conv.weight (Apple); its {len(tensors)} keys begin with "
            + ", ".join(list(tensors)[:3])
        )
    if prefix is None:
        # A trained model may hold the backbone twice, the second time as an average of weights.
        prefix = min(found, key=lambda p: (p != "backbone.", len(p)))
    elif prefix not in found:
        raise ValueError(
            f"{checkpoint} holds no FastViT under the prefix {prefix!r}; it has one under "
            + " and ".join(repr(p) for p in found)
        )
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return inside, [k for k in tensors if not k.startswith(prefix)], prefix


def _structure(given: StateDict) -> tuple[tuple[int, ...], int, bool, int]:
    """Depths, first width, whether the last stage has attention, and the ratio of the FFNs."""
    depths = tuple(
        len({k.split(".")[3] for k in given if k.startswith(f"stages.{i}.blocks.")})
        for i in range(4)
    )
    width = next(
        (v.shape[0] for k, v in given.items() if k.startswith("stem.0.") and v.dim() == 4), 0
    )
    attention = any(k.startswith("stages.3.blocks.0.token_mixer.qkv") for k in given)
    hidden = next((v.shape[0] for k, v in given.items() if k.endswith("0.mlp.fc1.weight")), 0)
    return depths, width, attention, hidden // max(width, 1)


def _arch_of(structure: tuple[tuple[int, ...], int, bool, int]) -> str | None:
    """The variant of a structure, a key of ``ARCHS``; None if it is none of them."""
    for arch, spec in ARCHS.items():
        if structure == (spec.depths, spec.widths[0], spec.attention, spec.ffn_ratio):
            return arch
    return None


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


def _likely_cause(model: nn.Module, arch: str | None, structure: Any) -> str:
    if arch is None:
        return (
            f"the checkpoint has depths {structure[0]} and a first width of {structure[1]}, which is none "
            "of this project's variants."
        )
    if arch == model.arch:
        return "the arch is the same: the file is damaged or was changed, or in_channels differs."
    return f"the checkpoint is a FastViT-{arch.upper()}; set arch={arch!r} or its file."


def _summary(keys: tuple[str, ...]) -> str:
    groups = sorted({k.split(".")[0] for k in keys})
    return f"{len(keys)} ({', '.join(groups)})" if keys else "none"
