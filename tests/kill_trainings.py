"""Kill a small training with SIGKILL at random moments, resume it each time, compare its end.

python tests/kill_trainings.py --kills 25

Exit status 1 when a resume fails, last_checkpoint names a file that is not whole, or the final weights
are not, bit by bit, those of the run that was never killed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from toy_training import BEGUN, STOP_AT, write_config
from tqdm import tqdm

import fastvit_dense  # noqa: F401  (what checkpoints may hold)
from fastvit_dense.engine.models import read_checkpoint
from fastvit_dense.io.files import UNFINISHED

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
WIDTH = 16_000  # 4 M weights, with their averages and optimizer states 66 MB: saving takes part of the time


def start(config: Path, work_dir: Path, begun: Path) -> subprocess.Popen:
    """Start, or go on with, the training."""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH, BEGUN: str(begun), STOP_AT: "0"}
    begun.unlink(missing_ok=True)
    command = [
        sys.executable,
        "tools/train.py",
        str(config),
        "--work-dir",
        str(work_dir),
        "--resume",
    ]
    log = (work_dir.parent / f"{work_dir.name}.log").open("ab")
    return subprocess.Popen(
        [*command, "--cfg-options", "randomness.seed=3"],
        cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finish(config: Path, work_dir: Path, begun: Path) -> dict[str, torch.Tensor]:
    """Train to the end; the final weights."""
    if start(config, work_dir, begun).wait():
        log = work_dir.parent / f"{work_dir.name}.log"
        raise SystemExit(f"the training failed:\n{log.read_text()[-3000:]}")
    return read_checkpoint((work_dir / "last_checkpoint").read_text())["state_dict"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--width", type=int, default=WIDTH, help="of the model; sets a save's time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(
            folder / "toy.py", by_epoch=False, workers=2, interval=1, width=args.width
        )
        iterations = 40 + 10 * args.kills
        with config.open("a") as file:
            print(f"train_cfg.update(max_iters={iterations}, val_interval={iterations})", file=file)
        begun = folder / "begun"
        clock = time.perf_counter()
        expected = finish(config, folder / "whole", begun)
        seconds = time.perf_counter() - clock
        most = 8 * seconds / iterations  # some die in their first iteration, some after several
        saving = moments = 0
        for _ in tqdm(range(args.kills), unit="kill"):
            process = start(config, folder / "killed", begun)
            while not begun.exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, most))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                moments += 1
            process.wait()
            saving += bool(list((folder / "killed").glob(f"*{UNFINISHED}")))
            last = folder / "killed" / "last_checkpoint"
            if last.exists():
                read_checkpoint(last.read_text())
        found = finish(config, folder / "killed", begun)
        same = found.keys() == expected.keys() and all(
            torch.equal(v, found[k]) for k, v in expected.items()
        )
        log = (folder / "killed.log").read_text()
    print(
        f"{moments} of {args.kills} kills met the training, {saving} of them while a file was being "
        f"written; {log.count('resumed epoch')} resumes; final weights "
        f"{'equal those of the run never killed' if same else 'DIFFER'}"
    )
    return not same


if __name__ == "__main__":
    sys.exit(main())
