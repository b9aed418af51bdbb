"""The machine: GPUs, cores, shared memory, disks."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..engine.devices import usable_cores
from ..io.files import why_unwritable
from .findings import ERROR, OK, WARNING, Finding, in_one_line

_GIB = 2**30


def check_gpus() -> Iterator[Finding]:
    """The GPUs, and whether torch can compute on them."""
    driver = Path("/proc/driver/nvidia/version")
    version = re.search(r"\d+\.\d+(\.\d+)?", driver.read_text()) if driver.exists() else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield _why_no_gpu(version.group() if version else "", [str(w.message) for w in caught])
    for i in range(count):
        name = f"GPU {i}"
        try:
            ones = torch.ones(8, 8, device=f"cuda:{i}")
            assert (ones @ ones).sum().item() == 8**3
            free, total = torch.cuda.mem_get_info(i)
        except Exception as error:
            yield Finding(
                ERROR,
                name,
                f"torch {torch.__version__} cannot compute on it: {in_one_line(error)}",
                "look at nvidia-smi; leave it out with CUDA_VISIBLE_DEVICES, or install a torch for it "
                f"(this one has kernels for {', '.join(torch.cuda.get_arch_list())})",
            )
            continue
        about = f"{torch.cuda.get_device_name(i)}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free"
        if free < 0.5 * total:
            yield Finding(
                WARNING,
                name,
                f"{about}: someone computes there",
                "look at nvidia-smi; CUDA_VISIBLE_DEVICES=... chooses another",
            )
        else:
            yield Finding(OK, name, f"{about}, CUDA {torch.version.cuda}")


def _why_no_gpu(driver: str, complaints: list[str]) -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver and hidden is not None:
        return Finding(
            WARNING,
            "GPU",
            f"there is a driver ({driver}), but CUDA_VISIBLE_DEVICES={hidden!r} shows torch no GPU",
            "unset CUDA_VISIBLE_DEVICES, or leave it so to compute on the CPU",
        )
    if driver:
        why = complaints[0].splitlines()[0] if complaints else "torch does not say why"
        return Finding(
            WARNING,
            "GPU",
            f"there is a driver ({driver}), but torch {torch.__version__} (CUDA {torch.version.cuda}) "
            f"does not use it: {why}",
            "update the driver to one for that CUDA, or install a torch for yours "
            "(https://pytorch.org/get-started); in a container start it with --gpus all",
        )
    return Finding(OK, "GPU", "none (no driver): everything runs on the CPU")


def check_processor() -> Iterator[Finding]:
    """Threads against cores, and what idle threads do."""
    cores, threads = usable_cores(), torch.get_num_threads()
    if threads > cores:
        yield Finding(
            WARNING,
            "threads",
            f"torch computes with {threads} threads, but may use {cores} cores (affinity or quota of the "
            "container): they hinder each other",
            f"export OMP_NUM_THREADS={cores}",
        )
    else:
        yield Finding(OK, "", f"{cores} cores to use, {threads} threads of torch")
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE" and not torch.cuda.is_available():
        yield Finding(
            WARNING,
            "OMP_WAIT_POLICY",
            "is not PASSIVE: idle OpenMP threads spin, up to 30 times slower where cores are few or shared",
            "export OMP_WAIT_POLICY=PASSIVE (make does)",
        )


def check_shared_memory() -> Iterator[Finding]:
    """Workers of data loaders hand images over in /dev/shm; a container's has 64 MB by default."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    usage = shutil.disk_usage(folder)
    about = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"
    if usage.free < _GIB:
        yield Finding(
            WARNING,
            "/dev/shm",
            f"{about}: workers of data loaders hand over their images there and die with a bus error",
            "start the container with --shm-size=8g (or --ipc=host), remove what lies there, or set "
            "train_dataloader.num_workers=0",
        )
    else:
        yield Finding(OK, "/dev/shm", about)


def check_folder(folder: str | Path, *, need: int) -> Iterator[Finding]:
    """Whether a folder that results go to can be written and has room.

    Args:
        folder: which may not exist yet.
        need: bytes that should be free.
    """
    if why := why_unwritable(folder):
        yield Finding(ERROR, str(folder), why, "choose another folder with --work-dir")
        return
    wanted = Path(folder).absolute()
    there = next(p for p in (wanted, *wanted.parents) if p.exists())
    free = shutil.disk_usage(there).free
    about = f"{free / _GIB:.1f} GiB free"
    if free < need:
        yield Finding(
            WARNING if free > need / 4 else ERROR,
            str(folder),
            f"{about}; checkpoints and logs take about {need / _GIB:.1f} GiB",
            "make room, or choose another disk with --work-dir",
        )
    else:
        yield Finding(OK, str(folder), about)
