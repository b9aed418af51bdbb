"""Latency of backbones in several runtimes, checked, side by side in one run.

The protocol is the FastViT paper's: 100 passes to warm up, 100 timed, their median. What is new is that
all candidates take turns, so that a change of the machine's clock or load hits all alike, that outputs
are compared before anything is timed, and that the machine's own speed is measured in the same turns.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import roofline
from .backends import DTYPES, Run, Setting, Unavailable, prepare, relative_error
from .complexity import count_parameters
from .contestants import Contestant

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[], float]

# Largest relative error that a correct backend has. Sums in another order cost 1e-5 at most; the low
# precisions round every map of the network to 11 and 8 bits.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}
# The machine's matrix product varies by less than this when nothing else runs.
MAX_SPREAD = 1.25
MAX_DRIFT = 1.1


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
        product_limit: seconds that the model's arithmetic takes as one matrix product of this dtype.
        roofline: seconds that the layers take at least, arithmetic or memory, one after the other.
    """

    name: str
    backend: str
    dtype: str
    parameters: int
    macs: int
    error: float | None
    problem: str | None
    seconds: list[float]
    product_limit: float = math.nan
    roofline: float = math.nan


class Machine(NamedTuple):
    """What the machine did in the same rounds as the candidates.

    Attributes:
        peaks: for each dtype the rate of its matrix product and of the copy.
        products: seconds of each timed matrix product, for each dtype.
        warnings: what says that the figures are not to be trusted; empty on a quiet machine.
    """

    peaks: dict[str, roofline.Peak]
    products: dict[str, list[float]]
    warnings: list[str]


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
) -> tuple[list[Row], Machine]:
    """Check and time models in several settings, all in turn, and the machine's limits among them.

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
        A row for each model and setting, in the order given, and what the machine did meanwhile.

    Raises:
        ValueError: there is no model or no setting, or a setting names what does not exist; CPU time
            is asked for with several threads, or on a GPU.
    """
    if clock is time.process_time and any(s.threads > 1 or s.device == "cuda" for s in settings):
        raise ValueError(
            "CPU time is the latency of a single thread only: expected --threads 1 on a CPU with "
            f"--cpu-time, got {settings[0].threads} threads on {settings[0].device}"
        )
    if not contestants or not settings:
        raise ValueError("expected at least one model and one backend with a dtype, got none")
    if settings[0].device == "cuda":
        # Otherwise "float32" convolutions would be computed with 10 bits of mantissa.
        torch.backends.cudnn.allow_tf32 = False
    image = torch.rand(batch, 3, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    rows: list[Row] = []
    calls: dict[Hashable, Run] = {}
    layers: list[list[roofline.Layer]] = []
    pairs = [(c, s) for c in contestants for s in _settings_of(c, settings)]
    seen: Contestant | None = None
    for contestant, setting in tqdm(pairs, desc="models", disable=None):
        if contestant is not seen:
            seen = contestant
            with torch.inference_mode():
                expected = list(contestant.original(image))
            its_layers = roofline.list_layers(contestant.model, (batch, 3, *shape))
        row, run = check(contestant.model, image, setting, expected)
        rows.append(row._replace(name=contestant.name, macs=sum(x.flops for x in its_layers) // 2))
        layers.append(its_layers)
        if run is not None:
            calls[len(rows) - 1] = run
    seconds, machine = _time_with_probes(calls, rows, settings[0].device, warmup, runs, clock)
    for i, passes in seconds.items():
        peak, itemsize = machine.peaks[rows[i].dtype], DTYPES[rows[i].dtype].itemsize
        rows[i] = rows[i]._replace(
            seconds=passes,
            product_limit=roofline.product_limit(layers[i], peak),
            roofline=roofline.roofline(layers[i], peak, itemsize),
        )
    return rows, machine


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


def noise(products: Mapping[str, Sequence[float]]) -> list[str]:
    """What the machine's matrix product says about the machine: a line for each thing that is off.

    Args:
        products: seconds of the timed passes, in order, for each dtype.
    """
    found = []
    for dtype, seconds in products.items():
        spread = timing(seconds).spread
        if spread > MAX_SPREAD:
            found.append(
                f"the machine is noisy: its {dtype} matrix product varies by a factor of {spread:.2f} "
                "(p90 over p10). Compare rows of this run with each other only, or stop what else runs."
            )
        part = max(1, len(seconds) // 5)
        drift = timing(seconds[-part:]).median / timing(seconds[:part]).median
        if not 1 / MAX_DRIFT < drift < MAX_DRIFT:
            found.append(
                f"the machine's clock drifted: its {dtype} matrix product took {drift:.2f} times as long "
                "after the run as before."
            )
    return found


def _settings_of(contestant: Contestant, settings: Sequence[Setting]) -> Sequence[Setting]:
    if contestant.backends is None:
        return settings
    return [settings[0]._replace(backend=b, dtype="float32") for b in contestant.backends]


def _time_with_probes(
    calls: Mapping[Hashable, Run],
    rows: Sequence[Row],
    device: str,
    warmup: int,
    runs: int,
    clock: Clock,
) -> tuple[dict[int, list[float]], Machine]:
    """Time the calls, with matrix products of each dtype and a copy among them in every round.

    The limit is the fastest product's: a smaller one would flatter the models.
    """
    dtypes = list(dict.fromkeys(rows[i].dtype for i in calls if isinstance(i, int)))
    products: dict[Hashable, Callable[[], object]] = {
        (dtype, side): _finished(roofline.matrix_product(side, DTYPES[dtype], device), device)
        for dtype in dtypes
        for side in roofline.SIDES[device]
    }
    probes = {**products, "copy": _finished(roofline.memory_copy(device), device)}
    times = interleave({**probes, **calls}, warmup=warmup, runs=runs, clock=clock)
    bandwidth = 2 * roofline.COPY_BYTES / timing(times["copy"]).median
    peaks, best = {}, {}
    for dtype in dtypes:
        rates = {
            side: 2 * side**3 / timing(times[dtype, side]).median for side in roofline.SIDES[device]
        }
        side = max(rates, key=lambda side: rates[side])
        peaks[dtype], best[dtype] = roofline.Peak(rates[side], bandwidth), times[dtype, side]
    seconds = {i: times[i] for i in calls if isinstance(i, int)}
    return seconds, Machine(peaks, best, noise(best))


def _finished(call: Callable[[], object], device: str) -> Callable[[], object]:
    """The same call, finished on the device when it returns."""
    if device == "cpu":
        return call

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run
