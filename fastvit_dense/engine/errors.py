"""A user's mistake ends a tool with one line; a mistake in the code keeps its traceback."""

from __future__ import annotations

import dis
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mmengine.logging import MMLogger

STATUS = 2  # as argparse's
# What the package raises for a user to read.
_KINDS = (ValueError, OSError, ImportError, FloatingPointError)
_PACKAGE = Path(__file__).resolve().parents[1]


def end_in_one_line(main: Callable[[], int | None]) -> int:
    """Call a tool's ``main`` and give its exit status; a user's mistake is printed in one line.

    A mistake is the user's if a ``raise`` statement of this package or of the tool made the exception,
    here or in a data loader's worker, or if the system refused a file. All others, such as a ValueError
    that a library raised or that ``int("x")`` raised in a line of ours, keep their traceback: the class
    alone would not tell. The traceback of a mistake goes to the log of the run, if there is one, and to
    the terminal with ``--traceback``, which every tool takes.

    Args:
        main: of the tool; None stands for success.

    Returns:
        What `main` returns, or 2.
    """
    shows_all = "--traceback" in sys.argv
    sys.argv[:] = [word for word in sys.argv if word != "--traceback"]
    try:
        return main() or 0
    except Exception as error:
        message = users_mistake(error)
        if message is None or shows_all:
            raise
        _log(error)
        print(f"{Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
        return STATUS


def users_mistake(error: Exception) -> str | None:
    """What to tell the user of an exception; None if it is no mistake of theirs.

    Args:
        error: one that was caught.
    """
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None or not isinstance(error, _KINDS):
        return None
    module = str(step.tb_frame.f_globals.get("__name__"))
    if module == "torch._utils":
        return _of_worker(str(error))
    is_ours = module.partition(".")[0] in (_PACKAGE.name, "__main__") and _is_raise(step)
    refused_file = isinstance(error, OSError) and error.filename is not None
    return str(error) if is_ours or refused_file else None


def _is_raise(step: TracebackType) -> bool:
    """Whether the line raises by a statement, not by something that it calls."""
    return step.tb_frame.f_code.co_code[step.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _of_worker(text: str) -> str | None:
    """The message in what torch makes of a worker's exception: a text that ends in its traceback."""
    last = text.rpartition('\n  File "')[2]
    found = re.match(r'(.*?)", line \d+, in .*\n +raise .*\n(?: .*\n)*[\w.]+: ((?s:.*))', last)
    if found is None or _PACKAGE not in Path(found[1]).parents:
        return None
    return found[2].rstrip()


def _log(error: Exception) -> None:
    """Write the traceback to the file of mmengine's current logger, if a run has begun one."""
    if MMLogger._instance_dict:
        logger = MMLogger.get_current_instance()
        cause = type(error), error, error.__traceback__
        record = logger.makeRecord(logger.name, logging.ERROR, "", 0, str(error), (), cause)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)
