"""Checkpoints by path, URL and other schemes: read as plain data, whoever asks, and kept only if whole."""

import argparse
import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, randomise
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors.torch import save_file
from timm.utils import CheckpointSaver
from torch import nn
from toy_training import write_config

from fastvit_dense import FastViT
from fastvit_dense.backbone.pretrained import load_pretrained
from fastvit_dense.engine.config import load_config
from fastvit_dense.engine.models import read_checkpoint
from fastvit_dense.engine.runner import Runner
from fastvit_dense.hand import HandPredictor
from fastvit_dense.io.weights import TABLES, _answers, cached_path, read_content, url_of


class Site:
    """A web server on this machine; `files` by path, `sent` counts what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sent: Counter[str] = Counter()
        self.cut: dict[str, int] = {}  # bytes after which the connection ends
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.sent[self.path] += 1
                content = site.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: site.cut.get(self.path)])

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, path: str, content: Any) -> str:
        """Serve an object as torch.save writes it, or a file; returns its URL."""
        if isinstance(content, Path):
            self.files[path] = content.read_bytes()
        else:
            file = Path(os.environ["TORCH_HOME"]).parent / "served"
            torch.save(content, file)
            self.files[path] = file.read_bytes()
        return self.url + path


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)  # where a payload would leave its file
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.02,))
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()
    assert not Path("ran").exists(), "pickled code was run"


def kept() -> list[Path]:
    return [p for p in Path(os.environ["TORCH_HOME"]).rglob("*") if p.is_file()]


class Payload:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


HOSTILE = dict(state_dict=dict(weight=torch.ones(1)), meta=Payload())
REFUSED = (
    r"^\S*/evil-?\w*\.pth.* holds more than plain data and its code is not run: GLOBAL \w+\.system"
)


def into_backbone(url: str) -> None:
    FastViT("t8", init_cfg=dict(type="Pretrained", checkpoint=url)).init_weights()


def into_other_module(url: str) -> None:
    module = BaseModule(init_cfg=dict(type="Pretrained", checkpoint=url))
    module.weight = nn.Parameter(torch.zeros(1))
    module.init_weights()


COUNT = itertools.count()


def by_runner(url: str | None, *, resume: bool = False) -> Runner:
    cfg = load_config(str(write_config(Path("toy.py"), by_epoch=True, epochs=2)), work_dir="run")
    # A name of its own: mmengine keeps one logger per name and second, and warns of a second one.
    name = f"{url} {resume} {next(COUNT)}"
    cfg.update(load_from=url, resume=resume, experiment_name=name)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


HAND_CONFIG = ROOT / "configs/hand/mano_fastvit-t8_demo-hands.py"
READERS: dict[str, Callable[[str], Any]] = {
    "init_cfg of a FastViT": into_backbone,
    "init_cfg of another module": into_other_module,
    "load_checkpoint, as mmdet's and mmseg's init_model": lambda url: load_checkpoint(nn.Linear(1, 1), url),
    "HandPredictor": lambda url: HandPredictor(HAND_CONFIG, url),
    "read_checkpoint, as the tools": read_checkpoint,
    "load_from": by_runner,
    "resume": lambda url: by_runner(url, resume=True),
}  # fmt: skip


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_code_by_url_is_not_run(read: Callable, site: Site) -> None:
    url = site.put("/evil.pth", HOSTILE)
    with pytest.raises(ValueError, match=REFUSED):
        read(url)
    assert site.sent["/evil.pth"] == 1 and not kept()


@pytest.mark.parametrize(
    "name",
    [
        "torchvision://x",
        "modelzoo://x",
        "open-mmlab://x",
        "openmmlab://x",
        "mmcls://x",
    ],
)
def test_code_by_name_is_not_run(name: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    table = dict.fromkeys(("x", "here"), site.put("/evil-0123abcd.pth", HOSTILE))
    for function in ("get_torchvision_models", "get_mmcls_models", "get_external_models"):
        monkeypatch.setattr(f"mmengine.runner.checkpoint.{function}", lambda: table)
    scheme = name.partition("://")[0] + "://"
    monkeypatch.setitem(TABLES, scheme, lambda: table)
    with pytest.raises(ValueError, match=REFUSED):
        load_checkpoint(nn.Linear(1, 1), name)
    with pytest.raises(ValueError, match=r"no checkpoint 'her'; did you mean here\?"):
        load_checkpoint(nn.Linear(1, 1), name.partition("://")[0] + "://her")


def test_code_in_files_is_not_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(HOSTILE, "evil.pth")
    with pytest.raises(ValueError, match="^evil.pth holds more than plain data"):
        load_checkpoint(nn.Linear(1, 1), "evil.pth")
    torch.save(nn.Linear(1, 1).state_dict(), "evil.pth")
    assert load_checkpoint(nn.Linear(1, 1), "evil.pth").keys() == {"weight", "bias"}


def test_every_scheme_of_mmengine_has_our_loader() -> None:
    others = {
        p: f.__module__
        for p, f in CheckpointLoader._schemes.items()
        if f.__module__ != "fastvit_dense.io.weights"
    }
    assert len(CheckpointLoader._schemes) >= 12 and not others
    for name in ("pavi://x.pth", "s3://x.pth", "lab:s3://x.pth", "petrel://x.pth"):
        with pytest.raises(ValueError, match="not read here"):
            read_content(name)


@pytest.mark.parametrize("written", ["numpy.core", "numpy._core"])
def test_arrays_of_either_numpy(written: str, tmp_path: Path) -> None:
    """They are pickled by the name of a module that numpy 2 has renamed."""
    path = tmp_path / "run.pth"
    content = {"score": np.float64(0.5), "counts": np.arange(3)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    here = np.float64(0).__reduce__()[0].__module__.removesuffix(".multiarray")
    pickled = path.read_bytes()
    assert pickled.count(f"c{here}.".encode()) >= 2
    path.write_bytes(pickled.replace(f"c{here}.".encode(), f"c{written}.".encode()))
    read = read_content(str(path))
    assert read["score"] == 0.5 and read["counts"].tolist() == [0, 1, 2]


def test_resuming_does_not_run_the_config_of_old_checkpoints(site: Site) -> None:
    by_runner(None)
    content = torch.load("run/epoch_1.pth", weights_only=True)
    content["meta"]["config"] = "a = __import__('os').system('touch ran')"
    url = site.put("/old.pth", content)
    by_runner(url, resume=True)
    assert any("resumed epoch: 1, iter: 6" in p.read_text() for p in Path("run").rglob("*.log"))


def test_by_url_into_the_runner(site: Site) -> None:
    by_runner(None)
    weights = torch.load("run/epoch_2.pth", weights_only=True)["state_dict"]
    cfg = load_config("toy.py", {"custom_hooks": []}, work_dir="again")
    cfg.load_from = site.put("/epoch_2.pth", Path("run/epoch_2.pth"))
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    assert all(torch.equal(v, weights[k]) for k, v in runner.model.state_dict().items())


def test_fetched_once_with_progress(site: Site, capfd: pytest.CaptureFixture) -> None:
    trained = randomise(FastViT("t8"))
    url = site.put("/t8.pth?version=1", trained.state_dict())
    for _ in range(2):
        model = FastViT("t8", init_cfg=dict(type="Pretrained", checkpoint=url))
        model.init_weights()
        assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())
    assert site.sent.total() == 1 and kept() == [cached_path(url)]
    said = capfd.readouterr().err
    assert said.count(f"Fetching {url}") == 1 and "100%" in said


def test_files_of_one_name_are_not_confused(site: Site) -> None:
    """Each repository of Hugging Face has a model.safetensors."""
    for i in range(2):
        url = site.put(f"/{i}/model.pth", {"a": torch.tensor(i)})
        assert read_content(url) == {"a": torch.tensor(i)}
    # torch.hub's place, where torchvision and mmengine may have left it.
    url = site.put("/a/resnet-01234567.pth", {"a": torch.ones(2)})
    assert torch.equal(torch.hub.load_state_dict_from_url(url)["a"], torch.ones(2))
    read_content(url)
    assert site.sent["/a/resnet-01234567.pth"] == 1


def test_names_stand_for_urls(site: Site) -> None:
    url = url_of("torchvision://resnet50")
    # As torchvision's own ResNet50_Weights.IMAGENET1K_V1 and torch.hub have it.
    assert url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert cached_path(url) == Path(torch.hub.get_dir(), "checkpoints/resnet50-0676ba61.pth")
    assert url_of("timm://fastvit_t8.apple_in1k") == "timm://fastvit_t8.apple_in1k"


@pytest.mark.parametrize("format", ["zip", "legacy", "safetensors"])
def test_cut_connection_leaves_nothing(format: str, site: Site) -> None:
    tensors, file = {"a": torch.arange(50_000.0)}, Path("whole")
    if format == "safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file, _use_new_zipfile_serialization=format == "zip")
    url = site.put("/weights", file)
    for length in (5, 150_000):
        site.cut = {"/weights": length}
        with pytest.raises(
            (ValueError, ConnectionError), match=f"{url} .*(truncated|fetched)"
        ) as error:
            read_content(url)
        assert "\n" not in str(error.value) and not kept()
    site.cut = {}
    assert torch.equal(read_content(url)["a"], tensors["a"])


def test_damaged_copy_is_named(site: Site) -> None:
    url = site.put("/a.pth", {"a": torch.ones(9)})
    read_content(url)
    cached_path(url).write_bytes(b"\x80\x02)")
    with pytest.raises(ValueError, match=rf"{url} \(its copy {cached_path(url)}\) cannot be read"):
        read_content(url)


def test_no_such_file_or_server(site: Site) -> None:
    closed = Site()
    closed.server.server_close()
    for url, reason in (
        (f"{site.url}/none.pth", "404"), (f"{closed.url}/a.pth", "efused"), ("http:///a.pth", ""),
        ("http://127.0.0.1:port/a.pth", "port"),
    ):  # fmt: skip
        with pytest.raises(ConnectionError, match=f"{url} could not be fetched .*{reason}") as e:
            read_content(url)
        assert "\n" not in str(e.value) and "give its path" in str(e.value) and not kept()


RANK = """
import sys
import torch.distributed as dist
from fastvit_dense.io.weights import read_content
dist.init_process_group("gloo")
for url in sys.argv[1:]:
    try:
        print(read_content(url)["a"].sum().item())
    except ConnectionError as error:
        print(error)
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="gloo as on Linux")
def test_two_processes_fetch_once(site: Site) -> None:
    url = site.put("/a.pth", {"a": torch.ones(9)})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, f"{site.url}/none.pth", url],
            env={
                **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29611", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in processes:
        try:
            failed, loaded = process.communicate(timeout=100)[0].splitlines()
        finally:
            process.kill()
        assert "404" in failed and loaded == "9.0"
    assert site.sent["/a.pth"] == 1


# ---- files that timm and Hugging Face have


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(1)
    return randomise(timm.create_model("fastvit_t8")).eval()


def backbone_from(checkpoint: str) -> dict[str, torch.Tensor]:
    model = FastViT("t8")
    assert load_pretrained(model, checkpoint).format == "timm"
    return model.state_dict()


@pytest.mark.parametrize("name", ["model.safetensors", "5f3e9a"])
def test_safetensors(name: str, classifier: nn.Module, site: Site) -> None:
    """Hugging Face's cache keeps the content under a name without a suffix."""
    save_file(classifier.state_dict(), name, metadata={"format": "pt"})
    torch.save(classifier.state_dict(), "model.pth")
    expected = backbone_from("model.pth")
    assert expected["stages.0.blocks.0.mlp.fc1.weight"].std() > 0
    for checkpoint in (name, site.put(f"/resolve/main/{name}", Path(name))):
        found = backbone_from(checkpoint)
        assert all(torch.equal(v, expected[k]) for k, v in found.items())
    half = read_content(name, map_location="meta")
    assert {v.device.type for v in half.values()} == {"meta"}
    linear = nn.Linear(3, 2)
    save_file(linear.state_dict(), name)
    other = nn.Linear(3, 2)
    load_checkpoint(other, name)
    assert torch.equal(other.weight, linear.weight)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:-1],
        lambda c: c + b"\0",
        lambda c: c[:5],
        lambda c: b"",
        lambda c: b"\xff" * 8 + c[8:],
        lambda c: c[:8] + b"[" + c[9:],
        lambda c: c.replace(b'"F32"', b'"F33"', 1),
        lambda c: c.replace(b"[2,3]", b"[9,9]", 1),
        lambda c: b"<html>no such repository</html>",
        lambda c: pickle.dumps(HOSTILE["meta"], protocol=2),
    ],
)
def test_damaged_safetensors(damage: Callable, site: Site) -> None:
    save_file(nn.Linear(3, 2).state_dict(), "a.safetensors")
    content = Path("a.safetensors").read_bytes()
    assert damage(content) != content
    Path("a.safetensors").write_bytes(damage(content))
    with pytest.raises(
        ValueError, match="a.safetensors cannot be read, .*(Safetensor|ends)"
    ) as error:
        read_content("a.safetensors")
    assert "\n" not in str(error.value)


