"""Following something on a terminal until a signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from retrieval_operator.cli.output import Format, Harmless
from retrieval_operator.ports import Retryable

_LOOK_S = 2.0

WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Follow on a terminal until Ctrl-C.")]


def check_watch(output: Format) -> None:
    """A usage error where nothing can be followed."""
    if output is not Format.TABLE or not Console().is_terminal:
        raise typer.BadParameter("expected a terminal and no --output", param_hint="--watch")


async def follow(draw: Callable[[], Awaitable[RenderableType]]) -> None:
    """Draw anew every two seconds, until a signal. What cannot be looked at now is tried again."""
    stop = stop_on_signals()
    shown: RenderableType = Text()
    with Live(auto_refresh=False) as live:
        while not stop.is_set():
            try:
                shown = await draw()
                live.update(Harmless(shown), refresh=True)
            except Retryable as error:
                again = Text(f"{error}; trying again", style="yellow")
                live.update(Harmless(Group(shown, again)), refresh=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_S)


def stop_on_signals() -> asyncio.Event:
    """An event that Ctrl-C and TERM set, instead of ending the process in the middle of what it does."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError):  # not in the main thread: whoever started it stops it
            loop.add_signal_handler(number, stop.set)
    return stop
