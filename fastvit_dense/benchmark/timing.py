"""Latency of backbones in several runtimes, checked, side by side in one run.

The protocol is the FastViT paper's: 100 passes to warm up, 100 timed, their median. What is new is that
all candidates take turns, so that a change of the machine's clock or load hits all alike, that outputs
are compared before anything is timed, and that a matrix product takes its turn, too: when its time
varies, something else runs on the machine.
"""

import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..deploy.runtimes import (
    SLOW_TO_PREPARE,
    Run,
    Setting,
    Unavailable,
    configure,
    prepare,
    relative_error,
)
from ..engine.devices import check_device, wait_for
from ..engine.models import count_macs, count_parameters
from .baselines import Contestant

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[], float]
# Largest relative error that a correct backend has. Sums in another order cost 1e-5 at most; the low
# precisions round every map of the network to 11 and 8 bits.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}
# The machine's matrix product varies by less than this when nothing else runs.
MAX_SPREAD = 1.25
MAX_DRIFT = 1.1
_PROBE_SIDE = {"cpu": 1024, "cuda": 4096}  # of the matrices; a few ms


class Timing(NamedTuple):
    """Statistics of one candidate's timed passes, in seconds."""

    median: float
    p10: float
    p90: float
    minimum: float

    @property
    def spread(self) -> float:
        """p90 over p10: 1 on a machine that does nothing else."""
        return self.p90 / self.p10


class Row(NamedTuple):
    """One model in one setting.

    Attributes:
        name: of the model.
        backend: of ``backends.BACKENDS``.
        dtype: of ``backends.DTYPES``.
        parameters: numbers in the model that is run.
        macs: multiply-accumulates of one pass.
        error: relative error of the worst map against eager float32 of the model before fusion; None
            where there was no output.
        problem: why it was not timed; None where it was.
        seconds: of each timed pass.
    """

    name: str
    backend: str
    dtype: str
    parameters: int
    macs: int
    error: float | None
    problem: str | None
    seconds: list[float]


def timing(seconds: Sequence[float]) -> Timing:
    """Median, 10th and 90th percentile and minimum of passes.

    Raises:
        ValueError: there are none.
    """
    if not seconds:
        raise ValueError("no timed passes: expected at least one, ask for --runs 1 or more")
    p10, median, p90 = np.percentile(seconds, (10, 50, 90))
    return Timing(float(median), float(p10), float(p90), min(seconds))


