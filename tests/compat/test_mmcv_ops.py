"""The operators of fastvit_dense.compat.mmcv_ops against plain implementations and against compiled mmcv.

Compiled mmcv 2.1.0 is compared twice: with what it once returned, kept in data/mmcv_ops_2.1.0.npz,
and directly where it is installed. To record again, in an environment that has it:

    python tests/compat/test_mmcv_ops.py --record tests/data/mmcv_ops_2.1.0.npz
"""

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT

from fastvit_dense.compat import mmcv_ops

RECORDED = ROOT / "tests/data" / "mmcv_ops_2.1.0.npz"


def stand_in() -> ModuleType:
    module = ModuleType("stand_in")
    mmcv_ops.fill(module)
    return module


def compiled() -> ModuleType | None:
    try:
        spec = importlib.util.find_spec("mmcv._ext")
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin == "fastvit_dense.compat.mmcv_ops":
        return None
    return importlib.import_module("mmcv._ext")


# ---- inputs -------------------------------------------------------------------------------------


def boxes_and_scores(n: int, seed: int, whole: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping boxes (n, 4), and scores (n,) without ties."""
    rng = np.random.RandomState(seed)
    corner, size = rng.rand(n, 2) * 100, rng.rand(n, 2) * 40
    if whole:
        corner, size = corner.round(), size.round() + 1
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    scores = (rng.permutation(n).astype(np.float32) + 1) / (n + 1)
    return torch.from_numpy(boxes), torch.from_numpy(scores)


def maps_and_rois(dtype: torch.dtype, n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (2, 3, 11, 14) of stride 4, and rois (n, 5): inside, across the border, of no area."""
    rng = np.random.RandomState(7)
    x = torch.from_numpy(rng.randn(2, 3, 11, 14)).to(dtype)
    corner, size = rng.rand(n, 2) * 50 - 8, rng.rand(n, 2) * 40
    size[n - 1 :] = 0
    rois = np.concatenate([rng.randint(0, 2, (n, 1)), corner, corner + size], axis=1)
    return x, torch.from_numpy(rois).to(dtype)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape).astype(np.float32))


def pooling(aligned: bool, ratio: int, size: tuple[int, int] = (3, 2)) -> dict[str, object]:
    return {
        "aligned_height": size[0],
        "aligned_width": size[1],
        "spatial_scale": 0.25,
        "sampling_ratio": ratio,
        "pool_mode": 1,
        "aligned": aligned,
    }


