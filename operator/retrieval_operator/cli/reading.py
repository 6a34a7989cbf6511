"""The commands that only look: get, status, describe, plan, logs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.api.objects import RetrievalModel, parse_manifests
from retrieval_operator.api.text import printable
from retrieval_operator.cli import views
from retrieval_operator.cli.following import WatchOption, check_watch, follow
from retrieval_operator.cli.output import Format, one_or_all, show, show_document, table
from retrieval_operator.cli.planning import Preview, change_to, changed_object, preview, preview_document, show_preview
from retrieval_operator.cli.shared import (
    HomeOption,
    NameArgument,
    NamesArgument,
    NotFound,
    OutputOption,
    check_manifests,
    find,
    find_all,
    open_home,
    told,
)
from retrieval_operator.cli.tree import status_tree
from retrieval_operator.controller import Controller
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadStep
from retrieval_operator.instance import holder
from retrieval_operator.local_mode import LocalMode, now

_TAIL_LINES = 20
_NOBODY_WORKS = (
    "no controller runs in this home, so the conditions are what the last one saw, and after `down` nothing serves; "
    "start one: retrieval-operator local run"
)


@told
def get(names: NamesArgument = None, output: OutputOption = Format.TABLE, home: HomeOption = None) -> None:
    """One line per object: where it is, what is in flight, what serves.

    For example:
      retrieval-operator local get
      retrieval-operator local get feed -o yaml
    """
    models = asyncio.run(find_all(open_home(home), names))
    if output is Format.TABLE:
        show([table(views.ROW_HEADERS, [views.row(model, now()) for model in models])])
        return
    documents = [views.document(model) for model in models]
    one = names is not None and len(names) == 1
    show_document(documents[0] if one else {"apiVersion": "v1", "kind": "List", "items": documents}, output)


@told
def status(
    names: NamesArgument = None,
    *,
    watch: WatchOption = False,
    output: OutputOption = Format.TABLE,
    home: HomeOption = None,
) -> None:
    """A tree per object: what serves, each step of what is in flight with its numbers, what comes next.

    For example:
      retrieval-operator local status feed --watch
      retrieval-operator local status -o json
    """
    mode = open_home(home)
    if watch:
        check_watch(output)
        asyncio.run(follow(lambda: _trees(mode, names)))
        return
    seen = asyncio.run(_describe_all(mode, names))
    if output is Format.TABLE:
        show(status_tree(view, now()) for view in seen)
    else:
        show_document(one_or_all([views.status_document(view) for view in seen], names), output)


@told
def describe(name: NameArgument, output: OutputOption = Format.TABLE, home: HomeOption = None) -> None:
    """Everything about one object: conditions, champion, candidate, gates with their numbers, history, what comes next.

    For example:
      retrieval-operator local describe feed
      retrieval-operator local describe feed -o json
    """
    description = asyncio.run(_describe(open_home(home), name))
    if output is Format.TABLE:
        show(views.describe(description, now()))
    else:
        show_document(views.describe_document(description), output)


@told
def plan(
    name: NamesArgument = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--filename", "-f", help="Show what applying this manifest would do; - is stdin."),
    ] = None,
    output: OutputOption = Format.TABLE,
    home: HomeOption = None,
) -> None:
    """What would happen next and why, without doing any of it; and how much the gates can tell.

    For example:
      retrieval-operator local plan feed
      retrieval-operator local plan -f feed.yaml      # what would this change do?
    """
    if file and name:
        raise typer.BadParameter("found both NAME and --filename, expected one of them")
    mode = open_home(home)
    manifests = [manifest for path in file or [] for manifest in read_manifests(path)]
    previews = asyncio.run(_previews(mode, manifests) if file else _next_steps(mode, name))
    if output is Format.TABLE:
        show(part for view in previews for part in show_preview(view))
    else:
        show_document([preview_document(view) for view in previews], output)


@told
def logs(
    workload: Annotated[str, typer.Argument(help="Name of a workload; describe lists them.", show_default=False)],
    tail: Annotated[int | None, typer.Option("--tail", min=1, help="Only so many lines from the end.")] = None,
    home: HomeOption = None,
) -> None:
    """Print the log of a training, index build, evaluation or verification.

    For example:
      retrieval-operator local logs feed-1f0c9a52-train-1
      retrieval-operator local logs feed-1f0c9a52-train-1 --tail 50
    """
    mode = open_home(home)
    paths = sorted((mode.home.root / "workloads").glob("*/*/*/log"))
    found = [path for path in paths if path.parent.name == workload]
    if not found:
        known = ", ".join(path.parent.name for path in paths) or "none"
        raise NotFound(f"there is no log of {workload}; there are: {known}")
    lines = found[0].read_text(errors="replace").splitlines()
    typer.echo(printable("\n".join(lines[-tail:] if tail else lines)))


def read_manifests(path: str) -> list[RetrievalModel]:
    """The RetrievalModels of a file, `-` for standard input. Raises InvalidManifest; a usage error for no such file."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint="--filename") from None
    return parse_manifests(text, "stdin" if path == "-" else path)


