"""The latency benchmark measures and says what it claims. Nothing here depends on the machine's speed."""

import copy
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import ROOT, randomise, run_tool
from torch import fx, nn
from torch.fx.experimental import optimization
from torch.utils._python_dispatch import TorchDispatchMode

from fastvit_dense import FastViT, reparameterize
from fastvit_dense.backbone import reparameterize as depthwise
from fastvit_dense.backbone.reparameterize import SplitDepthwise, split_patch_embeddings
from fastvit_dense.benchmark import hand as speed
from fastvit_dense.benchmark import model as part_times
from fastvit_dense.benchmark import report as latency_report
from fastvit_dense.benchmark import timing as latency
from fastvit_dense.benchmark.baselines import Contestant, line_up, ours, peer
from fastvit_dense.benchmark.timing import Row, check, interleave, measure, noise, timing
from fastvit_dense.deploy import runtimes as backends
from fastvit_dense.deploy.runtimes import (
    Setting,
    Unavailable,
    prepare,
    relative_error,
    to_onnx,
)

SIZE = (64, 64)
EAGER = Setting("eager", "float32", "cpu", 1)
SEGMENTOR = "configs/seg/fpn_fastvit-t8_demo-regions.py"
DETECTOR = "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py"


@pytest.fixture(scope="module")
def t8() -> Contestant:
    return ours("t8")[0]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 3, *SIZE)


def test_statistics() -> None:
    t = timing([0.03, 0.01, 0.02, 0.05, 0.04])
    assert (t.median, t.minimum) == (0.03, 0.01)
    assert t.p10 == pytest.approx(0.014) and t.p90 == pytest.approx(0.046)
    assert t.spread == pytest.approx(46 / 14)
    with pytest.raises(ValueError, match="no timed passes"):
        timing([])


def test_calls_take_turns_on_a_clock() -> None:
    order: list[str] = []
    ticks = count()  # each reading of the clock is one second later
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleave(calls, warmup=1, runs=2, clock=lambda: float(next(ticks)))
    assert "".join(order) == "abc" * 3
    assert seconds == {"a": [1, 1], "b": [1, 1], "c": [1, 1]}
    with pytest.raises(ValueError, match="at least 1 timed round"):
        interleave(calls, warmup=0, runs=0)


