"""How fast a machine could be: its matrix product and its copy, and the time no model can be below.

Roofline model: a layer takes at least the time of its arithmetic at the rate of the machine's matrix
product, and at least the time of moving its input, weights and output at the rate of its copy. The limit
of a model is the sum over its convolutions, linear layers and attentions; everything else (activations,
sums, norms) is taken as free, since a good runtime fuses it into those.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

# Sides of the square matrices tried, for each device: the rate grows with them and then falls.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
# As large as SA12's largest map, the hidden one of a stage-1 FFN at 512x512 in float32; larger ones
# leave the caches that such maps stay in.
COPY_BYTES = 16 * 2**20


class Layer(NamedTuple):
    """One convolution, linear layer, matrix product or attention.

    Attributes:
        kind: its function's name in PyTorch, such as conv2d.
        flops: operations, a multiply-accumulate counted as two.
        numbers: values read and written once: inputs, weights, bias and output.
        depthwise: a convolution of each channel by itself.
    """

    kind: str
    flops: int
    numbers: int
    depthwise: bool


class Peak(NamedTuple):
    """What the machine reached in one dtype.

    Attributes:
        flops: operations a second of a matrix product.
        bandwidth: bytes a second of a copy, read and written ones both counted.
    """

    flops: float
    bandwidth: float


def list_layers(model: nn.Module, shape: tuple[int, int, int, int]) -> list[Layer]:
    """The layers of one forward pass, in order. Nothing is computed: shapes alone pass through.

    Args:
        model: takes a batch of images; it is left as it is.
        shape: (B, C, H, W) of the batch.

    Returns:
        The layers. What PyTorch counts beyond them (operations without a function of their own here)
        comes as one last layer of kind "other", which moves nothing.
    """
    empty = copy.deepcopy(model).to("meta")
    recorder = _Recorder()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, recorder:
        empty(torch.empty(shape, device="meta"))
    layers = recorder.layers
    rest = counter.get_total_flops() - sum(layer.flops for layer in layers)
    return layers + ([Layer("other", rest, 0, False)] if rest > 0 else [])


def roofline(layers: Iterable[Layer], peak: Peak, itemsize: int) -> float:
    """Seconds that the layers take at least, each bound by arithmetic or by memory.

    Args:
        layers: of :func:`list_layers`.
        peak: of the machine, in the dtype the model runs in.
        itemsize: bytes a number.
    """
    return sum(
        max(layer.flops / peak.flops, layer.numbers * itemsize / peak.bandwidth) for layer in layers
    )


def product_limit(layers: Iterable[Layer], peak: Peak) -> float:
    """Seconds that the layers' arithmetic takes as one matrix product, memory left aside."""
    return sum(layer.flops for layer in layers) / peak.flops


def matrix_product(side: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """A call that multiplies two square matrices, 2 * side**3 operations."""
    a = torch.rand(side, side, device=device).to(dtype)
    b = torch.rand(side, side, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def memory_copy(device: str) -> Callable[[], Tensor]:
    """A call that copies `COPY_BYTES`; twice as many bytes are moved."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    out = torch.empty_like(source)
    return lambda: out.copy_(source)


class _Recorder(TorchFunctionMode):
    """Notes the functions that do a network's arithmetic, attention as one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self._flops: dict[Any, Callable[..., int]] = {
            F.conv2d: lambda out, x, weight, *_: 2 * out.numel() * weight[0].numel(),
            F.linear: lambda out, x, weight, *_: 2 * out.numel() * weight.shape[-1],
            F.scaled_dot_product_attention: lambda out, q, k, v, *_: (
                2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
            ),
            **dict.fromkeys(
                (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__),
                lambda out, a, b: 2 * out.numel() * a.shape[-1],
            ),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self._flops:
            numbers = [a for a in (*args, *(kwargs or {}).values(), out) if isinstance(a, Tensor)]
            operands = args if len(args) > 1 else (*args, *(kwargs or {}).values())
            depthwise = func is F.conv2d and args[1].shape[1] == 1 < args[0].shape[1]
            self.layers.append(
                Layer(
                    func.__name__.strip("_"),
                    self._flops[func](out, *operands),
                    sum(n.numel() for n in numbers),
                    depthwise,
                )
            )
        return out
