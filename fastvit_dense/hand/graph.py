"""What an exported hand model computes: mesh, keypoints and camera."""

from typing import Any

from torch import Tensor, nn

OUTPUTS = ("vertices", "keypoints", "camera")
_AFTER_MESH = (
    "the crop, and the mesh's place before a camera with known intrinsics; pixels are (s (xy + t) + 1) "
    "half images, with the camera's s and t"
)


def hand_graph(model: Any) -> tuple[nn.Module, list[str], str]:
    """The traceable part of a hand model.

    Args:
        model: with a ``backbone`` and a ``head`` that holds a MANO layer, as ``HandMeshModel``.

    Returns:
        A module from the normalised image to a tuple of tensors, their names, and in words what of the
        model it leaves out. MANO's arrays become constants of the graph.
    """
    return _HandMesh(model), list(OUTPUTS), _AFTER_MESH


def hand_licence(model: Any) -> str:
    """Whose terms hold for the file of an exported hand model."""
    if model.head.mano_source == "synthetic":
        return "the synthetic hand is part of it, nothing of MANO"
    return "MANO's arrays are part of it: MANO's licence holds for this file, do not pass it on"


class _HandMesh(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hands = self.model.head(self.model.backbone(x))
        return tuple(getattr(hands, name) for name in OUTPUTS)

    def half(self) -> "_HandMesh":
        """The backbone alone: the head and MANO compute in float32, as they do under autocast."""
        self.model.backbone.half()
        return self
