"""What the documents name exists: files, links, configs, commands of make."""

import re
import subprocess
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TRACKED = r"(?:\.ci|configs|docs|fastvit_dense|requirements|tests|tools)/[\w./{},*-]*"


def expand(name: str) -> list[str]:
    """Shell braces, also several: a{b,c}d is abd and acd."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(choice) for choice in product(*parts)]


def prose(text: str) -> str:
    """Without code blocks and tables."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def test_expand() -> None:
    assert expand("a_{b,c}_{d,e}") == ["a_b_d", "a_b_e", "a_c_d", "a_c_e"]
    assert expand("plain.py") == ["plain.py"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_paths_and_links(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    named = re.findall(rf"(?<![\w/.:-]){TRACKED}", text)
    assert named
    for name in named:
        missing += [n for n in expand(name.rstrip(".,")) if not any(ROOT.glob(n.rstrip("/")))]
    assert missing == []


def test_zoo_of_the_readme_has_each_config_once() -> None:
    """In the table of its task."""
    zoo = (ROOT / "README.md").read_text(encoding="utf-8").split("## Model zoo")[1]
    tables = re.findall(r"^\| config in `(configs/\w+/)`(.*?)\n\n", zoo, re.DOTALL | re.MULTILINE)
    named = []
    for folder, rows in tables:
        for stem in re.findall(r"^\| `([^`]+)`", rows, re.MULTILINE):
            named += [f"{folder}{name}.py" for name in expand(stem)]
    there = [str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py")]
    assert sorted(named) == sorted(there)


def test_readme_is_short() -> None:
    assert len(prose((ROOT / "README.md").read_text(encoding="utf-8")).split()) <= 1100


def test_commands_of_make() -> None:
    help_text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"make ([\w-]+)", help_text))
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, path.name