def test_only_the_call_is_timed() -> None:
    now = [0.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    calls = {"short": lambda: takes(1), "long": lambda: takes(5)}
    assert interleave(calls, warmup=3, runs=1, clock=lambda: now[0]) == {"short": [1], "long": [5]}


def test_reference_outputs_are_those_before_fusion(t8: Contestant, image: torch.Tensor) -> None:
    with torch.no_grad():
        expected = t8.original(image)
    row, run = check(t8.model, image, EAGER, expected)
    assert run is not None and row.problem is None
    assert row.error is not None and 0 < row.error < 1e-5


def test_a_wrong_backend_is_not_timed(t8: Contestant, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, image: torch.Tensor, setting: Setting) -> backends.Run:
        with torch.no_grad():
            maps = [m * 1.01 for m in model(image)]
        return lambda: maps

    monkeypatch.setitem(backends.BACKENDS, "openvino", wrong)
    settings = [EAGER, EAGER._replace(backend="openvino")]
    rows, warnings = measure([t8], settings, batch=1, shape=SIZE, warmup=0, runs=2)
    good, bad = rows
    assert len(good.seconds) == 2
    assert bad.seconds == [] and bad.error == pytest.approx(0.01, rel=0.1)
    text = latency_report.table(rows, warnings)
    assert "| WRONG OUTPUT |" in text
    assert "- openvino, float32 (fastvit_t8): WRONG OUTPUT: error 1.0e-02, at most 0.0001" in text


def test_cpu_time(t8: Contestant) -> None:
    settings = [EAGER._replace(backend=backend) for backend in ("eager", "eager-nchw")]
    rows, _ = measure(
        [t8], settings, batch=1, shape=SIZE, warmup=0, runs=2, clock=time.process_time
    )
    assert [len(row.seconds) for row in rows] == [2, 2]
    with pytest.raises(ValueError, match="CPU time is .* a single thread only.* got 2 threads"):
        measure([t8], [EAGER._replace(threads=2)], batch=1, shape=SIZE, clock=time.process_time)


def test_a_failing_backend_does_not_end_the_run(
    t8: Contestant, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> backends.Run:
        raise RuntimeError("no kernel\nand much more")

    monkeypatch.setitem(backends.BACKENDS, "eager", fails)
    row, run = check(t8.model, image, EAGER, [])
    assert run is None and row.problem == "fails: RuntimeError: no kernel"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (("tensorrt", "float16", "cpu"), "TensorRT runs on CUDA devices"),
        (("onnxruntime", "bfloat16", "cpu"), "no bfloat16 convolution"),
        (("onnxruntime", "float16", "cpu"), "computes float16 models in float32"),
    ],
)
def test_impossible_combinations_are_explained(
    setting: tuple[str, str, str], reason: str, image: torch.Tensor, t8: Contestant
) -> None:
    if setting[0] == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="extra 'export' is not installed")
    with pytest.raises(Unavailable, match=reason):
        prepare(t8.model, image, Setting(*setting, 1))
    row, run = check(t8.model, image, Setting(*setting, 1), [])
    assert run is None and row.problem and reason in row.problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu(image: torch.Tensor, t8: Contestant) -> None:
    with pytest.raises(Unavailable, match="no CUDA device"):
        prepare(t8.model, image, EAGER._replace(device="cuda"))


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for a CUDA device; what it is asked for, in order."""
    events: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: object) -> None:
            events.append(f"{self.name} waits")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextmanager
    def within(name: str) -> Iterator[None]:
        events.append(f"{name} {{")
        yield
        events.append("}")

    def forward(model: Any, image: Any, setting: Setting, layout: Any, *wrap: Any) -> backends.Run:
        return lambda: events.append(f"{setting.dtype} {layout}") or [torch.zeros(1)]

    for name, value in dict(
        is_available=lambda: True, CUDAGraph=Graph, Stream=Stream,
        current_stream=lambda: Stream("current"), stream=lambda stream: within("side"),
        graph=lambda graph, stream: within("capture"),
        synchronize=lambda device=None: events.append("wait"),
    ).items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(backends, "_forward", forward)
    return events


@pytest.mark.parametrize(
    ("backend", "layout"),
    [("eager", torch.channels_last), ("eager-nchw", torch.contiguous_format)],
)
def test_eager_on_cuda_waits_for_the_device(
    fake_cuda: list[str], backend: str, layout: torch.memory_format, image: torch.Tensor
) -> None:
    run = prepare(nn.Identity(), image, Setting(backend, "float16", "cuda", 1))
    assert fake_cuda == []
    run()
    assert fake_cuda == [f"float16 {layout}", "wait"]


@pytest.mark.parametrize(
    ("backend", "layout"),
    [("cuda-graph", torch.channels_last), ("cuda-graph-nchw", torch.contiguous_format)],
)
def test_a_cuda_graph_is_captured_after_a_warm_up_on_its_stream(
    fake_cuda: list[str], backend: str, layout: torch.memory_format, image: torch.Tensor
) -> None:
    run = prepare(nn.Identity(), image, Setting(backend, "float16", "cuda", 1))
    ran = f"float16 {layout}"
    before = ["side waits", "side {", ran, ran, ran, "}", "current waits"]
    assert fake_cuda == [*before, "capture {", ran, "}"]
    fake_cuda.clear()
    assert run() is run(), "a graph has its maps in one place"
    assert fake_cuda == ["replay", "wait"] * 2, "nothing but the replay is timed"


class Stop(Exception):
    pass


@pytest.mark.parametrize("module", [latency, speed])
def test_tf32_is_off_before_anything_is_compared_on_cuda(
    module: Any, monkeypatch: pytest.MonkeyPatch, t8: Contestant
) -> None:
    """By default cuDNN's float32 is off by 1e-3, more than is tolerated."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("allow_tf32", True), ("benchmark", False)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    seen: list[dict[str, str]] = []

    def stop(*args: Any) -> None:
        seen.append(backends.arithmetic("cuda"))
        raise Stop

    monkeypatch.setattr(module, "check", stop)
    with pytest.raises(Stop):
        if module is latency:
            measure([t8], [EAGER._replace(device="cuda")], batch=1, shape=SIZE)
        else:
            speed.measure(["t8"], ["eager"], device="cuda", threads=1)
    assert seen == [
        {"TF32": "off in convolutions and off in matrix products", "cuDNN's benchmark mode": "on"}
    ]
    assert backends.arithmetic("cpu") == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_told(t8: Contestant) -> None:
    with pytest.raises(ValueError, match="device 'cuda' is not there"):
        measure([t8], [EAGER._replace(device="cuda")], batch=1, shape=SIZE)
    with pytest.raises(Unavailable, match="CUDA graphs need a CUDA device"):
        prepare(t8.model, torch.rand(1, 3, *SIZE), EAGER._replace(backend="cuda-graph"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["eager", "eager-nchw", "cuda-graph", "cuda-graph-nchw"])
def test_a_gpu_computes_the_same(
    name: str, dtype: str, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("allow_tf32", "benchmark"):  # to be restored
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    backends.configure("cuda")
    contestant = ours("sa12")[0]
    with torch.no_grad():
        expected = contestant.original(image)
    row, run = check(contestant.model, image, Setting(name, dtype, "cuda", 1), expected)
    assert run is not None, row.problem
    again = relative_error([m.clone() for m in run()], run())
    assert again < 1e-6, "a replay computes the same"


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_missing_packages(
    package: str, image: torch.Tensor, t8: Contestant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unavailable, match=f"{package} is not installed"):
        prepare(t8.model, image, EAGER._replace(backend=package))


def test_unknown_names(image: torch.Tensor, t8: Contestant) -> None:
    with pytest.raises(ValueError, match="backend must be one of eager, .*; got 'ncnn'"):
        prepare(t8.model, image, EAGER._replace(backend="ncnn"))
    with pytest.raises(ValueError, match="dtype must be one of float32, .*; got 'int8'"):
        prepare(t8.model, image, EAGER._replace(dtype="int8"))
    with pytest.raises(ValueError, match="--arch must be of t8, .*; got b9"):
        line_up(["b9"], [])
    with pytest.raises(ValueError, match="timm's models, got 'resnet_fifty'"):
        peer("resnet_fifty")
    with pytest.raises(ValueError, match="at least one model"):
        measure([], [EAGER], batch=1, shape=SIZE)


def test_runtimes_compute_the_same(image: torch.Tensor) -> None:
    pytest.importorskip("onnxruntime", reason="extra 'export' is not installed")
    pytest.importorskip("openvino", reason="extra 'export' is not installed")
    contestant = ours("sa12")[0]
    with torch.no_grad():
        expected = contestant.original(image)
    for backend in ("eager", "eager-nchw", "onnxruntime", "openvino"):
        row, run = check(contestant.model, image, EAGER._replace(backend=backend), expected)
        assert run is not None, row.problem
        assert row.error is not None and row.error < 1e-5


def test_export_needs_onnx(
    image: torch.Tensor, t8: Contestant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(Unavailable, match="onnx is not installed"):
        to_onnx(t8.model, image)


class CountNorms(TorchDispatchMode):
    """Counts the BatchNorms that are computed, whoever calls them."""

    norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.norms += "batch_norm" in func.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("resnet18", 0),
        ("repvit_m1_1", 0),
        ("poolformer_s12", 0),  # has none to begin with
        ("mobilenetv3_small_050", 0),  # BatchNorm and activation in one module of timm's
        ("fastvit_sa12", 2),  # of attention blocks: they come after a sum, not after a convolution
        ("timm:fastvit_t8", None),
    ],
)
def test_baselines_are_fused_and_compute_the_same(
    name: str, norms: int | None, image: torch.Tensor
) -> None:
    contestant = peer(name)
    with torch.no_grad():
        expected = contestant.original(image)
        assert [m.shape[-1] for m in expected] == [16, 8, 4, 2]
        with CountNorms() as run:
            assert relative_error(contestant.model(image), expected) < 1e-4
    if norms is None:
        assert contestant.backends == ("eager-nchw",)
    else:
        assert contestant.backends is None and run.norms == norms


@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m1_1", "repvgg_a0"])
def test_baselines_with_branches_left_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm.utils, "reparameterize_model", copy.deepcopy)  # fuses nothing
    with pytest.raises(
        ValueError, match=f"baseline {name} cannot be fused .*the branches that .* adds"
    ):
        peer(name)