def save_as_timm(classifier: nn.Module, args: Any) -> str:
    """By timm's own saver, with the arguments of its training script."""
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(classifier, optimizer, args=args, model_ema=classifier)
    saver.save_checkpoint(3, metric=71.5)
    return "model_best.pth.tar"


def test_training_arguments_beside_the_weights(classifier: nn.Module, site: Site) -> None:
    args = argparse.Namespace(
        model="fastvit_t8", lr=1e-3, opt_betas=None, mean=(0.5, 0.5), model_kwargs={"drop": 0.1}
    )
    path = save_as_timm(classifier, args)
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):
        torch.load(path, weights_only=True)
    torch.save(classifier.state_dict(), "model.pth")
    expected = backbone_from("model.pth")
    with torch.serialization.safe_globals(
        [argparse.Namespace]
    ):  # as timm reads it, and then takes it back
        torch.load(path, weights_only=True)
    for checkpoint in (path, site.put("/model_best.pth.tar", Path(path))):
        found = backbone_from(checkpoint)
        assert all(torch.equal(v, expected[k]) for k, v in found.items())
        assert read_content(checkpoint)["args"] == args
    with pytest.raises(pickle.UnpicklingError):  # allowed for that reading alone
        torch.load(path, weights_only=True)


class Custom:
    model = "fastvit_t8"


