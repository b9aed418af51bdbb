"""What is refused before a run begins, in one line, and what is not."""

import argparse
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from fastvit_dense.doctor.preflight import KeyValues, check_run, read_config
from fastvit_dense.engine.config import load_config
from fastvit_dense.engine.models import partial_loading
from fastvit_dense.synthetic.ade20k import write_ade20k
from fastvit_dense.synthetic.coco import write_coco
from fastvit_dense.synthetic.freihand import write_freihand

DET = str(ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py")
SEG = str(ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py")
HAND = str(ROOT / "configs/hand/mano_fastvit-t8_demo-hands.py")
DATASETS = [f"{split}_dataloader.dataset.data_root" for split in ("train", "val", "test")]
EVALUATORS = ["val_evaluator.ann_file", "test_evaluator.ann_file"]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The demos' configs without base files, which mmengine takes seconds to find."""
    folder = tmp_path_factory.mktemp("configs")
    for path in (DET, SEG, HAND):
        load_config(path).dump(str(folder / Path(path).name))
    return {path: str(folder / Path(path).name) for path in (DET, SEG, HAND)}


@pytest.fixture
def plain(tmp_path: Path) -> Any:
    """Write a config without base files."""

    def write(text: str) -> str:
        (tmp_path / "plain.py").write_text(text)
        return str(tmp_path / "plain.py")

    return write


def at(cfg: Config, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


# --- what argparse is given


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("train_cfg.max_epochs", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("scale=[(1,2),(3,4)", "bracket"),
        ("scale=1,2)", "bracket"),
        ("optim_wrapper.clip_grad=dict(max_norm=1)", "optim_wrapper.clip_grad.KEY"),
    ],
)
def test_options_that_cannot_be_parsed(text: str, word: str, capsys: Any) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=KeyValues)
    with pytest.raises(SystemExit) as error:
        parser.parse_args(["--cfg-options", text])
    assert error.value.code == 2 and word in capsys.readouterr().err
    options = parser.parse_args(["--cfg-options", "a.b=[(1,2),(3,4)]", "c=x"]).cfg_options
    assert options == {"a.b": [(1, 2), (3, 4)], "c": "x"}


# --- variables, and the folder of the data


@pytest.mark.parametrize("key", ["data_root", "num_classes", "test_pipeline.3.scale"])
def test_variables_are_refused(key: str, flat: dict) -> None:
    with pytest.raises(ValueError, match=f"--cfg-options {key}: .*variable") as error:
        read_config(flat[DET], {key: "elsewhere"})
    assert ("--data-root FOLDER" in str(error.value)) == (key == "data_root")


@pytest.mark.parametrize(
    ("config", "old", "evaluators"),
    [(DET, "data/shapes", EVALUATORS), (SEG, "data/regions", []), (HAND, "data/hands", [])],
)
@pytest.mark.parametrize("folder", ["/else/where", "there/"])
def test_data_elsewhere_is_one_option(
    config: str, old: str, evaluators: list[str], folder: str, flat: dict, capsys: Any
) -> None:
    cfg = read_config(flat[config], data_root=folder)
    for key in DATASETS:
        assert at(cfg, key) == folder.rstrip("/")
    for key in evaluators:
        assert at(cfg, key) == f"{folder.rstrip('/')}/annotations/instances_val2017.json"
    text = capsys.readouterr().out
    assert f"{folder} in place of {old} in " in text
    assert all(key in text for key in [*DATASETS, *evaluators])
    kept = {k: v for k, v in cfg._cfg_dict.items() if k not in ("data_root", "work_dir")}
    assert old not in str(kept)


def test_options_prevail_over_the_folder_of_the_data() -> None:
    cfg = read_config(DET, {DATASETS[0]: "/third"}, data_root="/else/where")
    assert [at(cfg, key) for key in DATASETS] == ["/third", "/else/where", "/else/where"]
    assert cfg.test_evaluator.ann_file.startswith("/else/where/annotations/")


def test_data_elsewhere_where_it_is_not_clear_what_that_means(plain: Any) -> None:
    loader = "{0}_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[{1}]))\n"
    several = loader.format("train", "dict(data_root='a'), dict(data_root='b/c/')")
    with pytest.raises(ValueError, match="found a and b/c"):
        read_config(plain(several), data_root="x")
    with pytest.raises(ValueError, match="found none"):
        read_config(plain(loader.format("train", "dict(ann_file='a/b.json')")), data_root="x")
    same = loader.format(
        "train", "dict(data_root='a', img='a/b'), dict(data_root='a/', img='ab/c')"
    )
    cfg = read_config(plain(same), data_root="x")
    assert cfg.train_dataloader.dataset.datasets == [
        dict(data_root="x", img="x/b"),
        dict(data_root="x", img="ab/c"),
    ]


# --- keys and values below the top


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("train_dataloader.batchsize", "batch_size"),
        ("train_dataloader.dataset.data_rot", "data_root"),
        ("train_dataloader.dataset.pipeline.3.scal", "scale"),
        ("model.backbone.archh", "arch"),
        ("model.backbonee.arch", "backbone"),
        ("model.test_cfg.rcnn.score_th", "score_thr"),
        ("model.train_cfg.rcn.x", "rcnn"),
        ("modle.backbone.arch", "model"),
        ("train_cfg.max_epoch", "max_epochs"),
        ("optim_wrapper.optimiser.lr", "optimizer"),
        ("optim_wrapper.optimizer.weight_deca", "weight_decay"),
        ("default_hooks.checkpiont.interval", "checkpoint"),
        ("default_hooks.checkpoint.intervall", "interval"),
        ("param_scheduler.0.start_facto", "start_factor"),
        ("param_scheduler.7.end", "0, 1"),
        ("val_evaluator.metrics", "metric"),
        ("randomness.sed", "seed"),
        ("train_cfg.max_epochs.more", "max_epochs"),
    ],
)
def test_misspelt_keys(key: str, near: str, runs: Any) -> None:
    with pytest.raises(ValueError, match=near) as error:
        runs(DET, {key: 1})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.backbone.type", "FastViT"),
        ("model.neck.type", "FPN"),
        ("train_dataloader.dataset.type", "CheckedCocoDataset"),
        ("train_dataloader.dataset.pipeline.3.type", "Resize"),
        ("train_cfg.type", "EpochBasedTrainLoop"),
        ("optim_wrapper.optimizer.type", "AdamW"),
        ("param_scheduler.1.type", "CosineAnnealingLR"),
        ("default_hooks.checkpoint.type", "CheckpointHook"),
    ],
)
def test_misspelt_types(key: str, near: str, runs: Any) -> None:
    misspelt = near[:-2] + near[-1] if len(near) > 4 else near + "s"
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        runs(DET, {key: misspelt})