def test_a_batch_norm_left_after_a_convolution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "fuse", lambda model, inplace: fx.symbolic_trace(model))
    with pytest.raises(
        ValueError, match="20 places .* the BatchNorm bn1 after the convolution conv1"
    ):
        peer("resnet18")


def test_baselines_that_cannot_be_traced_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match="mobilevitv2_050 cannot be fused .TraceError.*or name it timm:mobilevitv2_050",
    ):
        peer("mobilevitv2_050")
    assert peer("timm:mobilevitv2_050").backends == ("eager-nchw",)


@pytest.mark.parametrize("prefix", ["", "timm:"])
def test_a_fusion_that_raises_is_told(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module) -> nn.Module:
        raise AttributeError("no attribute 'identity'")

    monkeypatch.setattr(timm.utils, "reparameterize_model", fails)
    with pytest.raises(
        ValueError, match=f"baseline {prefix}resnet18 .*AttributeError: no attribute"
    ):
        peer(f"{prefix}resnet18")


def test_line_up() -> None:
    names = [c.name for c in line_up(["t8"], ["resnet18"], unfused=True)]
    assert names == ["fastvit_t8", "fastvit_t8, not split", "fastvit_t8, not fused", "resnet18"]


def test_split_patch_embeddings() -> None:
    model = randomise(FastViT("sa12", out_indices=(0, 1, 3))).double().eval()
    fused = reparameterize(model).to(memory_format=torch.channels_last)
    before = {k: v.clone() for k, v in fused.state_dict().items()}
    split = split_patch_embeddings(fused)
    x = torch.rand(2, 3, 69, 98).double()
    with torch.no_grad():
        assert relative_error(split(x), model(x)) < 1e-12
    assert all(torch.equal(v, before[k]) for k, v in fused.state_dict().items())
    convs = [m for m in split.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(m.in_channels == m.out_channels == m.groups for m in convs)
    # The stem, two a block and one an attention block, the position encoding, embeddings in halves.
    assert len(convs) == 1 + 10 * 2 + 2 + 1 + 3 * 2
    again = split_patch_embeddings(split).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in split.state_dict().items())
    assert not any(m.training for m in split.modules())