def run_roi_align(
    ext: ModuleType, x: torch.Tensor, rois: torch.Tensor, grad: torch.Tensor | None = None, **kw
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (R, C, PH, PW), and the input's gradient for ``grad``, ones unless given."""
    none = x.new_zeros(0)
    out = x.new_zeros(len(rois), x.size(1), kw["aligned_height"], kw["aligned_width"])
    ext.roi_align_forward(x, rois, out, none, none, **kw)
    grad_x = torch.zeros_like(x)
    grad = torch.ones_like(out) if grad is None else grad
    ext.roi_align_backward(grad, rois, none, none, grad_x, **kw)
    return out, grad_x


def run_deform_conv(ext: ModuleType, device: str = "cpu") -> dict[str, torch.Tensor]:
    """4 to 6 channels, kernel 3x2, two groups, two deformable groups, uneven everything."""
    inputs = random(1, 2, 4, 9, 8), random(2, 6, 2, 3, 2), random(3, 2, 24, 5, 9)
    x, weight, offset = (t.to(device) for t in inputs)
    inputs = random(4, 2, 12, 5, 9).sigmoid(), random(5, 6), random(6, 2, 6, 5, 9)
    mask, bias, grad = (t.to(device) for t in inputs)
    sizes = dict(kW=2, kH=3, dW=1, dH=2, padW=1, padH=2, dilationW=1, dilationH=2)
    sizes |= dict(group=2, deformable_group=2, im2col_step=2)
    empty = x.new_empty(0)
    out = x.new_empty(2, 6, 5, 9)
    ext.deform_conv_forward(x, weight, offset, out, empty, empty.clone(), **sizes)
    results = {"deform_conv": out}
    grad_x, grad_offset, grad_weight = map(torch.zeros_like, (x, offset, weight))
    args = (x, offset, grad, grad_x, grad_offset, weight, x.new_empty(0))
    ext.deform_conv_backward_input(*args, **sizes)
    args = (x, offset, grad, grad_weight, x.new_empty(0), x.new_empty(0))
    ext.deform_conv_backward_parameters(*args, scale=0.5, **sizes)
    results |= {"by_input": grad_x, "by_offset": grad_offset, "by_weight": grad_weight}

    sizes = dict(kernel_h=3, kernel_w=2, stride_h=2, stride_w=1, pad_h=2, pad_w=1)
    sizes |= dict(dilation_h=2, dilation_w=1, group=2, deformable_group=2)
    for with_bias in (True, False):
        b = bias if with_bias else x.new_empty(0)
        out = x.new_empty(2, 6, 5, 9)
        args = (x, weight, b, x.new_empty(0), offset, mask, out, x.new_empty(0))
        ext.modulated_deform_conv_forward(*args, **sizes, with_bias=with_bias)
        grads = [torch.zeros_like(t) for t in (x, weight, b, offset, mask)]
        args = (x, weight, b, x.new_empty(0), offset, mask, x.new_empty(0), *grads, grad)
        ext.modulated_deform_conv_backward(*args, **sizes, with_bias=with_bias)
        results[f"modulated_{with_bias}"] = out
        for name, value in zip(("x", "weight", "bias", "offset", "mask"), grads, strict=True):
            results[f"modulated_{with_bias}_by_{name}"] = value
    return results


LEVELS = ((3, 4), (2, 1), (5, 2))


def attention_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Value (2, 24, 2, 3), locations (2, 5, 2, 3, 2, 2), some of them outside, and weights."""
    rng = np.random.RandomState(30)
    value, locations = rng.randn(2, 24, 2, 3), rng.rand(2, 5, 2, 3, 2, 2) * 1.6 - 0.3
    weights = rng.rand(2, 5, 2, 3, 2)
    return tuple(torch.from_numpy(x).to(dtype) for x in (value, locations, weights))


def attend(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """mmcv's path on CUDA, which asks the extension, whatever the device."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = torch.tensor(LEVELS, device=value.device)
    starts = torch.tensor([0, 12, 14], device=value.device)
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def with_gradients(*inputs: torch.Tensor) -> list[torch.Tensor]:
    """Output of `attend` and, for a gradient that differs from element to element, those of its inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    grad = random(31, *out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def outputs(ext: ModuleType) -> dict[str, np.ndarray]:
    """What ``ext`` returns for every case in which compiled mmcv has a CPU implementation."""
    results: dict[str, torch.Tensor] = {}
    for whole in (False, True):
        for n in (0, 1, 120):
            boxes, scores = boxes_and_scores(n, seed=n, whole=whole)
            for offset in (0, 1):
                for threshold in (0.3, 0.5, 0.7):
                    key = f"nms/whole={whole}/n={n}/offset={offset}/threshold={threshold}"
                    results[key] = ext.nms(boxes, scores, iou_threshold=threshold, offset=offset)
                for method in (0, 1, 2):
                    key = f"softnms/whole={whole}/n={n}/offset={offset}/method={method}"
                    dets = torch.zeros(n, 5)
                    # Equal scores among the whole boxes: here mmcv's order is the same everywhere.
                    some = (scores * 5).round() / 5 if whole else scores.clone()
                    args = (boxes.clone(), some, dets)
                    more = dict(iou_threshold=0.3, sigma=0.5, min_score=0.05)
                    kept = ext.softnms(*args, method=method, offset=offset, **more)
                    results[key], results[key + "/dets"] = kept, dets[: len(kept)]
    # Two boxes of IoU 3 / 10 exactly: it is not more than a threshold of 0.3.
    pair = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 3]])
    args = (pair, torch.tensor([0.9, 0.8]))
    results["nms/iou equals threshold"] = ext.nms(*args, iou_threshold=0.3, offset=0)
    for dtype in (torch.float32, torch.float64):
        for n in (0, 9):
            x, rois = maps_and_rois(dtype, n)
            for aligned in (False, True):
                for ratio in (0, 2):
                    key = f"roi_align/{dtype}/n={n}/aligned={aligned}/ratio={ratio}"
                    grad = random(8, n, 3, 3, 2).to(dtype)
                    out = run_roi_align(ext, x, rois, grad, **pooling(aligned, ratio))
                    results[key], results[key + "/grad"] = out
    results |= {f"deform/{key}": value for key, value in run_deform_conv(ext).items()}
    return {key: value.numpy() for key, value in results.items()}


# ---- plain implementations ----------------------------------------------------------------------


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):  # stable
        x1, y1, x2, y2 = boxes[i]
        for j in kept:
            u1, v1, u2, v2 = boxes[j]
            width = max(0, min(x2, u2) - max(x1, u1) + offset)
            height = max(0, min(y2, v2) - max(y1, v1) + offset)
            area = (x2 - x1 + offset) * (y2 - y1 + offset)
            area += (u2 - u1 + offset) * (v2 - v1 + offset) - width * height
            if area and width * height / area > threshold:
                break
        else:
            kept.append(i)
    return kept


def plain_sample(plane: np.ndarray, y: float, x: float) -> float:
    """Bilinear; zero more than a cell outside, else as on the border."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    return upper * (1 - dy) + (plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx) * dy


def plain_roi_align(
    maps: np.ndarray,
    rois: np.ndarray,
    scale: float,
    size: tuple[int, int],
    ratio: int,
    aligned: bool,
) -> np.ndarray:
    out = np.zeros((len(rois), maps.shape[1], *size))
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        rows, columns = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        for c, ph, pw in np.ndindex(*out.shape[1:]):
            values = [
                plain_sample(
                    maps[int(image), c],
                    y1 + (ph + (i + 0.5) / rows) * bin_h,
                    x1 + (pw + (j + 0.5) / columns) * bin_w,
                )
                for i in range(rows)
                for j in range(columns)
            ]
            out[r, c, ph, pw] = sum(values) / max(len(values), 1)
    return out


def plain_focal_loss(logit: float, positive: bool, gamma: float, alpha: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -alpha * (1 - p) ** gamma * math.log(p)
    return -(1 - alpha) * p**gamma * math.log(1 - p)


def plain_attention(value: np.ndarray, locations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Deformable DETR's equation 3, a sample at a time; cells outside of a level are 0."""
    images, _, heads, channels = value.shape
    out = np.zeros((images, locations.shape[1], heads, channels))
    for n, q, m, level, p in np.ndindex(*weights.shape):
        height, width = LEVELS[level]
        start = sum(h * w for h, w in LEVELS[:level])
        x, y = locations[n, q, m, level, p] * (width, height) - 0.5  # cells' middles are whole
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= column < width:
                    near = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[n, q, m, level, p]
                    out[n, q, m] += near * value[n, start + row * width + column, m]
    return out.reshape(images, -1, heads * channels)


# ---- against compiled mmcv ----------------------------------------------------------------------


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert ours[key].dtype == expected.dtype and ours[key].shape == expected.shape, key
        if expected.dtype == np.int64:
            np.testing.assert_array_equal(ours[key], expected, err_msg=key)
        else:
            tight = 1e-12 if expected.dtype == np.float64 else 2e-5
            np.testing.assert_allclose(ours[key], expected, rtol=tight, atol=tight, err_msg=key)


def test_agrees_with_what_compiled_mmcv_returned():
    with np.load(RECORDED) as recorded:
        assert_same(outputs(stand_in()), dict(recorded))


def test_agrees_with_compiled_mmcv():
    ext = compiled()
    if ext is None:
        pytest.skip("no compiled mmcv is installed")
    theirs = outputs(ext)
    assert_same(outputs(stand_in()), theirs)
    with np.load(RECORDED) as recorded:
        assert_same(theirs, dict(recorded))


# ---- against plain implementations, through mmcv's own Python -----------------------------------


@pytest.fixture
def ops(monkeypatch):
    """``mmcv.ops`` on our functions, even where compiled ones are installed."""
    ops = pytest.importorskip("mmcv.ops")
    for name in (
        "nms", "roi_align", "focal_loss", "deform_conv", "modulated_deform_conv",
        "multi_scale_deform_attn",
    ):  # fmt: skip
        monkeypatch.setattr(sys.modules[f"mmcv.ops.{name}"], "ext_module", stand_in())
    return ops


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms(ops, offset, threshold):
    boxes, scores = boxes_and_scores(80, seed=3, whole=True)
    dets, kept = ops.nms(boxes, scores, threshold, offset)
    assert kept.tolist() == plain_nms(boxes.numpy(), scores.numpy(), threshold, offset)
    assert kept.dtype == torch.int64
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_of_equal_scores_keeps_the_first(ops):
    boxes, scores = boxes_and_scores(200, seed=4)
    scores = (scores * 4).round() / 4
    _, kept = ops.nms(boxes, scores, 0.4)
    assert kept.tolist() == plain_nms(boxes.numpy(), scores.numpy(), 0.4, 0)


def test_nms_of_numpy_of_nothing_and_of_half(ops):
    boxes, scores = boxes_and_scores(50, seed=5)
    _, kept = ops.nms(boxes, scores, 0.5)
    from_numpy = ops.nms(boxes.numpy(), scores.numpy(), 0.5)
    assert all(isinstance(part, np.ndarray) for part in from_numpy)
    assert from_numpy[1].tolist() == kept.tolist()
    dets, kept = ops.nms(boxes[:0], scores[:0], 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64
    halves = boxes.round().half(), (scores * 512).round().half()
    _, kept = ops.nms(*halves, 0.5)
    assert kept.tolist() == ops.nms(halves[0].double(), halves[1].double(), 0.5)[1].tolist()


def test_batched_nms_keeps_classes_apart(ops):
    boxes, scores = boxes_and_scores(90, seed=6, whole=True)
    classes = torch.arange(90) % 3
    dets, kept = ops.batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.4))
    expected = []
    for c in range(3):
        of_class = (classes == c).nonzero()[:, 0]
        inside = plain_nms(boxes[of_class].numpy(), scores[of_class].numpy(), 0.4, 0)
        expected += of_class[inside].tolist()
    expected.sort(key=lambda i: -scores[i])
    assert kept.tolist() == expected
    torch.testing.assert_close(dets[:, :4], boxes[kept])


def test_soft_nms_by_hand(ops):
    # IoU of the first two is 1 / 2; the third stands alone.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    scores = torch.tensor([0.9, 0.8, 0.5])
    dets, kept = ops.soft_nms(boxes, scores, 0.3, min_score=0.1, method="linear")
    assert kept.tolist() == [0, 2, 1]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.5, 0.4]))
    dets, kept = ops.soft_nms(boxes, scores, 0.3, sigma=0.5, min_score=0.1, method="gaussian")
    assert kept.tolist() == [0, 2, 1]
    torch.testing.assert_close(dets[2, 4].item(), 0.8 * math.exp(-0.5), rtol=1e-6, atol=0)
    assert ops.soft_nms(boxes, scores, 0.3, min_score=0.1, method="naive")[1].tolist() == [0, 2]
    empty = torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, 2]])
    dets, _ = ops.soft_nms(empty, scores[:2], 0.3, method="gaussian")
    torch.testing.assert_close(dets[:, 4], scores[:2])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(ops, aligned, ratio):
    x, rois = maps_and_rois(torch.float64)
    out = ops.roi_align(x, rois, (3, 2), 0.25, ratio, "avg", aligned)
    expected = plain_roi_align(x.numpy(), rois.numpy(), 0.25, (3, 2), ratio, aligned)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_gradient(ops, aligned, ratio):
    x, rois = maps_and_rois(torch.float64, n=4)
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, (2, 2), 0.25, ratio, "avg", aligned), (x,)
    )


