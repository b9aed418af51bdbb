"""What a check finds, and how it is printed. Imports nothing that could be broken."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

ERROR, WARNING, OK = "error", "warning", "ok"
_WIDTH = 118


class Finding(NamedTuple):
    """One thing that a check found.

    Attributes:
        level: ERROR: a training would fail or be worthless; WARNING: look at it; OK: as it should be.
        where: what it is about, such as ``model.neck.in_channels`` or a file; may be empty.
        what: what was expected and what came.
        cure: what to do; empty where there is nothing to do, or `what` says it.
    """

    level: str
    where: str
    what: str
    cure: str = ""


def guarded(
    check: Callable[..., Iterable[Finding]], *args: Any, **options: Any
) -> Iterator[Finding]:
    """The findings of a check; one that breaks is a finding itself and does not end the others."""
    try:
        yield from check(*args, **options)
    except Exception as error:  # whatever it is: the next check must run
        yield Finding(
            ERROR,
            check.__name__,
            f"this check broke: {in_one_line(error)}",
            "the rest was checked all the same; report it with the command you typed",
        )


def in_one_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def format_finding(finding: Finding) -> str:
    """A few lines of at most 118 characters."""
    where = f"{finding.where}: " if finding.where else ""
    lines = _wrap(f"{finding.level:<9}{where}{finding.what}", indent=11)
    if finding.cure:
        lines += _wrap(f"           -> {finding.cure}", indent=14)
    return "\n".join(lines)


class Report(list[Finding]):
    """Findings, printed as they are added."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = sys.stdout  # also while what libraries print is kept from it

    def add(self, findings: Iterable[Finding], *, title: str = "") -> None:
        """Add findings, under a title if there is one."""
        if title:
            print(title, file=self._stream, flush=True)
        for finding in findings:
            self.append(finding)
            print(format_finding(finding), file=self._stream, flush=True)

    def has_errors(self) -> bool:
        """Whether there is an error among them."""
        return any(finding.level == ERROR for finding in self)

    def summary(self) -> str:
        """The last line."""
        counts = {level: sum(f.level == level for f in self) for level in (ERROR, WARNING)}
        found = [f"{n} {level}{'s' * (n > 1)}" for level, n in counts.items() if n]
        return " and ".join(found) or "nothing wrong was found"


def _wrap(text: str, *, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
