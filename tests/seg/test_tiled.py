"""TiledSegmentor against mmseg's EncoderDecoder, which keeps the logits of the whole image."""

from typing import Any

import pytest
import torch
from conftest import randomise
from mmengine.config import ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastvit_dense.seg.tiled import bilinear_table, window_spans

# mmseg's heads build their loss with a function that mmseg deprecates, and warn of align_corners.
pytestmark = [
    pytest.mark.filterwarnings("ignore:``build_loss`` would be deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:When align_corners=True, the output:UserWarning"),
]

CLASSES = 7


def build(
    kind: str, *, crop: Any = (64, 64), stride: Any = (48, 48), classes: int = CLASSES, **test: Any
) -> EncoderDecoder:
    head = dict(
        type="FPNHead", in_channels=[32] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
        channels=16, num_classes=max(classes, 2), out_channels=classes, norm_cfg=dict(type="BN"),
        align_corners=test.pop("align_corners", False),
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=classes == 1, avg_non_ignore=True),
    )  # fmt: skip
    if classes == 1:
        head["threshold"] = 0.5
    cfg = ConfigDict(
        type=f"mmseg.{kind}",
        backbone=dict(type="FastViT", arch="t8", out_indices=(0, 1, 2, 3)),
        neck=dict(type="FPN", in_channels=[48, 96, 192, 384], out_channels=32, num_outs=4),
        decode_head=head,
        test_cfg=dict(dict(mode="slide", crop_size=crop, stride=stride), **test),
    )
    torch.manual_seed(0)
    model = randomise(MODELS.build(cfg)).eval()
    with torch.no_grad():
        # Random weights otherwise give one class nearly everywhere.
        model.decode_head.conv_seg.weight.mul_(30)
    return model


def sample(ori_shape: tuple[int, int], **meta: Any) -> SegDataSample:
    return SegDataSample(metainfo=dict(ori_shape=ori_shape, img_shape=(1, 1), **meta))


def assert_same_labels(
    tiled: EncoderDecoder, inputs: Tensor, metas: list[dict], *, varied: bool = True
) -> None:
    """Labels equal those of EncoderDecoder with the same weights and test_cfg."""
    plain = build("EncoderDecoder", classes=tiled.out_channels, align_corners=tiled.align_corners)
    plain.load_state_dict(tiled.state_dict())
    plain.test_cfg = tiled.test_cfg
    with torch.no_grad():
        expected = plain.predict(inputs, [sample(**meta) for meta in metas])
    for one, other in zip(
        tiled.predict(inputs, [sample(**meta) for meta in metas]), expected, strict=True
    ):
        found, wanted = one.pred_sem_seg.data, other.pred_sem_seg.data
        assert "seg_logits" not in one
        assert found.shape == wanted.shape == (1, *one.ori_shape) and found.dtype == wanted.dtype
        logits = other.seg_logits.data
        if len(logits) > 1:
            first, second = logits.topk(2, dim=0).values
            tie = first - second <= 1e-5 * first.abs()
        else:
            tie = (logits[0] - plain.decode_head.threshold).abs() <= 1e-5
        assert tie.float().mean() < 0.01  # the comparison is one
        assert (found == wanted)[0][~tie].all()
        assert not varied or len(wanted.unique()) > 1


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("size", "crop", "stride", "ori_shape"),
    [
        ((160, 128), (64, 64), (48, 48), (160, 128)),  # no resize
        ((160, 128), (64, 64), (64, 64), (320, 256)),  # no overlap; twice as large
        ((131, 97), (64, 64), (43, 31), (200, 333)),  # odd; another aspect
        ((192, 96), (64, 96), (20, 96), (57, 41)),  # rows in many windows; smaller
        ((150, 70), (64, 64), (48, 48), (1, 1)),
        ((150, 70), (96, 33), (7, 32), (150, 140)),  # one direction alone
        ((40, 50), (64, 64), (48, 48), (80, 77)),  # smaller than the crop
        ((40, 150), (64, 64), (48, 48), (41, 149)),  # smaller in height
        ((65, 64), (64, 64), (64, 64), (130, 640)),  # windows one pixel apart
    ],
)
def test_labels_of_mmseg(
    size: tuple[int, int], crop: Any, stride: Any, ori_shape: Any, align_corners: bool
) -> None:
    model = build("TiledSegmentor", crop=crop, stride=stride, align_corners=align_corners)
    inputs = torch.randn(1, 3, *size)
    assert_same_labels(model, inputs, [dict(ori_shape=ori_shape)], varied=ori_shape != (1, 1))


@pytest.mark.parametrize("ori_shape", [(110, 80), (211, 160), (50, 39)])
def test_padding(ori_shape: Any) -> None:
    model = build("TiledSegmentor", stride=(40, 40))
    meta = dict(ori_shape=ori_shape, img_padding_size=(3, 13, 7, 11))
    assert_same_labels(model, torch.randn(1, 3, 128, 96), [meta])


def test_padding_of_a_whole_row_of_windows() -> None:
    model = build("TiledSegmentor", stride=(32, 32))
    meta = dict(ori_shape=(90, 90), padding_size=[0, 0, 70, 50], flip=False)
    assert_same_labels(model, torch.randn(1, 3, 256, 64), [meta])


