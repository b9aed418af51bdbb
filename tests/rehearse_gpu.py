"""Everything that a GPU has to show, on a GPU: correctness first, then figures. Also `make test-gpu`.

python tests/rehearse_gpu.py
python tests/rehearse_gpu.py --wheels FOLDER --part correctness --out rehearsal

Nothing has to be set up where torch, torchvision and timm are installed and FOLDER holds the wheels of the
other packages (docs/gpu.md). Three parts: correctness, speed, accuracy, each of under 9 minutes. Every step
is a process of its own, with its output in OUT; one that fails does not keep the others from running. The
results are in OUT/gpu.md. With --device cpu the same steps run without a GPU, smaller, to see that they
work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# What is imported, and the package's name where it is another. The first three have to be installed.
PACKAGES = {
    "torch": "", "torchvision": "", "timm": "", "mmengine": "", "mmcv": "mmcv-lite", "mmdet": "",
    "mmseg": "mmsegmentation", "pycocotools": "", "pkg_resources": "setuptools", "addict": "", "yapf": "",
    "platformdirs": "", "termcolor": "", "terminaltables": "", "prettytable": "", "wcwidth": "",
    "shapely": "", "ftfy": "", "regex": "", "trimesh": "", "rich": "", "cv2": "opencv-python-headless",
    "scipy": "", "ijson": "", "matplotlib": "", "tensorboard": "", "tqdm": "", "onnx": "", "pytest": "",
}  # fmt: skip
ITERATIONS, WORKERS = 30, 4
STOPPED = 75  # exit status of a training that was stopped by a signal and saved
ACCURACY_MODELS = ("fastvit_sa12", "poolformer_s12", "resnet50")
# config, kind of sample data, other options of it, batch, images of a size, metric.
DEMOS = {
    "det": ("det/mask-rcnn_fastvit-t8_fpn_demo-shapes.py", "coco", ("--size", "256"), 4,
            "coco/segm_mAP_50"),
    "seg": ("seg/fpn_fastvit-t8_demo-regions.py", "ade20k", ("--size", "256"), 8, "mIoU"),
    "hand": ("hand/mano_fastvit-t8_demo-hands.py", "freihand", (), 16, "freihand/PV"),
}  # fmt: skip


# A line of result, and a block for gpu.md or nothing.
Result = tuple[str, str]
# A name, and a function with its arguments after the Rehearsal.
Step = tuple[Any, ...]


class Part(NamedTuple):
    """Some of the steps.

    Attributes:
        minutes: after which no step of it goes on.
        steps: generates them.
    """

    minutes: float
    steps: Callable[[Rehearsal], Iterator[Step]]


class Failed(Exception):
    """A step did not do what it should; the message says what came instead."""


class Rehearsal:
    """Runs steps, prints a line for each, and writes OUT/gpu.md.

    Args:
        out: folder for everything that is written.
        device: cuda, or cpu for a run in small.
    """

    def __init__(self, out: Path, device: str) -> None:
        self.out, self.device, self.small = out, device, device == "cpu"
        self.deadline = math.inf
        self.results: list[tuple[str, bool, float, str]] = []
        self.blocks: list[str] = []

    def run(self, part: Part) -> None:
        """Run all steps of a part."""
        # In small there is no hurry: a busy laptop is not to be told that a step fails.
        self.deadline = time.monotonic() + 60 * part.minutes * (10 if self.small else 1)
        for name, function, *arguments in part.steps(self):
            start = time.monotonic()
            try:
                (line, block), ok = function(self, *arguments), True
            except (Failed, OSError, LookupError, ValueError) as error:
                ok, line, block = False, f"{type(error).__name__}: {error}", ""
            seconds = time.monotonic() - start
            self.results.append((name, ok, seconds, line))
            print(f"{'ok  ' if ok else 'FAIL'} {seconds:6.1f} s  {name}: {line}", flush=True)
            if block:
                self.blocks.append(block)
            (self.out / "gpu.md").write_text(self.report(), encoding="utf-8")

    def command(self, name: str, *command: object, status: int = 0, stop_at: str = "") -> str:
        """Run a command of the project and return what it printed; it is in OUT/NAME.log, too.

        Args:
            name: of the log.
            command: after ``python``.
            status: the exit status there should be.
            stop_at: text at whose appearance the process gets SIGTERM.

        Raises:
            Failed: another exit status, or the part's time ran out.
        """
        if time.monotonic() >= self.deadline:
            raise Failed("not run: the part's time was over")
        log = self.out / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=file
            )
            try:
                while stop_at and process.poll() is None and time.monotonic() < self.deadline:
                    if stop_at in log.read_text(errors="replace"):
                        process.send_signal(signal.SIGTERM)
                        break
                    time.sleep(0.1)
                process.wait(max(self.deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                raise Failed(f"stopped: the part's time ran out; see {log}") from None
            finally:
                process.kill()
                process.wait()
        text = log.read_text(errors="replace")
        if process.returncode != status:
            last = next((s for s in reversed(text.splitlines()) if s.strip()), "no output")
            raise Failed(f"exit status {process.returncode}, not {status}: {last[:300]}; see {log}")
        return text

    def report(self) -> str:
        """What was found, as Markdown."""
        lines = [f"{describe(self.device)}", ""]
        if self.small:
            lines += ["A run in small, without a GPU: its figures mean nothing.", ""]
        lines += ["| step | | s | |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {'passes' if ok else '**fails**'} | {seconds:.0f} | {line} |"
            for name, ok, seconds, line in self.results
        ]
        return "\n".join([*lines, "", *self.blocks])


def describe(device: str) -> str:
    """Device, driver and versions, in a line."""
    import timm
    import torch
    import torchvision

    versions = (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    )
    versions += f", Python {platform.python_version()}, {datetime.date.today()}"
    if device == "cpu":
        return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads), {versions}"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return (
        f"{torch.cuda.get_device_name()} ({memory:.0f} GiB), driver {driver or 'unknown'}, CUDA "
        f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {os.cpu_count()} CPU cores, "
        + versions
    )


def scalars(work_dir: Path) -> dict[str, list[float]]:
    """What a training logged, by name, in order."""
    found: dict[str, list[float]] = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            for name, value in json.loads(line).items():
                found.setdefault(name, []).append(value)
    return found


# ---- correctness ---------------------------------------------------------------------------------


def correctness(r: Rehearsal) -> Iterator[Step]:
    """Tests, demos, signals: what has to be right before any figure counts."""
    yield "tests marked gpu", gpu_tests
    for task in DEMOS:
        yield f"{task}: sample data and config", write_demo, task
        yield f"{task}: {ITERATIONS} iterations, {WORKERS} workers, float32", train, task, False
        yield f"{task}: {ITERATIONS} iterations, {WORKERS} workers, --amp", train, task, True
        yield f"{task}: tools/test.py", test, task
    yield "SIGTERM saves, --resume goes on", stop_and_resume


def gpu_tests(r: Rehearsal) -> Result:
    """The tests marked gpu."""
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text()]
    text = r.command(
        "tests", "-m", "pytest", "-q", "-m", "gpu", "--device", r.device, "-p", "no:cacheprovider",
        *(p.relative_to(ROOT) for p in files),
    )  # fmt: skip
    return text.strip().splitlines()[-1].strip("= "), ""


def write_demo(r: Rehearsal, task: str) -> Result:
    """Sample data for one epoch of ITERATIONS, and a config that trains on it."""
    config, kind, options, batch, _ = DEMOS[task]
    data, iterations = r.out / f"data-{task}", 4 if r.small else ITERATIONS
    # Hands come in four versions each.
    images = iterations * batch // (4 if task == "hand" else 1)
    r.command(f"{task}-data", "tools/sample_data.py", kind, data, "--force", *options,
              "--train", images, "--val", batch)  # fmt: skip
    lines = [
        f"_base_ = {str(ROOT / 'configs' / config)!r}",
        f"data_root = {f'{data}/'!r}",
        "dataset = dict(data_root=data_root)",
        f"loading = dict(num_workers={WORKERS}, persistent_workers=True, dataset=dataset)",
        "train_dataloader = loading",
        "val_dataloader = loading",
        "test_dataloader = loading",
        "default_hooks = dict(logger=dict(interval=1))",
    ]
    if task == "det":
        lines += ["val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')",
                  "test_evaluator = val_evaluator"]  # fmt: skip
    if task == "seg":
        lines += [f"train_cfg = dict(max_iters={iterations}, val_interval={iterations})"]
    else:
        lines += ["train_cfg = dict(max_epochs=1, val_interval=1)"]
    (r.out / f"{task}.py").write_text("\n".join(lines) + "\n")
    return f"{iterations} batches of {batch}", ""


def train(r: Rehearsal, task: str, amp: bool) -> Result:
    """Train the demo; its losses must be finite and fall."""
    folder = r.out / (f"{task}-amp" if amp else task)
    r.command(folder.name, "tools/train.py", r.out / f"{task}.py", "--work-dir", folder,
              *(["--amp"] if amp else []))  # fmt: skip
    found = scalars(folder)
    losses = found["loss"]
    if not all(map(math.isfinite, losses)):
        raise Failed(f"losses are not finite: {losses}")
    if not r.small and statistics.mean(losses[-5:]) >= statistics.mean(losses[:5]):
        raise Failed(f"the loss does not fall: {losses}")
    metric = DEMOS[task][4]
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {metric} {found[metric][-1]:.3f}", ""


def test(r: Rehearsal, task: str) -> Result:
    """tools/test.py must give the figure that the training logged, to rounding in another order."""
    metric, folder = DEMOS[task][4], r.out / task
    checkpoint = (folder / "last_checkpoint").read_text().strip()
    r.command(f"{task}-test", "tools/test.py", r.out / f"{task}.py", checkpoint,
              "--work-dir", r.out / f"{task}-test")  # fmt: skip
    logged = scalars(folder)[metric][-1]
    files = sorted((r.out / f"{task}-test").glob("*/*.json"))
    found = json.loads(files[-1].read_text())[metric]
    if not math.isclose(found, logged, rel_tol=0.02, abs_tol=2e-3):
        raise Failed(f"{metric} {found}, in the training {logged}")
    return f"{metric} {found:.3f}, in the training {logged:.3f}", ""


def stop_and_resume(r: Rehearsal) -> Result:
    """A detection training gets SIGTERM in the middle of its epoch and is resumed to the end."""
    total = 4 if r.small else ITERATIONS
    folder, middle = r.out / "stopped", total // 2
    command = ["tools/train.py", r.out / "det.py", "--work-dir", folder]
    r.command("stopped", *command, status=STOPPED, stop_at=f"[{middle}/{total}]")
    r.command("resumed", *command, "--resume")
    resumed, whole = scalars(folder)["iter"], list(range(1, total + 1))
    # The metric's entry has no iteration of the training.
    if sorted(set(resumed) & set(whole)) != whole or len(resumed) != len(set(resumed)):
        raise Failed(f"iterations {resumed}, expected each of 1 to {total} once")
    losses = scalars(folder)["loss"][-1], scalars(r.out / "det")["loss"][-1]
    return f"last loss {losses[0]:.4f}, of the run never stopped {losses[1]:.4f}", ""


# ---- figures -------------------------------------------------------------------------------------


def speed(r: Rehearsal) -> Iterator[Step]:
    """Training steps, latency of backbones, image to mesh."""
    small = r.small
    det = (
        "det/mask-rcnn_fastvit-{}_fpn_1x_coco.py",
        "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    )
    seg = (
        "seg/fpn_fastvit-{}_8xb4-40k_ade20k-512x512.py",
        "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
    )
    hand = ("hand/mano_fastvit-{}_8xb32-200e_freihand-224x224.py",)
    arch, largest = ("t8", "t8") if small else ("sa12", "ma36")
    for name, configs, of, batch, shape in (
        ("Mask R-CNN", det, arch, 2, (128, 160) if small else (800, 1333)),
        ("Semantic FPN", seg, arch, 2 if small else 4, (128, 128) if small else (512, 512)),
        ("hand mesh", hand, largest, 2 if small else 32, (64, 64) if small else (224, 224)),
    ):
        command: list[Any] = ["tools/benchmark.py", "training"]
        command += [c if "::" in c else f"configs/{c}".format(of) for c in configs]
        command += ["--batch", batch, "--shape", *shape, "--runs", 2 if small else 20]
        for flags in [], ["--amp"], ["--amp", "--channels-last"]:
            what = " ".join([f"training step {name}", *flags])
            yield what, measured, what.replace("--", ""), [*command, *flags]
    rounds = ["--warmup", 2, "--runs", 3] if small else ["--warmup", 100, "--runs", 100]
    rounds += ["--backend", "eager", *([] if small else ["cuda-graph"])]
    for batch in (1, 2):
        command = ["tools/benchmark.py", "--arch", arch, "--against", f"fastvit_{arch}", "resnet50"]
        command += ["--batch", batch, "--dtype", "float32", *([] if small else ["float16"])]
        command += ["--shape", *((128, 128) if small else (512, 512)), *rounds]
        yield f"latency of backbones, batch {batch}", measured, f"latency {batch}", command
    command = ["tools/benchmark.py", "hand", "--arch", largest, *rounds]
    yield "image to mesh", measured, "image to mesh", command


def measured(r: Rehearsal, name: str, command: list[Any]) -> Result:
    """A benchmark, whose table goes into the report with its command."""
    command = [*command, "--device", r.device]
    text = r.command(name.replace(" ", "-").lower(), *command)
    rows = text[text.index("\n| ") :].strip()
    typed = " ".join(map(str, command))
    problems = [line for line in rows.splitlines() if "WRONG OUTPUT" in line or "fails:" in line]
    if problems:
        raise Failed(problems[0])
    table = [line for line in rows.splitlines() if line.startswith("| ")]
    return f"{len(table) - 1} rows", f"`python {typed}`\n\n{rows}\n"


def accuracy(r: Rehearsal) -> Iterator[Step]:
    """Three backbones from scratch on rendered images, at equal steps; seed by seed while time is left."""
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ACCURACY_MODELS}
    yield "rendered images", write_accuracy
    longest = 0.0
    for seed in range(1 if r.small else 3):
        if r.deadline - time.monotonic() < len(ACCURACY_MODELS) * longest:
            break
        for model in ACCURACY_MODELS:
            start = time.monotonic()
            yield f"{model} from scratch, seed {seed}", train_from_scratch, model, seed, figures
            longest = max(longest, time.monotonic() - start)
    yield "AP of backbones from scratch", accuracy_table, figures


def write_accuracy(r: Rehearsal) -> Result:
    """5,000 rendered images, and a config for each backbone that differs in the backbone alone."""
    images, data = 16 if r.small else 5000, r.out / "data-accuracy"
    r.command("accuracy-data", "tools/sample_data.py", "coco", data, "--size", 256, "--train", images,
              "--val", 8 if r.small else 300, "--seed", 1, "--force")  # fmt: skip
    arch = "t8" if r.small else "sa12"
    timm = (
        'dict(_delete_=True, type="mmseg.TIMMBackbone", features_only=True, pretrained=False, {})'
    )
    backbones = {
        "fastvit_sa12": (
            f'dict(arch="{arch}", drop_path_rate=0.0)',
            [48, 96, 192, 384] if r.small else [64, 128, 256, 512],
        ),
        "poolformer_s12": (timm.format('model_name="poolformer_s12"'), [64, 128, 320, 512]),
        "resnet50": (
            timm.format('model_name="resnet50", out_indices=(1, 2, 3, 4)'),
            [256, 512, 1024, 2048],
        ),
    }
    base = ROOT / "configs" / DEMOS["det"][0]
    batch, workers = (2, 1) if r.small else (16, 8)
    for name, (backbone, channels) in backbones.items():
        (r.out / f"accuracy-{name}.py").write_text(f"""_base_ = {str(base)!r}
