"""Models on a GPU that is not there: tensors without data, which know their device and refuse to mix them.

What this cannot do is what needs data: backward passes of custom functions, and operations whose result
decides a shape (NMS, sampling). tests/rehearse_gpu.py does those on a GPU.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import ROOT
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fastvit_dense import ARCHS, FastViT, reparameterize
from fastvit_dense.engine.config import load_config
from fastvit_dense.hand import HandMeshModel
from fastvit_dense.hand.model import HandDataSample

CONFIGS = ROOT / "configs"
CUDA = torch.device("cuda", 0)


@pytest.fixture(params=[False, True], ids=["float32", "float16"])
def half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether CUDA's float16 autocast is on, which torch switches off where it sees no GPU."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with torch.autocast("cuda", torch.float16, enabled=request.param):
        yield request.param


@contextmanager
def on_the_gpu(model: nn.Module) -> Iterator[nn.Module]:
    """The model with parameters and buffers on a GPU, without their data, and the mode to run it in.

    CPU tensors with data that meet it become ones without, and stay on the CPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        there = torch.empty_like(tensor, device=CUDA)
                        if isinstance(tensor, nn.Parameter):
                            there = nn.Parameter(there, requires_grad=tensor.requires_grad)
                        tensors[name] = there
            if hasattr(module, "_device"):  # mmengine's data preprocessors, which put batches there
                module._device = CUDA
        yield model


def build(path: str) -> nn.Module:
    """The model of a config, on the CPU."""
    from mmengine.registry import MODELS

    cfg = load_config(str(CONFIGS / path))
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mmseg's heads, about their losses
        return MODELS.build(cfg.model).train()


def tensors_of(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors_of(part)]


def assert_on_the_gpu(output: Any) -> None:
    found = tensors_of(output)
    assert found and all(tensor.device == CUDA for tensor in found)


def convolution_dtypes(model: nn.Module) -> list[torch.dtype]:
    """A list that fills with the dtypes of what the model's convolutions return."""
    seen: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    return seen


def test_it_refuses_mixed_devices() -> None:
    with on_the_gpu(FastViT("t8")) as model:
        with pytest.raises(RuntimeError, match="two different devices|on the same device"):
            model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("fused", [False, True])
def test_backbone(arch: str, fused: bool, half: bool) -> None:
    model = FastViT(arch)
    model = reparameterize(model.eval()) if fused else model.train()
    with on_the_gpu(model) as there:
        seen = convolution_dtypes(there)
        maps = there(torch.rand(2, 3, 96, 64, device=CUDA))
        assert_on_the_gpu(maps)
        sides = [(24, 16), (12, 8), (6, 4), (3, 2)]
        assert [m.shape for m in maps] == [
            (2, width, *side) for width, side in zip(ARCHS[arch].widths, sides, strict=True)
        ]
        assert set(seen) == {torch.float16 if half else torch.float32}


@pytest.mark.parametrize(
    "path",
    ["det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py", "det/retinanet_fastvit-sa12_fpn_1x_coco.py"],
)
def test_detector_up_to_its_first_head(path: str, half: bool) -> None:
    model = build(path)
    with on_the_gpu(model) as there:
        # Stacked: mmengine stacks a list by sizes that it asks the tensors for.
        images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
        batch = there.data_preprocessor(dict(inputs=images, data_samples=None))
        head = there.rpn_head if hasattr(there, "rpn_head") else there.bbox_head
        assert_on_the_gpu(head(there.extract_feat(batch["inputs"])))


def test_segmentor(half: bool) -> None:
    model = build("seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py")
    with on_the_gpu(model) as there:
        images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(2)]
        batch = there.data_preprocessor(dict(inputs=images, data_samples=None))
        logits = there.decode_head(there.extract_feat(batch["inputs"]))
        assert_on_the_gpu(logits)
        assert logits.shape == (2, 150, 24, 32)


def test_hand_model_and_its_losses(half: bool) -> None:
    model = build("hand/mano_fastvit-t8_demo-hands.py")
    assert isinstance(model, HandMeshModel)
    known = dict(vertices=(778, 3), keypoints=(21, 3), keypoints_2d=(21, 2))
    samples = [
        HandDataSample(gt=BaseDataElement(**{k: torch.rand(shape) for k, shape in known.items()}))
        for _ in range(2)
    ]
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with on_the_gpu(model) as there:
        batch = there.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
        prediction = there(**batch)
        assert_on_the_gpu(prediction)
        # Rotations and skinning stay in float32: rounding to float16 would move vertices.
        assert all(tensor.dtype == torch.float32 for tensor in tensors_of(prediction))
        losses = there(**batch, mode="loss")
        assert set(losses) == {"loss_vertices", "loss_keypoints", "loss_keypoints_2d"}
        assert_on_the_gpu(losses)
