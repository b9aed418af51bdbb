"""Published and own checkpoints into the backbone: what maps, what is said, what is refused."""

import logging
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from conftest import randomise
from mmengine.registry import MODELS
from safetensors import SafetensorError
from torch import Tensor

from fastvit_dense import ARCHS, FastViT
from fastvit_dense.backbone.pretrained import load_pretrained
from fastvit_dense.io import weights

StateDict = dict[str, Tensor]


def to_apple(state_dict: StateDict, arch: str) -> StateDict:
    """timm's names -> those of Apple's files, written from Apple's module tree."""
    # Position of each of timm's stage parts in Apple's flat list.
    position = {"0.blocks": 0}
    count = 1
    for stage in (1, 2, 3):
        position[f"{stage}.downsample"] = count
        count += 1
        if stage == 3 and ARCHS[arch].attention:
            position["3.pos_emb"] = count
            count += 1
        position[f"{stage}.blocks"] = count
        count += 1
    out = {}
    for key, value in state_dict.items():
        if m := re.match(r"stages\.(\d\.(?:blocks|downsample|pos_emb))\.(.*)", key):
            key = f"network.{position[m[1]]}.{m[2]}"
        key = key.replace("pos_enc.", "pe." if "network" in key else "pos_enc.")
        for ours, apple in (
            ("stem.", "patch_embed."), ("conv_kxk.", "rbr_conv."), ("conv_scale.", "rbr_scale."),
            ("identity.", "rbr_skip."), ("large_conv.", "lkb_origin."), ("mlp.", "convffn."),
            ("final_conv.", "conv_exp."), ("head.fc.", "head."), ("head_dist.", "dist_head."),
            (".gamma", ""),
        ):  # fmt: skip
            key = key.replace(ours, apple)
        if re.match(r"network\.\d\.proj\.0\.reparam_conv", key):
            key = key.replace("reparam_conv", "lkb_reparam")
        out[key] = value
    return out


def classifier(arch: str) -> torch.nn.Module:
    torch.manual_seed(1)
    return randomise(timm.create_model(f"fastvit_{arch}")).eval()


def save(tmp_path: Path, content: object) -> str:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return str(path)


def features_agree(model: FastViT, oracle: torch.nn.Module) -> None:
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    norms = [getattr(model, f"norm{i}") for i in range(4)]
    for i in range(4):
        setattr(model, f"norm{i}", torch.nn.Identity())
    with torch.no_grad():
        want = oracle.double().eval().forward_intermediates(x, intermediates_only=True)
        for out, expected in zip(model.double().eval()(x), want, strict=True):
            assert (out - expected).norm() <= 1e-10 * expected.norm()
    for i in range(4):
        setattr(model, f"norm{i}", norms[i])


@pytest.mark.parametrize("arch", ARCHS)
def test_apple_names(arch: str, tmp_path: Path) -> None:
    oracle = classifier(arch)
    apple = to_apple(oracle.state_dict(), arch)
    assert not any(k.startswith(("stem", "stages", "head.fc")) for k in apple)
    model = FastViT(arch)
    report = load_pretrained(model, save(tmp_path, {"state_dict": apple, "epoch": 300}))
    assert report.format == "apple"
    assert {k.split(".")[0] for k in report.new} == {"norm0", "norm1", "norm2", "norm3"}
    assert {k.split(".")[0] for k in report.left_out} == {"conv_exp", "head"}
    assert set(report.loaded) == {k for k in model.state_dict() if not k.startswith("norm")}
    features_agree(model, oracle)


