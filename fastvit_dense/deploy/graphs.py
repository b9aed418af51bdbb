"""What an exported file computes: one graph from the image to maps, logits, or a head's raw output."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone.fastvit import FastViT


def make_traceable(model: nn.Module) -> nn.Module:
    """Replace such layers in place; returns the model.

    mmseg's Upsample computes the output's size with int(), which a trace records as a constant. ONNX
    has no pooling to a fixed grid, which UPerHead and PSPHead use.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            layer: Any = child
            if type(child).__module__.startswith("mmseg.") and type(child).__name__ == "Upsample":
                if not layer.size and layer.scale_factor:
                    options = dict(mode=layer.mode, align_corners=layer.align_corners)
                    setattr(parent, name, nn.Upsample(scale_factor=layer.scale_factor, **options))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                if isinstance(layer.output_size, int) and layer.output_size > 1:
                    setattr(parent, name, GridPool(layer.output_size))
    return model


class GridPool(nn.Module):
    """nn.AdaptiveAvgPool2d(side) as two matrix products, for maps of any size.

    Args:
        side: K, of the pooled map.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, K, K)."""
        rows, columns = self._weights(x, x.shape[2]), self._weights(x, x.shape[3])
        return rows @ x @ columns.transpose(0, 1)

    def _weights(self, x: Tensor, length: int) -> Tensor:
        """(K, length): row i averages floor(i length / K) to ceil((i + 1) length / K), without the last."""
        cell = torch.arange(self.side, device=x.device)[:, None]
        begin = cell * length // self.side
        end = ((cell + 1) * length + self.side - 1) // self.side
        place = torch.arange(length, device=x.device)[None]
        # A product instead of a logical and, which coremltools does not convert.
        inside = (place >= begin).to(x.dtype) * (place < end).to(x.dtype)
        return inside / (end - begin).to(x.dtype)


PARTS = ("model", "backbone")
_AFTER_MAPS = "everything behind the maps"
_AFTER_LOGITS = (
    "labels (the argmax over the classes) and their resizing to the original image; sliding windows"
)
_AFTER_RPN = (
    "anchors, decoding and choice of proposals (top-k, NMS), RoI align, the box and mask heads, and the "
    "final NMS: they read the maps p and rpn"
)
_AFTER_HEAD = "anchors, sigmoid, decoding of boxes, top-k and NMS"
_AFTER_MESH = (
    "the crop, and the mesh's place before a camera with known intrinsics; pixels are (s (xy + t) + 1) "
    "half images, with the camera's s and t"
)


class Normalisation(NamedTuple):
    """How a model's data preprocessor makes the network's input of an image as OpenCV reads it.

    Attributes:
        mean: of each channel, subtracted; in grey levels 0 to 255 and the order of the network.
        std: of each channel, divided by; likewise.
        bgr_to_rgb: whether the channels are reversed first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr_to_rgb: bool


def normalisation_of(model: nn.Module) -> Normalisation | None:
    """The normalisation of a model's data preprocessor; None where there is none."""
    preprocessor: Any = getattr(model, "data_preprocessor", None)
    mean, std = getattr(preprocessor, "mean", None), getattr(preprocessor, "std", None)
    if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
        return None
    # mmengine and mmdet keep the flag under the first name, mmseg under the second.
    reverse = getattr(preprocessor, "_channel_conversion", None)
    if reverse is None:
        reverse = getattr(preprocessor, "channel_conversion", False)
    return Normalisation(
        tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()), bool(reverse)
    )


