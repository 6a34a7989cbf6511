"""Structured logs on stderr, for people (`console`) or machines (`json`): RETRIEVAL_LOG_FORMAT chooses.

Without the variable a terminal gets `console` and anything else `json`. Log names and counts, never whole objects:
what users store in a dataset or a manifest does not belong in a log.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import cast

import structlog

from retrieval_core.errors import BadArguments

FORMAT_VARIABLE = "RETRIEVAL_LOG_FORMAT"
# Without the values of local variables: they hold members' texts.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def configure_logging(level: int = logging.INFO) -> None:
    """Set up the process's logging once, at the start of a program. BadArguments on an unknown format."""
    chosen = os.environ.get(FORMAT_VARIABLE) or ("console" if sys.stderr.isatty() else "json")
    renderers: dict[str, structlog.typing.Processor] = {
        "console": structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
        "json": structlog.processors.JSONRenderer(),
    }
    if chosen not in renderers:
        raise BadArguments(f"{FORMAT_VARIABLE} is {chosen!r}, expected console or json")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([_TRACEBACKS] if chosen == "json" else []),
            renderers[chosen],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # The stream of each moment: in a test, or under a redirection, stderr is another one later.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """The structured logger of the module called `name`; may be made before `configure_logging`."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(module=name))
