"""tools/hand_demo.py as a user types it, with a model of random weights."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import trimesh
from conftest import ROOT, run_tool

from fastvit_dense.benchmark.hand import random_model
from fastvit_dense.engine.errors import end_in_one_line
from fastvit_dense.hand import demo as hand_demo
from fastvit_dense.hand.demo import (
    demo_model,
    read_intrinsics,
    run_demo,
)
from fastvit_dense.hand.predictor import HandPredictor
from fastvit_dense.hand.visualization import write_mesh
from fastvit_dense.io.media import Preview, open_input

CONFIG = ROOT / "configs/hand/mano_fastvit-t8_demo-hands.py"  # of the synthetic hand
INTRINSICS = ("500", "500", "160", "120")


def picture(height: int = 240, width: int = 320) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for i in range(frames):
        writer.write(np.roll(picture(64, 96), 10 * i, axis=1))
    writer.release()
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "epoch_200.pth"
    torch.save(dict(state_dict=random_model("t8").state_dict(), meta={}), path)
    return path


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> HandPredictor:
    return HandPredictor(CONFIG, checkpoint, device="cpu")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "hand.png"), picture())
    return tmp_path / "hand.png"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_image(checkpoint: Path, predictor: HandPredictor, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run_tool(
        "tools/hand_demo.py", image, "--config", CONFIG, "--checkpoint", checkpoint, "--out", out,
        "--device", "cpu",
        "--bbox", "100", "60", "120", "100", "--K", *INTRINSICS, "--mesh", "ply",
    )  # fmt: skip
    assert re.search(r"1/1 \[.*frame/s|s/frame", text)  # the progress bar
    assert re.search(r"^1 frames on cpu \(\d+ threads\), backbone fused$", text, re.M)
    assert re.search(
        r"^image to mesh: [\d.]+ frames/s \(median [\d.]+ ms per frame, dr", text, re.M
    )
    assert re.search(r"^end to end, .*: [\d.]+ frames/s$", text, re.M)
    assert f"results: {out}\n" in text and "hand model: synthetic" in text
    assert names(out) == ["hand.json", "hand.ply", "hand.png"]

    K = read_intrinsics(INTRINSICS)
    hand = predictor(picture(), (100, 60, 120, 100), K=K)
    drawn = cv2.imread(str(out / "hand.png"))
    assert drawn.shape == (240, 320 + 240, 3)
    ys, xs = np.nonzero((drawn[:, :320] != picture()).any(axis=2))
    low, high = hand.vertices_2d.min(axis=0), hand.vertices_2d.max(axis=0)
    assert (xs.min(), ys.min()) == pytest.approx(np.maximum(low, 0), abs=1.5)
    assert (xs.max(), ys.max()) == pytest.approx(np.minimum(high, (319, 239)), abs=1.5)

    found = json.loads((out / "hand.json").read_text())
    assert found["image"] == "hand.png" and found["hand"] == "right" and found["K"] == K.tolist()
    assert found["image_size"] == dict(height=240, width=320)
    assert len(found["keypoint_names"]) == 21 and found["root"] == "middle_mcp"
    for key, value in {
        "keypoints_2d": hand.keypoints_2d,
        "keypoints_root_relative": hand.keypoints,
        "keypoints_camera": hand.keypoints_camera,
    }.items():
        assert np.array(found[key]) == pytest.approx(value, rel=1e-4, abs=1e-5), key
    assert np.array(found["mano"]["betas"]) == pytest.approx(hand.betas, abs=1e-4)
    assert np.array(found["mano"]["rotations"]) == pytest.approx(hand.rotations, abs=1e-4)
    weak = found["weak_perspective"]
    assert [weak["scale"], *weak["translation"]] == pytest.approx(hand.camera.tolist(), abs=1e-4)
    assert np.array(weak["image_to_crop"]) == pytest.approx(hand.crop_matrix, abs=1e-4)

    mesh = trimesh.load(out / "hand.ply", process=False)
    camera = hand.vertices_camera * (1, -1, -1)  # y up, seen from the origin along -z
    assert np.abs(mesh.vertices - camera).max() < 1e-5 and mesh.vertices[:, 2].max() < 0


@pytest.mark.parametrize("kind", ["obj", "ply", "glb"])
@pytest.mark.parametrize("left", [False, True])
def test_mesh_files(predictor: HandPredictor, tmp_path: Path, kind: str, left: bool) -> None:
    hand = predictor(picture(), left=left)
    write_mesh(tmp_path / f"hand.{kind}", hand.vertices, hand.faces)
    assert names(tmp_path) == [f"hand.{kind}"]
    mesh = trimesh.load(tmp_path / f"hand.{kind}", process=False, force="mesh")
    assert np.abs(mesh.vertices - hand.vertices * (1, -1, -1)).max() < 1e-6
    assert np.array_equal(mesh.faces, hand.faces)
    normals = dict(obj=b"\nvn ", ply=b"property float nx", glb=b'"NORMAL"')[kind]
    assert normals in (tmp_path / f"hand.{kind}").read_bytes()  # viewers show facets without
    # Metres, and wound so that the volume is inside: towards the middle of the wrist's opening.
    assert 0.1 < np.linalg.norm(mesh.extents) < 0.4
    wrist = hand.keypoints[0] * (1, -1, -1)
    assert np.linalg.det(np.array(mesh.vertices)[mesh.faces] - wrist).sum() > 0


def test_mesh_files_keep_all_vertices(tmp_path: Path) -> None:
    vertices = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 0)], float)  # two in one place
    write_mesh(tmp_path / "a.ply", vertices, np.array([[0, 2, 1], [0, 3, 1]]))
    assert len(trimesh.load(tmp_path / "a.ply", process=False).vertices) == 4


def test_mesh_of_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"hand.fbx: expected a mesh file ending in .obj, .ply, .glb"
    ):
        write_mesh(tmp_path / "hand.fbx", np.zeros((3, 3)), np.array([[0, 1, 2]]))


def run(checkpoint: Path, source: Path | str, out: Path, **options: Any) -> str:
    text, status = run_demo(
        str(source), config=str(CONFIG), checkpoint=str(checkpoint), out=str(out), device="cpu",
        **options,
    )  # fmt: skip
    assert status == 0
    return text


def test_left_hand(checkpoint: Path, tmp_path: Path) -> None:
    """The picture of the mirrored image is the mirrored picture, light aside; so are mesh and JSON."""
    for name, image in (("right", picture()), ("left", picture()[:, ::-1])):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
        run(checkpoint, tmp_path / f"{name}.png", tmp_path / "out", left=name == "left")
    right, left = (
        (cv2.imread(str(tmp_path / "out" / f"{n}.png"))[:, :320] != i).any(axis=2)
        for n, i in (("right", picture()), ("left", picture()[:, ::-1]))
    )
    assert right.any() and (right != left[:, ::-1]).mean() < 1e-3
    texts = [json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("right", "left")]
    a, b = (np.array(t["keypoints_root_relative"]) for t in texts)
    assert np.abs(a - b * (-1, 1, 1)).max() < 1e-4
    assert texts[1]["hand"] == "left" and "mirrored" in texts[1]["mano"]["hand"]
    meshes = [trimesh.load(tmp_path / "out" / f"{n}.obj", process=False) for n in ("right", "left")]
    assert np.abs(meshes[0].vertices - meshes[1].vertices * (-1, 1, 1)).max() < 1e-4
    assert np.array_equal(meshes[0].faces, meshes[1].faces[:, ::-1])


def test_folder(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), picture(90, 110))
    text = run(checkpoint, tmp_path, tmp_path / "out")
    assert "3 frames on cpu" in text and "--bbox x y width height" in text
    assert names(tmp_path / "out") == [
        "a.jpg.jpg", "a.jpg.json", "a.jpg.obj", "a.png.json", "a.png.obj", "a.png.png", "b.json", "b.obj",
        "b.png",
    ]  # fmt: skip
    run(checkpoint, tmp_path, tmp_path / "none", mesh="none")
    assert [n for n in names(tmp_path / "none") if n.endswith(".obj")] == []


def test_video(checkpoint: Path, tmp_path: Path) -> None:
    source = write_video(tmp_path / "wave.avi", 3)
    text = run(checkpoint, source, tmp_path / "out", bbox=(10, 10, 60, 40))
    assert "3 frames on cpu" in text and "--bbox" not in text
    assert names(tmp_path / "out") == ["wave.jsonl", "wave.mp4"]
    lines = (tmp_path / "out" / "wave.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == [f"wave_00000{i}" for i in range(3)]
    result = cv2.VideoCapture(str(tmp_path / "out" / "wave.mp4"))
    assert result.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert result.read()[1].shape == (64, 96 + 64, 3)
    result.release()
    run(checkpoint, source, tmp_path / "glb", mesh="glb")
    assert sum(n.endswith(".glb") for n in names(tmp_path / "glb")) == 3


@pytest.mark.parametrize("kind", ["webcam", "video"])
def test_ctrl_c_keeps_a_webcam_but_no_video(
    checkpoint: Path, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(HandPredictor):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > 3:  # the first is not a frame
                raise KeyboardInterrupt
            return super().__call__(*args, **kwargs)

    frames = open_input(write_video(tmp_path / "wave.avi", 5))
    frames.kind = kind
    monkeypatch.setattr(hand_demo, "open_input", lambda _: frames)
    monkeypatch.setattr(hand_demo, "HandPredictor", Stopped)
    out = tmp_path / "out"
    if kind == "webcam":
        assert "2 frames on cpu" in run(checkpoint, "webcam", out)
        assert names(out) == ["wave.jsonl", "wave.mp4"]
        assert len((out / "wave.jsonl").read_text().splitlines()) == 2
    else:
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, "wave.avi", out)
        assert names(out) == []


def test_window_and_q(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(Preview, "__enter__", lambda self: self)
    monkeypatch.setattr(Preview, "__exit__", lambda *_: None)
    monkeypatch.setattr(
        Preview, "show", lambda _, picture: shown.append(picture) or len(shown) == 2
    )
    text = run(checkpoint, write_video(tmp_path / "wave.avi", 5), tmp_path / "out", show=True)
    assert len(shown) == 2 and shown[0].shape == (64, 160, 3)
    assert "2 frames on cpu" in text and "stopped, of 5" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bbox", "400", "10", "20", "20"), "hand.png: bbox .400.* nor outside of the image"),
        (("--config", "other.py"), "config 'other.py' does not exist"),
        (("--K", "500", "500"), "--K 500 500: expected fx fy cx cy in pixels, or a JSON file"),
        (("--K", "none.json"), "--K none.json: expected .*No such file"),
        (("--checkpoint", "none.pth"), "checkpoint 'none.pth' does not exist"),
        (("--show",), "no window can be shown"),
    ],
)
def test_errors_are_told_without_a_traceback(
    checkpoint: Path, image: Path, tmp_path: Path, options: tuple, message: str, capsys: Any,
    monkeypatch: pytest.MonkeyPatch, tool: Callable[..., int],
) -> None:  # fmt: skip
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    given = (
        "--config",
        CONFIG,
        "--checkpoint",
        checkpoint,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        *options,
    )
    assert tool(image, *given) == 2
    assert re.search(f"^hand_demo: {message}", capsys.readouterr().err, re.M)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The tool's main(), by its arguments, without the time that a process takes to start."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # the tool sets it where it is not
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import importlib.util

    spec = importlib.util.spec_from_file_location("hand_demo_tool", ROOT / "tools/hand_demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["hand_demo.py", *map(str, arguments)])
        return end_in_one_line(module.main)

    yield call


def test_inputs_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "hand.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("hand.jpg", "is not an image"), ("empty", "holds no images"), ("none.png", "does not exist"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(Path("none.pth"), tmp_path / source, tmp_path / "out")
    cv2.imwrite(str(tmp_path / "empty" / "a.png"), picture())
    with pytest.raises(ValueError, match="would overwrite the input"):
        run(Path("none.pth"), tmp_path / "empty", tmp_path / "empty")


def test_intrinsics_as_given(tmp_path: Path) -> None:
    expected = [[500, 0, 160], [0, 510, 120], [0, 0, 1]]
    (tmp_path / "K.json").write_text(json.dumps(expected))
    assert read_intrinsics(["500", "510", "160", "120"]).tolist() == expected
    assert read_intrinsics([str(tmp_path / "K.json")]).tolist() == expected
    for text in ("{}", "[1, 2", '["a"]', "[[1, 2], [3]]", json.dumps([expected] * 2)):
        (tmp_path / "K.json").write_text(text)
        with pytest.raises(ValueError, match="expected fx fy cx cy|K must be"):
            read_intrinsics([str(tmp_path / "K.json")])


def test_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_demo, "DEMO_FOLDER", tmp_path)
    for name, content in (
        (CONFIG.name, ""), ("last_checkpoint", "/moved/epoch_9.pth"), ("epoch_9.pth", "")
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError, match="`make demo-hand` trains one .* --checkpoint"):
            demo_model()
        (tmp_path / name).write_text(content)
    assert demo_model() == (str(tmp_path / CONFIG.name), str(tmp_path / "epoch_9.pth"))
    with pytest.raises(ValueError, match="expected both"):
        run_demo("hand.png", config=str(CONFIG))
