"""Exported files compute what the models compute; what cannot be exported says so."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.registry import MODELS
from torch import nn

from fastvit_dense import FastViT, reparameterize
from fastvit_dense.backbone.reparameterize import split_patch_embeddings
from fastvit_dense.deploy import export, runtimes
from fastvit_dense.deploy.export import export_model, load_model, make_graph, normalisation_of
from fastvit_dense.engine.config import load_config
from fastvit_dense.hand import HandPredictor

SEG = ROOT / "configs/seg/fpn_fastvit-t8_demo-regions.py"
HAND = ROOT / "configs/hand/mano_fastvit-t8_demo-hands.py"
DET = ROOT / "configs/det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py"
RETINA = ROOT / "configs/det/retinanet_fastvit-sa12_fpn_1x_coco.py"
# What converters' packages say on import.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def need(*packages: str) -> Any:
    """Import, or skip with the reason; returns the last."""
    for package in packages:
        module = pytest.importorskip(package, reason=f"{package} is not installed: extra `export`")
    return module


def onnx_of(path: Path) -> tuple[Any, dict[str, str]]:
    """The loaded file and its metadata."""
    model = need("onnx").load(str(path))
    return model, {p.key: p.value for p in model.metadata_props}


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """RetinaNet with the smallest backbone and narrow heads."""
    path = tmp_path_factory.mktemp("config") / "retinanet.py"
    path.write_text(
        f"_base_ = {str(RETINA)!r}\n"
        "model = dict(\n"
        "    backbone=dict(arch='t8', init_cfg=None),\n"
        "    neck=dict(in_channels=[96, 192, 384], out_channels=32),\n"
        "    bbox_head=dict(in_channels=32, feat_channels=32, num_classes=3, stacked_convs=1),\n"
        ")\n"
    )
    return load_model(str(path))[0]


@pytest.mark.parametrize("arch", ["t8", "sa12"])
def test_backbone_to_onnx(arch: str, tmp_path: Path) -> None:
    ort = need("onnx", "onnxruntime")
    model, about = load_model(arch)
    report = export_model(
        model, str(tmp_path / "m.onnx"), format="onnx", shape=(128, 160), about=about
    )
    assert [c.shape for c in report.comparisons] == [
        (1, 3, 128, 160),
        (2, 3, 65, 83),
        (1, 3, 94, 70),
    ]
    assert list(report.comparisons[0].errors) == ["c2", "c3", "c4", "c5"]
    assert 0 < report.worst < 1e-5
    assert "input input: B x 3 x H x W, float32, normalised by the caller" in str(report)
    assert "weights: random" in str(report) and "onnxruntime 1" in report.runtime
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]

    # Not by the report's own means, and at a size it did not see.
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 33, 201)
    with torch.no_grad():
        wanted = model(x)
    for a, b in zip(session.run(None, {"input": x.numpy()}), wanted, strict=True):
        assert np.abs(a - b.numpy()).max() < 1e-4 * b.abs().max()

    file, texts = onnx_of(tmp_path / "m.onnx")
    assert texts["arch"] == arch and texts["part"] == "model" and texts["weights"] == "random"
    assert texts["version"] == file.producer_version and "mean" not in texts
    axes = [d.dim_param or d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    names = [i.name for i in file.graph.initializer]
    assert not any("bn" in n or "gamma" in n or "layer_scale" in n for n in names)  # fused
    # The 7x7 convolutions of three patch embeddings as two depthwise ones each: every grouped
    # convolution has as many groups as channels, and one output for each.
    groups = {
        node.input[1]: attribute.i
        for node in file.graph.node
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i > 1
    }
    weights = {i.name: tuple(i.dims) for i in file.graph.initializer}
    assert all(weights[name][:2] == (group, 1) for name, group in groups.items())
    assert sum(weights[name][2:] == (7, 7) for name in groups) >= 2 * 3


def test_segmentor_to_onnx(tmp_path: Path) -> None:
    ort = need("onnx", "onnxruntime")
    need("mmseg")
    model, about = load_model(str(SEG))
    out = tmp_path / "seg.onnx"
    report = export_model(model, str(out), format="onnx", shape=(128, 96), about=about)
    assert len(report.comparisons) == 3 and 0 < report.worst < 1e-5
    assert "argmax" in str(report)
    texts = onnx_of(out)[1]
    assert json.loads(texts["classes"])[:2] == ["wall", "building"]
    assert json.loads(texts["mean"]) == pytest.approx([123.675, 116.28, 103.53])

    # The image as read from a file against all that mmseg does with it.
    image = torch.randint(0, 256, (3, 75, 101), dtype=torch.uint8)
    with torch.no_grad():
        result = model.test_step(dict(inputs=[image], data_samples=None))[0]
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": image[None].numpy().astype(np.float32)})[0]
    assert logits.shape == (1, 8, 75, 101)
    assert np.abs(logits[0] - result.seg_logits.data.numpy()).max() < 1e-4 * np.abs(logits).max()

    # Normalised by the caller, and logits as the head gives them.
    report = export_model(
        model, str(out), format="onnx", shape=(96, 64), dynamic=False, normalise=False,
        full_size=False, force=True,
    )  # fmt: skip
    assert [c.shape for c in report.comparisons] == [(1, 3, 96, 64)] and report.worst < 1e-5
    assert "logits (8, 24, 16)" in str(report) and "weights: the given model" in str(report)
    assert "input input: 1 x 3 x 96x64" in str(report)


def run_snippet(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a snippet of docs/export.md as it stands there, in a folder; returns its variables."""
    text = (ROOT / "docs/export.md").read_text().split("## Run a file on a photograph")[1]
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]
    monkeypatch.chdir(folder)
    variables: dict[str, Any] = {}
    exec(code, variables)
    return variables