def test_split_embeddings_in_a_wrong_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(FastViT("t8")).eval()
    part = depthwise._depthwise_part
    monkeypatch.setattr(depthwise, "_depthwise_part", lambda conv, k, n: part(conv, n - 1 - k, n))
    x = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        assert relative_error(split_patch_embeddings(reparameterize(model))(x), model(x)) > 0.01


def test_split_refuses() -> None:
    with pytest.raises(ValueError, match="expected a fused FastViT"):
        split_patch_embeddings(FastViT("t8"))
    with pytest.raises(ValueError, match="each of the 8 input channels, got 2 groups"):
        SplitDepthwise(nn.Conv2d(8, 16, 3, groups=2))


def test_noise() -> None:
    assert noise([1.0, 1.01] * 10) == []
    (spread,) = noise([1.0, 1.0, 1.0, 1.5] * 5)
    assert "noisy" in spread and "1.50" in spread
    (drift,) = noise([1.0] * 10 + [1.15] * 10)
    assert "drifted" in drift and "1.15" in drift


ROWS = [
    Row("a", "eager", "float32", 2_000_000, 10**9, 1e-6, None, [0.1, 0.1, 0.1]),
    Row("b", "openvino", "bfloat16", 3_000_000, 10**9, 2e-3, None, [0.02, 0.025, 0.03]),
    Row("b", "tensorrt", "float16", 3_000_000, 10**9, math.inf, "needs a GPU", []),
]


def test_table() -> None:
    text = latency_report.table(ROWS, ["noisy machine"])
    a, b = text.splitlines()[2:4]
    assert (
        a
        == "| a | eager | float32 | 2.00 | 1.00 | 1.0e-06 | 100.00 | 100.00 | 100.00 | 1.00 | 1.00 |"
    )
    assert b.endswith("| 25.00 | 21.00 | 29.00 | 1.38 | 4.00 |")
    assert "- tensorrt, float16 (b): needs a GPU" in text
    assert text.endswith("WARNING: noisy machine")
    assert "limit" not in text and "roofline" not in text
    assert "| 0.25 |" in latency_report.table(ROWS, [], reference="b")
    with pytest.raises(ValueError, match="--reference must be one of a, b; got 'c'"):
        latency_report.table(ROWS, [], reference="c")


