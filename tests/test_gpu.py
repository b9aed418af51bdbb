"""What only a GPU can show: the same numbers as on a CPU. `make test-gpu` runs these, and much more.

`pytest -m gpu --device cpu tests/test_gpu.py` runs them without a GPU, to see that the tests themselves are
right.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, randomise
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from fastvit_dense import ARCHS, FastViT, reparameterize
from fastvit_dense.engine.config import load_config
from fastvit_dense.engine.resume import capture, restore, seeded
from fastvit_dense.hand.model import HandDataSample
from fastvit_dense.hand.predictor import HandPredictor

CONFIGS = ROOT / "configs"
pytestmark = pytest.mark.gpu


@pytest.fixture
def device(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> str:
    """The GPU, whose float32 convolutions are to be float32: TensorFloat-32 has 10 bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return str(pytestconfig.getoption("--device"))


def build(path: str, **options: Any) -> nn.Module:
    """The model of a config with random weights, on the CPU."""
    cfg = load_config(str(CONFIGS / path))
    cfg.model.update(options)
    cfg.model.backbone.init_cfg = None
    if "drop_path_rate" in cfg.model.backbone:
        cfg.model.backbone.drop_path_rate = 0.0
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return randomise(MODELS.build(cfg.model))


def assert_close(there: Any, here: Any, tolerance: float) -> None:
    """Tensors or sequences of them equal to `tolerance`, relative to the largest value of each."""
    if isinstance(here, Tensor):
        error = (there.cpu().double() - here.double()).abs().max() / here.double().abs().max()
        assert error <= tolerance
        return
    assert len(there) == len(here)
    for a, b in zip(there, here, strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("arch", ARCHS)
def test_backbone_and_its_gradients(arch: str, device: str) -> None:
    here = randomise(FastViT(arch, drop_path_rate=0.0)).double().train()
    there = copy.deepcopy(here).to(device)
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    maps = [model(image.to(p)) for model, p in ((here, "cpu"), (there, device))]
    assert_close(maps[1], maps[0], 1e-10)
    for outputs in maps:
        sum(m.square().mean() for m in outputs).backward()
    gradients = [[p.grad for p in model.parameters()] for model in (there, here)]
    assert all(g is not None for g in gradients[0])
    assert_close(*([torch.cat([g.flatten().cpu() for g in gs])] for gs in gradients), 1e-9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 2e-2)]
)
def test_fused_backbone(
    memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float, device: str
) -> None:
    model = randomise(FastViT("sa12")).eval()
    image = torch.rand(1, 3, 128, 96) - 0.5
    with torch.inference_mode():
        expected = model.double()(image.double())
        model.float()
        # Fused on the GPU, where kernels are computed in float64, too.
        fused = reparameterize(copy.deepcopy(model).to(device))
        fused = fused.to(dtype=dtype, memory_format=memory_format)
        found = fused(image.to(device, dtype).contiguous(memory_format=memory_format))
    assert all(m.dtype == dtype for m in found)
    assert_close(found, expected, tolerance)


def test_autocast_keeps_close_to_float32(device: str) -> None:
    model = randomise(FastViT("sa12")).eval().to(device)
    image = torch.rand(2, 3, 96, 96, device=device) - 0.5
    dtype = torch.float16 if device != "cpu" else torch.bfloat16
    with torch.inference_mode():
        expected = [m.cpu() for m in model(image)]
        with torch.autocast(device.split(":")[0], dtype):
            found = model(image)
    assert_close([m.float() for m in found], expected, 2e-2 if dtype == torch.float16 else 0.15)


def test_segmentation_losses_and_labels(device: str) -> None:
    here = build("seg/fpn_fastvit-t8_demo-regions.py").train()
    here.decode_head.dropout = None  # masks of another generator
    there = copy.deepcopy(here).to(device)
    generator = torch.Generator().manual_seed(0)
    size = (192, 192)
    images = [torch.randint(0, 256, (3, *size), generator=generator).byte() for _ in range(2)]

    def batch() -> dict[str, Any]:
        labels = torch.Generator().manual_seed(1)
        samples = []
        for _ in range(2):
            sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, 8, (1, *size), generator=labels))
            samples.append(sample)
        return dict(inputs=[image.clone() for image in images], data_samples=samples)

    losses = [m(**m.data_preprocessor(batch(), True), mode="loss") for m in (here, there)]
    assert losses[1]["decode.loss_ce"].item() == pytest.approx(
        losses[0]["decode.loss_ce"].item(), rel=1e-4
    )
    with torch.inference_mode():
        labels = [
            torch.stack([r.pred_sem_seg.data.cpu() for r in m.eval().test_step(batch())])
            for m in (here, there)
        ]
    assert (labels[0] == labels[1]).float().mean() > 0.999  # where two classes nearly tie