def test_roi_align_without_rois(ops):
    x, rois = maps_and_rois(torch.float32, n=0)
    x.requires_grad_()
    out = ops.roi_align(x, rois, (7, 7), 0.25)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert x.grad is not None and not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision(ops, dtype):
    x, rois = maps_and_rois(dtype)
    x.requires_grad_()
    out = ops.roi_align(x, rois, (3, 2), 0.25)
    assert out.dtype == dtype
    expected = ops.roi_align(x.float(), rois.float(), (3, 2), 0.25)
    torch.testing.assert_close(out, expected.to(dtype))
    out.sum().backward()
    assert x.grad.dtype == dtype and x.grad.any()


def test_roi_align_takes_channels_last(ops):
    x, rois = maps_and_rois(torch.float32)
    out = ops.roi_align(x.to(memory_format=torch.channels_last), rois, (3, 2), 0.25)
    torch.testing.assert_close(out, ops.roi_align(x, rois, (3, 2), 0.25), rtol=0, atol=0)


@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_sigmoid_focal_loss(ops, gamma, alpha):
    classes = 4
    logits = (random(9, 12, classes) * 3).double()
    target = torch.arange(12) % (classes + 1)  # the last one is background
    out = ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, "none")
    for i, c in np.ndindex(*out.shape):
        positive = target[i].item() == c
        expected = plain_focal_loss(logits[i, c].item(), positive, gamma, alpha)
        assert out[i, c].item() == pytest.approx(expected, rel=1e-10)
    mean = ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, "mean")
    torch.testing.assert_close(mean, out.sum() / 12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sigmoid_focal_loss_gradient(ops, weighted, reduction):
    logits = (random(10, 7, 3) * 3).double().requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 2, 1, 0])
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(
        lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, reduction), (logits,)
    )


