"""Fused and unfused models compute the same, in every part and as a whole."""

import copy

import pytest
import timm
import torch
from conftest import randomise
from mmengine.registry import init_default_scope
from torch import nn

from fastvit_dense import ARCHS, FastViT, reparameterize
from fastvit_dense.backbone import fold
from fastvit_dense.backbone import reparameterize as reparam
from fastvit_dense.backbone.blocks import (
    AttentionBlock,
    ConditionalPositionEncoding,
    LayerScale,
    RepMixer,
    RepMixerBlock,
)
from fastvit_dense.backbone.layers import ConvBN, LargeKernelConv, RepConv

BatchNorm = nn.modules.batchnorm._BatchNorm


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference over the largest value."""
    return float((a - b).abs().max() / a.abs().max())


def randomised(module: nn.Module) -> nn.Module:
    module = randomise(module).double().eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return module


@pytest.mark.parametrize("arch", ARCHS)
def test_every_variant_at_odd_sizes(arch: str) -> None:
    model = randomise(FastViT(arch)).eval()
    fused = reparameterize(model)
    x = torch.randn(2, 3, 69, 98)
    with torch.no_grad():
        single = [difference(a, b) for a, b in zip(model(x), fused(x), strict=True)]
        model, x = model.double(), x.double()
        double = [difference(a, b) for a, b in zip(model(x), reparameterize(model)(x), strict=True)]
    assert max(single) <= 3e-6 and max(double) <= 1e-12
    left = [name for name, m in fused.named_modules() if isinstance(m, BatchNorm | LayerScale)]
    assert left == ["norm0", "norm1", "norm2", "norm3"]
    assert [
        k for k in fused.state_dict() if "gamma" in k or "conv_kxk" in k or "mixer.mixer" in k
    ] == []


def test_equals_timm_too() -> None:
    oracle = randomise(timm.create_model("fastvit_sa12", num_classes=0)).double().eval()
    model = FastViT("sa12", out_norm=False).double().eval()
    model.load_state_dict(
        {k: v for k, v in oracle.state_dict().items() if k.startswith(("stem.", "stages."))}
    )
    oracle = timm.utils.reparameterize_model(oracle)
    x = torch.randn(1, 3, 64, 96).double()
    with torch.no_grad():
        expected = oracle.stages(oracle.stem(x))
        assert difference(expected, reparameterize(model)(x)[3]) <= 1e-12


# One test a fold: each block by itself, and the error when the fold is broken on purpose.
BLOCKS = {
    "conv + BN": (lambda d: RepConv(6, 8, kernel_size=3, deploy=d), "fold_conv_bn"),
    "1x1 branch": (lambda d: RepConv(6, 8, kernel_size=3, stride=2, deploy=d), "pad_kernel"),
    "identity branch": (
        lambda d: RepConv(8, 8, kernel_size=3, groups=8, deploy=d), "identity_kernel",
    ),
    "identity, grouped": (
        lambda d: RepConv(8, 8, kernel_size=3, groups=2, deploy=d), "identity_kernel",
    ),
    "1x1 with identity": (lambda d: RepConv(8, 8, kernel_size=1, deploy=d), "identity_kernel"),
    "small kernel": (lambda d: LargeKernelConv(4, 8, deploy=d), "pad_kernel"),
    "RepMixer skip": (lambda d: RepMixer(8, deploy=d), "identity_kernel"),
    "RepMixer norm": (lambda d: RepMixer(8, deploy=d), "fold_bn"),
    "RepMixer layer scale": (lambda d: RepMixer(8, deploy=d), "fold_rep_mixer"),
    "position encoding": (
        lambda d: ConditionalPositionEncoding(8, deploy=d), "identity_kernel",
    ),
    "FFN conv + BN": (lambda d: RepMixerBlock(8, 3, deploy=d), "fold_conv_bn"),
    "FFN layer scale": (lambda d: RepMixerBlock(8, 3, deploy=d), "_scale_output"),
    "attention BN": (lambda d: AttentionBlock(64, 4, deploy=d), "fold_bn"),
    "attention layer scale": (lambda d: AttentionBlock(64, 4, deploy=d), "_scale_output"),
}  # fmt: skip


def without_layer_scale(block: nn.Module) -> nn.Module:
    block = copy.deepcopy(block)
    nn.init.ones_(block.layer_scale.gamma)
    return block


@pytest.mark.parametrize("name", BLOCKS)
def test_folds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, function = BLOCKS[name]
    train, fused = randomised(build(False)), build(True).double().eval()
    channels = next(m for m in train.modules() if isinstance(m, BatchNorm | nn.Conv2d))
    width = channels.num_features if isinstance(channels, BatchNorm) else channels.in_channels
    if isinstance(train, RepConv):
        width = train.conv_kxk[0].conv.in_channels
    elif isinstance(train, LargeKernelConv):
        width = train.large_conv.conv.in_channels
    x = torch.randn(2, width, 9, 11).double()
    with torch.no_grad():
        expected = train(x)
        fold.fold_into(train, fused)
        assert difference(expected, fused(x)) <= 1e-12

        real = getattr(fold, function)
        broken = {
            "fold_conv_bn": lambda branch: fold.Kernel(real(branch).weight, 0 * real(branch).bias),
            "pad_kernel": lambda weight, side: torch.roll(real(weight, side), 1, dims=-1),
            "identity_kernel": lambda *args: 0 * real(*args),
            "fold_bn": lambda bn: (real(bn)[0], -real(bn)[1]),
            "fold_rep_mixer": lambda block: real(without_layer_scale(block)),
            "_scale_output": lambda train, fused, scale: fold._store(
                fused, train.weight, train.bias
            ),
        }[function]
        monkeypatch.setattr(fold, function, broken)
        fold.fold_into(train, fused)
        assert difference(expected, fused(x)) > 1e-3


def test_leaves_the_original_alone_and_is_idempotent() -> None:
    model = randomise(FastViT("sa12")).eval()
    before = copy.deepcopy(model.state_dict())
    once = reparameterize(model)
    twice = reparameterize(once)
    assert once is not model and twice is not once
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before) and before.keys() == after.keys()
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(v, twice.state_dict()[k]) for k, v in once.state_dict().items())


def test_own_structure_loads_it() -> None:
    fused = reparameterize(randomise(FastViT("t8")).eval())
    again = FastViT("t8", deploy=True).eval()
    again.load_state_dict(fused.state_dict())  # strict
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(fused(x), again(x), strict=True))
    assert {k for k in vars(again) if k != "_modules"} == {
        k for k in vars(fused) if k != "_modules"
    }


def test_dtype_and_memory_format_are_kept() -> None:
    model = FastViT("t8").eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    fused = reparameterize(model)
    assert {p.dtype for p in fused.parameters()} == {torch.bfloat16}
    weight = fused.stages[0].blocks[0].mlp.fc1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_refuses_what_cannot_be_fused() -> None:
    with pytest.raises(ValueError, match="in training mode.*model.eval"):
        reparameterize(FastViT("t8"))
    with pytest.raises(ValueError, match="holds no FastViT"):
        reparameterize(nn.Conv2d(3, 3, 1))


def test_any_module_that_contains_one() -> None:
    model = nn.ModuleDict(
        dict(inner=nn.Sequential(FastViT("t8")), other=ConvBN(3, 4, kernel_size=1))
    )
    randomise(model).eval()
    fused = reparameterize(model)
    assert fused["inner"][0].deploy and not model["inner"][0].deploy
    same = reparameterize(model, inplace=True)
    assert same is model and model["inner"][0].deploy


def small_detector(**neck: object) -> nn.Module:
    mmdet = pytest.importorskip("mmdet.registry")
    init_default_scope("mmdet")

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = FastViT("t8")
            self.neck = mmdet.MODELS.build(
                dict(
                    type="FPN", in_channels=[48, 96, 192, 384], out_channels=16, num_outs=5, **neck
                )
            )

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.neck(self.backbone(x))

    return randomise(Detector()).double().eval()


@pytest.mark.parametrize(
    ("neck", "kept"),
    [
        (dict(), []),
        (dict(norm_cfg=dict(type="BN")), []),
        (dict(start_level=1, add_extra_convs="on_output"), ["norm0"]),
        (dict(start_level=1, add_extra_convs="on_input"), ["norm0", "norm3"]),
    ],
)
def test_output_norms_go_into_laterals_that_alone_read_them(neck: dict, kept: list[str]) -> None:
    model = small_detector(**neck)
    fused = reparameterize(model)
    x = torch.randn(2, 3, 65, 97).double()
    with torch.no_grad():
        for a, b in zip(model(x), fused(x), strict=True):
            assert difference(a, b) <= 1e-12
    norms = [n for n, m in fused.backbone.named_modules() if isinstance(m, BatchNorm)]
    assert norms == kept
    assert not any(isinstance(m, BatchNorm) for m in fused.neck.modules())
    assert reparameterize(fused).state_dict().keys() == fused.state_dict().keys()


def test_a_broken_fold_of_output_norms_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_detector()
    fused = reparameterize(model, output_norms=False)
    real = reparam.fold_bn
    monkeypatch.setattr(reparam, "fold_bn", lambda bn: (real(bn)[0], -real(bn)[1]))
    reparam._fold_output_norms(fused.backbone, fused.neck)
    x = torch.randn(2, 3, 65, 97).double()
    with torch.no_grad():
        errors = [difference(a, b) for a, b in zip(model(x), fused(x), strict=True)]
    assert min(errors) > 1e-3


@pytest.mark.parametrize("size", [(67, 97), (64, 128)])
def test_segmentor_at_odd_sizes(size: tuple[int, int]) -> None:
    mmseg = pytest.importorskip("mmseg.registry")
    from fastvit_dense.engine.config import load_config

    cfg = load_config("configs/seg/fpn_fastvit-sa12_8xb4-40k_ade20k-512x512.py")
    init_default_scope("mmseg")
    model = randomise(mmseg.MODELS.build(cfg.model)).eval()
    fused = reparameterize(model)
    assert [n for n, m in fused.named_modules() if isinstance(m, BatchNorm | LayerScale)] == []
    x, metas = torch.randn(1, 3, *size), [dict(img_shape=size)]
    with torch.no_grad():
        expected = model.encode_decode(x, metas)
        assert expected.shape == (1, 150, *size)
        assert difference(expected, fused.encode_decode(x, metas)) <= 1e-4