def test_new_keys_that_are_read(runs: Any) -> None:
    options = {
        "optim_wrapper.clip_grad.max_norm": 1,
        "optim_wrapper.accumulative_counts": 2,
        "model.backbone.with_cp": True,
        "model.backbone.init_cfg": None,
        "model.test_cfg.rcnn.new": 0.1,
        "default_hooks.ema.type": "EMAHook",
        "train_dataloader.prefetch_factor": 4,
        "train_dataloader.dataset.indices": 8,
        "param_scheduler.0.verbose": False,
        "load_strict": False,
        "randomness.deterministic": True,
    }
    runs(DET, options)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train_cfg.max_epochs", "three", "a number"),
        ("optim_wrapper.optimizer.lr", "1e-3x", "a number"),
        ("auto_scale_lr.enable", "yes", "True or False"),
    ],
)
def test_text_for_a_number(key: str, value: str, expected: str, flat: dict) -> None:
    with pytest.raises(ValueError, match=f"{key}={value}: expected {expected}"):
        read_config(flat[DET], {key: value})


def test_text_where_it_may_be(plain: Any) -> None:
    path = plain(
        "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale=512.0)\nload_from = None\n"
    )
    cfg = read_config(path, {"optim_wrapper.loss_scale": "dynamic", "load_from": "x.pth"})
    assert cfg.optim_wrapper.loss_scale == "dynamic" and cfg.load_from == "x.pth"


# --- before a run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder / "shapes", train=2, val=1, size=64)
    write_ade20k(folder / "regions", train=1, val=1, size=128)
    write_freihand(folder / "hands", train=1, val=1)
    return folder