custom_imports = dict(imports=["fastvit_dense", "fastvit_dense.det.coco", "mmseg.models"])
data_root = {f"{data}/"!r}
model = dict(backbone={backbone}, neck=dict(in_channels={channels}))
train_dataloader = dict(batch_size={batch}, num_workers={workers}, dataset=dict(data_root=data_root))
val_dataloader = dict(batch_size={batch}, num_workers={workers}, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={1 if r.small else 2}, val_interval={1 if r.small else 2})
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=5),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
]
""")
    return f"{images} images, batches of {batch}", ""


def train_from_scratch(
    r: Rehearsal, model: str, seed: int, figures: dict[str, list[tuple[float, float]]]
) -> Result:
    """One training; its box and mask AP go into `figures`."""
    folder = r.out / f"accuracy-{model}-{seed}"
    r.command(folder.name, "tools/train.py", r.out / f"accuracy-{model}.py", "--work-dir", folder,
              *([] if r.small else ["--amp"]), "--cfg-options", f"randomness.seed={seed}")  # fmt: skip
    found = scalars(folder)
    # Where a model detects nothing at all, mmdet's metric gives no figures.
    box, mask = (100 * found.get(f"coco/{kind}_mAP", [0.0])[-1] for kind in ("bbox", "segm"))
    figures[model].append((box, mask))
    return f"loss {found['loss'][-1]:.3f}, box AP {box:.1f}, mask AP {mask:.1f}", ""


def accuracy_table(r: Rehearsal, figures: dict[str, list[tuple[float, float]]]) -> Result:
    """Mean and range of each model's APs."""
    rows = [
        "| backbone, from scratch | seeds | box AP, synthetic | mask AP, synthetic |",
        "|---|---|---|---|",
    ]
    for model, values in figures.items():
        cells = [
            f"{statistics.mean(v):.1f} ({min(v):.1f} to {max(v):.1f})"
            for v in zip(*values, strict=True)
        ] or ["-", "-"]
        rows.append(f"| {model} | {len(values)} | {' | '.join(cells)} |")
    note = (
        "Synthetic: rendered shapes, not COCO. Mask R-CNN of the demo (64 channels) at equal steps and "
        "batches; mean and range over seeds."
    )
    return f"{min(map(len, figures.values()))} seeds of each", "\n".join([*rows, "", note, ""])


