"""The command line of the operator: `retrieval-operator local ...` runs everything on this machine."""

from __future__ import annotations

import typer

from retrieval_operator.cli import kubernetes_commands, kubernetes_running, reading, running, writing
from retrieval_operator.cli.exits import EPILOG

app = typer.Typer(
    name="retrieval-operator",
    help="Trains, gates, serves and keeps fresh LLM embedding retrieval.\n\n"
    "For example: retrieval-operator local apply -f feed.yaml --wait",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
)
local = typer.Typer(
    help="Everything on this machine: processes for jobs, files for objects, MLflow on SQLite.\n\n"
    "For example: retrieval-operator local status feed --watch",
    no_args_is_help=True,
    epilog=EPILOG,
)
app.add_typer(local, name="local")
kubernetes = typer.Typer(
    help="The control plane in a cluster: what its pods run, and what an administrator may.\n\n"
    "For example: retrieval-operator kubernetes release-finalizers --namespace feed",
    no_args_is_help=True,
    epilog=EPILOG,
)
app.add_typer(kubernetes, name="kubernetes")
kubernetes.command(epilog=EPILOG)(kubernetes_running.run)
kubernetes.command(epilog=EPILOG)(kubernetes_commands.release_finalizers)

for command in (
    writing.apply,
    running.run,
    reading.get,
    reading.status,
    reading.describe,
    reading.plan,
    writing.approve,
    writing.reject,
    writing.rollback,
    writing.retry,
    writing.retrain,
    writing.delete,
    running.down,
    reading.logs,
):
    local.command(epilog=EPILOG)(command)


@app.callback()
def main() -> None:
    """Trains, gates, serves and keeps fresh LLM embedding retrieval."""
