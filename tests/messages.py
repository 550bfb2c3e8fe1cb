"""What a command would print while it works, for tests that read it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vlm_core.progress import StdoutHandler


class _Collector(StdoutHandler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@contextmanager
def collected_messages() -> Iterator[list[str]]:
    """Collect the messages that are logged inside, as a command would print them."""
    logger, collector = logging.getLogger("vlm_core"), _Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    try:
        yield collector.messages
    finally:
        logger.setLevel(level)
        logger.removeHandler(collector)


@contextmanager
def logging_restored() -> Iterator[logging.Logger]:
    """Log inside as a library does that nobody has configured, and afterwards as before."""
    logger = logging.getLogger("vlm_core")
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers[:]
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers[:] = True, [logging.NullHandler()]
    try:
        yield logger
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, handlers