PARTS = {
    "correctness": Part(8.9, correctness),
    "speed": Part(7.5, speed),
    "accuracy": Part(8.5, accuracy),
}


def set_up(wheels: Path | None, out: Path) -> None:
    """Let all processes find the wheels, unpacked in OUT, and this checkout; refuse to go on without all.

    Raises:
        SystemExit: there are no wheels in the folder, or a package is missing.
    """
    paths = [str(ROOT)]
    if wheels is not None:
        site = out / "site"
        files = sorted(wheels.glob("*.whl"))
        if not files:
            raise SystemExit(
                f"--wheels {wheels}: there are no wheels, expected *.whl of docs/gpu.md"
            )
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
             "--no-compile", "--upgrade", "--target", str(site), *map(str, files)],
            check=True,
        )  # fmt: skip
        paths.append(str(site))
    paths += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Not in this process, whose path is older.
    code = (
        "import sys; from importlib.util import find_spec; "
        "print(*[n for n in sys.argv[1:] if not find_spec(n)])"
    )
    missing = subprocess.run(
        [sys.executable, "-c", code, *PACKAGES], capture_output=True, text=True, check=True
    ).stdout.split()
    if missing:
        names = " ".join(PACKAGES[name] or name for name in missing)
        raise SystemExit(
            f"rehearse_gpu: not installed, nor among the wheels: {names}. Fetch them where there is a "
            "network, for this Python, and name the folder with --wheels (docs/gpu.md):\n"
            f"pip download --no-deps --only-binary :all: -c requirements/lock.txt -d FOLDER {names}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels to unpack and use")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/rehearsal"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    set_up(args.wheels, out)

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"rehearse_gpu: torch {torch.__version__} sees no CUDA device. Look at nvidia-smi and at which "
            "CUDA this torch is built for, or try the steps in small with --device cpu."
        )
    rehearsal = Rehearsal(out, args.device)
    print(describe(args.device), flush=True)
    for name in args.part:
        rehearsal.run(PARTS[name])
    print(
        f"\n{rehearsal.report()}\nThe same is in {out}/gpu.md, each step's output in {out}/*.log."
    )
    sys.exit(any(not ok for _, ok, _, _ in rehearsal.results))


if __name__ == "__main__":
    main()