@pytest.fixture
def runs(data: Path, flat: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Check a run of a config on data of ours, in an empty folder, in which nothing may remain."""
    monkeypatch.chdir(tmp_path)
    names = {DET: "shapes", SEG: "regions", HAND: "hands"}

    def check(config: str, options: dict[str, Any] | None = None, **more: Any) -> None:
        where = more.pop("data_root", str(data / names[config]) if config in names else None)
        train, outputs = more.pop("train", True), more.pop("outputs", None)
        cfg = read_config(flat.get(config, config), options, data_root=where, **more)
        before = sorted(tmp_path.rglob("*"))
        try:
            check_run(cfg, train=train, outputs=outputs)
        finally:
            assert sorted(tmp_path.rglob("*")) == before

    return check


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("config", [DET, SEG, HAND])
def test_nothing_is_wrong(config: str, train: bool, runs: Any) -> None:
    runs(config, train=train)


@pytest.mark.parametrize(
    ("config", "train", "missing"),
    [
        (DET, True, ["train_dataloader.dataset.ann_file none/annotations/instances_train2017.json",
                     "train_dataloader.dataset.data_prefix.img none/train2017",
                     "val_dataloader.dataset.ann_file none/annotations/instances_val2017.json"]),
        (DET, False, ["test_dataloader.dataset.data_prefix.img none/val2017"]),
        (SEG, True, ["train_dataloader.dataset.data_prefix.seg_map_path none/annotations/training"]),
        (HAND, True, ["train_dataloader.dataset.data_root none/training_K.json",
                      "val_dataloader.dataset.split none/evaluation/rgb"]),
    ],
)  # fmt: skip
def test_missing_data_are_all_named(
    config: str, train: bool, missing: list[str], runs: Any
) -> None:
    with pytest.raises(ValueError, match="missing .*--data-root FOLDER") as error:
        runs(config, data_root="none", train=train)
    assert all(part in str(error.value) for part in missing)
    assert ("train_dataloader" in str(error.value)) == train


def test_data_that_are_not_used_may_be_missing(runs: Any) -> None:
    runs(DET, {DATASETS[2]: "none", EVALUATORS[1]: "none/annotations/instances_val2017.json"})
    none = dict.fromkeys(["val_dataloader", "val_cfg", "val_evaluator"])
    runs(
        DET, {DATASETS[2]: "none", EVALUATORS[1]: "none/annotations/instances_val2017.json", **none}
    )


def test_folders_that_cannot_be_written(runs: Any) -> None:
    Path("file").touch()
    with pytest.raises(ValueError, match="--work-dir file/deep .*file is a file"):
        runs(DET, work_dir="file/deep")
    with pytest.raises(ValueError, match="--show-dir file"):
        runs(DET, outputs={"--out": None, "--show-dir": "file"})


def test_configs_that_cannot_be_trained(runs: Any) -> None:
    with pytest.raises(ValueError, match="fused"):
        runs(DET, {"model.backbone.deploy": True})
    none = dict.fromkeys(["optim_wrapper", "param_scheduler"])
    with pytest.raises(ValueError, match="no optim_wrapper"):
        runs(DET, none)
    runs(DET, {"optim_wrapper": None, "model.backbone.deploy": True}, train=False)


def test_models_that_cannot_be_built(runs: Any, flat: dict, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = {flat[DET]!r}\nmodel = dict(neck=dict(in_channel=3))\n")
    with pytest.raises(ValueError, match="FPN knows no 'in_channel'; did you mean 'in_channels'"):
        runs(str(path), data_root=str(data / "shapes"))
    with pytest.raises(ValueError, match="none.pkl"):
        runs(HAND, {"model.head.mano": "none.pkl"})


def test_pretrained_weights(runs: Any, flat: dict, data: Path) -> None:
    key, root = "model.backbone.init_cfg.checkpoint", str(data / "shapes")
    weights = "init_cfg=dict(type='Pretrained', checkpoint='none.pth')"
    Path("config.py").write_text(Path(flat[DET]).read_text().replace("init_cfg=None", weights, 1))
    with pytest.raises(ValueError, match=f"{key}: .*none.pth.* does not exist"):
        runs("config.py", data_root=root)
    Path("damaged.pth").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="damaged.pth"):
        runs("config.py", {key: "damaged.pth"}, data_root=root)
    runs("config.py", data_root=root, train=False)  # which replaces them


def test_checkpoints(runs: Any) -> None:
    with pytest.raises(FileNotFoundError, match="none.pth"):
        runs(DET, {"load_from": "none.pth"}, train=False)
    Path("x.py").write_text("a = 1\n")
    with pytest.raises(ValueError, match="x.py.* is a config"):
        runs(DET, {"load_from": "x.py"}, train=False)
    torch.save({"state_dict": {"neck.x": torch.zeros(1)}}, "x.pth")
    with pytest.raises(ValueError, match="tensors missing"):
        runs(DET, {"load_from": "x.pth"})
    runs(DET, {"load_from": "x.pth", "load_strict": False})


def test_swapped(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match="x.pth"):
        read_config(str(tmp_path / "x.pth"))
    (tmp_path / "x.py").write_text("a = (\n")
    with pytest.raises(ValueError, match="x.py.*never closed"):
        read_config(str(tmp_path / "x.py"))


# --- another kind of model's checkpoint, through OpenMMLab's own functions


def state_of(config: str) -> dict[str, torch.Tensor]:
    """Random weights of a config's model."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).state_dict()


def test_detector_refuses_a_segmentor(flat: dict, tmp_path: Path) -> None:
    from mmdet.apis import init_detector

    meta = {"dataset_meta": {"classes": ("a",)}}
    for name, config in (("det", flat[DET]), ("seg", flat[SEG])):
        torch.save({"state_dict": state_of(config), "meta": meta}, tmp_path / f"{name}.pth")
    with pytest.raises(
        ValueError, match="it has decode_head, and nothing for roi_head, rpn_head of"
    ):
        init_detector(flat[DET], str(tmp_path / "seg.pth"), device="cpu")
    model = init_detector(flat[DET], str(tmp_path / "det.pth"), device="cpu")
    weights = torch.load(tmp_path / "det.pth")["state_dict"]
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    with partial_loading():
        model.load_state_dict(torch.load(tmp_path / "seg.pth")["state_dict"], strict=False)


# --- as a user types it


def typed(monkeypatch: pytest.MonkeyPatch, capsys: Any, tool: str, *arguments: object) -> str:
    """The one line that a tool ends with, in this process."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr("sys.argv", [f"{tool}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f"tools/{tool}.py"), run_name="__main__")
    text = capsys.readouterr().err
    assert end.value.code == 2 and text.startswith(f"{tool}: ") and text.count("\n") == 1, text
    return text


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("benchmark", []),
        ("seg_demo", ["{image}", "--config", SEG, "--checkpoint", "x.pth"]),
        ("hand_demo", ["{image}", "--config", HAND, "--checkpoint", "x.pth"]),
    ],
)
def test_no_driver(
    tool: str, arguments: list[str], data: Path, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    image = next((data / "shapes").rglob("*.jpg"))
    given = [a.format(image=image) for a in arguments]
    text = typed(monkeypatch, capsys, tool, *given, "--device", "cuda")
    assert "device 'cuda' is not there" in text


def test_tools_end_in_one_line(
    tmp_path: Path, data: Path, flat: dict, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    det, seg = flat[DET], flat[SEG]
    image = next((data / "regions").rglob("*.jpg"))

    def ends(tool: str, *arguments: object) -> str:
        return typed(monkeypatch, capsys, tool, *arguments)

    text = ends("seg_demo", image, "--config", det, "--checkpoint", "x.pth", "--device", "cpu")
    assert "describes a MaskRCNN, expected a segmentor" in text
    hand = str(ROOT / HAND)
    text = ends("hand_demo", image, "--config", hand, "--checkpoint", "none.pth")
    assert "checkpoint 'none.pth' does not exist" in text
    text = ends("hand_demo", image, "--config", det, "--checkpoint", "none.pth")
    assert "expected a HandMeshModel" in text
    Path("x.pth").write_bytes(b"PK")
    assert "is no config file" in ends("reparameterize", "x.pth", det, "out.pth")
    assert "is a config" in ends("reparameterize", det, seg, "out.pth")
    assert "neither a config file" in ends("export", "x.pth", "--format", "onnx", "--out", "a.onnx")
    assert "is a file" in ends(
        "seg_demo", image, "--config", seg, "--checkpoint", "x.pth", "--out", "x.pth"
    )
    arguments = ("--config", hand, "--checkpoint", "x.pth", "--out", "x.pth/deep")
    assert "is a file" in ends("hand_demo", image, *arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]


def test_typed(tmp_path: Path) -> None:
    text = run_tool(
        "tools/train.py", DET, "--data-root", "none", "--work-dir", tmp_path / "w", fails=True
    )
    moved, error = text.splitlines()
    assert moved.startswith("--data-root: none in place of") and error.startswith(
        "train: data are missing"
    )
    text = run_tool(
        "tools/test.py", tmp_path / "x.pth", DET, "--work-dir", tmp_path / "w", fails=True
    )
    assert text.startswith("test: config ") and text.count("\n") == 1
    assert not list(tmp_path.iterdir())
