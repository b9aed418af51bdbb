"""The backbone against timm's implementation, the paper's counts, and its own promises."""

import copy

import pytest
import timm
import torch
from conftest import randomise
from torch import nn

from fastvit_dense import ARCHS, FastViT

# Millions of parameters without classifier and output norms. What timm's fusion leaves, and what is
# left when FFN norms, attention norms and layer scales are folded too.
FUSED_BY_TIMM = {
    "t8": 3.14, "t12": 6.34, "s12": 8.26,
    "sa12": 10.38, "sa24": 20.33, "sa36": 30.29, "ma36": 42.57,
}  # fmt: skip
FUSED_HERE = {
    "t8": 3.14, "t12": 6.34, "s12": 8.26,
    "sa12": 10.37, "sa24": 20.32, "sa36": 30.27, "ma36": 42.55,
}  # fmt: skip


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("arch", ARCHS)
def test_features_equal_timm(arch: str) -> None:
    oracle = randomise(timm.create_model(f"fastvit_{arch}", num_classes=0)).double().eval()
    model = FastViT(arch, out_norm=False).double().eval()
    weights = {k: v for k, v in oracle.state_dict().items() if k.startswith(("stem.", "stages."))}
    model.load_state_dict(weights)  # strict

    x = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = oracle.forward_intermediates(x, intermediates_only=True)
        outs = model(x)
    assert len(outs) == len(expected) == 4
    for out, want, channels, stride in zip(
        outs, expected, model.out_channels, model.strides, strict=True
    ):
        assert out.shape == (1, channels, 96 // stride, 64 // stride)
        assert (out - want).norm() <= 1e-10 * want.norm()


@pytest.mark.parametrize("arch", ARCHS)
def test_parameter_counts(arch: str) -> None:
    train = FastViT(arch, out_norm=False)
    fused = parameters(FastViT(arch, out_norm=False, deploy=True))
    oracle = timm.create_model(f"fastvit_{arch}", num_classes=0)
    assert parameters(train) == parameters(oracle.stem) + parameters(oracle.stages)

    oracle = timm.utils.reparameterize_model(oracle)
    by_timm = parameters(oracle.stem) + parameters(oracle.stages)
    # A block keeps there: the FFN's BatchNorm (2C for a bias C) and layer scales (C, twice in
    # attention blocks, which also keep a norm of 2C for a qkv bias of 3C). Either way 2C more.
    left_by_timm = sum(2 * s.blocks[0].mlp.fc2.out_channels * len(s.blocks) for s in train.stages)
    assert by_timm == fused + left_by_timm
    assert f"{by_timm / 1e6:.2f}" == f"{FUSED_BY_TIMM[arch]:.2f}"
    assert f"{fused / 1e6:.2f}" == f"{FUSED_HERE[arch]:.2f}"


@pytest.mark.parametrize("arch", ["sa12", "ma36"])
def test_p5_depends_on_stage_4_attention(arch: str) -> None:
    model = randomise(FastViT(arch)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        model.stages[3].blocks[-1].token_mixer.proj.weight.add_(0.5)
        after = model(x)
    assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True))
    assert (after[3] - before[3]).abs().max() > 1e-2


@pytest.mark.parametrize("arch", ["t8", "sa12"])
def test_every_parameter_gets_a_gradient(arch: str) -> None:
    model = randomise(FastViT(arch, drop_path_rate=0)).train()
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (75, 101), (64, 160)])
def test_any_size_from_32(size: tuple[int, int]) -> None:
    outs = FastViT("sa12").eval()(torch.randn(1, 3, *size))
    for out, stride in zip(outs, (4, 8, 16, 32), strict=True):
        assert out.shape[2:] == tuple(-(-s // stride) for s in size)


def test_odd_size_equals_timm() -> None:
    oracle = randomise(timm.create_model("fastvit_t8", num_classes=0)).double().eval()
    model = FastViT("t8", out_norm=False).double().eval()
    model.load_state_dict(
        {k: v for k, v in oracle.state_dict().items() if k.startswith(("stem.", "stages."))}
    )
    x = torch.randn(1, 3, 75, 101, dtype=torch.float64)
    with torch.no_grad():
        want = oracle.forward_intermediates(x, intermediates_only=True)
        for out, expected in zip(model(x), want, strict=True):
            assert (out - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 8), (3, 64, 64)])
