"""Exit codes of the command line. They are part of its interface: tests hold them, --help lists them."""

from __future__ import annotations

from enum import IntEnum
from typing import NoReturn

import typer

from retrieval_operator.api.text import printable


class Exit(IntEnum):
    OK = 0
    NOT_REACHED = 1  # the command ran, what was asked for did not come about (refused, failed, held by another)
    USAGE = 2  # the command line, a setting or a manifest cannot be used
    NOT_FOUND = 3  # no such object, stack or workload; nothing that waits for approval
    TIMED_OUT = 4


EPILOG = (
    "Exit codes: 0 ok; 1 the outcome was not reached (for example refused by a gate); 2 usage or invalid manifest; "
    "3 nothing found; 4 timed out."
)


def leave(code: Exit, *sentences: str) -> NoReturn:
    """End the command, saying why on standard error."""
    for sentence in sentences:
        typer.echo(printable(sentence), err=True)
    raise typer.Exit(code)