@pytest.mark.parametrize("deploy", [True, False])
@pytest.mark.parametrize(("names", "arch"), [("apple", "t8"), ("timm", "sa12"), ("bare", "t8")])
def test_fused_by_timm_or_apple_is_refused(
    names: str, arch: str, deploy: bool, tmp_path: Path
) -> None:
    state_dict = timm.utils.reparameterize_model(classifier(arch)).state_dict()
    if names == "apple":
        state_dict = to_apple(state_dict, arch)
    if names == "bare":
        state_dict = {k: v for k, v in state_dict.items() if k.startswith(("stem", "stages"))}
    model = FastViT(arch, deploy=deploy)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"unfused weights.*timm://fastvit_{arch}.apple_in1k"):
        load_pretrained(model, save(tmp_path, state_dict))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_deploy_round_trip_and_unfused_into_deploy(tmp_path: Path) -> None:
    fused = FastViT("t8", deploy=True)
    path = save(tmp_path, fused.state_dict())
    report = load_pretrained(FastViT("t8", deploy=True), path)
    assert report.format == "fastvit_dense, fused" and not report.new and not report.left_out
    path = save(tmp_path, FastViT("t8").state_dict())
    with pytest.raises(ValueError, match="with deploy=False"):
        load_pretrained(FastViT("t8", deploy=True), path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_timm_names_bare_and_from_ddp(prefix: str, tmp_path: Path) -> None:
    oracle = classifier("t8")
    path = save(tmp_path, {prefix + k: v for k, v in oracle.state_dict().items()})
    model = FastViT("t8")
    assert load_pretrained(model, path).format == "timm"
    features_agree(model, oracle)


def test_timm_features_only_names(tmp_path: Path) -> None:
    oracle = classifier("sa12")
    state_dict = {
        re.sub(r"^(stem|stages)\.(?=\d)", r"\1_", k): v
        for k, v in oracle.state_dict().items()
        if k.startswith(("stem", "stages"))
    }
    real = timm.create_model("fastvit_sa12", features_only=True).state_dict()
    assert state_dict.keys() == real.keys()
    model = FastViT("sa12")
    assert load_pretrained(model, save(tmp_path, state_dict)).format == "timm features"
    features_agree(model, oracle)


def test_distilled_has_a_second_head(tmp_path: Path) -> None:
    state_dict = classifier("t8").state_dict()
    state_dict["head_dist.weight"] = torch.zeros(1000, 768)
    apple = to_apple(state_dict, "t8")
    assert "dist_head.weight" in apple
    report = load_pretrained(FastViT("t8"), save(tmp_path, apple))
    assert "dist_head.weight" in report.left_out


def test_own_detector_checkpoint(tmp_path: Path) -> None:
    trained = randomise(FastViT("t8"))
    content = {f"backbone.{k}": v for k, v in trained.state_dict().items()}
    content |= {f"ema.module.backbone.{k}": v + 1 for k, v in trained.state_dict().items()}
    content["neck.lateral.weight"] = torch.zeros(3)
    path = save(tmp_path, {"state_dict": content, "meta": {"epoch": 3}})
    for prefix in (None, "backbone."):
        model = FastViT("t8")
        report = load_pretrained(model, path, prefix=prefix)
        assert report.format == "fastvit_dense" and not report.new
        assert "neck.lateral.weight" in report.left_out
        assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(
        ValueError, match="under the prefix 'encoder.'; it has one under 'backbone.'"
    ):
        load_pretrained(FastViT("t8"), path, prefix="encoder.")


def test_fewer_stages_and_norms_are_left_out(tmp_path: Path) -> None:
    model = FastViT("t8", out_indices=(0, 1))
    report = load_pretrained(model, save(tmp_path, FastViT("t8").state_dict()))
    assert {".".join(k.split(".")[:2]) for k in report.left_out if "stages" in k} == {
        "stages.2", "stages.3",
    }  # fmt: skip
    assert {k.split(".")[0] for k in report.left_out} == {"stages", "norm2", "norm3"}


def test_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    path = save(tmp_path, classifier("t8").state_dict())
    with caplog.at_level(logging.INFO):
        load_pretrained(FastViT("t8"), path)
    logger.removeHandler(caplog.handler)
    assert re.search(
        r"FastViT-T8 from .*checkpoint.pth \(timm\): 444 of 464 tensors loaded; left out "
        r"on purpose: 18 \(final_conv, head\); new, to be trained: 20 \(norm0, norm1, norm2, norm3\)",
        caplog.text,
    )


def broken(change) -> StateDict:  # type: ignore[no-untyped-def]
    state_dict = dict(classifier("t8").state_dict())
    change(state_dict)
    return state_dict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("stages.1.blocks.0.mlp.fc1.bias"),
            r"1 tensors missing \(stages\.1",
        ),
        (
            lambda s: s.update({"stages.1.blocks.0.x": torch.ones(1)}),
            "1 tensors unexpected",
        ),
        (
            lambda s: s.update({"stem.1.conv_scale.conv.weight": torch.ones(48, 1, 3, 3)}),
            r"of another shape .*\(48, 1, 3, 3\), in the model \(48, 1, 1, 1\)",
        ),
        (lambda s: s["stages.0.blocks.0.mlp.fc1.bias"].fill_(torch.nan), "1 tensors with NaN"),
    ],
)
def test_damaged(change, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message) as e:
        load_pretrained(FastViT("t8"), save(tmp_path, broken(change)))
    assert "damaged" in str(e.value)


@pytest.mark.parametrize(("given", "wanted"), [("sa24", "sa12"), ("s12", "sa12"), ("t8", "t12")])
def test_other_variant_is_named(given: str, wanted: str, tmp_path: Path) -> None:
    path = save(tmp_path, timm.create_model(f"fastvit_{given}").state_dict())
    with pytest.raises(
        ValueError, match=f"Likely cause: the checkpoint is a FastViT-{given.upper()}"
    ):
        load_pretrained(FastViT(wanted), path)