def test_sigmoid_focal_loss_weighs_rows_by_their_target(ops):
    logits, target = random(11, 4, 3), torch.tensor([0, 1, 2, 3])
    plain = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    weight = torch.tensor([0.5, 2.0, 3.0])
    weighted = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(weighted, plain * torch.tensor([[0.5], [2], [3], [1]]))


def test_sigmoid_focal_loss_of_extreme_logits_is_finite(ops):
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), 2.0, 0.25, None, "none")
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    # -alpha log(smallest float32) for a miss with certainty
    assert loss[0, 0].item() == pytest.approx(0.25 * 87.3365, rel=1e-5)


def test_deformable_convolution_without_offsets_is_convolution(ops):
    x, weight = random(12, 2, 4, 7, 6), random(13, 5, 4, 3, 3)
    offset, mask = torch.zeros(2, 18, 7, 6), torch.ones(2, 9, 7, 6)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    out = ops.deform_conv2d(x, offset, weight, 1, 1)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    out = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_deformable_attention(ops):
    inputs = attention_inputs(torch.float64)
    expected = plain_attention(*(x.numpy() for x in inputs))
    np.testing.assert_allclose(attend(*inputs).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_deformable_attention_gradient(ops):
    inputs = [x.requires_grad_() for x in attention_inputs(torch.float64)]
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize(
    ("dtype", "tight"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]
)
def test_deformable_attention_in_low_precision(ops, dtype, tight):
    inputs = attention_inputs(dtype)
    expected = with_gradients(*(x.double() for x in inputs))
    for ours, exact in zip(with_gradients(*inputs), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=tight, atol=tight)


def test_deformable_attention_under_autocast(ops):
    value, locations, weights = attention_inputs(torch.float32)
    inputs = value.bfloat16(), locations, weights  # what the layers before it give there
    expected = with_gradients(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradients(*inputs)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_deformable_attention_of_strided_inputs(ops):
    inputs = attention_inputs(torch.float64)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    assert not any(x.is_contiguous() for x in strided)
    for ours, expected in zip(with_gradients(*strided), with_gradients(*inputs), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("needed", range(3))
def test_deformable_attention_with_one_gradient(ops, needed):
    inputs = attention_inputs(torch.float64)
    expected = with_gradients(*inputs)
    leaves = [x.requires_grad_(i == needed) for i, x in enumerate(inputs)]
    out = attend(*leaves)
    out.backward(random(31, *out.shape).to(out))
    for i, leaf in enumerate(leaves):
        if i == needed:
            torch.testing.assert_close(leaf.grad, expected[1 + i])
        else:
            assert leaf.grad is None


@pytest.mark.filterwarnings("ignore:You'd better set embed_dims:UserWarning")
def test_deformable_attention_module_computes_the_same_on_both_paths(ops, monkeypatch):
    module = ops.MultiScaleDeformableAttention(6, 2, 3, 2, dropout=0.0).double()
    for parameter in module.parameters():  # as they begin, offsets and weights depend on no query
        torch.nn.init.normal_(parameter, std=0.5)
    rng = np.random.RandomState(32)
    arguments = dict(
        query=torch.from_numpy(rng.randn(7, 2, 6)).requires_grad_(),
        value=torch.from_numpy(rng.randn(24, 2, 6)).requires_grad_(),
        reference_points=torch.from_numpy(rng.rand(2, 7, 3, 2)),
        spatial_shapes=torch.tensor(LEVELS),
        level_start_index=torch.tensor([0, 12, 14]),
    )
    leaves = [arguments["query"], arguments["value"], *module.parameters()]

    def run() -> list[torch.Tensor]:
        out = module(**arguments)
        return [out, *torch.autograd.grad(out, leaves, random(33, *out.shape).double())]

    expected = run()
    # CUDA and MLU take the same branch, and that a tensor is on an MLU can be claimed here.
    owner = sys.modules["mmcv.ops.multi_scale_deform_attn"]
    calls = []
    forward = owner.ext_module.ms_deform_attn_forward
    monkeypatch.setattr(
        owner.ext_module,
        "ms_deform_attn_forward",
        lambda *a, **k: calls.append(1) or forward(*a, **k),
    )
    monkeypatch.setattr(owner, "IS_MLU_AVAILABLE", True)
    monkeypatch.setattr(torch.Tensor, "is_mlu", True, raising=False)
    for ours, theirs in zip(run(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert calls == [1]


# ---- errors, and which implementation is in use -------------------------------------------------


def test_missing_operators_say_so_when_called():
    ext = stand_in()
    operator = ext.carafe_forward  # looking it up is what mmcv does on import
    with pytest.raises(NotImplementedError, match=r"'carafe_forward'.*pip install.*mmcv=="):
        operator(1, 2, im2col_step=3)
    assert not hasattr(ext, "__path__")


def test_roi_align_of_maxima_says_so(ops):
    x, rois = maps_and_rois(torch.float32)
    with pytest.raises(NotImplementedError, match="pool_mode='avg'"):
        ops.roi_align(x, rois, (3, 2), 0.25, 0, "max")


@pytest.fixture
def fake_mmcv(tmp_path, monkeypatch):
    """A folder for a package mmcv, found instead of the installed one."""
    saved = {key: sys.modules.pop(key) for key in list(sys.modules) if key.startswith("mmcv")}
    folder = tmp_path / "mmcv"
    folder.mkdir()
    (folder / "__init__.py").write_text('__version__ = "2.1.0"\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for key in [key for key in sys.modules if key.startswith("mmcv")]:
        del sys.modules[key]
    sys.modules.update(saved)


def test_stands_in_where_nothing_is_compiled(fake_mmcv):
    before = list(sys.meta_path)
    mmcv_ops.install()
    assert sys.meta_path == before, "installing again adds nothing"
    assert "torchvision" in mmcv_ops.describe()
    ext = importlib.import_module("mmcv._ext")
    assert ext.nms is mmcv_ops.nms
    assert ext.__spec__.name == "mmcv._ext"
    assert "torchvision" in ext.get_compiler_version()
    assert isinstance(ext.get_compiling_cuda_version(), str)
    assert importlib.util.find_spec("mmcv._other") is None


def test_compiled_wins(fake_mmcv):
    (fake_mmcv / "_ext.py").write_text("nms = 'compiled'\n")
    assert mmcv_ops.describe().startswith("mmcv operators: compiled, mmcv 2.1.0")
    assert importlib.import_module("mmcv._ext").nms == "compiled"


def test_without_mmcv(fake_mmcv, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv", None)
    mmcv_ops.install()
    assert mmcv_ops.describe() == "mmcv operators: none, mmcv is not installed"


def test_a_broken_mmcv_is_not_called_missing(fake_mmcv):
    (fake_mmcv / "__init__.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        mmcv_ops.describe()


# ---- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(ops, pytestconfig):
    device = pytestconfig.getoption("--device")
    ext = stand_in()
    boxes, scores = boxes_and_scores(500, seed=20, whole=True)
    for offset in (0, 1):
        expected = ext.nms(boxes, scores, iou_threshold=0.5, offset=offset)
        kept = ext.nms(boxes.to(device), scores.to(device), iou_threshold=0.5, offset=offset)
        assert kept.device == boxes.to(device).device and kept.tolist() == expected.tolist()
    for dtype, tight in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-2)):
        x, rois = maps_and_rois(dtype)
        for aligned in (False, True):
            expected = run_roi_align(ext, x, rois, **pooling(aligned, 0))
            got = run_roi_align(ext, x.to(device), rois.to(device), **pooling(aligned, 0))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a.cpu(), b, rtol=tight, atol=tight)
    logits, target, none = random(21, 30, 4), torch.arange(30) % 5, torch.empty(0)
    for name in ("sigmoid_focal_loss_forward", "sigmoid_focal_loss_backward"):
        expected, got = torch.zeros(30, 4), torch.zeros(30, 4, device=device)
        getattr(ext, name)(logits, target, none, expected, gamma=2.0, alpha=0.25)
        args = (logits.to(device), target.to(device), none.to(device), got)
        getattr(ext, name)(*args, gamma=2.0, alpha=0.25)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-6)
    on_gpu = run_deform_conv(ext, device)
    for key, expected in run_deform_conv(ext).items():
        torch.testing.assert_close(on_gpu[key].cpu(), expected, rtol=1e-4, atol=1e-4)
    for dtype, tight in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-2)):
        inputs = attention_inputs(dtype)
        on_gpu = with_gradients(*(x.to(device) for x in inputs))
        for a, b in zip(on_gpu, with_gradients(*inputs), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=tight, atol=tight)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--record":
        sys.exit(__doc__)
    recording_from = compiled()
    if recording_from is None:
        sys.exit("error: no compiled mmcv is installed here, nothing to record from")
    Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(sys.argv[2], **outputs(recording_from))