def interleave(
    calls: Mapping[Key, Callable[[], object]],
    *,
    warmup: int,
    runs: int,
    clock: Clock = time.perf_counter,
) -> dict[Key, list[float]]:
    """Time calls in turn: pass k of each comes before pass k + 1 of any.

    Args:
        calls: by name; each is finished on its device when it returns.
        warmup: rounds before the timed ones.
        runs: timed rounds.
        clock: gives seconds.

    Returns:
        For each name the seconds of its timed passes, in order.

    Raises:
        ValueError: fewer than one timed round, or a negative number to warm up.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(
            f"expected at least 1 timed round and 0 to warm up, got {runs} and {warmup}"
        )
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for i in tqdm(range(warmup + runs), desc="rounds", disable=None):
        for key, call in calls.items():
            start = clock()
            call()
            took = clock() - start
            if i >= warmup:
                seconds[key].append(took)
    return seconds


def measure(
    contestants: Sequence[Contestant],
    settings: Sequence[Setting],
    *,
    batch: int,
    shape: tuple[int, int],
    warmup: int = 100,
    runs: int = 100,
    clock: Clock = time.perf_counter,
) -> tuple[list[Row], list[str]]:
    """Check and time models in several settings, all in turn, on random images.

    What is being prepared, and how long that took, goes to stderr.

    Args:
        contestants: models; one that names its backends is measured in those alone, in float32.
        settings: what each of the others is run in; all on one device.
        batch: images a pass.
        shape: height and width of the images in pixels.
        warmup: rounds before the timed ones.
        runs: timed rounds.
        clock: gives seconds. ``time.process_time`` does not count what other processes take; it is
            latency with one thread alone.

    Returns:
        A row for each model and setting, in the order given, and warnings about the machine: none where
        it was quiet.

    Raises:
        ValueError: there is no model or no setting, or a setting names what does not exist, such as a
            GPU; CPU time is asked for with several threads, or on a GPU.
    """
    if clock is time.process_time and any(s.threads > 1 or s.device == "cuda" for s in settings):
        raise ValueError(
            "CPU time is the latency of a single thread only: expected --threads 1 on a CPU with "
            f"--cpu-time, got {settings[0].threads} threads on {settings[0].device}"
        )
    if not contestants or not settings:
        raise ValueError("expected at least one model and one backend with a dtype, got none")
    check_device(settings[0].device)
    configure(settings[0].device)
    image = torch.rand(batch, 3, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    rows: list[Row] = []
    calls: dict[Any, Callable[[], object]] = {}
    pairs = [(c, s) for c in contestants for s in _settings_of(c, settings)]
    seen: Contestant | None = None
    for i, (contestant, setting) in enumerate(pairs, 1):
        start = time.perf_counter()
        print(
            f"[{i}/{len(pairs)}] {contestant.name}, {setting.backend}, {setting.dtype}: preparing"
            + (", compilation takes minutes" if setting.backend in SLOW_TO_PREPARE else ""),
            end=" ... ", file=sys.stderr, flush=True,
        )  # fmt: skip
        if contestant is not seen:
            seen = contestant
            with torch.inference_mode():
                expected = list(contestant.original(image))
            macs = count_macs(contestant.model, (batch, 3, *shape))
        row, run = check(contestant.model, image, setting, expected)
        rows.append(row._replace(name=contestant.name, macs=macs))
        if run is not None:
            calls[len(rows) - 1] = run
        took = time.perf_counter() - start
        print(row.problem or f"ready after {took:.1f} s", file=sys.stderr, flush=True)
    calls["probe"] = probe(settings[0].device)
    times = interleave(calls, warmup=warmup, runs=runs, clock=clock)
    products = times.pop("probe")
    for i, seconds in times.items():
        rows[i] = rows[i]._replace(seconds=seconds)
    return rows, noise(products)


def check(
    model: nn.Module, image: Tensor, setting: Setting, expected: Sequence[Tensor]
) -> tuple[Row, Run | None]:
    """Bring a model into a runtime and compare what it computes there.

    Args:
        model: float32, on the CPU.
        image: (B, C, H, W), float32, on the CPU.
        setting: the runtime.
        expected: the maps in eager float32.

    Returns:
        Its row without times, and the call to time; None where it cannot be had, fails or is wrong,
        which the row's `problem` tells.

    Raises:
        ValueError: the setting names what does not exist.
    """
    error, problem, run = None, None, None
    try:
        run = prepare(model, image, setting)
        error = relative_error(run(), expected)
        limit = TOLERANCE[setting.dtype]
        if not error <= limit:
            problem = f"WRONG OUTPUT: error {error:.1e}, at most {limit:g} expected"
    except Unavailable as e:
        problem = str(e)
    except (RuntimeError, NotImplementedError) as e:  # no kernel, no memory: the others go on
        problem = f"fails: {type(e).__name__}: {str(e).strip().splitlines()[0][:200]}"
    row = Row("", setting.backend, setting.dtype, count_parameters(model), 0, error, problem, [])
    return row, run if problem is None else None


def probe(device: str) -> Callable[[], object]:
    """A matrix product in float32, for :func:`noise`; finished on the device when it returns.

    Args:
        device: cpu, cuda or cuda:0.
    """
    side = _PROBE_SIDE[torch.device(device).type]
    a = torch.rand(side, side, device=device)
    out = torch.empty_like(a)

    def run() -> None:
        torch.mm(a, a, out=out)
        wait_for(device)

    return run


def noise(products: Sequence[float]) -> list[str]:
    """What a matrix product's time says about the machine: a line for each thing that is off.

    Args:
        products: seconds of the timed passes of :func:`probe`, in order.
    """
    found = []
    spread = timing(products).spread
    if spread > MAX_SPREAD:
        found.append(
            f"the machine is noisy: a matrix product's time varies by a factor of {spread:.2f} (p90 over "
            "p10). Compare rows of this run with each other only, or stop what else runs."
        )
    part = max(1, len(products) // 5)
    drift = timing(products[-part:]).median / timing(products[:part]).median
    if not 1 / MAX_DRIFT < drift < MAX_DRIFT:
        found.append(
            f"the machine's clock drifted: a matrix product took {drift:.2f} times as long at the end of "
            "the run as at its beginning."
        )
    return found


def _settings_of(contestant: Contestant, settings: Sequence[Setting]) -> Sequence[Setting]:
    if contestant.backends is None:
        return settings
    return [settings[0]._replace(backend=b, dtype="float32") for b in contestant.backends]
