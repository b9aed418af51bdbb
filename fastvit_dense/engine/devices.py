"""Devices by the names that users give, and the cores there are."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def check_device(device: str) -> None:
    """Raise if a device does not exist.

    Args:
        device: cpu or cuda:0.

    Raises:
        ValueError: the device does not exist.
    """
    try:
        kind = torch.device(device)
    except RuntimeError as e:
        raise ValueError(f"device {device!r} is unknown: expected cpu or cuda:0") from e
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} GPUs; use cpu, or look at nvidia-smi"
        )
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} is not there: torch sees no Apple GPU; use cpu")


def describe_device(device: str) -> str:
    """The device with the GPU's name or the number of threads.

    Args:
        device: cpu or cuda:0.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if kind == "cpu" else device


def wait_for(device: str | torch.device) -> None:
    """Return when a device has done all it was asked for. A CPU has: its calls return when they are done.

    Args:
        device: cpu, cuda or cuda:0.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and the quota of its container."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            cores = min(cores, max(int(limit) // int(period), 1))
    return cores