def test_windows_of_a_large_image(device: str) -> None:
    window = dict(mode="slide", crop_size=(64, 64), stride=(48, 48))
    here = build(
        "seg/fpn_fastvit-t8_demo-regions.py", type="TiledSegmentor", test_cfg=window
    ).eval()
    there = copy.deepcopy(here).to(device)
    image = torch.rand(1, 3, 160, 224)
    meta = dict(ori_shape=(150, 210), img_shape=(160, 224), padding_size=(0, 0, 0, 0))
    with torch.inference_mode():
        labels = [
            model.predict(image.to(p), [SegDataSample(metainfo=meta)])[0].pred_sem_seg.data.cpu()
            for model, p in ((here, "cpu"), (there, device))
        ]
    assert labels[0].shape == (1, 150, 210) and len(labels[0].unique()) > 1
    assert (labels[0] == labels[1]).float().mean() > 0.999


def test_detector_trains_and_predicts(device: str) -> None:
    from mmdet.testing import demo_mm_inputs

    here = build("det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py")
    there = copy.deepcopy(here).to(device)
    for model in (here, there):
        model.train()
    data = demo_mm_inputs(2, [[3, 128, 160]] * 2, num_items=[3, 3], num_classes=5, with_mask=True)
    losses = [
        m(**m.data_preprocessor(copy.deepcopy(data), True), mode="loss") for m in (here, there)
    ]
    # The RPN samples on the device, with another generator; these do not depend on it much.
    assert losses[0].keys() == losses[1].keys()
    total, _ = there.parse_losses(losses[1])
    total.backward()
    assert all(p.grad.isfinite().all() for p in there.parameters() if p.grad is not None)
    with torch.inference_mode():
        found = [m.eval().test_step(copy.deepcopy(data))[0].pred_instances for m in (here, there)]
    best = [(r.scores[:10].cpu(), r.bboxes[:10].cpu()) for r in found]
    assert_close(best[1][0], best[0][0], 1e-3)
    assert found[1].masks.shape[1:] == (128, 160)


def test_hand_losses_and_meshes(device: str) -> None:
    here = build("hand/mano_fastvit-t8_demo-hands.py")
    there = copy.deepcopy(here).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 96, 96), generator=generator).byte()
    shapes = dict(vertices=(778, 3), keypoints=(21, 3), keypoints_2d=(21, 2))
    known = [{k: torch.rand(s, generator=generator) for k, s in shapes.items()} for _ in images]

    def batch() -> dict[str, Any]:
        samples = [HandDataSample(gt=BaseDataElement(**gt)) for gt in known]
        return dict(inputs=images.clone(), data_samples=samples)

    losses = []
    for model in (here, there):
        model.train()
        parts = model(**model.data_preprocessor(batch(), True), mode="loss")
        sum(parts.values()).backward()
        losses.append(parts)
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        assert losses[1][name].item() == pytest.approx(loss.item(), rel=1e-4)
    photo = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    K = np.array([[200.0, 0, 80], [0, 200, 60], [0, 0, 1]])
    hands = [
        HandPredictor(model.eval(), device=where)(photo, (30, 20, 80, 80), K=K)
        for model, where in ((here, "cpu"), (there, device))
    ]
    for name in ("vertices", "keypoints", "vertices_camera"):
        here_, there_ = (getattr(hand, name) for hand in hands)
        assert np.abs(here_ - there_).max() < 1e-5  # metres


def test_random_states_of_the_device(device: str) -> None:
    states = capture()
    first = torch.rand(4, device=device)
    with seeded(0):
        torch.rand(4), np.random.rand()
    second = torch.rand(4, device=device)
    restore(states)
    assert torch.equal(torch.rand(4, device=device), first)
    assert torch.equal(torch.rand(4, device=device), second)
