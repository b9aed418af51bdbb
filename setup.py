"""Metadata and the one thing setuptools has no option for: a .pth file beside the package.

OpenMMLab's own programs import mmdet, and with it mmcv's compiled operators, before they could know
of this package. The .pth file makes every interpreter of the environment able to find our stand-in
for them (fastvit_dense/compat/mmcv_ops.py): it holds the text of fastvit_dense/compat/hook.py.
"""

import base64
import hashlib
import re
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent

PTH_NAME = "fastvit_dense_mmcv.pth"
# Python runs a line of a .pth file that begins with `import`, by itself; the text gets its own globals.
HOOK = (ROOT / "fastvit_dense/compat/hook.py").read_text(encoding="utf-8")
PTH_LINE = f"import sys; exec({HOOK!r}, {{'__name__': 'fastvit_dense.compat.hook'}})\n"


def version() -> str:
    text = (ROOT / "fastvit_dense" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError('fastvit_dense/__init__.py needs a line like __version__ = "0.1.0"')
    return match.group(1)


def requirements(*names: str) -> list[str]:
    lines = []
    for name in names:
        text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        lines += [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


class BuildPy(build_py):
    """Adds the .pth file to an ordinary wheel."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, PTH_NAME).write_text(PTH_LINE, encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        extra = [] if self.editable_mode else [str(Path(self.build_lib, PTH_NAME))]
        return super().get_outputs(include_bytecode) + extra


class EditableWheel(editable_wheel):
    """Adds the .pth file to the wheel of an editable install, which takes nothing from build_py."""

    def run(self) -> None:
        super().run()
        wheel = max(Path(self.dist_dir).glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
        with zipfile.ZipFile(wheel) as old:
            files = {info: old.read(info) for info in old.infolist()}
        digest = base64.urlsafe_b64encode(hashlib.sha256(PTH_LINE.encode()).digest())
        row = f"{PTH_NAME},sha256={digest.decode().rstrip('=')},{len(PTH_LINE)}\n"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
            new.writestr(PTH_NAME, PTH_LINE)
            for info, content in files.items():
                if info.filename.endswith(".dist-info/RECORD"):
                    content = row.encode() + content
                new.writestr(info, content)


setup(
    name="fastvit_dense",
    version=version(),
    description="Object detection, segmentation and hand meshes on FastViT backbones",
    license="Apache-2.0",
    python_requires=">=3.10,<3.15",
    packages=find_packages(include=["fastvit_dense", "fastvit_dense.*"]),
    # Spelled out, it makes an editable install one line of path, which type checkers follow too.
    package_dir={"": "."},
    install_requires=requirements("base"),
    extras_require={
        "det": requirements("mmcv", "det"),
        "seg": requirements("mmcv", "seg"),
        "hand": requirements("hand"),
        "export": requirements("export"),
        "dev": requirements("dev"),
    },
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
    zip_safe=False,
)
