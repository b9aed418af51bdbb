"""Two processes: stopped together when one is told, resumed exactly, and not waiting for a lost one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_resume import assert_same_end, last
from toy_training import KILL_AT, STOP_AT, STOP_VAL_AT, write_config

from fastvit_dense.engine.preemption import PREEMPTED

PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


def train(config: Path, work_dir: Path, port: int, *extra: str, **rank_1: str) -> list[int]:
    """Train with two processes; `rank_1` are variables of the second. Returns both exit statuses."""
    processes = []
    for rank in (0, 1):
        env = {
            **os.environ, "PYTHONPATH": PYTHONPATH, "RANK": str(rank),
            "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **(rank_1 if rank else {}),
        }  # fmt: skip
        with (work_dir.parent / f"{work_dir.name}_{rank}.log").open("a") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "tools/train.py", str(config), "--work-dir", str(work_dir),
                     "--launcher", "pytorch", *extra, "--cfg-options", "randomness.seed=3"],
                    cwd=ROOT, env=env, stdout=log, stderr=log,
                )
            )  # fmt: skip
    try:
        return [process.wait(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="signals and gloo as on Linux")
def test_one_is_told_both_stop(tmp_path: Path) -> None:
    config = write_config(tmp_path / "toy.py", by_epoch=True, epochs=4)
    assert train(config, tmp_path / "whole", 29601) == [0, 0]
    text = (tmp_path / "whole_0.log").read_text()
    status = train(config, tmp_path / "parts", 29602, **{STOP_AT: "5"})
    assert status == [PREEMPTED, PREEMPTED]
    assert last(tmp_path / "parts")["meta"]["iter"] == 5
    assert len(last(tmp_path / "parts")["random_states"]) == 2
    # Then in the validation after two epochs.
    status = train(config, tmp_path / "parts", 29607, "--resume", **{STOP_VAL_AT: "1"})
    assert status == [PREEMPTED, PREEMPTED]
    assert last(tmp_path / "parts")["meta"]["iter"] == 6
    assert train(config, tmp_path / "parts", 29603, "--resume") == [0, 0]
    assert_same_end(tmp_path / "whole", tmp_path / "parts", iterations=12)
    assert "mmcv operators" in text


def test_both_validate_the_model_that_is_saved(tmp_path: Path) -> None:
    config = write_config(tmp_path / "toy.py", by_epoch=True, epochs=4)
    with config.open("a") as file:
        file.write('custom_hooks = [dict(type="ValidatedStatistics")]\n')
    assert train(config, tmp_path / "run", 29606) == [0, 0]
    first, second = (torch.load(tmp_path / "run" / f"validated_4_{rank}.pth") for rank in (0, 1))
    assert not torch.allclose(first["trained"], second["trained"], rtol=1e-3)
    assert torch.equal(first["validated"], first["trained"])
    assert torch.equal(second["validated"], first["trained"])
    saved = torch.load(tmp_path / "run" / "best_score_epoch_4.pth")["state_dict"]
    assert torch.equal(first["validated"][0], saved["norm.running_mean"])
    assert torch.equal(first["validated"][1], saved["norm.running_var"])


def test_a_lost_one_ends_the_other(tmp_path: Path) -> None:
    config = write_config(tmp_path / "toy.py", by_epoch=True, epochs=4)
    start = time.monotonic()
    status = train(config, tmp_path / "run", 29604, **{KILL_AT: "4"})
    assert status[1] == -9 and status[0] not in (0, PREEMPTED)
    assert time.monotonic() - start < 60
    log = (tmp_path / "run_0.log").read_text()
    assert "Error" in log.splitlines()[-1] or "closed by peer" in log


@pytest.mark.parametrize(
    ("launcher", "rank_is", "count_is", "local_is"),
    [
        ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        ("mpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ],
)
def test_variables_of_launchers(
    tmp_path: Path, launcher: str, rank_is: str, count_is: str, local_is: str
) -> None:
    config = write_config(tmp_path / "toy.py", by_epoch=True, epochs=4)
    processes = []
    for rank in (0, 1):
        env = {
            **os.environ, "PYTHONPATH": PYTHONPATH, rank_is: str(rank), local_is: str(rank),
            count_is: "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29605", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = ["tools/train.py", config, "--work-dir", tmp_path / "run", "--launcher", launcher]
        processes.append(subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=env))
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    assert last(tmp_path / "run")["meta"]["iter"] == 12
