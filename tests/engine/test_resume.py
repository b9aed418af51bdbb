"""A training that was stopped and resumed is, value by value, the one that never was."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.fileio import LocalBackend
from toy_training import BEGUN, STOP_AT, STOP_VAL_AT, write_config

from fastvit_dense.engine.hooks import SafeCheckpointHook
from fastvit_dense.engine.models import read_checkpoint
from fastvit_dense.engine.preemption import PREEMPTED
from fastvit_dense.engine.resume import SeededDataset, SeededIndex, find_checkpoint
from fastvit_dense.io.files import atomic_write


def train(
    config: Path,
    work_dir: Path,
    *extra: str,
    stop_at: int = 0,
    stop_val_at: int = 0,
    status: int = 0,
) -> str:
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        STOP_AT: str(stop_at),
        STOP_VAL_AT: str(stop_val_at),
    }
    env.pop(BEGUN, None)
    done = subprocess.run(
        [sys.executable, "tools/train.py", str(config), "--work-dir", str(work_dir), *extra,
         "--cfg-options", "randomness.seed=3"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert done.returncode == status, text[-4000:]
    return text


def losses(work_dir: Path) -> dict[int, tuple[float, float, float]]:
    """Loss terms and learning rate by iteration, of all runs in a folder."""
    found = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "loss" in entry:
                found[entry["iter"]] = (entry["loss_a"], entry["loss_b"], entry["lr"])
    return found


def validated(work_dir: Path) -> list[int]:
    """Epoch or iteration of each validation that came to its end."""
    lines = "".join(f.read_text() for f in sorted(work_dir.glob("*/vis_data/scalars.json")))
    return [entry["step"] for entry in map(json.loads, lines.splitlines()) if "score" in entry]


def last(work_dir: Path) -> dict:
    return read_checkpoint((work_dir / "last_checkpoint").read_text())


def assert_same_end(one: Path, other: Path, *, iterations: int = 48) -> None:
    a, b = last(one), last(other)
    for part in ("state_dict", "ema_state_dict"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(v, b[part][k]) for k, v in a[part].items()), part
    assert losses(one) == losses(other) and len(losses(one)) == iterations
    for x, y in zip(a["random_states"], b["random_states"], strict=True):
        assert torch.equal(x["torch"], y["torch"]) and torch.equal(x["numpy"][1], y["numpy"][1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings that nothing happened to: epochs/run, and iterations/run of two batches a step."""
    folder = tmp_path_factory.mktemp("whole")
    for name, options in (
        ("epochs", dict(by_epoch=True)),
        ("iterations", dict(by_epoch=False, accumulate=2)),
    ):
        config = write_config(folder / f"{name}.py", **options)
        write_config(folder / f"{name}_workers.py", workers=2, **options)
        train(config, folder / name)
    return folder


def test_epochs_stopped_twice(folder: Path, tmp_path: Path) -> None:
    # In the middle of an epoch, later at the end of one; then with workers, which changes nothing.
    config = folder / "epochs.py"
    text = train(config, tmp_path, stop_at=15, status=PREEMPTED)
    assert "stopped by SIGTERM after iteration 15" in text
    assert last(tmp_path)["meta"]["iter"] == 15
    train(config, tmp_path, "--resume", stop_at=15, status=PREEMPTED)
    assert last(tmp_path)["meta"]["iter"] == 30
    train(folder / "epochs_workers.py", tmp_path, "--resume")
    assert_same_end(folder / "epochs", tmp_path)
    kept = {p.name for p in tmp_path.glob("*.pth")}
    assert kept == {"epoch_7.pth", "epoch_8.pth", "best_score_epoch_8.pth"}
    assert kept == {p.name for p in (folder / "epochs").glob("*.pth")}


def test_iterations_stopped_with_gradients_half_accumulated(folder: Path, tmp_path: Path) -> None:
    text = train(folder / "iterations_workers.py", tmp_path, stop_at=15, status=PREEMPTED)
    assert "stopped by SIGTERM after iteration 16" in text
    train(folder / "iterations.py", tmp_path, "--resume")
    assert_same_end(folder / "iterations", tmp_path)


@pytest.mark.parametrize("name", ["epochs", "iterations"])
def test_stopped_in_a_validation(folder: Path, tmp_path: Path, name: str) -> None:
    config = folder / f"{name}.py"
    text = train(
        config, tmp_path, stop_val_at=3, status=PREEMPTED
    )  # the second, at its first batch
    assert "stopped by SIGTERM after iteration 24" in text
    assert last(tmp_path)["meta"]["iter"] == 24
    if name == "epochs":  # then the same one once more
        text = train(config, tmp_path, "--resume", stop_val_at=1, status=PREEMPTED)
        assert "stopped by SIGTERM after iteration 24" in text
    train(config, tmp_path, "--resume")
    assert_same_end(folder / name, tmp_path)
    assert validated(tmp_path) == validated(folder / name) and len(validated(tmp_path)) == 4


