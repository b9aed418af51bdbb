"""What libraries print and log, collected."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from mmengine.logging import MMLogger


@contextmanager
def quiet() -> Iterator[list[tuple[bool, str]]]:
    """Keep the screen free of what is logged, printed and warned of inside.

    Gives a list of what is logged: whether it is a warning, and the text.
    """
    said: list[tuple[bool, str]] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.INFO:
                said.append((record.levelno >= logging.WARNING, record.getMessage()))

    logger = MMLogger.get_current_instance()
    handlers, logger.handlers = logger.handlers, [Collect()]
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logger.handlers = handlers
