"""What both command lines show to a person: progress on stderr, and tables that say when data are synthetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retrieval_core.log import configure_logging
from retrieval_core.reporting import MlflowRun

console = Console(stderr=True)


def start_logging() -> None:
    """Set up logs, and refuse half an MLflow configuration now rather than after the work. Raises BadArguments."""
    configure_logging()
    MlflowRun.from_environment()


def titled(provenance: str, title: str) -> str:
    """The title of a table of results; it starts with "synthetic" when they come from synthetic data."""
    return f"synthetic: {title}" if provenance == "synthetic" else title


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Yields a function (description, total) -> callback that advances a bar of its own."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:

        def add(description: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(description, total=total)
            return lambda finished: bars.advance(task, finished)

        yield add