class Lookup(Custom):
    """Its pickle makes a Namespace and sets the class of that."""

    def __reduce__(self) -> tuple:
        return argparse.Namespace, (), (None, {"__class__": Custom})


@pytest.mark.parametrize(
    "args",
    [
        argparse.Namespace(model="x", lr=Payload()),
        argparse.Namespace(model="x", nested=argparse.Namespace(a=[Payload()])),
        argparse.Namespace(model=nn.Linear(1, 1)),
        argparse.Namespace(model="x", path=Path("x")),
        argparse.Namespace(model="x", call=os.system),
        Lookup(),
        Custom(),
    ],
)
def test_hostile_arguments(args: Any, classifier: nn.Module, site: Site) -> None:
    path = save_as_timm(classifier, args)
    with pytest.raises(ValueError, match=f"{path} holds more than plain data"):
        load_pretrained(FastViT("t8"), path)


def test_a_namespace_is_inert(site: Site) -> None:
    """Whatever it is filled with are attributes, not methods."""

    class Filled:
        def __reduce__(self) -> tuple:
            names = ("__class__", "__setstate__", "__eq__", "__del__", "__call__", "__getattr__")
            return argparse.Namespace, (), dict.fromkeys(names, torch.Size)

    torch.save({"a": torch.ones(1), "args": Filled()}, "a.pth")
    args = read_content("a.pth")["args"]
    assert type(args) is argparse.Namespace and not callable(args)


