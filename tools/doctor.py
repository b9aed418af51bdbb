"""Look for what would spoil a training: python tools/doctor.py [CONFIG] [CHECKPOINT].

Checks the machine and what is installed; a config; every image and label of its datasets; a checkpoint, and
whether it would load. Says what to do about each finding. The exit status is 1 if there is an error.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def parse_args(**option_format: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint; *.pth may stand alone")
    parser.add_argument(
        "--images", type=int, metavar="N", help="open N images of each dataset, not all"
    )
    parser.add_argument(
        "--bad-files", metavar="FILE", help="list the images that are wrong in FILE"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that open images")
    parser.add_argument(
        "--data-root", metavar="FOLDER", help="where the data lie, as for tools/train.py"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        metavar="KEY=VALUE",
        help="override settings, as for tools/train.py",
        **option_format,
    )
    args = parser.parse_args()
    if args.config and not args.checkpoint and args.config.endswith(".pth"):
        args.config, args.checkpoint = None, args.config
    for name in ("images", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def import_package() -> str:
    """Import fastvit_dense; returns what prevents it, such as a broken installation of torch.

    Then an empty package stands in for it, out of which the checks of the environment still work.
    """
    try:
        importlib.import_module("fastvit_dense.engine.runner")
    except Exception as error:
        package = ModuleType("fastvit_dense")
        package.__path__ = [str(Path(__file__).resolve().parents[1] / "fastvit_dense")]
        sys.modules["fastvit_dense"] = package
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def main() -> int:
    broken = import_package()
    if broken:
        args = parse_args()
    else:
        from fastvit_dense.doctor.preflight import KeyValues

        args = parse_args(action=KeyValues)
    from fastvit_dense.doctor.findings import ERROR, Finding, Report, guarded
    from fastvit_dense.doctor.packages import check_packages

    report = Report()
    report.add(guarded(check_packages), title="environment")
    if broken:
        what = f"fastvit_dense cannot be imported, nothing else is checked: {broken}"
        report.add([Finding(ERROR, "", what, "correct what is said above, then run this again")])
    else:
        from fastvit_dense.doctor.examination import examine

        examine(
            report, args.config, args.checkpoint, options=args.cfg_options, data_root=args.data_root,
            workers=args.workers, images=args.images, bad_files=args.bad_files,
        )  # fmt: skip
    print(report.summary())
    return int(report.has_errors())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
