"""The latency benchmark measures and says what it claims. Nothing here depends on the machine's speed."""

import copy
import json
import math
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
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
from fastvit_dense.benchmark import backbone, hand, report
from fastvit_dense.benchmark.backbone import Backbone, backbones, baseline, candidates
from fastvit_dense.benchmark.timing import (
    Breakdown,
    Candidate,
    Row,
    check,
    measure,
    noise,
    percentiles,
)
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
ROW = Row("t8", "eager", "float32", 1, {})


@pytest.fixture(scope="module")
def t8() -> Backbone:
    return backbones(["t8"])[0]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 3, *SIZE)


def in_setting(
    model: nn.Module, image: torch.Tensor, setting: Setting, expected: list[torch.Tensor]
) -> Candidate:
    row = ROW._replace(backend=setting.backend, dtype=setting.dtype)
    return check(row, lambda: prepare(model, image, setting), expected)


def test_statistics() -> None:
    assert percentiles([0.03, 0.01, 0.02, 0.05, 0.04]) == pytest.approx((0.014, 0.03, 0.046))


def test_candidates_take_turns_on_a_clock() -> None:
    order: list[str] = []
    ticks = count()  # each reading of the clock is one second later
    ready: list[Candidate] = [
        (ROW._replace(name=name), lambda name=name: order.append(name)) for name in "abc"
    ]
    ready.insert(1, (ROW._replace(problem="no kernel"), None))
    rows, warnings = measure(ready, "cpu", warmup=1, runs=2, clock=lambda: float(next(ticks)))
    assert "".join(order) == "abc" * 3
    assert [row.seconds for row in rows] == [[1, 1], [], [1, 1], [1, 1]] and warnings == []


def test_only_the_call_is_timed() -> None:
    now = [0.0]

    def takes(seconds: float) -> None:
        now[0] += seconds

    ready: list[Candidate] = [(ROW, lambda: takes(1)), (ROW, lambda: takes(5))]
    rows, _ = measure(ready, "cpu", warmup=3, runs=1, clock=lambda: now[0] + 1e-9 * next(ticks))
    assert [row.seconds for row in rows] == [[pytest.approx(1)], [pytest.approx(5)]]


ticks = count()


def test_breakdown_on_a_clock() -> None:
    """Time counts for the innermost part, whoever calls it, and what is in none for the rest."""
    now = [0.0]

    def part(seconds: float) -> nn.Module:
        def wait(x: int) -> int:
            now[0] += seconds
            return x

        return Calls(wait)

    backbone, inner = part(10), part(3)
    head = Calls(lambda x: part(1)(inner.forward(x)))  # as mmseg calls its layers

    def run() -> int:
        now[0] += 5
        return head(backbone(0))

    breakdown = Breakdown(
        run, ("backbone", "head", "inner", "rest"), rest="rest", device="cpu", clock=lambda: now[0]
    )
    for module, name in ((backbone, "backbone"), (head, "head"), (inner, "inner")):
        breakdown.watch(module, "forward", name)
    (row,), _ = measure([(ROW, breakdown)], "cpu", warmup=1, runs=2)
    expected = dict(backbone=10, head=1, inner=3, rest=5)
    assert row.parts == {name: [seconds] * 2 for name, seconds in expected.items()}
    assert list(row.parts) == ["backbone", "head", "inner", "rest"]


class Calls(nn.Module):
    def __init__(self, function: Callable[[int], int]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: int) -> int:
        return self.function(x)


def test_reference_outputs_are_those_before_fusion(t8: Backbone, image: torch.Tensor) -> None:
    with torch.no_grad():
        expected = t8.original(image)
    row, run = in_setting(t8.model, image, EAGER, expected)
    assert run is not None and row.problem is None
    assert 0 < row.figures["error"] < 1e-5


def test_a_wrong_backend_is_not_timed(t8: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, image: torch.Tensor, setting: Setting) -> backends.Run:
        with torch.no_grad():
            maps = [m * 1.01 for m in model(image)]
        return lambda: maps

    monkeypatch.setitem(backends.BACKENDS, "openvino", wrong)
    settings = [EAGER, EAGER._replace(backend="openvino")]
    rows, warnings = measure(
        candidates([t8], settings, batch=1, shape=SIZE), "cpu", warmup=0, runs=2
    )
    good, bad = rows
    assert len(good.seconds) == 2
    assert bad.seconds == [] and bad.figures["error"] == pytest.approx(0.01, rel=0.1)
    text = report.table(rows, warnings)
    assert "- fastvit_t8, openvino, float32: WRONG OUTPUT: error 1.0e-02, at most 0.0001" in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_wrong(value: float) -> None:
    outputs = [torch.full((2,), value)]
    row, run = check(ROW, lambda: lambda: outputs, [torch.ones(2)])
    assert run is None and row.problem and "WRONG OUTPUT" in row.problem
    assert "error" not in row.figures, "JSON has neither"