def log_tail(machine: LocalMachine, key: str, workload: str, lines: int = _TAIL_LINES) -> str:
    """The end of a workload's log, "" when there is none."""
    try:
        text = machine.workloads.log(key, workload).read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def last_failed(workloads: Sequence[WorkloadObserved]) -> WorkloadObserved | None:
    """The failure people want to see: the newest attempt of all, if it is one that failed by itself.

    Once a candidate has ended, files that nobody needs may be removed: that goes on beside it.
    """
    attempts = [work for work in workloads if work.step is not WorkloadStep.COLLECT or work.state == "Failed"]
    newest = max(attempts, key=lambda workload: (workload.started_at, workload.attempt), default=None)
    return newest if newest and newest.state == "Failed" and newest.reason != "Stopped" else None


async def _trees(mode: LocalMode, names: Sequence[str] | None) -> RenderableType:
    return Group(*(status_tree(view, now()) for view in await _describe_all(mode, names)))


async def _describe_all(mode: LocalMode, names: Sequence[str] | None) -> list[views.Description]:
    return [await _described(mode, model) for model in await find_all(mode, names)]


async def _describe(mode: LocalMode, name: str) -> views.Description:
    return await _described(mode, await find(mode, name))


async def _described(mode: LocalMode, model: RetrievalModel) -> views.Description:
    machine = mode.machine()
    async with mode.ports(machine) as ports:
        observed, decided = await Controller(ports, decide, now).preview(model)
    failed = last_failed(observed.workloads)
    return views.Description(
        model=model,
        why=decided.why,
        page=observed.registry.page if observed.registry else "",
        events=[
            views.EventView(type=e.type, reason=e.reason, message=e.message, count=e.count, last_at=e.last_seen)
            for e in mode.models.events(model.key)
        ],
        workloads=observed.workloads,
        stacks=observed.stacks,
        former=observed.traffic.previous,
        log_tails={failed.name: log_tail(machine, model.key, failed.name)} if failed else {},
        logs="retrieval-operator local logs NAME",
        attention="" if holder(mode.home) else _NOBODY_WORKS,
    )


async def _next_steps(mode: LocalMode, names: Sequence[str] | None) -> list[Preview]:
    models = await find_all(mode, names)
    async with mode.ports(mode.machine()) as ports:
        controller = Controller(ports, decide, now)
        seen = [(model, *await controller.preview(model)) for model in models]
    return [preview(model, observed, decided, now(), None) for model, observed, decided in seen]


async def _previews(mode: LocalMode, manifests: Sequence[RetrievalModel]) -> list[Preview]:
    stored = await check_manifests(mode, manifests)
    previews: list[Preview] = []
    async with mode.ports(mode.machine()) as ports:
        controller = Controller(ports, decide, now)
        for manifest in manifests:
            current = stored.get(manifest.key)
            changed = changed_object(current, manifest)
            observed, decided = await controller.preview(changed)
            previews.append(preview(changed, observed, decided, now(), change_to(current, manifest)))
    return previews
