"""What data loader workers meet when the training process uses CUDA, without a GPU.

Named in a config's `custom_imports`. A process forked from one that uses CUDA sees the GPU and cannot use
it: torch refuses to initialise CUDA there. That refusal is torch's own here, too; what is replaced is its
answer to whether the process is such a fork.
"""

import pytest
import torch
from torch.utils.data import _utils

_worker_loop = _utils.worker._worker_loop


def _beside_cuda(*args: object) -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = torch.cuda.random.device_count = lambda: 1
    torch.cuda._is_in_bad_fork = lambda: True
    with pytest.raises(RuntimeError, match="Cannot re-initialize CUDA in forked subprocess"):
        torch.cuda.get_rng_state_all()  # else this emulates nothing
    _worker_loop(*args)


_utils.worker._worker_loop = _beside_cuda