def test_a_failing_backend_does_not_end_the_run(
    t8: Backbone, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> backends.Run:
        raise RuntimeError("no kernel\nand much more")

    monkeypatch.setitem(backends.BACKENDS, "eager", fails)
    row, run = in_setting(t8.model, image, EAGER, [])
    assert run is None and row.problem == "fails: RuntimeError: no kernel"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (("cuda-graph", "float16", "cpu"), "CUDA graphs need a CUDA device"),
        (("onnxruntime", "bfloat16", "cpu"), "no bfloat16 convolution"),
        (("onnxruntime", "float16", "cpu"), "computes float16 models in float32"),
    ],
)
def test_impossible_combinations_are_explained(
    setting: tuple[str, str, str], reason: str, image: torch.Tensor, t8: Backbone
) -> None:
    if setting[0] == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="extra 'export' is not installed")
    with pytest.raises(Unavailable, match=reason):
        prepare(t8.model, image, Setting(*setting, 1))
    row, run = in_setting(t8.model, image, Setting(*setting, 1), [])
    assert run is None and row.problem and reason in row.problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu(image: torch.Tensor, t8: Backbone) -> None:
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


def test_a_cuda_graph_is_captured_after_a_warm_up_on_its_stream(
    fake_cuda: list[str], image: torch.Tensor
) -> None:
    run = prepare(nn.Identity(), image, Setting("cuda-graph", "float16", "cuda", 1))
    ran = f"float16 {torch.channels_last}"
    before = ["side waits", "side {", ran, ran, ran, "}", "current waits"]
    assert fake_cuda == [*before, "capture {", ran, "}"]
    fake_cuda.clear()
    assert run() is run(), "a graph has its maps in one place"
    assert fake_cuda == ["replay", "wait"] * 2, "nothing but the replay is timed"


class Stop(Exception):
    pass


@pytest.mark.parametrize("module", [backbone, hand])
def test_tf32_is_off_before_anything_is_compared_on_cuda(
    module: Any, monkeypatch: pytest.MonkeyPatch, t8: Backbone
) -> None:
    """By default cuDNN's float32 is off by 1e-3, more than is tolerated."""
    for name, value in (("allow_tf32", True), ("benchmark", False)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    seen: list[dict[str, str]] = []

    def stop(*args: Any, **_: Any) -> None:
        seen.append(backends.arithmetic("cuda"))
        raise Stop

    monkeypatch.setattr(backbone, "count_macs", stop)
    monkeypatch.setattr(hand, "HandPredictor", stop)
    setting = EAGER._replace(device="cuda")
    with pytest.raises(Stop):
        if module is backbone:
            candidates([t8], [setting], batch=1, shape=SIZE)
        else:
            hand.candidates(["t8"], [setting])
    assert seen == [
        {"TF32": "off in convolutions and off in matrix products", "cuDNN's benchmark mode": "on"}
    ]
    assert backends.arithmetic("cpu") == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["eager", "eager-nchw", "cuda-graph"])