def test_newest_is_broken(folder: Path, tmp_path: Path) -> None:
    work_dir = shutil.copytree(folder / "epochs", tmp_path / "run")
    newest = work_dir / "epoch_8.pth"
    (work_dir / "last_checkpoint").write_text(str(newest))
    newest.write_bytes(newest.read_bytes()[:5000])
    (work_dir / "epoch_9.pth.unfinished").write_bytes(b"half")
    text = train(folder / "epochs.py", work_dir, "--resume")
    assert "not from" in text and "epoch_8.pth" in text and "truncated" in text
    assert "resumed epoch: 7, iter: 42" in text and last(work_dir)["meta"]["epoch"] == 8
    assert not (work_dir / "epoch_9.pth.unfinished").exists()
    assert_same_end(folder / "epochs", work_dir)

    for path in work_dir.glob("epoch_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 checkpoints"):
        find_checkpoint(work_dir)
    assert find_checkpoint(tmp_path) is None


def test_nan_stops_with_names_and_keeps_checkpoints(folder: Path, tmp_path: Path) -> None:
    work_dir = shutil.copytree(folder / "iterations", tmp_path / "run")
    (work_dir / "last_checkpoint").write_text(str(work_dir / "iter_48.pth"))
    config = tmp_path / "poisoned.py"
    config.write_text(
        (folder / "iterations.py").read_text()
        + 'train_dataloader["dataset"]["poison"] = 5\ntrain_cfg["max_iters"] = 70\n'
    )
    text = train(config, work_dir, "--resume", status=2)
    assert "is not finite: loss nan, loss_a nan, loss_b nan" in text and "image_5.jpg" in text
    assert last(work_dir)["meta"]["iter"] >= 48
    for path in work_dir.glob("*.pth"):
        weights = read_checkpoint(str(path))["state_dict"].values()
        assert all(torch.isfinite(v).all() for v in weights)


@pytest.fixture
def hook(tmp_path: Path) -> SafeCheckpointHook:
    hook = SafeCheckpointHook(interval=1, max_keep_ckpts=1, filename_tmpl="step_{}.pth")
    hook.out_dir, hook.keep_ckpt_ids = str(tmp_path), deque([1], 1)
    hook.last_ckpt = str(tmp_path / "step_1.pth")
    hook.file_backend = LocalBackend()
    return hook


@pytest.mark.parametrize("final", [False, True])
def test_disk_full(hook: SafeCheckpointHook, tmp_path: Path, final: bool) -> None:
    (tmp_path / "step_1.pth").write_bytes(b"complete")
    (tmp_path / "last_checkpoint").write_text(hook.last_ckpt)
    runner = MagicMock(work_dir=str(tmp_path), iter=4, max_iters=5 if final else 9)

    def save(out_dir: str, name: str, **_: object) -> None:
        with atomic_write(Path(out_dir, name)) as aside:
            aside.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    runner.save_checkpoint.side_effect = save
    if final:
        with pytest.raises(OSError, match="No space left"):
            hook._save_checkpoint_with_step(runner, 2, {})
    else:
        hook._save_checkpoint_with_step(runner, 2, {})
        message = runner.logger.error.call_args.args[0]
        assert "step_2.pth could not be saved" in message and "No space left" in message
        assert hook.last_ckpt.endswith("step_1.pth") and list(hook.keep_ckpt_ids) == [1]
    assert (tmp_path / "step_1.pth").read_bytes() == b"complete"
    assert (tmp_path / "last_checkpoint").read_text().endswith("step_1.pth")
    assert {p.name for p in tmp_path.iterdir()} == {"step_1.pth", "last_checkpoint"}

    runner.save_checkpoint.side_effect = lambda out_dir, name, **_: Path(out_dir, name).touch()
    hook._save_checkpoint_with_step(runner, 3, {})
    assert {p.name for p in tmp_path.iterdir()} == {"step_3.pth", "last_checkpoint"}


def test_killed_trainings() -> None:
    done = run_tool("tests/kill_trainings.py", "--kills", "1", "--width", "500")
    assert "1 of 1 kills met the training" in done and "equal those of the run never killed" in done


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow(tmp_path: Path) -> None:
    config = write_config(tmp_path / "toy.py", by_epoch=False, interval=500, workers=1)
    config.write_text(
        config.read_text() + "train_cfg.update(max_iters=2000, val_interval=500)\n"
        'custom_hooks.append(dict(type="ResidentMemory"))\n'
    )
    train(config, tmp_path / "run")
    memory = [int(line) for line in (tmp_path / "run" / "memory.txt").read_text().split()]
    assert len(memory) == 20 and max(memory[10:]) <= 1.02 * max(memory[3:10])


class Noise:
    """Random numbers of all three generators, as transforms of images take them."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_reading_an_image_leaves_all_random_states_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the state of a CUDA device was asked for or set")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        for suffix in ("", "_all"):
            monkeypatch.setattr(torch.cuda, name + suffix, refuse)
    noise, data = Noise(), SeededDataset(Noise())
    for seed in (random.seed, np.random.seed, torch.default_generator.manual_seed):
        seed(7)
    first = noise[0]
    for seed in (random.seed, np.random.seed, torch.default_generator.manual_seed):
        seed(7)
    seeded = [data[SeededIndex(0, seed)] for seed in (1, 2, 1)]
    assert seeded[0] == seeded[2] and not set(seeded[0]) & set(seeded[1])
    assert noise[0] == first
