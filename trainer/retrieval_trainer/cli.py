"""`retrieval-train`: parse, train, publish, report. Under torchrun every rank runs this; alone it is one rank."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from retrieval_core.errors import BadArguments
from retrieval_core.exits import TERMINATION_LOG_VARIABLE, exit_with_reason
from retrieval_core.log import configure_logging
from retrieval_core.reporting import MlflowRun
from retrieval_trainer.config import load_config

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[
        str,
        typer.Option(
            help="a YAML or JSON file (examples/training; docs/contracts.md, section 2), or an inline JSON document"
        ),
    ] = "",
    out: Annotated[str, typer.Option(help="fsspec URI of the bundle; complete when bundle.json is there")] = "",
    checkpoints: Annotated[
        str | None, typer.Option(help="fsspec URI for checkpoints; default: `checkpoints` beside --out")
    ] = None,
    imported: Annotated[
        str, typer.Option("--import", help="fsspec URI of a finished bundle: verify and report it, train nothing")
    ] = "",
) -> None:
    """Fine-tune a causal LM as a dual encoder and write its bundle; or import a finished one.

    Started again it continues from the newest checkpoint; when the bundle is complete it only reports.
    On SIGTERM it writes a checkpoint and exits with 143.

    For example:

    retrieval-train --config train.yaml --out bundles/first

    python -m torch.distributed.run --nproc-per-node 2 -m retrieval_trainer.cli --config train.yaml --out bundles/first

    retrieval-train --import /models/feed/bundle
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        # A node's ranks share one termination log, and a peer that was cut off must not hide the first one's reason.
        os.environ[TERMINATION_LOG_VARIABLE] = os.devnull
    with exit_with_reason():
        configure_logging()
        MlflowRun.from_environment()  # refuses half an MLflow configuration now rather than after the training
        if bool(imported) == bool(config and out):
            raise BadArguments("expected either --config with --out (train) or --import (a finished bundle)")
        if imported:
            from retrieval_trainer.finish import import_bundle  # noqa: PLC0415 - torch takes seconds to load

            import_bundle(imported)
            return
        parsed, out = load_config(config), out.rstrip("/")
        # Read when torch loads its OpenMP. Threads that spin while they wait for each other take the cores from what
        # else runs: on two cores with four busy processes a step took 2.7 s, and 0.6 s with threads that sleep.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from retrieval_trainer.run import run  # noqa: PLC0415 - torch takes seconds to load; bad arguments are told at once

        run(parsed, out=out, checkpoints=checkpoints or f"{out.rpartition('/')[0] or '.'}/checkpoints")


if __name__ == "__main__":
    app()