def test_other_network(tmp_path: Path) -> None:
    path = save(tmp_path, timm.create_model("resnet18").state_dict())
    with pytest.raises(ValueError, match="holds no FastViT: .*keys begin with conv1.weight"):
        load_pretrained(FastViT("t8"), path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {}}])
def test_no_state_dict(content: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no state dict"):
        load_pretrained(FastViT("t8"), save(tmp_path, content))


def test_missing_file() -> None:
    with pytest.raises(
        FileNotFoundError, match="'nowhere.pth' does not exist. Expected a path, a URL"
    ):
        load_pretrained(FastViT("t8"), "nowhere.pth")


def test_truncated_file(tmp_path: Path) -> None:
    path = Path(save(tmp_path, FastViT("t8").state_dict()))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cannot be read, it may be truncated"):
        load_pretrained(FastViT("t8"), str(path))


class Payload:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (Path("ran-code"),))


def test_pickled_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open("evil.pth", "wb") as f:
        pickle.dump({"state_dict": Payload()}, f, protocol=2)
    torch.save({"state_dict": Payload()}, "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(
            ValueError,
            match=r"holds more than plain data .*: GLOBAL pathlib(\._local)?\.Path\. Save",
        ):
            load_pretrained(FastViT("t8"), name)
    assert not Path("ran-code").exists()


def test_timm_scheme_through_init_cfg(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = classifier("sa12")

    def hub(name: str, *, pretrained: bool) -> torch.nn.Module:
        assert (name, pretrained) == ("fastvit_sa12.apple_in1k", True)
        return oracle

    monkeypatch.setattr(weights, "_is_cached", lambda name: True)
    monkeypatch.setattr(timm, "create_model", hub)
    init_cfg = dict(type="Pretrained", checkpoint="timm://fastvit_sa12.apple_in1k")
    model = MODELS.build(dict(type="FastViT", arch="sa12", init_cfg=init_cfg))
    model.init_weights()
    features_agree(model, oracle)


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("fastvit_sa12.in21k", "fastvit_sa12.apple_dist_in1k, fastvit_sa12.apple_in1k$"),
        ("fastvit_sa21.apple_in1k", "fastvit_sa(12|24).apple_in1k"),
        ("Apple", "fastvit_t8.apple_in1k"),
    ],
)
def test_timm_scheme_unknown_name(name: str, similar: str) -> None:
    with pytest.raises(ValueError, match=f"has no pretrained model '{name}'; it has .*{similar}"):
        load_pretrained(FastViT("sa12"), f"timm://{name}")


def test_timm_scheme_has_all_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """For other backbones; a FastViT says that it is none."""
    resnet = timm.create_model("resnet18")
    monkeypatch.setattr(weights, "_is_cached", lambda name: True)
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained: resnet)
    assert weights.read_content("timm://resnet18.a1_in1k").keys() == resnet.state_dict().keys()
    with pytest.raises(ValueError, match="resnet18.a1_in1k holds no FastViT"):
        load_pretrained(FastViT("t8"), "timm://resnet18.a1_in1k")


def test_no_network_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def hub(name: str, *, pretrained: bool) -> None:
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(weights, "_is_cached", lambda name: True)
    monkeypatch.setattr(timm, "create_model", hub)
    with pytest.raises(ConnectionError) as e:
        load_pretrained(FastViT("sa12"), "timm://fastvit_sa12.apple_in1k")
    message = str(e.value)
    assert "\n" not in message
    assert all(way in message for way in ("its path", "HF_HOME", "model.backbone.init_cfg=None"))


def test_damaged_copy_in_the_hubs_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(name: str, *, pretrained: bool) -> None:
        raise SafetensorError("Error while deserializing header: incomplete metadata")

    monkeypatch.setattr(weights, "_is_cached", lambda name: True)
    monkeypatch.setattr(timm, "create_model", hub)
    with pytest.raises(
        ValueError,
        match="^timm://fastvit_t8.apple_in1k .* cached copy may be damaged: .*incomplete",
    ):
        load_pretrained(FastViT("t8"), "timm://fastvit_t8.apple_in1k")


@pytest.mark.parametrize("strict", [True, False])
def test_non_strict_loading_cannot_pass_over_the_other_structure(strict: bool) -> None:
    fused, unfused = FastViT("t8", deploy=True), FastViT("t8")
    with pytest.raises(ValueError, match="Set deploy=True"):
        unfused.load_state_dict(fused.state_dict(), strict=strict)
    with pytest.raises(ValueError, match="Build it with deploy=False"):
        fused.load_state_dict(unfused.state_dict(), strict=strict)
    detector = torch.nn.ModuleDict({"backbone": unfused})
    with pytest.raises(ValueError, match=r"backbone\.stem\.0\.reparam_conv"):
        detector.load_state_dict(
            {f"backbone.{k}": v for k, v in fused.state_dict().items()}, strict=strict
        )