def write_photo(folder: Path) -> np.ndarray:
    """photo.jpg, as it is read again."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    cv2.imwrite(str(folder / "photo.jpg"), cv2.resize(noise, (576, 416)))
    return cv2.imread(str(folder / "photo.jpg"))


def test_snippet_of_a_segmentor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds what mmseg's own function does."""
    need("onnx", "onnxruntime", "mmseg")
    from mmseg.apis import inference_model

    model, about = load_model(str(SEG))
    export_model(model, str(tmp_path / "model.onnx"), format="onnx", shape=(64, 64), about=about)
    write_photo(tmp_path)
    found = run_snippet(0, tmp_path, monkeypatch)
    model.cfg = load_config(str(SEG))
    wanted = inference_model(model, "photo.jpg")
    logits = wanted.seg_logits.data.numpy()
    assert np.abs(found["logits"][0] - logits).max() < 1e-4 * np.abs(logits).max()
    assert (found["labels"] == wanted.pred_sem_seg.data[0].numpy()).mean() > 0.999
    assert (cv2.imread("labels.png", cv2.IMREAD_UNCHANGED) == found["labels"]).all()
    assert found["classes"][:2] == ["wall", "building"]


def test_snippet_of_a_hand_model(
    hand: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds what the predictor does."""
    need("onnx", "onnxruntime")
    export_model(hand, str(tmp_path / "hand.onnx"), format="onnx", shape=(96, 96))
    photo = write_photo(tmp_path)
    found = run_snippet(1, tmp_path, monkeypatch)
    wanted = HandPredictor(hand)(photo, (310, 120, 180, 200))
    # The predictor averages areas where it makes an image smaller; the photograph is smooth. Random
    # weights make hands of any size.
    within = 2e-3 * np.ptp(wanted.keypoints_2d)
    np.testing.assert_allclose(found["pixels"], wanted.keypoints_2d, atol=within)
    np.testing.assert_allclose(found["vertices"][0], wanted.vertices, atol=1e-3)


def test_snippet_of_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnx", "onnxruntime")
    model, about = load_model("t8")
    export_model(model, str(tmp_path / "sa12.onnx"), format="onnx", shape=(64, 64), about=about)
    photo = write_photo(tmp_path)
    found = run_snippet(2, tmp_path, monkeypatch)
    # The preprocessor of a config for the same weights.
    cfg = load_config(str(HAND)).model.data_preprocessor
    preprocess = MODELS.build(cfg)
    image = preprocess(dict(inputs=[torch.from_numpy(photo).permute(2, 0, 1)]))["inputs"]
    with torch.no_grad():
        wanted = model(image)
    for name, map_ in zip(("c2", "c3", "c4", "c5"), wanted, strict=True):
        difference = np.abs(found[name] - map_.numpy()).max()
        assert difference < 1e-3 * map_.abs().max(), name


def test_head_size_is_of_segmentors() -> None:
    with pytest.raises(
        ValueError, match="head-size.* segmentor's logits .*; got FastViT, of which"
    ):
        make_graph(FastViT("t8"), full_size=False)
    need("mmdet", "mmseg")
    with pytest.raises(
        ValueError, match="head-size.* segmentor's logits .*; got MaskRCNN, of which"
    ):
        make_graph(load_model(str(DET))[0], full_size=False)
    with pytest.raises(ValueError, match="head-size.*; got a backbone, of which"):
        make_graph(load_model(str(SEG))[0], part="backbone", full_size=False)


def test_detector_to_onnx(tmp_path: Path) -> None:
    need("onnx", "onnxruntime", "mmdet")
    model, about = load_model(str(DET))
    report = export_model(
        model, str(tmp_path / "det.onnx"), format="onnx", shape=(96, 128), about=about
    )
    assert len(report.comparisons) == 3 and 0 < report.worst < 1e-5
    levels = range(2, 7)
    assert list(report.comparisons[0].errors) == [
        f"{kind}{i}" for kind in ("p", "rpn_cls_", "rpn_reg_") for i in levels
    ]
    assert "p2 (64, 24, 32)" in str(report) and "rpn_reg_6 (12, 2, 2)" in str(report)
    assert "RoI align" in str(report)

    # Normalisation of the preprocessor as mmdet does it.
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[image], data_samples=None))
    graph = make_graph(model, normalisation=normalisation_of(model))
    with torch.no_grad():
        wanted = model.extract_feat(data["inputs"])[0]
        assert torch.allclose(graph(image[None].float())[0], wanted, atol=1e-5)

    report = export_model(
        model,
        str(tmp_path / "b.onnx"),
        format="onnx",
        part="backbone",
        shape=(64, 64),
        dynamic=False,
    )
    assert list(report.comparisons[0].errors) == ["c2", "c3", "c4", "c5"]
    assert "normalised in the graph" in str(report)


def test_single_stage_detector_to_onnx(retinanet: nn.Module, tmp_path: Path) -> None:
    need("onnx", "onnxruntime", "mmdet")
    report = export_model(retinanet, str(tmp_path / "r.onnx"), format="onnx", shape=(64, 96))
    assert list(report.comparisons[0].errors) == [
        f"{kind}_{i}" for kind in ("cls", "reg") for i in range(3, 8)
    ]
    assert 0 < report.worst < 1e-5 and "cls_3 (27, 8, 12)" in str(report)
    assert "NMS" in str(report)


@pytest.mark.parametrize("size", [(5, 7), (12, 18), (1, 3)])
def test_pooling_to_a_grid(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    need("mmseg")
    from fastvit_dense.seg.graph import GridPool, make_traceable

    for side in (2, 3, 6):
        layer = make_traceable(nn.Sequential(nn.AdaptiveAvgPool2d(side)))
        assert isinstance(layer[0], GridPool)  # type: ignore[index]
        assert torch.allclose(layer(x), nn.functional.adaptive_avg_pool2d(x, side), atol=1e-6)


def test_pooling_head_to_onnx(tmp_path: Path) -> None:
    """UPerHead pools to grids, at sizes that they do not divide."""
    need("onnx", "onnxruntime", "mmseg")
    from mmseg.models.decode_heads import UPerHead

    model: Any = load_model(str(SEG))[0]
    model.neck = None
    model.decode_head = UPerHead(
        in_channels=[48, 96, 192, 384], in_index=[0, 1, 2, 3], channels=16, num_classes=8
    ).eval()
    report = export_model(model, str(tmp_path / "m.onnx"), format="onnx", shape=(128, 96))
    assert len(report.comparisons) == 3 and 0 < report.worst < 1e-5


def test_openvino(tmp_path: Path) -> None:
    ov = need("onnx", "openvino")
    model, about = load_model("t8")
    out = tmp_path / "m.xml"
    report = export_model(model, str(out), format="openvino", shape=(64, 96), about=about)
    assert len(report.comparisons) == 3 and 0 < report.worst < 1e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    read = ov.Core().read_model(str(out))
    assert read.get_rt_info(["fastvit_dense", "arch"]).value == "t8"
    assert [o.get_any_name() for o in read.outputs] == ["c2", "c3", "c4", "c5"]

    full = (tmp_path / "m.bin").stat().st_size
    half = export_model(
        model, str(out), format="openvino", shape=(64, 96), dynamic=False, half=True, force=True
    )
    assert 1e-5 < half.worst < 1e-2
    assert (tmp_path / "m.bin").stat().st_size < 0.6 * full


def test_segmentor_to_openvino(tmp_path: Path) -> None:
    need("onnx", "openvino", "mmseg")
    report = export_model(
        load_model(str(SEG))[0], str(tmp_path / "s.xml"), format="openvino", shape=(64, 96)
    )
    assert len(report.comparisons) == 3 and 0 < report.worst < 1e-5


def test_the_benchmark_measures_what_export_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx", "onnxruntime")
    ov = need("openvino")
    model = load_model("sa12")[0]
    for format, out in (("onnx", "m.onnx"), ("openvino", "m.xml")):
        options: dict[str, Any] = dict(format=format, shape=(64, 64), dynamic=False)
        export_model(model, str(tmp_path / out), **options)
    opened: dict[str, Any] = {}

    def keep(name: str) -> None:
        real = getattr(runtimes, name)

        def opens(graph: Any, **options: Any) -> Any:
            opened[name] = graph
            return real(graph, **options)

        monkeypatch.setattr(runtimes, name, opens)

    keep("open_onnx")
    keep("open_openvino")
    fused = split_patch_embeddings(reparameterize(model))
    for backend in ("onnxruntime", "openvino"):
        setting = runtimes.Setting(backend, "float32", "cpu", 1)
        runtimes.prepare(fused, torch.rand(1, 3, 64, 64), setting)

    written = onnx_of(tmp_path / "m.onnx")[0]
    measured = need("onnx").load_from_string(opened["open_onnx"])
    assert [n.op_type for n in measured.graph.node] == [n.op_type for n in written.graph.node]
    assert measured.opset_import == written.opset_import
    weights = [sorted(i.raw_data for i in m.graph.initializer) for m in (measured, written)]
    assert weights[0] == weights[1]
    read = ov.Core().read_model(str(tmp_path / "m.xml"))
    operations = [
        sorted(o.get_type_name() for o in m.get_ops()) for m in (opened["open_openvino"], read)
    ]
    assert operations[0] == operations[1]


def test_half_onnx(tmp_path: Path) -> None:
    need("onnx", "onnxruntime")
    out = tmp_path / "m.onnx"
    report = export_model(
        load_model("t8")[0], str(out), format="onnx", shape=(64, 64), dynamic=False, half=True
    )
    assert 1e-5 < report.worst < 1e-2
    file = onnx_of(out)[0]
    assert {i.data_type for i in file.graph.initializer if len(i.dims) == 4} == {10}  # float16


@pytest.fixture(scope="module")
def hand() -> nn.Module:
    """A hand model whose head is far from its start, so that the mesh depends on the image."""
    model: Any = load_model(str(HAND))[0]
    for layer in (model.head.pose, model.head.shape, model.head.camera):
        nn.init.normal_(layer.weight, std=0.1)
    return model


def test_hand_to_onnx(hand: Any, tmp_path: Path) -> None:
    ort = need("onnx", "onnxruntime")
    out = tmp_path / "hand.onnx"
    report = export_model(hand, str(out), format="onnx")
    side = hand.image_size[0]
    assert report.comparisons[0].shape == (1, 3, side, side) and len(report.comparisons) == 3
    assert list(report.comparisons[0].errors) == ["vertices", "keypoints", "camera"]
    assert 0 < report.worst < 1e-5
    assert (
        f"outputs for an image of {side}x{side}: vertices (778, 3), keypoints (21, 3), camera (3,)"
        in str(report)
    )
    file, texts = onnx_of(out)
    assert "nothing of MANO" in texts["licence"] and texts["licence"] in str(report)
    dims = {o.name: o.type.tensor_type.shape.dim for o in file.graph.output}
    assert [d.dim_param or d.dim_value for d in dims["vertices"]] == ["batch", 778, 3]

    # The image as read from a file, against all that the model does with it.
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    with torch.no_grad():
        pred = hand.test_step(dict(inputs=[image], data_samples=None))[0].pred
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    inputs = {"image": image[None].numpy().astype(np.float32)}
    vertices, keypoints, camera = (found[0] for found in session.run(None, inputs))
    assert np.abs(vertices - pred.vertices.numpy()).max() < 1e-6  # metres
    pixels = (camera[0] * (keypoints[:, :2] + camera[1:]) + 1) * side / 2
    assert np.abs(pixels - pred.keypoints_2d.numpy()).max() < 1e-2


def test_hand_in_half_precision_keeps_its_geometry(hand: Any, tmp_path: Path) -> None:
    need("onnx", "onnxruntime")
    options: dict[str, Any] = dict(format="onnx", shape=(64, 64), dynamic=False)
    report = export_model(hand, str(tmp_path / "half.onnx"), half=True, **options)
    assert 1e-6 < report.worst < 1e-2
    graph = onnx_of(tmp_path / "half.onnx")[0].graph
    constants = [n.attribute[0].t for n in graph.node if n.op_type == "Constant"]
    kinds = {tuple(t.dims): t.data_type for t in [*graph.initializer, *constants]}
    # The stem in float16; the head and MANO in float32.
    assert (kinds[48, 3, 3, 3], kinds[96, 384], kinds[145, 3 * 778]) == (10, 1, 1)
    assert next(hand.backbone.parameters()).dtype == torch.float32  # the given model stays


def test_the_licence_of_mano_is_named(hand: Any) -> None:
    graph = make_graph(hand)
    assert "nothing of MANO" in graph.licence
    hand.head.mano_source = "data/mano/MANO_RIGHT.pkl"
    assert "MANO's licence holds for this file" in make_graph(hand).licence
    assert make_graph(hand, part="backbone").licence == ""
    hand.head.mano_source = "synthetic"


def test_hand_to_openvino(hand: Any, tmp_path: Path) -> None:
    need("onnx", "openvino")
    report = export_model(hand, str(tmp_path / "hand.xml"), format="openvino", shape=(96, 96))
    assert len(report.comparisons) == 3 and 0 < report.worst < 1e-5


def test_hand_to_coreml(hand: Any, tmp_path: Path) -> None:
    ct = need("coremltools")
    out = tmp_path / "hand.mlpackage"
    report = export_model(hand, str(out), format="coreml", shape=(64, 64))
    spec = ct.utils.load_spec(str(out))
    assert [o.name for o in spec.description.output] == ["vertices", "keypoints", "camera"]
    assert "vertices (778, 3)" in str(report) and "float32" in str(report)


@pytest.mark.parametrize("dynamic", [False, True])
def test_coreml(dynamic: bool, tmp_path: Path) -> None:
    ct = need("coremltools")
    out = tmp_path / "m.mlpackage"
    model, about = load_model("sa12")
    report = export_model(
        model, str(out), format="coreml", shape=(64, 96), dynamic=dynamic, about=about
    )
    spec = ct.utils.load_spec(str(out))
    assert [o.name for o in spec.description.output] == ["c2", "c3", "c4", "c5"]
    assert spec.description.metadata.userDefined["arch"] == "sa12"
    image = spec.description.input[0].type.multiArrayType
    assert list(image.shape) == [1, 3, 64, 96]
    ranges = [(r.lowerBound, r.upperBound) for r in image.shapeRange.sizeRanges]
    assert ranges == ([(1, 1), (3, 3), (64, 2048), (64, 2048)] if dynamic else [])
    assert "c5 (512, 2, 3)" in str(report)
    assert report.comparisons == () and "converted, not run" in str(report)


def test_segmentor_to_coreml(tmp_path: Path) -> None:
    need("coremltools", "mmseg")
    model = load_model(str(SEG))[0]
    out = str(tmp_path / "s.mlpackage")
    report = export_model(model, out, format="coreml", shape=(64, 96), half=True)
    assert "logits (8, 64, 96)" in str(report) and "float16" in str(report)
    with pytest.raises(ValueError, match="multiples of 32"):
        export_model(model, out, format="coreml", shape=(64, 97), force=True)
    with pytest.raises(ValueError, match="a whole model needs one size"):
        export_model(model, out, format="coreml", dynamic=True, force=True)


def test_models_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="neither a detector.*--part backbone"):
        make_graph(nn.Sequential(FastViT("t8")))
    assert make_graph(nn.Sequential(FastViT("t8")), part="backbone").output_names[0] == "c2"


def test_what_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    model = FastViT("t8").eval()

    def refused(error: type, match: str, out: str = "m.onnx", **options: Any) -> None:
        with pytest.raises(error, match=match):
            export_model(model, str(tmp_path / out), **{"format": "onnx", **options})

    refused(
        ValueError, "format must be one of onnx, openvino, coreml; got 'tflite'", format="tflite"
    )
    refused(ValueError, r"does not end in \.xml", format="openvino")
    refused(ValueError, r"does not end in \.onnx", out=".onnx")
    refused(ValueError, "shape is 31 x 64, expected sides of at least 32", shape=(31, 64))
    refused(FileNotFoundError, "folder .*none' does not exist", out="none/m.onnx")
    (tmp_path / "m.bin").touch()
    refused(
        FileExistsError, "m.bin exists: choose another name, or --force", "m.xml", format="openvino"
    )
    with pytest.raises(ValueError, match="part must be one of model, backbone; got 'neck'"):
        make_graph(model, part="neck")
    with pytest.raises(ValueError, match="Linear holds no FastViT"):
        make_graph(nn.Linear(1, 1), part="backbone")


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format, package, out in (
        ("onnx", "onnx", "m.onnx"),
        ("openvino", "onnx", "m.xml"),
        ("coreml", "coremltools", "m.mlpackage"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            runtimes.Unavailable, match=rf'{package} .* pip install -e "\.\[export\]"'
        ):
            export_model(FastViT("t8").eval(), str(tmp_path / out), format=format)
    assert list(tmp_path.iterdir()) == []


def test_training_mode(tmp_path: Path) -> None:
    need("onnx")
    with pytest.raises(ValueError, match="training mode"):
        export_model(FastViT("t8"), str(tmp_path / "m.onnx"), format="onnx")


def test_without_a_runtime_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model = load_model("t8")[0]
    report = export_model(model, str(tmp_path / "m.onnx"), format="onnx", shape=(32, 32))
    assert "converted, not run: onnxruntime is not installed" in str(report)


def test_a_wrong_file_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnx", "onnxruntime")
    model, out = load_model("t8")[0], tmp_path / "m.onnx"
    out.write_text("older")

    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            export_model(model, str(out), format="onnx", shape=(64, 64), force=True)
        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and out.read_text() == "older"

    fuse = export.reparameterize

    def broken(model: nn.Module) -> nn.Module:
        fused = fuse(model)
        with torch.no_grad():
            fused.stages[1].blocks[0].token_mixer.reparam_conv.weight.mul_(1.01)
        return fused

    monkeypatch.setattr(export, "reparameterize", broken)
    refused(
        r"was not written: at .* its output c[345] differs from PyTorch by .*, expected at most 1e-04"
    )
    monkeypatch.setattr(export, "reparameterize", fuse)
    opened = export.open_onnx

    class TwoChannels:
        """A session that drops a channel of the image."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.session = opened(*args, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> Any:
            return self.session.run(names, {k: x[:, :2] for k, x in inputs.items()})

    monkeypatch.setattr(export, "open_onnx", TwoChannels)
    refused("the file does not run at 1 x 3 x 64 x 64")
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: 1 / 0)
    refused("does not convert to onnx: ZeroDivisionError: .*--static")


