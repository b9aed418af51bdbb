"""Fused checkpoints: written with a config that runs them, equal to the unfused, or not at all."""

import copy
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import mmengine
import numpy as np
import pytest
import torch
from conftest import ROOT, randomise
from conftest import run_tool as run
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

import fastvit_dense
from fastvit_dense import FastViT, reparameterize
from fastvit_dense.backbone import fold as folds
from fastvit_dense.backbone import reparameterize as reparam
from fastvit_dense.deploy import fuse as deploy
from fastvit_dense.deploy.compare import TOLERANCES, compare, model_outputs
from fastvit_dense.deploy.fuse import fuse_checkpoint
from fastvit_dense.engine.config import load_config
from fastvit_dense.engine.hooks import CheckpointFits
from fastvit_dense.synthetic.ade20k import write_ade20k
from fastvit_dense.synthetic.coco import write_coco

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

BatchNorm = nn.modules.batchnorm._BatchNorm
SHAPE = (64, 96)

LOADERS = """
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=DATA))
test_dataloader = val_dataloader
"""
COCO = LOADERS + """
val_evaluator = dict(ann_file=DATA + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
"""  # fmt: skip
CONFIGS = {
    "mask-rcnn": ("det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py", COCO),
    "retinanet": (
        "det/retinanet_fastvit-sa12_fpn_1x_coco.py",
        COCO + """
metainfo = dict(classes=("disc", "square", "triangle", "star", "ring"))
test_dataloader["dataset"].update(metainfo=metainfo, pipeline=[
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs",
         meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
])
model = dict(
    backbone=dict(arch="t8", norm_eval=True, with_cp=True, frozen_stages=1),
    neck=dict(in_channels=[96, 192, 384], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=5),
)
""",
    ),
    "semantic-fpn": ("seg/fpn_fastvit-t8_demo-regions.py", LOADERS),
}  # fmt: skip


class Case(SimpleNamespace):
    """A small config, a checkpoint as the Runner writes it, and a picture."""

    config: Path
    checkpoint: Path
    image: Path


def save_checkpoint(cfg: Config, path: Path, classes: tuple[str, ...] = ()) -> nn.Module:
    """A trained-like model in a file with all that mmengine's Runner puts there."""
    init_default_scope(cfg.get("default_scope") or "mmengine")
    torch.manual_seed(0)
    model = randomise(MODELS.build(copy.deepcopy(cfg.model))).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "backbone" not in name:  # heads start too near zero to err
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    optimizer = torch.optim.AdamW(model.parameters())
    meta = dict(
        cfg=cfg.pretty_text, epoch=3, iter=9, seed=0, experiment_name="run",
        time="20260101_000000", mmengine_version=mmengine.__version__,
        dataset_meta=dict(classes=classes, palette=[(9 * i, 0, 0) for i in range(len(classes))]),
    )  # fmt: skip
    torch.save(
        dict(
            meta=meta, state_dict=model.state_dict(), message_hub=dict(),
            optimizer=optimizer.state_dict(), param_schedulers=[],
        ),
        path,
    )  # fmt: skip
    return model


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cases")
    write_coco(folder / "shapes", train=1, val=2, size=128)
    write_ade20k(folder / "regions", train=1, val=2, size=128)
    found = {}
    for name, (base, changes) in CONFIGS.items():
        data = folder / ("regions" if "fpn" in name else "shapes")
        config = folder / f"{name}.py"
        config.write_text(
            f"_base_ = {str(ROOT / 'configs' / base)!r}\n"
            + changes.replace("DATA", repr(f"{data}/"))
        )
        cfg = load_config(str(config))
        classes = cfg.test_dataloader.dataset.metainfo.classes
        save_checkpoint(cfg, folder / f"{name}.pth", classes)
        image = sorted(data.rglob("*val*/*.jpg"))[0]
        found[name] = Case(config=config, checkpoint=folder / f"{name}.pth", image=image)
    return found


def fuse(case: Case, out: Path, **options: object) -> deploy.Equivalence:
    return fuse_checkpoint(
        str(case.config), str(case.checkpoint), out=str(out), **{"shape": SHAPE, **options}
    )


