"""The commands that keep the control plane: run, down; and waiting for an outcome with or without one."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import start_http_server
from rich.console import Console, RenderableType
from rich.live import Live

from retrieval_operator.adapters.local.home import make_directory
from retrieval_operator.adapters.local.stacks import answers
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.text import printable
from retrieval_operator.cli import views
from retrieval_operator.cli.exits import Exit, leave
from retrieval_operator.cli.following import stop_on_signals
from retrieval_operator.cli.output import show, table
from retrieval_operator.cli.reading import last_failed, log_tail
from retrieval_operator.cli.shared import HomeOption, open_home, told
from retrieval_operator.cli.waiting import Until, Verdict, progress, verdict
from retrieval_operator.instance import HeldElsewhere, holder, sole_controller, stop_controller
from retrieval_operator.local_mode import LocalMode, now
from retrieval_operator.telemetry import RotatingLog, configure_logging

_LOOK_S = 0.5
# What --purge may remove: the layout of adapters/local/home.py, MLflow's data and our logs. A mistyped --home loses
# nothing else.
_HOME_ENTRIES = {"controller.log", "controller.log.1"} | {
    *("objects", "status", "events", "workloads", "stacks", "traffic", "proxies", "services", "locks", "mlflow")
}
# A controller ends within a pass; the longest ones drain a server (15 s grace). Then it is killed, which is safe.
_CONTROLLER_PATIENCE_S = 20.0


@told
def run(home: HomeOption = None) -> None:
    """Be the control plane of this home until Ctrl-C, with a live table. One per home.

    Trainings, servers and MLflow are processes of their own: they go on when this ends, and are found again.

    For example:
      retrieval-operator local run
      RETRIEVAL_OPERATOR_LOG_FORMAT=json retrieval-operator local run 2> controller.log
    """
    mode = open_home(home)
    console = Console()
    with sole_controller(mode.home, "retrieval-operator local run"), _logging(mode, to_file=console.is_terminal):
        if mode.settings.metrics_port:
            start_http_server(mode.settings.metrics_port, addr="127.0.0.1")
        asyncio.run(_run(mode, console))


@told
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also remove the home with all it holds.")] = False,
    home: HomeOption = None,
) -> None:
    """Stop everything of this home: controller, servers, addresses, MLflow, workloads. Data stays.

    `run` takes it all up again. --purge also removes the home; spec.storage.uri is not touched.

    For example:
      retrieval-operator local down
      retrieval-operator local down --purge
    """
    mode = open_home(home)
    root = mode.home.root
    if not (root / "locks").is_dir():
        typer.echo(f"{root} is no home of local mode; nothing to stop")
        return
    stopped = stop_controller(mode.home, _CONTROLLER_PATIENCE_S)
    if stopped is not None:
        typer.echo(f"stopped the controller, {stopped}")
    asyncio.run(mode.down())
    typer.echo(f"everything of {root} is stopped")
    if purge:
        _remove_home(root)


def _remove_home(root: Path) -> None:
    """Remove what local mode keeps there, and the directory unless something else is in it."""
    for path in root.iterdir():
        if path.name in _HOME_ENTRIES:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    rest = ", ".join(sorted(path.name for path in root.iterdir()))
    if rest:
        typer.echo(f"{root} is purged; not ours and still there: {rest}")
        return
    root.rmdir()
    typer.echo(f"{root} is removed")


def wait_for_objects(mode: LocalMode, keys: Sequence[str], until: Until, timeout_s: float) -> Exit:
    """Wait until every object has its verdict, being the controller when nobody is. Says each step as it comes."""
    reporter = _Reporter(mode)
    verdicts: dict[str, Verdict] = {}

    async def look() -> bool:
        for key in keys:
            if key in verdicts:
                continue
            model = await mode.models.get(key)
            found = verdict(model, until) if model else Verdict(False, "was deleted")
            if found is not None and not await _is_true_now(model, until, found):
                found = None
            if model is not None:
                reporter.step(model)
            if found is not None:
                verdicts[key] = found
                await reporter.end(key, model, found)
        return len(verdicts) == len(keys)

    _wait(mode, look, timeout_s)
    return Exit.OK if all(found.reached for found in verdicts.values()) else Exit.NOT_REACHED


async def _is_true_now(model: RetrievalModel | None, until: Until, found: Verdict) -> bool:
    """Whether a promotion can be seen from outside: after `down` the status still tells of a champion that served."""
    if model is None or model.status.champion is None or until is not Until.PROMOTED or not found.reached:
        return True
    return await answers(model.status.address, model.status.champion)


def wait_for_deletion(mode: LocalMode, keys: Sequence[str], timeout_s: float) -> Exit:
    """Wait until the objects are gone and their processes have ended."""

    async def look() -> bool:
        return not set(keys) & set(await mode.models.keys()) and not any(_has_processes(mode, key) for key in keys)

    _wait(mode, look, timeout_s)
    return Exit.OK


def _has_processes(mode: LocalMode, key: str) -> bool:
    """Whether anything that a deleted object ran is still on record: the controller removes it as it ends it."""
    directories = (mode.home.workloads(key), mode.home.stacks(key))
    return mode.home.proxy(key).exists() or any(path for parent in directories for path in parent.glob("[!.]*"))


def _wait(mode: LocalMode, look: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    """Look until it says yes. Leaves the command when time is up, on a signal, or when the controller goes away."""
    try:
        with sole_controller(mode.home, "retrieval-operator local --wait"), _logging(mode, to_file=True):
            outcome = asyncio.run(_work_and_look(mode, look, timeout_s))
    except HeldElsewhere as error:
        typer.echo(f"{error}; watching", err=True)
        outcome = asyncio.run(_only_look(mode, look, timeout_s))
    if outcome is not Exit.OK:
        why = "timed out" if outcome is Exit.TIMED_OUT else "interrupted, or the controller ended"
        leave(outcome, f"stopped waiting: {why}; what was started goes on when a controller runs")


async def _work_and_look(mode: LocalMode, look: Callable[[], Awaitable[bool]], timeout_s: float) -> Exit:
    stop = stop_on_signals()
    work = asyncio.create_task(mode.run(stop))
    try:
        return await _look_until(look, timeout_s, over=lambda: stop.is_set() or work.done())
    finally:
        stop.set()
        await work


async def _only_look(mode: LocalMode, look: Callable[[], Awaitable[bool]], timeout_s: float) -> Exit:
    stop = stop_on_signals()
    return await _look_until(look, timeout_s, over=lambda: stop.is_set() or holder(mode.home) is None)


async def _look_until(look: Callable[[], Awaitable[bool]], timeout_s: float, over: Callable[[], bool]) -> Exit:
    deadline = time.monotonic() + timeout_s
    while not await look():
        if over():
            return Exit.NOT_REACHED
        if time.monotonic() >= deadline:
            return Exit.TIMED_OUT
        await asyncio.sleep(_LOOK_S)
    return Exit.OK


class _Reporter:
    """Prints one line per step with the seconds since the start, and the evidence at the end."""

    def __init__(self, mode: LocalMode) -> None:
        self._mode = mode
        self._started = time.monotonic()
        self._said: dict[str, str] = {}

    def step(self, model: RetrievalModel) -> None:
        line = progress(model)
        if self._said.get(model.key) != line:
            self._said[model.key] = line
            self._say(model.key, line)

    async def end(self, key: str, model: RetrievalModel | None, found: Verdict) -> None:
        self._say(key, found.message)
        if model is None:
            return
        status = model.status
        gates = status.champion.gates if found.reached and status.champion else []
        if not found.reached and status.history:
            gates = status.history[0].gates
        if gates:
            show(views.gates_view(gates, model.spec))
        if not found.reached:
            await self._show_failure(model)

    async def _show_failure(self, model: RetrievalModel) -> None:
        machine = self._mode.machine()
        failed = last_failed(await machine.workloads.observe(model))
        if failed is not None:
            tail = printable(log_tail(machine, model.key, failed.name))
            typer.echo(f"\nThe last lines of {failed.name}:\n{tail}", err=True)

    def _say(self, key: str, line: str) -> None:
        typer.echo(printable(f"[{time.monotonic() - self._started:5.0f} s] {key}  {line}"))


async def _run(mode: LocalMode, console: Console) -> None:
    stop = stop_on_signals()
    work = asyncio.create_task(mode.run(stop))
    if console.is_terminal:
        await _live_table(mode, console, work)
    await work


async def _live_table(mode: LocalMode, console: Console, work: asyncio.Task[None]) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while not work.done():
            live.update(await _table(mode), refresh=True)
            await asyncio.wait([work], timeout=1.0)


async def _table(mode: LocalMode) -> RenderableType:
    models = [await mode.models.get(key) for key in await mode.models.keys()]
    rows = [views.row(model, now()) for model in models if model is not None]
    return table(views.ROW_HEADERS, rows) if rows else "no object yet; retrieval-operator local apply -f FILE makes one"


@contextmanager
def _logging(mode: LocalMode, *, to_file: bool) -> Iterator[None]:
    """Log to standard error; or, where people look at something else, to <home>/controller.log (one older is kept)."""
    settings = mode.settings
    if not to_file:
        configure_logging(settings.log_format, settings.log_level)
        yield
        return
    path: Path = mode.home.root / "controller.log"
    make_directory(path.parent)
    with RotatingLog(path) as stream:
        configure_logging(settings.log_format, settings.log_level, stream)
        yield