def test_a_gpu_computes_the_same(
    name: str, dtype: str, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("allow_tf32", "benchmark"):  # to be restored
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    backends.configure("cuda")
    entry = backbones(["sa12"])[0]
    with torch.no_grad():
        expected = entry.original(image)
    row, run = in_setting(entry.model, image, Setting(name, dtype, "cuda", 1), expected)
    assert run is not None, row.problem
    again = relative_error([m.clone() for m in run()], run())
    assert again < 1e-6, "a replay computes the same"


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_missing_packages(
    package: str, image: torch.Tensor, t8: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unavailable, match=f"{package} is not installed"):
        prepare(t8.model, image, EAGER._replace(backend=package))


def test_unknown_names(image: torch.Tensor, t8: Backbone) -> None:
    with pytest.raises(ValueError, match="backend must be one of eager, .*; got 'ncnn'"):
        prepare(t8.model, image, EAGER._replace(backend="ncnn"))
    with pytest.raises(ValueError, match="dtype must be one of float32, .*; got 'int8'"):
        prepare(t8.model, image, EAGER._replace(dtype="int8"))
    with pytest.raises(ValueError, match="t8, .*; got b9"):
        backbones(["b9"])
    with pytest.raises(ValueError, match="'resnet_fifty'; near it are .*resnetv2_50"):
        baseline("resnet_fifty")
    with pytest.raises(ValueError, match="at least one model"):
        backbones([])


def test_runtimes_compute_the_same(image: torch.Tensor) -> None:
    pytest.importorskip("onnxruntime", reason="extra 'export' is not installed")
    pytest.importorskip("openvino", reason="extra 'export' is not installed")
    entry = backbones(["sa12"])[0]
    with torch.no_grad():
        expected = entry.original(image)
    for backend in ("eager", "eager-nchw", "onnxruntime", "openvino"):
        row, run = in_setting(entry.model, image, EAGER._replace(backend=backend), expected)
        assert run is not None, row.problem
        assert row.figures["error"] < 1e-5


def test_export_needs_onnx(
    image: torch.Tensor, t8: Backbone, monkeypatch: pytest.MonkeyPatch
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
    entry = baseline(name)
    with torch.no_grad():
        expected = entry.original(image)
        assert [m.shape[-1] for m in expected] == [16, 8, 4, 2]
        with CountNorms() as run:
            assert relative_error(entry.model(image), expected) < 1e-4
    if norms is None:
        assert entry.backend == "eager-nchw"
    else:
        assert entry.backend is None and run.norms == norms


@pytest.mark.parametrize("name", ["fastvit_t8", "repvit_m1_1", "repvgg_a0"])
def test_baselines_with_branches_left_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm.utils, "reparameterize_model", copy.deepcopy)  # fuses nothing
    with pytest.raises(
        ValueError, match=f"baseline {name} cannot be fused .*the branches that .* adds"
    ):
        baseline(name)


def test_a_batch_norm_left_after_a_convolution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "fuse", lambda model, inplace: fx.symbolic_trace(model))
    with pytest.raises(
        ValueError, match="20 places .* the BatchNorm bn1 after the convolution conv1"
    ):
        baseline("resnet18")


def test_baselines_that_cannot_be_traced_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match="mobilevitv2_050 cannot be fused .TraceError.*or name it timm:mobilevitv2_050",
    ):
        baseline("mobilevitv2_050")
    assert baseline("timm:mobilevitv2_050").backend == "eager-nchw"


@pytest.mark.parametrize("prefix", ["", "timm:"])
def test_a_fusion_that_raises_is_told(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module) -> nn.Module:
        raise AttributeError("no attribute 'identity'")

    monkeypatch.setattr(timm.utils, "reparameterize_model", fails)
    with pytest.raises(
        ValueError, match=f"baseline {prefix}resnet18 .*AttributeError: no attribute"
    ):
        baseline(f"{prefix}resnet18")


def test_backbones() -> None:
    names = [c.name for c in backbones(["t8"], ["resnet18"], unfused=True)]
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
    assert noise([1.0] * 10 + [1.3] * 10), "a drift is a spread"


ROWS = [
    Row("a", "eager", "float32", 1, dict(parameters=2e6, macs=1e9, error=1e-6), None, [0.1] * 3),
    Row("b", "openvino", "bfloat16", 1, dict(parameters=3e6, macs=1e9, error=2e-3), None,
        [0.02, 0.025, 0.03]),
    Row("b", "cuda-graph", "float16", 1, dict(parameters=3e6, macs=1e9), "needs a GPU", []),
]  # fmt: skip
BROKEN_DOWN = [
    Row("ours", "eager", "float32", 2, dict(memory=2.0**30), seconds=[0.4, 0.4],
        parts=dict(x=[0.1] * 2, y=[0.3] * 2)),
    Row("other", "eager", "float32", 4, dict(memory=2.0**31), seconds=[1.0, 1.0],
        parts=dict(x=[1.0] * 2, y=[0.0] * 2)),
]  # fmt: skip


def test_table() -> None:
    text = report.table(ROWS, ["noisy machine"])
    a, b = text.splitlines()[2:4]
    assert a == (
        "| a | eager | float32 | 2.00 | 1.00 | 1.0e-06 | 100.00 | 100.00 | 100.00 | 1.00 | 10.00 | 1.00 |"
    )
    assert b.endswith("| 25.00 | 21.00 | 29.00 | 1.38 | 40.00 | 4.00 |")
    assert "- b, cuda-graph, float16: needs a GPU" in text
    assert text.endswith("WARNING: noisy machine")
    assert "| 0.25 |" in report.table(ROWS, reference="b")
    with pytest.raises(ValueError, match="one of a, b; got 'c'"):
        report.table(ROWS, reference="c")