@pytest.fixture(scope="module")
def fused(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The same three, fused; the reports by the name `report`."""
    folder = tmp_path_factory.mktemp("fused")
    found = {}
    for name, case in cases.items():
        report = fuse(case, folder / f"{name}.pth")
        found[name] = Case(
            config=folder / f"{name}.py", checkpoint=folder / f"{name}.pth", report=report
        )
    return found


def build(case: Case) -> nn.Module:
    cfg = load_config(str(case.config))
    init_default_scope(cfg.default_scope)
    return MODELS.build(copy.deepcopy(cfg.model)).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds_what_the_checkpoint_holds(
    name: str, cases: dict[str, Case], fused: dict[str, Case]
) -> None:
    case = fused[name]
    cfg = Config.fromfile(case.config)
    model = build(case)
    content, before = torch.load(case.checkpoint), torch.load(cases[name].checkpoint)
    model.load_state_dict(content["state_dict"])  # strict
    assert set(content) == {"meta", "state_dict"}
    kept = {k: v for k, v in before["meta"].items() if k != "cfg"}
    flag = dict(deploy=True, version=fastvit_dense.__version__)
    text = case.config.read_text()
    assert content["meta"] == {**kept, "cfg": text, "fastvit_dense": flag}
    assert str(ROOT) not in text and str(case.config.parent) not in text
    assert "train_dataloader" not in cfg and "optim_wrapper" not in cfg and "work_dir" not in cfg

    # RetinaNet's extra level reads the last map, too.
    left = ["backbone.norm3"] if name == "retinanet" else []
    assert [n for n, m in model.named_modules() if isinstance(m, BatchNorm)] == left
    assert case.report.norms == left
    assert cfg.model.backbone.out_norm == ([3] if left else False)
    assert isinstance(cfg.model.backbone.out_norm, list | bool)
    own = vars(FastViT("t8", model.backbone.out_indices, out_norm=False, deploy=True))
    assert vars(model.backbone).keys() == own.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_report(name: str, fused: dict[str, Case]) -> None:
    report = fused[name].report
    levels = dict(zip(CONFIGS, (5, 5, 4), strict=True))[name]
    heads = dict(zip(CONFIGS, (2, 1, 1), strict=True))[name]
    assert len(report.errors) == 2 * (levels + heads) and all(e.passes for e in report.errors)
    assert all(e.absolute > 0 for e in report.errors)  # something was computed, and twice
    assert report.shape == (1, 3, *SHAPE)
    for before, after in (report.tensors, report.parameters, report.macs):
        assert after < before
    text = str(report)
    assert "| neck, level 0 (" in text and "| float64 |" in text and "1x3x64x96" in text
    assert ("roi_head" in text) == ("rpn_head" in text) == (name == "mask-rcnn")
    assert ("BatchNorms that are left: backbone.norm3" in text) == (name == "retinanet")


def test_as_typed(cases: dict[str, Case], tmp_path: Path) -> None:
    case, out = cases["mask-rcnn"], tmp_path / "sub/out.pth"
    text = run("tools/reparameterize.py", case.config, case.checkpoint, out, "--shape", 90, 97)
    assert "1x3x96x128" in text and "written: " in text and "TOO LARGE" not in text
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.pth", "out.py"]
    new = Case(config=out.with_suffix(".py"), checkpoint=out)
    text = run_tests(tmp_path, case, new)
    precision = re.findall(r"Average Precision .* = (-?[\d.]+)", text)
    assert len(precision) == 24 and precision[:12] == precision[12:]  # boxes, masks; twice
    predictions = [
        [p["pred_instances"] for p in pickle.loads((tmp_path / f"{i}.pkl").read_bytes())]
        for i in range(2)
    ]
    for a, b in zip(*predictions, strict=True):
        assert len(a["scores"]) > 5
        torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(a["bboxes"], b["bboxes"], rtol=0, atol=1e-2)
        assert torch.equal(a["labels"], b["labels"])


def run_tests(folder: Path, *cases: Case) -> str:
    """What tools/test.py prints, called for each case in turn; predictions go to 0.pkl and so on.

    In one process, since most of the time goes into imports.
    """
    calls = [
        ["tools/test.py", str(case.config), str(case.checkpoint),
         "--work-dir", str(folder / f"work{i}"), "--out", str(folder / f"{i}.pkl")]
        for i, case in enumerate(cases)
    ]  # fmt: skip
    return run(
        "-c",
        f"import runpy, sys\nsys.path.insert(0, 'tools')\nfor sys.argv in {calls!r}:\n"
        "    try:\n        runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as end:\n        assert not end.code",
    )


def test_same_miou(cases: dict[str, Case], fused: dict[str, Case], tmp_path: Path) -> None:
    text = run_tests(tmp_path, cases["semantic-fpn"], fused["semantic-fpn"])
    found = [float(n) for n in re.findall(r"(?:mIoU|aAcc|mDice): +([\d.]+)", text)]
    half = len(found) // 2
    assert half >= 3 and found[0] > 0
    np.testing.assert_allclose(
        found[:half], found[half:], atol=0.011
    )  # percent, two digits printed


@pytest.mark.parametrize("name", ["retinanet", "semantic-fpn"])
def test_inference_apis(name: str, cases: dict[str, Case], fused: dict[str, Case]) -> None:
    from mmdet.apis import inference_detector, init_detector
    from mmseg.apis import inference_model, init_model

    results = []
    for case in (cases[name], fused[name]):
        files = str(case.config), str(case.checkpoint)
        if name == "retinanet":
            model = init_detector(*files, device="cpu")
            found = inference_detector(model, str(cases[name].image)).pred_instances
            results.append((found.scores, found.bboxes))
        else:
            model = init_model(*files, device="cpu")
            logits = inference_model(model, str(cases[name].image)).seg_logits.data
            results.append((logits / logits.std(),))
        assert len(model.dataset_meta["classes"]) in (5, 8)
    assert len(results[0][0]) > 5
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_checkpoints_and_configs_of_different_structure(
    cases: dict[str, Case], fused: dict[str, Case]
) -> None:
    unfused, new = cases["mask-rcnn"], fused["mask-rcnn"]
    beside = r"config that tools/reparameterize.py wrote beside it \(X.py for X.pth\)"
    with pytest.raises(ValueError, match=f"holds a fused backbone.*{beside}"):
        load_checkpoint(build(unfused), str(new.checkpoint))  # as the inference functions do
    with pytest.raises(ValueError, match="unfused backbone.*deploy=False.*tools/reparameterize.py"):
        load_checkpoint(build(new), str(unfused.checkpoint))

    def check(model: nn.Module, case: Case) -> None:
        runner = SimpleNamespace(model=model, cfg={}, _train_loop=None, _test_loop=None)
        CheckpointFits().after_load_checkpoint(runner, torch.load(case.checkpoint))

    check(build(unfused), unfused)
    check(build(new), new)
    with pytest.raises(ValueError, match=beside):
        check(build(unfused), new)
    with pytest.raises(ValueError, match="unfused backbone.*tools/reparameterize.py"):
        check(build(new), unfused)
    half = load_config(str(unfused.config), {"model.backbone.deploy": True})
    with pytest.raises(ValueError, match="does not fit.*wrote beside it: it is fused"):
        check(MODELS.build(half.model), new)


def test_what_cannot_be_fused(
    cases: dict[str, Case], fused: dict[str, Case], tmp_path: Path
) -> None:
    case, new = cases["semantic-fpn"], fused["semantic-fpn"]
    out = tmp_path / "out.pth"

    def refused(error: type[Exception], message: str, **changes: object) -> None:
        files = {"config": case.config, "checkpoint": case.checkpoint, "out": out, **changes}
        with pytest.raises(error, match=message):
            fuse(Case(**files), files["out"])
        assert [p for p in tmp_path.iterdir() if p.suffix in (".pth", ".py")] == given

    given: list[Path] = []
    refused(ValueError, r"must be named \*.pth", out=tmp_path / "out")
    refused(FileNotFoundError, "nowhere.py' does not exist", config=tmp_path / "nowhere.py")
    refused(FileNotFoundError, "nowhere.pth' does not exist", checkpoint=tmp_path / "nowhere.pth")
    refused(ValueError, "stay as they are", out=case.checkpoint)
    refused(ValueError, "stay as they are", out=case.config.with_suffix(".pth"))
    refused(ValueError, "describes a fused model", config=new.config, checkpoint=new.checkpoint)
    refused(ValueError, "holds a fused backbone", checkpoint=new.checkpoint)
    detector = cases["mask-rcnn"].checkpoint
    refused(ValueError, "semantic-fpn.py: .*tensors missing.*trained with", checkpoint=detector)

    (tmp_path / "bare").write_bytes(b"")
    refused(ValueError, "cannot be read", checkpoint=tmp_path / "bare")
    torch.save(dict(weight=torch.zeros(1)), tmp_path / "bare")
    refused(ValueError, "holds no 'state_dict'", checkpoint=tmp_path / "bare")
    content = torch.load(case.checkpoint)
    content["state_dict"]["decode_head.conv_seg.bias"][0] = torch.nan
    torch.save(content, tmp_path / "bare")
    refused(ValueError, "computes something else: 2 of 10", checkpoint=tmp_path / "bare")


def test_existing_files_are_replaced_only_by_force(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, out = cases["semantic-fpn"], tmp_path / "out.pth"
    for existing in (out, tmp_path / "out.py"):
        existing.write_text("old")
        with pytest.raises(FileExistsError, match=f"{existing.name} exists.*--force"):
            fuse(case, out)
        existing.unlink()

    out.write_text("old")

    def full(*args: object) -> None:
        Path(args[1]).write_text("half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(deploy.torch, "save", full)
        with pytest.raises(OSError, match="no space left"):
            fuse(case, out, force=True)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
    fuse(case, out, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.pth", "out.py"]
    assert "state_dict" in torch.load(out)


@pytest.mark.parametrize("fold", ["fold_rep_mixer", "fold_bn", "_fold_output_norms"])
def test_a_broken_fold_writes_nothing(
    fold: str, cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = folds if fold == "fold_rep_mixer" else reparam
    real = getattr(module, fold)
    broken = {
        # Off by a thousandth: far less than what shows in a picture.
        "fold_rep_mixer": lambda block: folds.Kernel(real(block).weight * 1.001, real(block).bias),
        "fold_bn": lambda bn: (real(bn)[0], real(bn)[1] * 1.001),
        "_fold_output_norms": lambda backbone, neck: [
            setattr(backbone, f"norm{i}", nn.Identity()) for i in backbone.out_indices
        ],
    }[fold]
    monkeypatch.setattr(module, fold, broken)
    with pytest.raises(ValueError, match=r"(?s)computes something else.*Nothing.*TOO LARGE"):
        fuse(cases["semantic-fpn"], tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == []


@MODELS.register_module(force=True)
class ModelOfOnesOwn(BaseModel):
    """No detector or segmentor; a norm that no setting describes."""

    def __init__(self, backbone: dict, neck: dict, own_norm: bool, **kwargs: object) -> None:
        super().__init__(**kwargs)
        from mmcv.cnn import ConvModule

        self.backbone, self.neck = MODELS.build(backbone), MODELS.build(neck)
        self.head = ConvModule(16, 4, 1, norm_cfg=dict(type="BN") if own_norm else None)

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> dict:
        assert mode == "tensor"
        return dict(first=self.head(self.neck(self.backbone(inputs))[0]))


@pytest.mark.parametrize(
    ("own_norm", "neck_norm", "left"),
    [
        (False, "GN", [f"backbone.norm{i}" for i in range(4)]),  # laterals have no bias
        (True, None, ["head.bn"]),
        (True, "BN", [f"backbone.norm{i}" for i in range(4)] + ["neck"] * 8 + ["head.bn"]),
    ],
)
def test_what_no_config_can_say_is_not_folded(
    own_norm: bool, neck_norm: str | None, left: list[str], tmp_path: Path
) -> None:
    norm = neck_norm and dict(type=neck_norm, **({"num_groups": 4} if neck_norm == "GN" else {}))
    cfg = Config(
        dict(
            default_scope="mmengine",
            model=dict(
                type="ModelOfOnesOwn", own_norm=own_norm,
                backbone=dict(type="FastViT", arch="t8"),
                neck=dict(type="mmdet.FPN", in_channels=[48, 96, 192, 384], out_channels=16,
                          num_outs=4, norm_cfg=norm),
            ),
        )
    )  # fmt: skip
    cfg.dump(tmp_path / "own.py")
    save_checkpoint(cfg, tmp_path / "own.pth")
    case = Case(config=tmp_path / "own.py", checkpoint=tmp_path / "own.pth")
    report = fuse(case, tmp_path / "out.pth")
    assert [n if n.startswith(("backbone", "head")) else "neck" for n in report.norms] == left
    assert "| output | float32 |" in str(report)


def test_backbones_other_than_fastvit(tmp_path: Path) -> None:
    cfg = Config(dict(model=dict(type="ModelOfOnesOwn", own_norm=True,
                                 backbone=dict(type="mmdet.ResNet", depth=18),
                                 neck=dict(type="mmdet.FPN", in_channels=[64, 128, 256, 512],
                                           out_channels=16, num_outs=4))))  # fmt: skip
    cfg.dump(tmp_path / "own.py")
    save_checkpoint(cfg, tmp_path / "own.pth")
    with pytest.raises(ValueError, match="model.backbone is a ResNet, expected a FastViT"):
        fuse(Case(config=tmp_path / "own.py", checkpoint=tmp_path / "own.pth"), tmp_path / "x.pth")


def test_hand_model(tmp_path: Path) -> None:
    """Compared at its own size, output by output; nothing of MANO is written."""
    base = ROOT / "configs/hand/mano_fastvit-t8_demo-hands.py"
    save_checkpoint(load_config(str(base)), tmp_path / "hand.pth")
    case = Case(config=base, checkpoint=tmp_path / "hand.pth")
    report = fuse(case, tmp_path / "fused.pth", shape=None)
    assert report.shape == (1, 3, 96, 96) and report.norms == []
    outputs = ["backbone, level 0 (384x3x3)", "vertices", "keypoints", "keypoints_2d", "camera"]
    outputs += ["rotations", "betas"]
    assert [e.what for e in report.errors] == 2 * outputs
    assert all(e.passes for e in report.errors) and report.errors[1].absolute < 1e-5  # metres
    new = Case(config=tmp_path / "fused.py", checkpoint=tmp_path / "fused.pth")
    state = torch.load(new.checkpoint)["state_dict"]
    build(new).load_state_dict(state)  # strict
    assert {k for k in state if "backbone" not in k} == {
        f"head.{layer}.{kind}"
        for layer in ("pose", "shape", "camera")
        for kind in ("weight", "bias")
    }


def around(backbone: nn.Module) -> nn.Module:
    """The least model that can be compared."""
    model = nn.Module()
    model.backbone = backbone.eval()
    model.forward = lambda x, mode: model.backbone(x)
    return model


def test_tolerance_is_what_rounding_explains() -> None:
    model = around(randomise(FastViT("t8", (0, 1))))
    x = torch.randn(1, 3, 64, 64)
    exact = model_outputs(around(copy.deepcopy(model.backbone).double()), x.double())[:2]
    same = compare(model, model, x, exact=exact)
    assert {e.tolerance for e in same.errors} == {*TOLERANCES[torch.float32]}  # which is more

    # A model that is 1e-3 away from float64 by itself; another one may be that and three times more.
    exact = tuple({k: [1.001 * m for m in maps] for k, maps in part.items()} for part in exact)
    off = compare(model, model, x, exact=exact)
    assert all(e.relative == 0 and e.tolerance == pytest.approx(4e-3, rel=1e-2) for e in off.errors)
    for factor, passes in ((1.003, True), (1.006, False)):
        other = around(copy.deepcopy(model.backbone))
        with torch.no_grad():
            for norm in (other.backbone.norm0, other.backbone.norm1):
                norm.weight *= factor
                norm.bias *= factor
        assert {e.passes for e in compare(model, other, x, exact=exact).errors} == {passes}


def test_models_that_are_not_the_same() -> None:
    model, other = around(FastViT("t8", (0, 1))), around(FastViT("t8", (0, 1, 2)))
    with pytest.raises(ValueError, match="they are not the same model"):
        compare(model, other, torch.randn(1, 3, 64, 64))


def test_switch_to_deploy() -> None:
    model = randomise(FastViT("sa12", (1, 3), norm_eval=True, init_cfg=dict(type="x"))).eval()
    model = model.to(memory_format=torch.channels_last)
    seen = []
    model.register_forward_hook(lambda *args: seen.append(1))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        once = copy.deepcopy(model.state_dict())
        model.switch_to_deploy()
        given = model(x)
    assert len(seen) == 2
    for a, b in zip(expected, given, strict=True):
        assert (a - b).norm() <= 2e-6 * a.norm()
    assert all(torch.equal(v, once[k]) for k, v in model.state_dict().items())
    assert model.stages[0].blocks[0].mlp.fc1.weight.is_contiguous(memory_format=torch.channels_last)

    built = FastViT("sa12", (1, 3), drop_path_rate=0.0, deploy=True).eval()
    assert str(model) == str(built)
    built.load_state_dict(model.state_dict())
    public = {k: v for k, v in vars(built).items() if not k.startswith("_")}
    assert public == {k: v for k, v in vars(model).items() if not k.startswith("_")}
    assert vars(built).keys() == vars(model).keys()

    with pytest.raises(ValueError, match="in training mode.*model.eval"):
        FastViT("t8").switch_to_deploy()


def test_output_norms_of_some_stages() -> None:
    model = randomise(FastViT("t8", (0, 1, 3), out_norm=[1])).eval()
    for backbone in (model, reparameterize(model)):
        norms = [i for i in (0, 1, 3) if isinstance(getattr(backbone, f"norm{i}"), BatchNorm)]
        assert norms == [1]
    with pytest.raises(ValueError, match=r"some of out_indices, \(0, 1\); got \[2\]"):
        FastViT("t8", (0, 1), out_norm=[2])
