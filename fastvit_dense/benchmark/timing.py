"""Interleaved measurement, the same for backbones, whole models, the hand and training steps.

The protocol is the FastViT paper's: 100 passes to warm up, 100 timed, their median. What is new is that
all candidates take turns, so that a change of the machine's clock or load hits all alike; that outputs
are compared before anything is timed; and that a matrix product takes its turn, too: when its time
varies, something else runs on the machine.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..deploy.runtimes import Unavailable, relative_error
from ..engine.devices import wait_for

Run = Callable[[], Any]
Clock = Callable[[], float]
# Largest relative error of a correct candidate. Sums in another order cost 1e-5 at most; the low
# precisions round every map of the network to 11 and 8 bits.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}
MAX_SPREAD = 1.25  # p90 over p10 of the matrix product, if nothing else runs
_PROBE_SIDE = {"cpu": 1024, "cuda": 4096}  # of the matrices; a few ms


class Row(NamedTuple):
    """What was measured for one candidate.

    Attributes:
        name: of the model.
        backend: a key of ``runtimes.BACKENDS``.
        dtype: a key of ``runtimes.DTYPES``.
        images: per pass.
        figures: what else is known, by the keys of ``report.FIGURES``.
        problem: why it was not timed; None if it was.
        seconds: of each timed pass.
        parts: the latency breakdown: seconds of each timed pass, by part; empty without one.
    """

    name: str
    backend: str
    dtype: str
    images: int
    figures: Mapping[str, float]
    problem: str | None = None
    seconds: Sequence[float] = ()
    parts: Mapping[str, Sequence[float]] = {}


Candidate = tuple[Row, Run | None]


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The 10th, the median and the 90th of at least one pass."""
    p10, median, p90 = np.percentile(seconds, (10, 50, 90))
    return float(p10), float(median), float(p90)


class Breakdown:
    """A call that notes, each time it is made, how long each of its parts takes.

    Time counts for the innermost part that is running. At the borders of parts the device is waited for.

    Args:
        run: the call.
        parts: names, in the order of the table.
        rest: the part that gets what no other one does.
        device: cpu, cuda or cuda:0.
        clock: gives seconds.
    """

    def __init__(
        self, run: Run, parts: Sequence[str], *, rest: str, device: str,
        clock: Clock = time.perf_counter,
    ) -> None:  # fmt: skip
        self._run, self._parts, self._rest = run, parts, rest
        self._device, self._clock = device, clock
        self._current, self._since = rest, 0.0
        self._passes: list[dict[str, float]] = [dict.fromkeys(parts, 0.0)]

    def __call__(self) -> Any:
        self._passes.append(dict.fromkeys(self._parts, 0.0))
        wait_for(self._device)
        self._since = self._clock()
        result = self._run()
        self._enter(self._rest)
        return result

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside of it is this part, except for parts within."""
        outer = self._current
        self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def watch(self, owner: Any, function: str, name: str) -> None:
        """Make a function, by its name in an object or module, a part from now on."""
        setattr(owner, function, self.part(name)(getattr(owner, function)))

    def seconds(self, runs: int) -> dict[str, list[float]]:
        """Of the last `runs` passes, by part."""
        return {part: [p[part] for p in self._passes[-runs:]] for part in self._parts}

    def _enter(self, name: str) -> None:
        if name != self._current or name == self._rest:
            wait_for(self._device)
            now = self._clock()
            self._passes[-1][self._current] += now - self._since
            self._current, self._since = name, now


def check(row: Row, prepare: Callable[[], Run], expected: Sequence[Tensor]) -> Candidate:
    """Prepare a candidate and compare what it computes. The progress goes to stderr.

    Args:
        row: without times; its device is configured already.
        prepare: gives the call to time, which returns tensors.
        expected: the tensors in eager float32 before fusion.

    Returns:
        The row with the error, and the call; None instead if it is not available, fails or is wrong,
        which the row's `problem` tells.
    """
    print(f"{row.name}, {row.backend}, {row.dtype}: ", end="", file=sys.stderr, flush=True)
    problem, start = None, time.perf_counter()
    try:
        run = prepare()
        error = relative_error(run(), expected)
        limit = TOLERANCE[row.dtype]
        if not error <= limit:
            problem = f"WRONG OUTPUT: error {error:.1e}, at most {limit:g} expected"
        if math.isfinite(error):
            row = row._replace(figures={**row.figures, "error": error})
    except Unavailable as e:
        problem = str(e)
    except (RuntimeError, NotImplementedError) as e:  # no kernel, no memory: the others go on
        problem = f"fails: {type(e).__name__}: {str(e).strip().splitlines()[0][:200]}"
    print(problem or f"ready after {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return row._replace(problem=problem), None if problem else run


def measure(
    candidates: Sequence[Candidate], device: str, *, warmup: int = 100, runs: int = 100,
    clock: Clock = time.perf_counter,
) -> tuple[list[Row], list[str]]:  # fmt: skip
    """Time candidates in turn: pass k of each comes before pass k + 1 of any, a matrix product's too.

    Args:
        candidates: rows and calls, of a module of this room.
        device: cpu, cuda or cuda:0.
        warmup: rounds before the timed ones.
        runs: timed rounds.
        clock: gives seconds.

    Returns:
        The rows with their times, and warnings about the machine: none if it was quiet.
    """
    calls = [*(run for _, run in candidates), probe(device)]
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in tqdm(range(warmup + runs), desc="rounds", disable=None):
        for call, times in zip(calls, seconds, strict=True):
            if call is not None:
                start = clock()
                call()
                times.append(clock() - start)
    rows = []
    for (row, run), times in zip(candidates, seconds, strict=False):
        parts = run.seconds(runs) if isinstance(run, Breakdown) else {}
        rows.append(row._replace(seconds=times[warmup:], parts=parts))
    return rows, noise(seconds[-1][warmup:])


def probe(device: str) -> Run:
    """A matrix product in float32, for :func:`noise`; finished on the device when it returns."""
    side = _PROBE_SIDE[torch.device(device).type]
    a = torch.rand(side, side, device=device)
    out = torch.empty_like(a)

    def run() -> None:
        torch.mm(a, a, out=out)
        wait_for(device)

    return run


def noise(products: Sequence[float]) -> list[str]:
    """A warning if the times of a matrix product, in seconds, say that the machine does something else."""
    p10, _, p90 = percentiles(products)
    if p90 / p10 <= MAX_SPREAD:
        return []
    return [
        f"the machine is noisy: a matrix product's time varies by a factor of {p90 / p10:.2f} (p90 over "
        "p10). Compare rows of this run with each other only, or stop what else runs."
    ]
