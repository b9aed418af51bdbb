"""The hand model on a device without float64, as Apple's GPU is; emulated, so that any machine can tell."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomise
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastvit_dense import reparameterize
from fastvit_dense.hand import FreiHANDMetric, HandCrop, HandMeshModel, HandViews, PackHandInputs
from fastvit_dense.hand.geometry import lift_translation, project
from fastvit_dense.synthetic.hands import sample_annotation

MPS = torch.device("mps:0")


class DeviceTensor(Tensor):
    """A tensor that says it is on Apple's GPU; to torch's C++, which may lack one, it is on `meta`.

    Its numbers are in `host`, on the CPU.
    """

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "DeviceTensor":
        return Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(),
            dtype=host.dtype, device="meta",
        )  # fmt: skip

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    def __init__(self, host: Tensor) -> None:
        self.host = host

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} of a tensor on the device, outside of the emulation")


class EmulatedDevice(TorchDispatchMode):
    """Computes on the CPU what is asked of the device, and refuses what the device could not.

    That is float64 on it, also as the result of a copy to the CPU, which Apple's converts before it leaves
    (torch, aten/src/ATen/native/mps/operations/Copy.mm); and operations on tensors of both. It does not
    know which operations Apple's GPU lacks.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in given if isinstance(t, DeviceTensor)]
        goes_there = bool(there)
        if kwargs.get("device") is not None:  # copies and factories
            goes_there = torch.device(kwargs["device"]).type in (MPS.type, "meta")
            kwargs["device"] = "cpu"
        elif there and func is not torch.ops.aten.copy_.default:
            here = [t for t in given if t.dim() and not isinstance(t, DeviceTensor)]
            if here:
                raise RuntimeError(f"{func}: tensors on two devices")
        host_args, host_kwargs = tree_map_only(DeviceTensor, lambda t: t.host, (args, kwargs))
        results = func(*host_args, **host_kwargs)
        produced = [t for t in tree_leaves(results) if isinstance(t, Tensor)]
        on_device = there + (produced if there or goes_there else [])
        if any(t.dtype == torch.float64 for t in on_device):
            raise TypeError(f"{func}: the device has no float64")
        if not goes_there:
            return results
        known = {id(t.host): t for t in there}  # results of operations in place
        return tree_map_only(
            Tensor, lambda t: known[id(t)] if id(t) in known else DeviceTensor(t), results
        )


@pytest.fixture
def device() -> Iterator[torch.device]:
    with EmulatedDevice():
        yield MPS


def views(step: Callable[[dict], dict], hands: int = 2) -> dict[str, Any]:
    """A batch of hands in random pictures, cropped by a pipeline's last steps."""
    batch = []
    for i in range(hands):
        rng = np.random.default_rng(i)
        hand = sample_annotation(rng)
        image = rng.integers(0, 256, (224, 224, 3), np.uint8)
        batch.append(step(dict(
            img=image, ori_shape=(224, 224), index=i, img_path=f"{i:08d}.jpg", K=hand.K,
            vertices=np.float32(hand.vertices), keypoints=np.float32(hand.keypoints),
        )))  # fmt: skip
    return pseudo_collate(batch)


def crop(results: dict[str, Any]) -> dict[str, Any]:
    return PackHandInputs()(HandCrop(out_size=64)(results))


def hand_model() -> HandMeshModel:
    init_default_scope("mmengine")
    term = dict(criterion="mse")
    torch.manual_seed(0)
    return MODELS.build(dict(
        type="HandMeshModel",
        image_size=64,
        backbone=dict(type="FastViT", arch="t8", out_indices=(3,), out_norm=False),
        head=dict(type="ManoHead", in_channels=384),
        loss=dict(type="HandLoss", vertices=term, keypoints=term, keypoints_2d=term),
        # No bgr_to_rgb: it indexes by a list, which C++ makes a tensor of past the emulation.
        data_preprocessor=dict(
            type="ImgDataPreprocessor", mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]
        ),
    )).eval()  # fmt: skip


def test_the_emulation_refuses_what_it_should(device: torch.device) -> None:
    there = torch.ones(3, device=device)
    assert there.device == device and there.cpu().device.type == "cpu"
    assert (there + 1).sum().item() == 6 and there.add_(1) is there and there.cpu().sum() == 6
    float64 = torch.ones(3, dtype=torch.float64)
    for forbidden in (
        lambda: there.double(),
        lambda: there.to("cpu", torch.float64),
        lambda: float64.to(device),
        lambda: torch.zeros(3, dtype=torch.float64, device=device),
        lambda: torch.as_tensor(np.zeros(3), device=device),
    ):
        with pytest.raises(TypeError, match="no float64"):
            forbidden()
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()


def test_place_before_the_camera(device: torch.device) -> None:
    points, K = (
        0.05 * torch.randn(3, 21, 3),
        torch.tensor([[480.0, 0, 112], [0, 490, 110], [0, 0, 1]]),
    )
    place = torch.tensor([0.02, -0.01, 0.6])
    pixels = project(points + place, K.expand(3, 3, 3))
    found = lift_translation(points.to(device), pixels.to(device), K.expand(3, 3, 3).to(device))
    assert found.device == device and found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), place.expand(3, 3), atol=1e-5, rtol=0)


def test_predict_and_measure(device: torch.device) -> None:
    metrics = []
    for where in ("cpu", device):
        model = hand_model().to(where)
        with torch.no_grad():
            samples = model.test_step(views(crop))
        assert samples[0].pred.vertices_camera.device.type == torch.device(where).type
        metric = FreiHANDMetric()
        metric.process({}, [sample.to_dict() for sample in samples])
        metrics.append(metric.evaluate(2))
    assert metrics[0] == metrics[1] and metrics[0]["freihand/PV"] > 0


def test_losses(device: torch.device) -> None:
    losses = []
    for where in ("cpu", device):
        model = hand_model().to(where).train()
        data = model.data_preprocessor(views(crop), True)
        found = model(**data, mode="loss")
        assert {v.device.type for v in found.values()} == {torch.device(where).type}
        losses.append({name: value.item() for name, value in found.items()})
    assert losses[0] == losses[1]


def test_merged_views(device: torch.device) -> None:
    step = HandViews(out_size=64, rotations=(0, -15, 30), scales=(1.0, 0.9))
    vertices = []
    for where in ("cpu", device):
        model = MODELS.build(dict(type="HandTTAModel", module=hand_model())).to(where)
        data = views(step)
        with torch.no_grad():
            samples = model.test_step(data)
        vertices.append(samples[1].pred.vertices_camera)
    assert vertices[1].device == device and torch.equal(vertices[0], vertices[1].cpu())


def test_views_of_another_size_are_refused() -> None:
    model = MODELS.build(dict(type="HandTTAModel", module=hand_model()))
    with pytest.raises(ValueError, match="crops of 96x96 pixels, expected the 64x64 .*out_size=64"):
        model.test_step(views(HandViews(out_size=96)))


def test_fused_on_the_device(device: torch.device) -> None:
    model = randomise(hand_model()).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = reparameterize(model)(image)
        fused = reparameterize(model.to(device))
        assert {t.device for t in fused.state_dict().values()} == {device}
        assert torch.equal(fused(image.to(device)).vertices.cpu(), wanted.vertices)
