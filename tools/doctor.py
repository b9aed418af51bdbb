"""Look for what would spoil a training: python tools/doctor.py [CONFIG] [CHECKPOINT].

Checks the machine and what is installed; a config; every image and label of its datasets; a checkpoint, and
whether it loads. Each diagnostic comes with a hint. The exit status is 1 if there is an error.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def parse_args(**option_format: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint; *.pth may stand alone")
    parser.add_argument("--images", type=int, help="open so many of each dataset, not all")
    parser.add_argument("--bad-files", metavar="FILE", help="list the wrong images in FILE")
    parser.add_argument("--workers", type=int, help="processes that open images")
    parser.add_argument("--data-root", metavar="FOLDER", help="as for tools/train.py")
    parser.add_argument(
        "--cfg-options", nargs="+", metavar="KEY=VALUE", help="as for train.py", **option_format
    )
    args = parser.parse_args()
    if args.config and not args.checkpoint and args.config.endswith(".pth"):
        args.config, args.checkpoint = None, args.config
    return args


def main() -> int:
    try:
        checks: Any = importlib.import_module("fastvit_dense.doctor.checks")
        from fastvit_dense.doctor.preflight import KeyValues

        args = parse_args(action=KeyValues)
        broken = ""
    except Exception as error:  # such as a broken installation of torch
        args, broken = parse_args(), f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        # An empty package, out of which the checks of the environment still work.
        package = sys.modules["fastvit_dense"] = ModuleType("fastvit_dense")
        package.__path__ = [str(Path(__file__).resolve().parents[1] / "fastvit_dense")]
    from fastvit_dense.doctor.packages import check_packages
    from fastvit_dense.doctor.report import ERROR, Diagnostic, Report, guarded

    report = Report()
    report.add(guarded(check_packages), title="environment")
    if broken:
        what = f"fastvit_dense cannot be imported, nothing else is checked: {broken}"
        report.add([Diagnostic(ERROR, "", what, "correct what is said above, then run this again")])
    else:
        data = {"workers": args.workers, "images": args.images, "bad_files": args.bad_files}
        options = {"options": args.cfg_options, "data_root": args.data_root}
        checks.run_checks(report, args.config, args.checkpoint, **options, **data)
    status, summary = report.summary()
    print(summary)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
