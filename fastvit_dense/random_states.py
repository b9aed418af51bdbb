"""The random states of a process: as plain data that a checkpoint can hold, or set aside for a block."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

States = dict[str, Any]


def capture() -> States:
    """The states of Python, numpy, torch and every CUDA device, as plain data and tensors."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = state
    return dict(
        python=(version, torch.tensor(numbers), gauss),
        numpy=(name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def restore(states: States) -> None:
    """Set the states that :func:`capture` gave, wherever their tensors lie by now."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch's CPU generator for a block, which leaves their states as they were.

    CUDA's are neither asked for nor set: a data loader worker is forked from a process that uses CUDA and
    must not, and reading a device's state waits for the device.

    Args:
        seed: for all three generators.
    """
    before = random.getstate(), np.random.get_state()
    # Without a device, fork_rng touches the CPU's state alone.
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
