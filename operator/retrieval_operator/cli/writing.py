"""The commands that ask for something: apply, approve, reject, rollback, retry, retrain, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from retrieval_operator.adapters.local.store import Applied
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.cli import asking
from retrieval_operator.cli.asking import Request
from retrieval_operator.cli.planning import change_to
from retrieval_operator.cli.reading import read_manifests
from retrieval_operator.cli.running import wait_for_deletion, wait_for_objects
from retrieval_operator.cli.shared import (
    HomeOption,
    NameArgument,
    check_manifests,
    find,
    find_all,
    open_home,
    timeout_of,
    told,
)
from retrieval_operator.cli.waiting import Until
from retrieval_operator.instance import holder
from retrieval_operator.local_mode import LocalMode, now

TimeoutOption = Annotated[
    str,
    typer.Option("--timeout", metavar="DURATION", help="Give up waiting after this long, for example 90s, 10m, 2h."),
]


@told
def apply(
    file: Annotated[list[str], typer.Option("--filename", "-f", help="A manifest, - is stdin; may be repeated.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome; short for --until promoted.")] = False,
    until: Annotated[
        Until | None,
        typer.Option(
            "--until", help="Wait until this generation is promoted, or until all is settled, whatever the outcome."
        ),
    ] = None,
    timeout: TimeoutOption = "24h",
    home: HomeOption = None,
) -> None:
    """Create objects, or change them to what the manifests say. All documents are applied, or none.

    Nothing happens without a controller: --wait runs one until the outcome is known when none runs in this home.

    For example:
      retrieval-operator local apply -f feed.yaml
      retrieval-operator local apply -f feed.yaml --wait --timeout 20m
      retrieval-operator local apply -f feed.yaml --until settled
    """
    seconds = timeout_of(timeout)
    mode = open_home(home)
    manifests = [manifest for path in file for manifest in read_manifests(path)]
    for applied, effect in asyncio.run(_apply_all(mode, manifests)):
        typer.echo(f"{applied.model.key} {applied.outcome}{effect}")
    if wait or until:
        keys = [manifest.key for manifest in manifests]
        outcome = wait_for_objects(mode, keys, until or Until.PROMOTED, seconds)
        _say_who_works(mode)
        raise typer.Exit(outcome)
    _say_who_works(mode)


@told
def approve(name: NameArgument, home: HomeOption = None) -> None:
    """Let the candidate that awaits approval (promotion.mode: Manual) take over.

    For example:
      retrieval-operator local approve feed
    """
    _ask(open_home(home), name, asking.approval)


@told
def reject(name: NameArgument, home: HomeOption = None) -> None:
    """Refuse the candidate that awaits approval; the champion keeps serving.

    For example:
      retrieval-operator local reject feed
    """
    _ask(open_home(home), name, asking.rejection)


@told
def rollback(
    name: NameArgument,
    to: Annotated[str, typer.Option("--to", metavar="STACK", help="Default: the stack that was live before.")] = "",
    home: HomeOption = None,
) -> None:
    """Return to a former stack. It is started again when it does not run any more.

    For example:
      retrieval-operator local rollback feed
      retrieval-operator local rollback feed --to 0b6c1d2e
    """
    mode = open_home(home)

    def request(model: RetrievalModel) -> Request:
        traffic = asyncio.run(mode.machine().traffic.observe(model))
        return asking.rollback(model, to, traffic.previous)

    _ask(mode, name, request)


@told
def retry(name: NameArgument, home: HomeOption = None) -> None:
    """Give fresh attempts to what failed or was refused, without changing the manifest.

    For example:
      retrieval-operator local retry feed
    """
    _ask(open_home(home), name, lambda model: asking.retry(model, now()))


@told
def retrain(name: NameArgument, home: HomeOption = None) -> None:
    """Train once more with the same manifest, as a schedule would.

    For example:
      retrieval-operator local retrain feed
    """
    _ask(open_home(home), name, asking.retrain)


@told
def delete(
    names: Annotated[list[str], typer.Argument(help="NAME or NAMESPACE/NAME of the objects.", show_default=False)],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until its servers have ended.")] = False,
    timeout: TimeoutOption = "5m",
    home: HomeOption = None,
) -> None:
    """Delete objects. Serving ends with the object; its MLflow history stays.

    With deletionPolicy Retain its bundles and indexes stay, too; with Delete they are removed first.

    For example:
      retrieval-operator local delete feed --wait
    """
    seconds = timeout_of(timeout)
    mode = open_home(home)
    keys = [model.key for model in asyncio.run(find_all(mode, names))]
    for key in keys:
        mode.models.request_deletion(key, now=now())
        typer.echo(f"{key} deleted")
    if wait:
        raise typer.Exit(wait_for_deletion(mode, keys, seconds))
    _say_who_works(mode)


async def _apply_all(mode: LocalMode, manifests: Sequence[RetrievalModel]) -> list[tuple[Applied, str]]:
    """Check every document before the first is written. Raises InvalidManifest or Rejected."""
    stored = await check_manifests(mode, manifests)
    applied = [mode.models.apply(manifest, now=now()) for manifest in manifests]
    return [(result, _effect(stored.get(result.model.key), result)) for result in applied]


def _effect(before: RetrievalModel | None, result: Applied) -> str:
    """` (new revision: spec.data.revision)`; nothing for a new or unchanged object."""
    if before is None or result.outcome != "configured":
        return ""
    change = change_to(before, result.model)
    return f" ({change.effect}: {', '.join(path for path, _ in change.paths)})" if change.paths else ""


def _ask(mode: LocalMode, name: str, request_of: Callable[[RetrievalModel], Request]) -> None:
    model = asyncio.run(find(mode, name))
    request = request_of(model)
    mode.models.annotate(model.key, request.annotations)
    typer.echo(f"{model.key}: {request.sentence}")
    _say_who_works(mode)


def _say_who_works(mode: LocalMode) -> None:
    """A change waits for a controller: say so when there is none, on standard error so that pipes stay clean."""
    if holder(mode.home) is None:
        typer.echo("No controller runs in this home; start one: retrieval-operator local run", err=True)
