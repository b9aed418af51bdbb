"""Inputs and outputs of the demos."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import stated_size
from PIL import Image

from fastvit_dense.io import media as module
from fastvit_dense.io.media import FrameWriter, Preview, for_each_frame, open_input


def picture(height: int = 48, width: int = 64, *, red: int = 200) -> np.ndarray:
    """(H, W, 3) BGR: black with a red left half."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 2] = red
    return image


def write_video(path: Path, *, frames: int = 5, fps: float = 12, codec: str = "MJPG") -> Path:
    """Frame i has a grey of 40 * i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 40 * i % 256, np.uint8))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture, images = cv2.VideoCapture(str(path)), []
    assert capture.isOpened()
    fps = capture.get(cv2.CAP_PROP_FPS)
    while True:
        there, image = capture.read()
        if not there:
            return images, fps
        images.append(image)


def copy_all(source: Path | str, out: Path) -> FrameWriter:
    with open_input(source) as frames, FrameWriter(out, frames) as writer:
        for name, image in frames:
            writer.write(name, image)
    return writer


class Camera:
    """A webcam of three frames; it stands in for cv2.VideoCapture."""

    def __init__(self, index: int, *, frames: int = 3) -> None:
        self.index, self.left, self.released = index, frames, False
        Camera.last = self

    last: "Camera"

    def isOpened(self) -> bool:
        return self.index < 2

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[what]

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, picture()) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


def test_one_image(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    with open_input(tmp_path / "a.png") as frames:
        assert (frames.kind, frames.total, frames.fps) == ("images", 1, None)
        ((name, image),) = frames
    assert name == "a.png" and np.array_equal(image, picture())


def test_folder_in_order_and_not_deeper(tmp_path: Path) -> None:
    for name in ("c.JPG", "a.webp", "b.tif", "d.bmp", "e.jpeg", "f.png"):
        cv2.imwrite(str(tmp_path / name), picture())
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "g.png").mkdir()
    cv2.imwrite(str(tmp_path / "g.png" / "deeper.png"), picture())
    with open_input(str(tmp_path)) as frames:
        assert (frames.kind, frames.total) == ("images", 6)
        found = list(frames)
    assert [name for name, _ in found] == ["a.webp", "b.tif", "c.JPG", "d.bmp", "e.jpeg", "f.png"]
    for _, image in found:
        assert image.shape == (48, 64, 3)
        assert image[:, :28, 2].min() > 180 and image[:, 36:].max() < 30


@pytest.mark.parametrize("kind", ["grey", "alpha", "16 bit", "16 bit grey", "palette"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_always_bgr_of_8_bits(tmp_path: Path, kind: str, suffix: str) -> None:
    path, wanted = tmp_path / f"a{suffix}", picture()
    if "grey" in kind:
        wanted = np.repeat(wanted[:, :, 2:], 3, axis=2)
    if kind == "palette":
        Image.fromarray(wanted[:, :, ::-1]).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    else:
        image = wanted[:, :, 0] if "grey" in kind else wanted
        if "16 bit" in kind:
            image = image.astype(np.uint16) * 257
        if kind == "alpha":
            image = np.dstack([image, np.full(image.shape[:2], 90, np.uint8)])
        assert cv2.imwrite(str(path), image)
    ((_, found),) = open_input(path)
    assert found.dtype == np.uint8 and found.shape == (48, 64, 3)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture()[:, :, ::-1]).save(tmp_path / "a.jpg", exif=exif, quality=95)
    ((_, image),) = open_input(tmp_path / "a.jpg")
    assert image.shape == (64, 48, 3)
    assert image[:28, :, 2].min() > 180 and image[36:].max() < 30  # left became top


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "MJPG"), ("clip.mp4", "mp4v")])
def test_video(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, codec=codec)
    with open_input(path) as frames:
        assert (frames.kind, frames.total, frames.fps) == ("video", 5, 12)
        found = list(frames)
    assert [n for n, _ in found] == [f"clip_{i:06d}" for i in range(5)]
    for i, (_, image) in enumerate(found):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert abs(image.mean() - 40 * i) < 6


@pytest.mark.parametrize(("source", "index"), [("webcam", 0), ("webcam:1", 1)])
def test_webcam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, index: int) -> None:
    monkeypatch.setattr(module.cv2, "VideoCapture", Camera)
    frames = open_input(source)
    with frames:
        assert (frames.kind, frames.total, frames.fps) == ("webcam", None, None)
        writer = FrameWriter(tmp_path, frames)
        monkeypatch.undo()
        with writer:
            for name, image in frames:
                writer.write(name, image)
    assert Camera.last.index == index and Camera.last.released
    (path,) = writer.paths
    images, fps = read_video(path)
    assert path.name == f"{source.replace(':', '_')}.mp4" and len(images) == 3 and fps == 30


def test_webcam_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="camera 99 cannot be opened.*Is one connected"):
        open_input("webcam:99")
    with pytest.raises(ValueError, match="webcam:front: expected webcam or webcam:NUMBER"):
        open_input("webcam:front")


def test_webcam_without_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.cv2, "VideoCapture", lambda index: Camera(index, frames=0))
    with pytest.raises(ValueError, match="webcam: .* gives no frame"):
        open_input("webcam")
    assert Camera.last.released


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.mp4 does not exist: expected an image"):
        open_input(tmp_path / "none.mp4")
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match="holds no images: expected files ending in .bmp"):
        open_input(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "clip.mp4", "clip01.avi"])
@pytest.mark.parametrize("content", ["neither", ""])
def test_neither_image_nor_video(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}: it is neither an image .* nor a video"):
        open_input(tmp_path / name)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    (tmp_path / "b.jpg").write_text("no picture")
    (tmp_path / "c.jpg").touch()
    for name, what in (("b.jpg", r"\(10 bytes\) is not an image"), ("c.jpg", "it is empty")):
        with pytest.raises(ValueError, match=f"{name} .*{what}"):
            open_input(tmp_path / name)


def test_video_without_frames(tmp_path: Path) -> None:
    # An AVI's header without its frames: what an interrupted copy leaves.
    whole = write_video(tmp_path / "whole.avi").read_bytes()
    path = tmp_path / "cut.avi"
    path.write_bytes(whole[: whole.index(b"movi") + 4])
    with pytest.raises(ValueError, match="cut.avi: it opens but gives no frame"):
        open_input(path)


def test_images_keep_their_names(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.jpeg", "d.tif"):
        cv2.imwrite(str(tmp_path / name), picture())
    for _ in range(2):  # an earlier run's are replaced
        writer = copy_all(tmp_path, tmp_path / "deep" / "out")
    names = ["a.png", "b.jpg", "c.jpg", "d.png"]
    assert [p.name for p in writer.paths] == names
    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == names
    assert np.array_equal(cv2.imread(str(writer.paths[0])), picture())
    assert np.array_equal(cv2.imread(str(writer.paths[3])), picture())


def test_images_of_one_stem_stay_apart(tmp_path: Path) -> None:
    for i, name in enumerate(("a.bmp", "a.png", "b.jpeg", "b.jpg")):
        cv2.imwrite(str(tmp_path / name), picture(red=100 + 20 * i))
    writer = copy_all(tmp_path, tmp_path / "out")
    assert [p.name for p in writer.paths] == ["a.bmp.png", "a.png.png", "b.jpeg.jpg", "b.jpg.jpg"]
    assert [cv2.imread(str(p))[5, 5, 2] for p in writer.paths] == pytest.approx(
        [100, 120, 140, 160], abs=3
    )


def test_video_is_written_with_its_frame_rate(tmp_path: Path) -> None:
    writer = copy_all(write_video(tmp_path / "clip.avi"), tmp_path / "out")
    assert writer.paths == [tmp_path / "out" / "clip.mp4"]
    assert list((tmp_path / "out").iterdir()) == writer.paths
    images, fps = read_video(writer.paths[0])
    assert fps == 12 and len(images) == 5
    assert [round(float(i.mean())) for i in images] == pytest.approx([0, 40, 80, 120, 160], abs=6)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_video_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    source = write_video(tmp_path / "clip.avi")
    with open_input(source) as frames:
        writer = FrameWriter(tmp_path / "out", frames)
        with pytest.raises(error), writer:
            for name, image in frames:
                writer.write(name, image)
                assert all("unfinished" in p.name for p in writer.folder.iterdir())
                raise error
    assert list(writer.folder.iterdir()) == [] and writer.paths == []


def test_frames_of_another_size(tmp_path: Path) -> None:
    source = write_video(tmp_path / "clip.avi")
    with open_input(source) as frames:
        writer = FrameWriter(tmp_path, frames)
        with (
            pytest.raises(ValueError, match="clip_1 makes a picture of 64x50 .* were 64x48"),
            writer,
        ):
            writer.write("clip_0", picture())
            writer.write("clip_1", picture(50))
    assert not (tmp_path / "clip.mp4").exists()


def test_video_that_cannot_be_written(tmp_path: Path) -> None:
    source = write_video(tmp_path / "clip.avi")
    with open_input(source) as frames, pytest.raises(OSError, match="for writing .* mp4v, 64x48"):
        with FrameWriter(tmp_path / "out", frames) as writer:
            (tmp_path / "out").rmdir()
            writer.write("clip_0", picture())


def test_inputs_are_not_overwritten(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    video = write_video(tmp_path / "clip.mp4", codec="mp4v")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    before = (tmp_path / "a.png").read_bytes(), video.read_bytes()
    for source, out in (
        (tmp_path, tmp_path), (tmp_path / "a.png", tmp_path / "link"), (video, tmp_path)
    ):  # fmt: skip
        with open_input(source) as frames, pytest.raises(ValueError, match="overwrite the input"):
            FrameWriter(out, frames)
    assert before == ((tmp_path / "a.png").read_bytes(), video.read_bytes())


def test_folder_for_results_is_a_file(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    with open_input(tmp_path / "a.png") as frames:
        with pytest.raises(ValueError, match="a.png is a file; expected a folder"):
            FrameWriter(tmp_path / "a.png", frames)


def test_image_above_the_limit_of_opencv(tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes(stated_size(40_000, 40_000))
    with pytest.raises(ValueError, match="map.png .*it is 40000x40000") as error:
        open_input(tmp_path / "map.png")
    assert "cut it into pieces" in str(error.value)


def red_half(image: np.ndarray) -> float:
    return float(image[..., 2].mean())


def give_back(name: str, image: np.ndarray, result: float) -> np.ndarray:
    return image


def test_unreadable_images_are_named_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.jpg", "b.jpg", "c.png"):
        cv2.imwrite(str(tmp_path / name), picture())
    whole = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])  # which OpenCV fills up with grey
    (tmp_path / "d.png").write_text("no picture")
    with open_input(tmp_path) as frames:
        writer = FrameWriter(tmp_path / "out", frames)
        report = for_each_frame(frames, writer, red_half, give_back)
    assert [path.name for path in writer.paths] == ["a.jpg", "c.png"]
    assert len(report.seconds) == 2 and report.status == 1
    assert "2 of 4 images could not be read" in report.text("cpu", task="all", timed="all")
    said = capsys.readouterr().err
    assert "b.jpg" in said and "truncated JPEG" in said and "d.png" in said and "c.png" not in said
    (tmp_path / "b.jpg").write_bytes(whole)
    (tmp_path / "d.png").unlink()
    with open_input(tmp_path) as frames:
        report = for_each_frame(frames, FrameWriter(tmp_path / "out", frames), red_half, give_back)
    assert (len(report.seconds), report.remark, report.status) == (3, "", 0)


def test_an_error_of_the_prediction_names_the_frame(tmp_path: Path) -> None:
    def fail(_: np.ndarray) -> float:
        raise ValueError("no hand")

    with open_input(write_video(tmp_path / "clip.avi")) as frames:
        with pytest.raises(ValueError, match="clip_000000: no hand"):
            for_each_frame(frames, FrameWriter(tmp_path, frames), fail, give_back)


def test_ctrl_c_keeps_a_webcam_but_no_video(tmp_path: Path) -> None:
    for kind in ("webcam", "video"):
        left = iter(range(2))

        def predict(_: np.ndarray, left: Iterator[int] = left) -> float:
            for number in left:
                return number
            raise KeyboardInterrupt

        with open_input(write_video(tmp_path / f"{kind}.avi")) as frames:
            frames.kind = kind  # type: ignore[assignment]
            writer = FrameWriter(tmp_path / "out", frames)
            if kind == "webcam":
                assert len(for_each_frame(frames, writer, predict, give_back).seconds) == 2
            else:
                with pytest.raises(KeyboardInterrupt):
                    for_each_frame(frames, writer, predict, give_back)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["webcam.mp4"]
    assert len(read_video(tmp_path / "out" / "webcam.mp4")[0]) == 2


@pytest.mark.parametrize(("missing", "status"), [(1, 0), (50, 1)])
def test_video_that_ends_early(tmp_path: Path, missing: int, status: int) -> None:
    """The number of frames in a header may be an estimate."""
    with open_input(write_video(tmp_path / "clip.avi", frames=50)) as frames:
        frames.total = 50 + missing
        report = for_each_frame(frames, FrameWriter(tmp_path, frames), red_half, give_back)
    assert "is the file damaged?" in report.remark and report.status == status


def test_window_and_q(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(Preview, "__enter__", lambda self: self)
    monkeypatch.setattr(Preview, "__exit__", lambda *_: None)
    monkeypatch.setattr(
        Preview, "show", lambda _, picture: shown.append(picture) or len(shown) == 2
    )
    with open_input(write_video(tmp_path / "clip.avi")) as frames:
        writer = FrameWriter(tmp_path, frames)
        report = for_each_frame(frames, writer, red_half, give_back, window="halves")
    assert len(shown) == 2 and writer.paths == [tmp_path / "clip.mp4"]
    assert report.remark == "stopped, of 5" and report.status == 0


def test_no_window_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_window(_: str) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ValueError, match="there is no display"), Preview("hand"):
        pass
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", no_window)
    with pytest.raises(ValueError, match="opencv-python-headless"), Preview("hand"):
        pass
