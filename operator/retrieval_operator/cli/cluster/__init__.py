"""The command line for a cluster: `kubectl retrieval ...`, which kubectl finds as `kubectl-retrieval` on the PATH.

The same words and views as of local mode. It needs no operator beside it, and no rights but those of the person who
runs it: it reads objects and their children, and sets annotations.
"""

from __future__ import annotations

import typer

from retrieval_operator.cli.cluster import reading, writing
from retrieval_operator.cli.exits import EPILOG

app = typer.Typer(
    help="RetrievalModels of a cluster: look at them, approve, roll back, try again.\n\n"
    "For example: kubectl retrieval status feed --namespace feed --watch",
    no_args_is_help=True,
    add_completion=False,  # kubectl's plugins have another way
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
for command in (
    reading.status,
    reading.describe,
    writing.approve,
    writing.reject,
    writing.rollback,
    writing.retry,
    writing.retrain,
):
    app.command(epilog=EPILOG)(command)


def main() -> None:
    """What `kubectl-retrieval` runs."""
    app(prog_name="kubectl retrieval")