def test_batch_of_images_with_sizes_of_their_own() -> None:
    model = build("TiledSegmentor")
    metas = [
        dict(ori_shape=(140, 120)),
        dict(ori_shape=(60, 310), padding_size=(0, 20, 0, 30)),
    ]
    assert_same_labels(model, torch.randn(2, 3, 140, 120), metas)


@pytest.mark.parametrize("ori_shape", [(140, 120), (70, 200)])
def test_single_channel(ori_shape: Any) -> None:
    model, inputs = build("TiledSegmentor", classes=1), torch.randn(1, 3, 140, 120)
    with torch.no_grad():  # half of the pixels above the threshold
        logits = model.inference(inputs, [dict(ori_shape=ori_shape)])
        model.decode_head.conv_seg.bias -= logits.median()
    assert_same_labels(model, inputs, [dict(ori_shape=ori_shape)])


def test_whole_mode_and_no_samples() -> None:
    whole = build("TiledSegmentor", mode="whole")
    inputs = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        found = whole.predict(inputs, [sample((48, 32))])[0]
        expected = build("EncoderDecoder", mode="whole").predict(inputs, [sample((48, 32))])[0]
    assert torch.equal(found.seg_logits.data, expected.seg_logits.data)
    assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)

    tiled, plain = build("TiledSegmentor"), build("EncoderDecoder")
    (found,) = tiled.predict(inputs)
    with torch.no_grad():
        (expected,) = plain.predict(inputs)
    # postprocess_result gives (1, H, W) here too.
    assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)


def test_metainfo_is_left_alone() -> None:
    one = sample((96, 64))
    build("TiledSegmentor").predict(torch.randn(1, 3, 96, 64), [one])
    assert one.img_shape == (1, 1) and one.ori_shape == (96, 64)
    assert not one.pred_sem_seg.data.requires_grad


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out"), [(5, 17), (17, 5), (1, 4), (4, 1), (300, 301), (7, 7)])
def test_bilinear_table(size: int, out: int, align_corners: bool) -> None:
    lower, weight = bilinear_table(size, out, align_corners=align_corners)
    column = torch.randn(size)
    upper = (lower + 1).clamp(max=size - 1)
    found = column[lower] * (1 - weight) + column[upper] * weight
    wanted = resize(
        column[None, None, :, None], size=(out, 1), mode="bilinear", align_corners=align_corners
    )
    assert torch.allclose(found, wanted.flatten(), atol=1e-6)


def test_windows_end_with_the_image() -> None:
    assert window_spans(100, 64, stride=48) == [(0, 64), (36, 100)]
    assert window_spans(112, 64, stride=48) == [(0, 64), (48, 112)]
    assert window_spans(40, 64, stride=48) == [(0, 40)]


@pytest.mark.parametrize(
    ("test_cfg", "message"),
    [
        (dict(crop_size=(64, 64), stride=(65, 64)), r"stride=\(65, 64\)"),
        (dict(crop_size=(64, 64), stride=(0, 64)), r"stride=\(0, 64\)"),
        (dict(crop_size=(64, 31), stride=(16, 16)), r"crop_size=\(64, 31\).* at least 32"),
        (dict(crop_size=64, stride=(16, 16)), r"crop_size=64.*\(height, width\)"),
        (dict(crop_size=(64, 64, 64), stride=(16, 16)), "crop_size"),
        (dict(crop_size=(64, 64), stride=(16.0, 16.0)), "whole pixels"),
        (dict(crop_size=(64, 64), stride=None), "stride=None"),
        (dict(mode="tiles"), "'tiles'"),
    ],
)
def test_refuses(test_cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("TiledSegmentor", **test_cfg)


def test_refuses_a_flipped_image() -> None:
    one = sample((64, 64), flip=True, flip_direction="horizontal")
    with pytest.raises(ValueError, match="flipped"):
        build("TiledSegmentor").predict(torch.randn(1, 3, 64, 64), [one])


class LargestLogits(TorchDispatchMode):
    """Notes the most elements that any tensor with one channel per class had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim >= 3 and result.shape[-3] == CLASSES:
            self.elements = max(self.elements, result.numel())
        return result


def largest(model: EncoderDecoder, size: tuple[int, int], ori_shape: tuple[int, int]) -> int:
    with LargestLogits() as mode, torch.no_grad():
        model.predict(torch.randn(1, 3, *size), [sample(ori_shape)])
    return mode.elements


@pytest.mark.parametrize("scale", [1, 0.5, 3])
def test_memory_does_not_grow_with_the_height(scale: float) -> None:
    def grown(kind: str) -> tuple[int, int]:
        model = build(kind)
        low, high = (
            largest(model, (height, 64), (int(height * scale), int(64 * scale)))
            for height in (160, 640)
        )
        return low, high

    low, high = grown("TiledSegmentor")
    assert low == high <= CLASSES * (64 + 1) * 64 * max(scale, 1)
    low, high = grown("EncoderDecoder")
    assert high == 4 * low