class Graph(nn.Module):
    """One graph to export.

    Args:
        body: takes the normalised image and returns a tuple of maps.
        output_names: a name for each of them.
        absent: what of the model is not in the graph, in words.
        normalisation: made part of the graph; None leaves it to the caller.
        licence: whose terms hold for the file beside the project's and those of the weights, in words.

    Attributes:
        input_name: ``image`` for an image of grey levels 0 to 255, BGR; ``input`` for a normalised one.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        output_names: Sequence[str],
        absent: str,
        normalisation: Normalisation | None,
        licence: str = "",
    ) -> None:
        super().__init__()
        self.body = body
        self.output_names = tuple(output_names)
        self.absent = absent
        self.licence = licence
        self.normalisation = normalisation
        self.input_name = "input" if normalisation is None else "image"
        self._half = False
        self.mean: Tensor
        self.std: Tensor
        if normalisation is not None:
            self.register_buffer("mean", torch.tensor(normalisation.mean).view(-1, 1, 1))
            self.register_buffer("std", torch.tensor(normalisation.std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float32 -> one float32 map for each of ``output_names``."""
        if self.normalisation is not None:
            if self.normalisation.bgr_to_rgb:
                image = image.flip(1)
            image = (image - self.mean) / self.std
        if not self._half:
            return self.body(image)
        return tuple(out.float() for out in self.body(image.half()))

    def to_half(self) -> "Graph":
        """Compute in float16 between a float32 input and float32 outputs. Changes the graph itself."""
        self._half = True
        self.body.half()
        return self

    def example(self, batch: int, shape: tuple[int, int], *, seed: int = 0) -> Tensor:
        """A random input (batch, 3, H, W), float32, of the values that the graph expects."""
        generator = torch.Generator().manual_seed(seed)
        size = (batch, 3, *shape)
        if self.normalisation is None:
            return torch.randn(size, generator=generator)
        return torch.randint(0, 256, size, generator=generator).float()

    def example_outputs(self, shape: tuple[int, int]) -> dict[str, Tensor]:
        """What the graph makes of one :meth:`example`, by name."""
        with torch.no_grad():
            return dict(zip(self.output_names, self(self.example(1, shape)), strict=True))


def make_graph(
    model: nn.Module,
    *,
    part: str = "model",
    normalisation: Normalisation | None = None,
    full_size: bool = True,
) -> Graph:
    """The graph of a model in eval mode, fused or not.

    Args:
        model: a FastViT, a detector, a segmentor, a hand model, or a module whose ``forward(x)`` takes
            the image alone and returns a tensor, a sequence or a dict of tensors.
        part: ``model``, or ``backbone`` for the FastViT inside alone.
        normalisation: made part of the graph; None leaves it to the caller.
        full_size: resize a segmentor's logits to the image, as it does itself; otherwise they are left
            at the head's resolution. True for all else.

    Returns:
        The graph; it shares the model's parameters.

    Raises:
        ValueError: there is no such part, the model is of a kind that is no graph of tensors, or
            `full_size` is False and it is no segmentor.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}; got {part!r}")
    if not full_size and (part == "backbone" or getattr(model, "decode_head", None) is None):
        raise ValueError(
            "full_size=False (--head-size) leaves a segmentor's logits at the head's resolution; got "
            f"{'a backbone' if part == 'backbone' else type(model).__name__}, of which nothing is resized: "
            "leave it out"
        )
    body: nn.Module
    licence = ""
    if part == "backbone" or isinstance(model, FastViT):
        body = backbone_of(model)
        names = [f"c{level}" for level in _levels(body.strides)]
        absent = _AFTER_MAPS
    elif getattr(model, "decode_head", None) is not None:
        body = _Segmentor(model, full_size=full_size)
        names, absent = ["logits"], _AFTER_LOGITS
    elif getattr(model, "rpn_head", None) is not None:
        body = _TwoStage(model)
        levels = _prior_levels(model, "rpn_head")
        names = [f"{kind}_{i}" for kind in ("rpn_cls", "rpn_reg") for i in levels]
        names, absent = [f"p{i}" for i in levels] + names, _AFTER_RPN
    elif getattr(model, "bbox_head", None) is not None:
        levels = _prior_levels(model, "bbox_head")
        body = _SingleStage(model)
        kinds = _output_count(body, model) // len(levels)
        names = [f"{kind}_{i}" for kind in ("cls", "reg", "extra")[:kinds] for i in levels]
        absent = _AFTER_HEAD
    elif hasattr(getattr(model, "head", None), "mano"):
        body = _HandMesh(model)
        names, absent, licence = list(body.outputs), _AFTER_MESH, body.licence
    else:
        body = _Plain(model)
        names, absent = body.names(_probe(model)), "what is behind the model's forward(x)"
    return Graph(
        body, output_names=names, absent=absent, normalisation=normalisation, licence=licence
    ).eval()


def backbone_of(model: nn.Module) -> FastViT:
    """The FastViT of a model; ValueError where there is none."""
    for module in model.modules():
        if isinstance(module, FastViT):
            return module
    raise ValueError(
        f"{type(model).__name__} holds no FastViT: only models of this project are exported"
    )


class _Segmentor(nn.Module):
    """Logits of mmseg's EncoderDecoder, as ``encode_decode`` returns them in mode "whole"."""

    def __init__(self, model: Any, *, full_size: bool) -> None:
        super().__init__()
        _refuse_unusual_head(model.decode_head)
        self.model: Any = model
        self.full_size = full_size

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        head: Any = self.model.decode_head
        logits = head(self.model.extract_feat(x))
        if self.full_size:
            logits = F.interpolate(
                logits, size=x.shape[2:], mode="bilinear", align_corners=head.align_corners
            )
        return (logits,)


