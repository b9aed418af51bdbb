"""Checks of configs and messages that need no training."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.config import Config

from fastvit_dense.engine.config import batch_message, check_launcher, enable_amp, load_config
from fastvit_dense.engine.runner import Runner

SA12 = str(ROOT / "configs/det/mask-rcnn_fastvit-sa12_fpn_1x_coco.py")


def test_no_such_config() -> None:
    with pytest.raises(FileNotFoundError, match="'nowhere.py' does not exist"):
        load_config("nowhere.py")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("modle.backbone.arch", "has no 'modle'; did you mean 'model'"),
        ("train_cgf.max_epochs", "did you mean 'train_cfg'"),
        ("zzz", "has no 'zzz'$"),
    ],
)
def test_misspelt_override(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(SA12, {key: 1})


def test_override_and_work_dir() -> None:
    cfg = load_config(SA12, {"train_cfg.max_epochs": 3, "load_from": "x.pth"})
    assert cfg.train_cfg.max_epochs == 3 and cfg.load_from == "x.pth"
    assert cfg.work_dir == "work_dirs/mask-rcnn_fastvit-sa12_fpn_1x_coco"
    assert load_config(SA12, work_dir="here").work_dir == "here"


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluator_reads_other_annotations(split: str) -> None:
    with pytest.raises(ValueError, match=f"{split}_evaluator.ann_file is .*--data-root"):
        load_config(SA12, {f"{split}_dataloader.dataset.data_root": "elsewhere/"})


@pytest.mark.parametrize(
    ("processes", "batch", "accumulate", "enable", "message"),
    [
        (
            8,
            2,
            1,
            False,
            "8 processes x 2 images = 16 images per step, as in the recipe; lr 0.0002",
        ),
        (
            1,
            2,
            8,
            False,
            "1 processes x 2 images x 8 accumulated steps = 16 images per step, as in",
        ),
        (1, 2, 1, False, "scales it to 2.5e-05; optim_wrapper.accumulative_counts=8 keeps it"),
        (4, 2, 1, True, "8 images per step, recipe 16; lr scaled linearly from 0.0002 to 0.0001"),
        (2, 4, 2, True, "16 images per step, recipe 16; lr scaled linearly from 0.0002 to 0.0001"),
        (2, 16, 1, False, "scales it to 0.0004; train_dataloader.batch_size=8 keeps it."),
        (
            2,
            4,
            4,
            False,
            "lr=0.0004 is in proportion; optim_wrapper.accumulative_counts=2 keeps it.",
        ),
        (32, 2, 1, False, "is meant for 16. --auto-scale-lr scales it to 0.0008."),
        (3, 2, 1, False, "is meant for 16. --auto-scale-lr scales it to 7.5e-05."),
    ],
)
def test_batch_message(
    processes: int, batch: int, accumulate: int, enable: bool, message: str
) -> None:
    cfg = Config(
        dict(
            auto_scale_lr=dict(enable=enable, base_batch_size=16),
            train_dataloader=dict(batch_size=batch),
            optim_wrapper=dict(optimizer=dict(lr=2e-4), accumulative_counts=accumulate),
        )
    )
    assert message in batch_message(cfg, processes)


def test_what_keeps_the_rate_keeps_the_batch() -> None:
    kept = 0
    for processes, batch, steps in itertools.product(range(1, 20), range(1, 20), range(1, 4)):
        cfg = Config(
            dict(
                auto_scale_lr=dict(base_batch_size=16),
                train_dataloader=dict(batch_size=batch),
                optim_wrapper=dict(optimizer=dict(lr=2e-4), accumulative_counts=steps),
            )
        )
        advice = re.search(r"(\S+)=(\d+) keeps it", batch_message(cfg, processes))
        if advice:
            kept += 1
            cfg.merge_from_dict({advice[1]: int(advice[2])})
            assert "as in the recipe" in batch_message(cfg, processes)
            wrapper, loader = cfg.optim_wrapper, cfg.train_dataloader
            assert processes * loader.batch_size * wrapper.accumulative_counts == 16
    assert kept > 100


@pytest.mark.parametrize(
    ("launcher", "given", "message"),
    [
        ("none", dict(RANK="0", WORLD_SIZE="2"), "one of 2 processes.*add --launcher pytorch"),
        ("pytorch", {}, "RANK, WORLD_SIZE, MASTER_ADDR not set.*: torchrun --nproc_per_node N"),
        ("pytorch", dict(RANK="0", WORLD_SIZE="2"), "pytorch: MASTER_ADDR not set"),
        ("slurm", dict(SLURM_NTASKS="8"), "SLURM_PROCID, SLURM_LOCALID not set.*slurm_train.sh"),
        ("mpi", {}, "OMPI_COMM_WORLD_RANK.*: mpirun -np N -x MASTER_ADDR=HOST python"),
    ],
)
def test_refused_launcher(
    monkeypatch: pytest.MonkeyPatch, launcher: str, given: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(os, "environ", given)
    with pytest.raises(ValueError, match=message) as error:
        check_launcher(launcher)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("launcher", "given", "local_rank"),
    [
        ("none", {}, None),
        (
            "none",
            dict(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0"),
            "0",
        ),  # torchrun --nproc_per_node 1
        ("none", dict(WORLD_SIZE="2"), None),  # left over in a shell
        ("none", dict(SLURM_NTASKS="8", SLURM_PROCID="0"), None),  # srun --pty bash
        ("pytorch", dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="host"), "1"),
        ("slurm", dict(SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0"), "1"),
    ],
)
def test_launcher(
    monkeypatch: pytest.MonkeyPatch, launcher: str, given: dict[str, str], local_rank: str | None
) -> None:
    monkeypatch.setattr(os, "environ", given)
    check_launcher(launcher, local_rank=1)
    assert given.get("LOCAL_RANK") == local_rank


@pytest.mark.parametrize("tool", ["train", "test"])
def test_tools_refuse_torchrun_without_launcher(tmp_path: Path, tool: str) -> None:
    checkpoint = ["x.pth"] if tool == "test" else []
    text = run_tool(f"tools/{tool}.py", SA12, *checkpoint, "--work-dir", tmp_path / "run",
                    fails=True, RANK=0, WORLD_SIZE=2)  # fmt: skip
    assert text.startswith(f"{tool}: this is one of 2 processes") and text.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_no_message_without_a_recipe() -> None:
    assert batch_message(Config(dict(train_dataloader=dict(batch_size=1))), 1) == ""


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ("cuda", dict(type="AmpOptimWrapper", loss_scale="dynamic")),
        ("cpu", dict(type="CPUAmpOptimWrapper")),
    ],
)
def test_amp_by_device(device: str, wanted: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmengine.device.utils.DEVICE", device)
    cfg = Config(dict(optim_wrapper=dict(type="OptimWrapper")))
    enable_amp(cfg)
    assert cfg.optim_wrapper.to_dict() == wanted


@pytest.mark.parametrize("device", ["mps", "npu"])
def test_no_amp_on_other_devices(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmengine.device.utils.DEVICE", device)
    cfg = Config(dict(optim_wrapper=dict(type="OptimWrapper")))
    message = rf"--amp: expected cuda \(float16\) or cpu \(bfloat16\).* on {device}.*without --amp"
    with pytest.raises(ValueError, match=message):
        enable_amp(cfg)
    assert cfg.optim_wrapper.type == "OptimWrapper"


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(channels_last: bool, tmp_path: Path) -> None:
    cfg = Config(dict(channels_last=channels_last, experiment_name=f"format {channels_last}"))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3))
    runner = Runner(
        model=model, work_dir=str(tmp_path), cfg=cfg, experiment_name=cfg.experiment_name
    )
    out = runner.model(torch.randn(2, 3, 9, 9))
    assert out.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_operators_under_cpu_autocast() -> None:
    code = """
import torch
from mmengine.config import Config
from mmengine.device import utils
from fastvit_dense.engine.config import enable_amp
utils.DEVICE = "cpu"
enable_amp(Config(dict(optim_wrapper=dict(type="OptimWrapper"))))
from mmcv.ops import batched_nms, roi_align
boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [9, 9, 16, 16]])
scores, maps = torch.tensor([0.5, 0.75, 0.25]).bfloat16(), torch.randn(1, 2, 16, 16).bfloat16()
_, keep = batched_nms(boxes, scores, torch.zeros(3), dict(iou_threshold=0.5))
assert keep.tolist() == [1, 2]
maps.requires_grad_()
pooled = roi_align(maps, torch.tensor([[0.0, 2, 2, 12, 12]]), 3)
assert pooled.dtype == torch.bfloat16
expected = roi_align(maps.float(), torch.tensor([[0.0, 2, 2, 12, 12]]), 3).bfloat16()
torch.testing.assert_close(pooled, expected)
pooled.sum().backward()
assert maps.grad.dtype == torch.bfloat16
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