def test_too_small_or_not_a_batch(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 32 pixels"):
        FastViT("t8")(torch.randn(shape))


@pytest.mark.parametrize("package", ["mmengine", "mmdet", "mmseg"])
def test_registered(package: str) -> None:
    registry = pytest.importorskip(f"{package}.registry").MODELS
    assert isinstance(registry.build(dict(type="FastViT", arch="t8")), FastViT)


def test_out_indices() -> None:
    full = randomise(FastViT("t8")).eval()
    part = FastViT("t8", out_indices=(1, 2)).eval()
    assert (part.out_channels, part.strides) == ((96, 192), (8, 16))
    assert len(part.stages) == 3
    keys = part.state_dict().keys()
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k in keys})
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(part(x), full(x)[1:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(arch="sa13"), "t8, t12, s12, sa12, sa24, sa36, ma36; got 'sa13'"),
        (dict(out_indices=(0, 4)), "ascending"),
        (dict(out_indices=(2, 1)), "ascending"),
        (dict(out_indices=()), "ascending"),
        (dict(frozen_stages=5), "frozen_stages"),
        (dict(drop_path_rate=1.0), "drop_path_rate"),
        (dict(deploy=True, with_cp=True), "inference-only"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastViT(**options)


def norms_in_training(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}


def test_norm_eval_spares_output_norms() -> None:
    model = FastViT("t8", norm_eval=True).train()
    assert norms_in_training(model) == {"norm0", "norm1", "norm2", "norm3"}
    assert all(p.requires_grad for p in model.parameters())
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 64, 64))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in changed} == {"norm0", "norm1", "norm2", "norm3"}


def test_norms_train_by_default() -> None:
    names = norms_in_training(FastViT("t8").train())
    assert len(names) > 50 and "stem.0.conv_kxk.0.bn" in names


@pytest.mark.parametrize("frozen", range(-1, 5))
def test_frozen_stages(frozen: int) -> None:
    model = FastViT("t8", frozen_stages=frozen).train()
    parts = [model.stem, *model.stages]
    for i, part in enumerate(parts):
        is_frozen = i <= frozen
        assert all(p.requires_grad != is_frozen for p in part.parameters())
        assert all(m.training != is_frozen for m in part.modules())
    assert model.norm0.training and model.norm0.weight.requires_grad
    model.eval().train()
    assert model.stem.training == (frozen < 0)


def test_drop_path_rates_rise_to_the_recipe() -> None:
    rates = [b.drop_path.drop_prob for s in FastViT("sa12").stages for b in s.blocks]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates) and len(rates) == 12
    rates = [
        b.drop_path.drop_prob for s in FastViT("sa12", drop_path_rate=0).stages for b in s.blocks
    ]
    assert set(rates) == {0.0}


def test_recomputation_changes_nothing_but_memory() -> None:
    plain = randomise(FastViT("sa12", drop_path_rate=0.5)).double().train()
    recomputed = FastViT("sa12", drop_path_rate=0.5, with_cp=True).double().train()
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (plain, recomputed):
        torch.manual_seed(3)  # the same stochastic depth in both
        sum(out.square().mean() for out in model(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (name, a), b in zip(plain.named_buffers(), recomputed.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_channels_last_trains() -> None:
    """Trap: the backward pass of a strided 1x1 convolution with 3 inputs corrupts the heap."""
    plain = randomise(FastViT("t8")).train()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 96)
    grads = []
    for model, inp in ((plain, x), (last, x.contiguous(memory_format=torch.channels_last))):
        for _ in range(2):
            model.zero_grad()
            sum(out.mean() + out.square().mean() for out in model(inp)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (grads[0] - grads[1]).norm() <= 1e-3 * grads[0].norm()
    assert not any(
        m.kernel_size == (1, 1) and m.stride != (1, 1)
        for m in plain.modules()
        if isinstance(m, nn.Conv2d)
    )


def test_in_channels() -> None:
    assert len(FastViT("t8", in_channels=1).eval()(torch.randn(1, 1, 64, 64))) == 4


def test_state_dict_has_timm_names_and_output_norms_alone() -> None:
    timm_keys = timm.create_model("fastvit_sa12", num_classes=0).state_dict().keys()
    keys = FastViT("sa12").state_dict().keys()
    assert {k for k in keys if not k.startswith("norm")} == {
        k for k in timm_keys if k.startswith(("stem.", "stages."))
    }
    assert len([k for k in keys if k.startswith("norm")]) == 4 * 5