class _TwoStage(nn.Module):
    """Pyramid maps, then class scores and box deltas of the RPN, level by level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(x)
        scores, deltas = self.model.rpn_head(maps)
        return (*maps, *scores, *deltas)


class _SingleStage(nn.Module):
    """The raw maps of a dense head, kind by kind and level by level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(m for maps in self.model.bbox_head(self.model.extract_feat(x)) for m in maps)


class _HandMesh(nn.Module):
    """Mesh, keypoints and camera of a hand model. MANO's arrays become constants of the graph."""

    outputs = ("vertices", "keypoints", "camera")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        source = model.head.mano_source  # type: ignore[union-attr]
        self.licence = (
            "the synthetic hand is part of it, nothing of MANO"
            if source == "synthetic"
            else "MANO's arrays are part of it: MANO's licence holds for this file, do not pass it on"
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hands = self.model.head(self.model.backbone(x))
        return tuple(getattr(hands, name) for name in self.outputs)

    def half(self) -> "_HandMesh":
        """The backbone alone: the head and MANO compute in float32, as they do under autocast."""
        self.model.backbone.half()
        return self


class _Plain(nn.Module):
    """Any model whose forward(x) returns tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._named(x).values())

    def names(self, x: Tensor) -> list[str]:
        """Keys of a dict, numbers otherwise."""
        with torch.no_grad():
            return list(self._named(x))

    def _named(self, x: Tensor) -> dict[str, Tensor]:
        out = self.model(x)
        if isinstance(out, Tensor):
            out = {"output": out}
        elif isinstance(out, Sequence):
            out = {f"output_{i}": value for i, value in enumerate(out)}
        if not isinstance(out, Mapping) or not all(isinstance(v, Tensor) for v in out.values()):
            raise ValueError(
                f"{type(self.model).__name__}.forward(x) must return a tensor, or a sequence or a dict "
                "of tensors, to be exported; --part backbone exports the backbone alone"
            )
        return dict(out)


def _refuse_unusual_head(head: Any) -> None:
    """Heads that predict in another way than by forward() and a resizing give no such logits."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    usual = isinstance(head, BaseDecodeHead) and all(
        getattr(type(head), method) is getattr(BaseDecodeHead, method)
        for method in ("predict", "predict_by_feat")
    )
    if not usual:
        raise ValueError(
            f"a segmentor with {type(head).__name__} cannot be exported as a whole: its predictions are "
            "more than logits of one forward pass. --part backbone exports the backbone alone."
        )


def _levels(strides: Sequence[int]) -> list[int]:
    """Levels of a pyramid: log2 of the strides, 2 for 4 pixels."""
    return [round(math.log2(stride)) for stride in strides]


def _prior_levels(model: Any, head: str) -> list[int]:
    strides = getattr(getattr(getattr(model, head), "prior_generator", None), "strides", None)
    if strides is None:
        raise ValueError(
            f"{type(model).__name__} with {type(getattr(model, head)).__name__} cannot be exported: its "
            "head gives no maps of a pyramid. --part backbone exports the backbone alone."
        )
    return _levels([s[0] if isinstance(s, Sequence) else s for s in strides])


def _probe(model: nn.Module) -> Tensor:
    first = next(model.parameters())
    return torch.zeros((1, 3, 64, 64), device=first.device, dtype=first.dtype)


def _output_count(body: nn.Module, model: nn.Module) -> int:
    with torch.no_grad():
        return len(body(_probe(model)))