def test_checkpoints(tmp_path: Path) -> None:
    need("mmseg")
    model, about = load_model(str(SEG))
    assert about["weights"] == "random"
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    path = tmp_path / "x.pth"
    meta = dict(dataset_meta=dict(classes=tuple("abcdefgh")))
    torch.save(dict(state_dict=state, meta=meta), path)
    loaded, about = load_model(str(SEG), str(path))
    assert about["weights"] == "x.pth" and json.loads(about["classes"]) == list("abcdefgh")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())

    state.pop("module.decode_head.conv_seg.bias")
    torch.save(dict(state_dict=state), path)
    with pytest.raises(ValueError, match="does not fit .*: 1 tensors missing"):
        load_model(str(SEG), str(path))
    torch.save(dict(weights=1), path)
    with pytest.raises(ValueError, match="holds no 'state_dict'"):
        load_model(str(SEG), str(path))
    for wrong in ("none.py", "sa99"):
        with pytest.raises(FileNotFoundError, match=wrong):
            load_model(wrong)
    with pytest.raises(FileNotFoundError, match="checkpoint 'none.pth' does not exist"):
        load_model(str(SEG), "none.pth")


def test_backbone_checkpoint(tmp_path: Path) -> None:
    model = load_model("t8")[0]
    torch.save(model.state_dict(), tmp_path / "t8.pth")
    loaded = load_model("t8", str(tmp_path / "t8.pth"))[0]
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_segmentor_that_is_no_graph() -> None:
    need("mmseg")
    from mmseg.models.decode_heads import PointHead

    model: Any = load_model(str(SEG))[0]
    model.decode_head = PointHead(in_channels=[8], in_index=[0], channels=8, num_classes=3)
    with pytest.raises(ValueError, match="PointHead cannot be exported as a whole"):
        make_graph(model)


def test_tool(tmp_path: Path) -> None:
    need("onnx", "onnxruntime")
    out = tmp_path / "t8.onnx"
    command = ["tools/export.py", "t8", "--format", "onnx", "--out", out, "--static"]
    text = run_tool(*command, "--shape", 64, 64)
    assert f"{out}: " in text and "ONNX opset 17" in text and "  1 x 3 x 64 x 64: c2 " in text
    assert "exists: choose another name" in run_tool(*command, fails=True)