def test_json_and_plot(tmp_path: Path) -> None:
    path, picture = tmp_path / "a.json", tmp_path / "a.png"
    latency_report.write_json(path, ROWS, ["noisy"], conditions={"device": "x"}, arguments={"n": 1})
    content = json.loads(path.read_text())
    assert content["rows"][0]["median"] == 0.1 and content["rows"][2]["error"] is None
    assert content["warnings"] == ["noisy"]
    latency_report.plot(ROWS, picture)
    assert picture.stat().st_size > 5000
    with pytest.raises(ValueError, match="nothing was timed"):
        latency_report.plot(ROWS[2:], picture)


class Whole(nn.Module):
    """A model of which each part takes another while on a fake clock."""

    def __init__(self, now: list[float]) -> None:
        super().__init__()

        def part(seconds: float) -> nn.Module:
            def wait() -> None:
                now[0] += seconds

            return _Waiting(wait)

        self.data_preprocessor, self.backbone, self.neck = part(1), part(10), part(2)
        self.head = nn.Module()
        self.head.inner = nn.Sequential(part(3), part(1))


class _Waiting(nn.Module):
    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self.wait, self.weight = wait, nn.Parameter(torch.zeros(1))

    def forward(self, x: int) -> int:
        self.wait()
        return x


def test_parts_on_a_clock() -> None:
    now = [0.0]
    model = Whole(now)

    def call() -> None:
        x = model.neck(model.backbone(model.data_preprocessor(0)))
        model.head.inner.forward(x)  # as mmseg calls its heads
        now[0] += 5

    timer = part_times.PartTimer(model, clock=lambda: now[0])
    expected = dict(zip(part_times.PARTS, (1, 10, 2, 4, 5), strict=True))
    assert timer.run(call) == expected == timer.run(call)
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("config", [SEGMENTOR, DETECTOR])
def test_parts_of_a_whole_model(config: str, tmp_path: Path) -> None:
    results = part_times.measure_config(
        str(ROOT / config), batch=1, shape=(64, 96), warmup=0, runs=2
    )
    assert list(results) == ["eager", "fused", "fused, channels_last"]
    for parts in results.values():
        assert tuple(parts) == part_times.PARTS
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in parts.values())
    text = part_times.table(results)
    assert text.splitlines()[2].startswith("| eager | ") and text.splitlines()[2].endswith(
        "| 1.00 |"
    )
    part_times.write_json(tmp_path / "a.json", results, conditions={}, arguments={})
    assert json.loads((tmp_path / "a.json").read_text())["seconds"] == results
    part_times.plot(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_tool(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = run_tool(
        "tools/benchmark.py", "--arch", "t8", "--shape", 64, 64, "--warmup", 0, "--runs", 2, "--json", path,
        "--backend", "eager", "tensorrt", "--device", "cpu", "--plot", tmp_path / "a.png",
    )  # fmt: skip
    assert re.search(
        r"\[1/2\] fastvit_t8, eager, float32: preparing \.\.\. ready after [\d.]+ s\n", text
    )
    assert (
        "[2/2] fastvit_t8, tensorrt, float32: preparing, compilation takes minutes ... Tensor"
        in text
    )
    assert "OMP_WAIT_POLICY PASSIVE" in text and "0 passes to warm up, 2 timed" in text
    assert "| fastvit_t8 | eager | float32 | 3.1" in text
    assert "- tensorrt, float32 (fastvit_t8): TensorRT runs on CUDA devices" in text
    assert len(json.loads(path.read_text())["rows"]) == 2


def test_tool_on_a_baseline_that_cannot_be_fused() -> None:
    text = run_tool(
        "tools/benchmark.py", "--arch", "--against", "mobilevitv2_050", "--device", "cpu", fails=True
    )  # fmt: skip
    assert "benchmark: baseline mobilevitv2_050 cannot be fused" in text and "Traceback" not in text


def test_tool_refuses_before_it_measures() -> None:
    common = ("tools/benchmark.py", "--arch", "t8", "--device", "cpu")
    text = run_tool(*common, "--reference", "foo", fails=True)
    assert "benchmark: --reference must be one of fastvit_t8; got 'foo'" in text
    assert "preparing" not in text
    text = run_tool(*common, "--checkpoint", "x.pth", fails=True)
    assert "--checkpoint goes with --config: weights of --arch are random" in text
