"""How many parameters a model has and how many multiply-accumulates a forward pass takes."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Numbers in a model's parameters, trainable or not; buffers are not counted."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention in one forward pass.

    What the literature on efficient networks, the FastViT paper included, prints as "FLOPs". PyTorch's
    own counter is used, which counts a multiply-accumulate as two operations. Nothing is computed:
    shapes alone pass through a copy of the model.

    Args:
        model: takes a batch of images; the mode it is in is kept.
        shape: (B, C, H, W) of the batch.
    """
    empty = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2
