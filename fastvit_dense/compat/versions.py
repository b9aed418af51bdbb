"""Whether Python, torch and torchvision fit together; if not: what was found and is needed, the command.

Imported before all else, so it imports nothing that could be broken itself.
"""

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# Below 2.6, ``torch.load(weights_only=True)`` can be made to run code (CVE-2025-32434).
_LOWEST_TORCH = (2, 6)


def require_suitable() -> None:
    """Import torchvision, and with it torch.

    Raises:
        ImportError: Python or torch is too old, or torchvision was built for another torch. One line.
    """
    if sys.version_info < (3, 10):  # noqa: UP036  where pip did not check it
        raise ImportError(
            f"Python is {sys.version.split()[0]}, expected 3.10 or later: make another environment "
            "(docs/install.md)"
        )
    torch = import_module("torch")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _LOWEST_TORCH:
        raise ImportError(
            f"torch is {torch.__version__}, expected 2.6 or later, since earlier ones can run code from a "
            "checkpoint: pip install 'torch>=2.6,<3' 'torchvision>=0.21,<1'"
        )
    try:
        import_module("torchvision")
        torch.ops.torchvision.nms  # noqa: B018  torchvision 0.29 imports without its operators
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ImportError(": ".join(explain_torchvision(str(error)))) from None


def explain_torchvision(reason: str) -> tuple[str, str]:
    """Why torchvision does not work beside this torch.

    Args:
        reason: what importing or using it said, for a cause that the versions do not show.

    Returns:
        What was found and is needed; the command that corrects it.
    """
    from packaging.specifiers import SpecifierSet

    torch, torchvision = stated_version("torch"), stated_version("torchvision")
    (release, _, build), (other, _, other_build) = torch.partition("+"), torchvision.partition("+")
    wanted = torchvision_for(release)
    pair = f"torch=={release} 'torchvision{wanted}'"
    if not SpecifierSet(wanted).contains(other or "0"):
        found = torchvision or "none"
        return f"torch {torch} needs torchvision{wanted}, found {found}", f"pip install {pair}"
    hint = f"pip install --force-reinstall {pair}"
    if build != other_build:
        return (
            f"torch {torch} needs a torchvision of the same build, +{build}, found {torchvision}",
            f"{hint} (to keep this torch, name the --index-url it came from, see pytorch.org/get-started)",
        )
    what = f"torchvision {torchvision} cannot be used with torch {torch}"
    return f"{what} ({reason.partition(chr(10))[0]})", hint


def torchvision_for(torch: str) -> str:
    """The versions of torchvision that belong to a torch such as 2.6.0, as torchvision's metadata says."""
    minor = int(torch.split(".")[1])
    # Each needed one torch exactly, until 0.29.1 was built for torch's stable interface.
    return f"==0.{minor + 15}.*" if minor < 14 else ">=0.29.1,<1"


def stated_version(name: str) -> str:
    """What a package's version.py states, such as 2.6.0+cpu; pip knows no build. Empty if there is none."""
    spec = find_spec(name)
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, "version.py")
        if file.is_file() and (
            match := re.search(r"^__version__ = ['\"](.+)['\"]", file.read_text(), re.MULTILINE)
        ):
            return match.group(1)
    return ""
