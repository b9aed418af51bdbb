"""Diagnostics, and how they are printed. Imports nothing that could be broken."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

ERROR, WARNING, OK = "error", "warning", "ok"


class Diagnostic(NamedTuple):
    """What a check has to say.

    Attributes:
        level: ERROR: a run would fail or be worthless; WARNING: look at it; OK: as it should be.
        where: such as ``model.neck`` or a file; may be empty.
        message: what was expected and what was found.
        hint: what to do; may be empty.
    """

    level: str
    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """One line."""
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} -> {self.hint}" if self.hint else text


def guarded(
    check: Callable[..., Iterable[Diagnostic]], *args: Any, **options: Any
) -> Iterator[Diagnostic]:
    """The diagnostics of a check; an exception is one itself and does not end the other checks."""
    try:
        yield from check(*args, **options)
    except (ValueError, OSError, ImportError) as error:
        yield Diagnostic(ERROR, "", str(error))
    except Exception as error:
        yield Diagnostic(ERROR, check.__name__, f"this check failed: {in_one_line(error)}")


def in_one_line(error: BaseException) -> str:
    """The kind of an exception and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")


class Report(list[Diagnostic]):
    """Diagnostics, printed as they are added."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = sys.stdout  # also while the output of libraries is suppressed

    def add(self, diagnostics: Iterable[Diagnostic], *, title: str = "") -> None:
        """Print diagnostics, under a title if there is one."""
        if title:
            print(title, file=self._stream, flush=True)
        wrap = textwrap.TextWrapper(118, subsequent_indent=" " * 11, break_long_words=False)
        wrap.break_on_hyphens = False
        for found in diagnostics:
            self.append(found)
            print(wrap.fill(f"  {found.level:<9}{found}"), file=self._stream, flush=True)

    def summary(self) -> tuple[int, str]:
        """The exit status, 1 if there is an error among them; and the last line."""
        counts = {level: sum(found.level == level for found in self) for level in (ERROR, WARNING)}
        parts = [f"{n} {level}{'s' * (n > 1)}" for level, n in counts.items() if n]
        return int(counts[ERROR] > 0), " and ".join(parts) or "nothing wrong was found"
