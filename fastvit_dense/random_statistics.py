"""Random statistics for models without weights, so that comparing two of them means something."""

import torch
from torch import Tensor, nn


def randomise_statistics(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give BatchNorms, layer scales and attention values that matter, in place.

    With the defaults (mean 0, variance 1, layer scale 1e-5, attention that is nearly the mean) a model
    with half of its branches missing or wired wrongly still passes a comparison.

    Args:
        model: unfused: FastViT, what holds one, or any other with BatchNorms.
        seed: of the random numbers.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:  # BatchNorms may be without weights, or without statistics
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.5, 0.5)
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") or "layer_scale" in name:  # ours; timm's peers
                uniform(parameter, 0.1, 0.6)
            elif name.endswith("qkv.weight"):
                parameter.normal_(std=0.05, generator=generator)
    return model