# ---- timm's hub


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub at an address that nobody listens at; returns its empty cache."""
    closed = Site()
    closed.server.server_close()
    monkeypatch.setenv("no_proxy", "*")
    for name, value in (
        ("ENDPOINT", closed.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", closed.url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", str(tmp_path)),
    ):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    return tmp_path


def test_timm_without_a_network_fails_soon(no_network: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="not in the local cache, and http://127.*HF_HOME"):
        read_content("timm://fastvit_t8.apple_in1k")
    assert time.perf_counter() - start < 5


def test_timm_without_a_network_reads_the_hubs_cache(
    no_network: Path, classifier: nn.Module
) -> None:
    """Laid out as huggingface_hub documents it ("Understand caching")."""
    folder, commit = no_network / "models--timm--fastvit_t8.apple_in1k", "a" * 40
    for sub in ("refs", f"snapshots/{commit}"):
        (folder / sub).mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    save_file(classifier.state_dict(), folder / f"snapshots/{commit}/model.safetensors")
    expected = classifier.state_dict()
    content = read_content("timm://fastvit_t8.apple_in1k")
    assert content.keys() == expected.keys()
    assert all(torch.equal(content[key], value) for key, value in expected.items())


def test_what_counts_as_a_network(site: Site) -> None:
    assert _answers(site.url)  # with an error: its server knows no HEAD
    with socket.create_server(("127.0.0.1", 0)) as silent:  # slow: connected, no answer yet
        assert _answers(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.1)
    assert not _answers("http://no-such-host.invalid")