def test_table_of_a_breakdown() -> None:
    header, _, ours, other = report.table(BROKEN_DOWN).splitlines()[:4]
    assert header.endswith("| images/s | speed-up | x, ms (share) | y, ms (share) |")
    assert ours.endswith(
        "| 1.00 | 400.00 | 400.00 | 400.00 | 1.00 | 5.00 | 1.00 | 100.00 (25%) | 300.00 (75%) |"
    )
    assert "| 2.00 | 1000.00 |" in other and "| 4.00 | 0.80 |" in other, "per image"


def test_json_and_plot(tmp_path: Path) -> None:
    path, picture = tmp_path / "new/a.json", tmp_path / "new/a.png"
    rows = [ROWS[0], BROKEN_DOWN[0]]
    report.write_json(str(path), rows, ["noisy"], {"device": "x"}, {"runs": 3})
    content = json.loads(path.read_text())
    assert content["rows"][0]["median"] == 0.1 and content["rows"][0]["figures"]["error"] == 1e-6
    assert content["warnings"] == ["noisy"] and content["conditions"] == {"device": "x"}
    assert content["arguments"] == {"runs": 3}
    for rows in ROWS, BROKEN_DOWN:
        report.plot(rows, picture)
        assert picture.stat().st_size > 5000
    with pytest.raises(ValueError, match="nothing was timed"):
        report.plot(ROWS[2:], picture)


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report.check_outputs(json=str(tmp_path / "new/a.json"), plot=None)
    for outputs, reason in (
        (dict(json=tmp_path), "json .* is a folder"),
        (dict(json=tmp_path / "file/a.json"), "json .* is a file"),
        (dict(plot=tmp_path / "a.doc"), "plot .* is no picture"),
    ):
        with pytest.raises(ValueError, match=reason):
            report.check_outputs(**{name: str(path) for name, path in outputs.items()})


def test_a_gpu_is_named_by_its_index_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU of {device}")
    assert report.device_name("cuda:1") == "GPU of cuda:1"
    assert "GPU" not in report.device_name("cpu")


def test_tool(tmp_path: Path) -> None:
    """Without the name of a subject: backbones."""
    path = tmp_path / "a.json"
    text = run_tool(
        "tools/benchmark.py", "--arch", "t8", "--shape", 64, 64, "--warmup", 0, "--runs", 2, "--json", path,
        "--backend", "eager", "cuda-graph", "--device", "cpu", "--plot", tmp_path / "a.png",
    )  # fmt: skip
    assert re.search(r"fastvit_t8, eager, float32: ready after [\d.]+ s\n", text)
    assert "OMP_WAIT_POLICY PASSIVE" in text and "runs 2" in text
    assert "| fastvit_t8 | eager | float32 | 3.1" in text
    assert "- fastvit_t8, cuda-graph, float32: CUDA graphs need a CUDA device" in text
    assert len(json.loads(path.read_text())["rows"]) == 2 and (tmp_path / "a.png").is_file()


def refused(capsys: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line that the tool ends with, in this process, before it prepares anything."""
    command = ["benchmark.py", *map(str, arguments), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    text = capsys.readouterr().err
    assert end.value.code == 2 and text.count("\n") == 1, text
    return text


def test_tool_refuses_before_it_measures(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.py").write_text("x = 1")
    video = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 64))
    video.write(np.zeros((64, 64, 3), np.uint8))
    video.release()
    seg = "configs/seg/fpn_fastvit-t8_demo-regions.py"
    hands = "configs/hand/mano_fastvit-t8_demo-hands.py"
    for arguments, words in (
        (["--json", tmp_path], "is a folder"),
        (["--plot", tmp_path / "a"], "is no picture"),
        (["--arch", "b9"], "got b9"),
        (["--arch", "--against", "mobilevitv2_050"], "cannot be fused"),
        (["model", tmp_path], "does not exist"),
        (["model", tmp_path / "a.jpg"], "no config"),
        (["model", tmp_path / "a.py"], "no model"),
        (["model", hands], "benchmark.py hand"),
        (["model", seg, seg], "comes first"),
        (["model", seg, "--images", tmp_path / "a.mp4"], "expected image files"),
        (["training", tmp_path / "a.py"], "no model"),
        (["training", "mmdet::no/such.py"], "no/such.py' does not exist"),
    ):
        text = refused(capsys, monkeypatch, *arguments)
        assert text.startswith("benchmark: ") and words in text, (arguments, text)
