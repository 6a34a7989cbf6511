"""The commands that only look: status, describe."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from retrieval_operator.api.text import printable
from retrieval_operator.cli import views
from retrieval_operator.cli.cluster.looking import look, see
from retrieval_operator.cli.cluster.place import (
    Asked,
    ContextOption,
    KubeconfigOption,
    NameArgument,
    NamespaceOption,
    Place,
    find,
    find_all,
    opened,
)
from retrieval_operator.cli.following import WatchOption, check_watch, follow
from retrieval_operator.cli.output import Format, one_or_all, show, show_document
from retrieval_operator.cli.shared import OutputOption, told
from retrieval_operator.cli.tree import status_tree
from retrieval_operator.kubernetes_mode import now


@told
def status(
    names: Annotated[
        list[str] | None, typer.Argument(help="NAME of objects; default: all of the namespace.", show_default=False)
    ] = None,
    *,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Those of every namespace.")] = False,
    watch: WatchOption = False,
    output: OutputOption = Format.TABLE,
    namespace: NamespaceOption = "",
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = "",
) -> None:
    """A tree per object: what serves, each step of what is in flight with its numbers, what comes next.

    For example:
      kubectl retrieval status feed --namespace feed --watch
      kubectl retrieval status --all-namespaces
      kubectl retrieval status feed -o json
    """
    if names and all_namespaces:
        raise typer.BadParameter("found both NAME and --all-namespaces, expected one of them")
    if watch:
        check_watch(output)
    asked = Asked(namespace, context, kubeconfig)
    asyncio.run(_status(asked, names or [], output, all_namespaces=all_namespaces, watch=watch))


@told
def describe(
    name: NameArgument,
    output: OutputOption = Format.TABLE,
    namespace: NamespaceOption = "",
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = "",
) -> None:
    """Everything about one object: conditions, champion, candidate, gates, history, workloads, events, what comes next.

    For example:
      kubectl retrieval describe feed
      kubectl retrieval describe feed --namespace feed -o yaml
    """
    description = asyncio.run(_describe(Asked(namespace, context, kubeconfig), name))
    if output is Format.TABLE:
        show(views.describe(description, now()))
    else:
        show_document(views.describe_document(description), output)


async def _status(asked: Asked, names: Sequence[str], output: Format, *, all_namespaces: bool, watch: bool) -> None:
    async with opened(asked, all_namespaces=all_namespaces) as place:
        if watch:
            await follow(lambda: _trees(place, names))
            return
        seen, problems = await _look_at(place, names)
    for problem in problems:
        typer.echo(printable(problem), err=True)
    if output is Format.TABLE:
        show(status_tree(view, now()) for view in seen)
    else:
        show_document(one_or_all([views.status_document(view) for view in seen], names), output)


async def _look_at(place: Place, names: Sequence[str]) -> tuple[list[views.Description], list[str]]:
    models, problems = await find_all(place, names)
    seen = None if names else await see(place.api, place.namespace)
    return [await look(place.api, model, now(), seen=seen) for model in models], problems


async def _trees(place: Place, names: Sequence[str]) -> RenderableType:
    seen, problems = await _look_at(place, names)
    return Group(*(status_tree(view, now()) for view in seen), *map(Text, problems))


async def _describe(asked: Asked, name: str) -> views.Description:
    async with opened(asked) as place:
        return await look(place.api, await find(place, name), now(), with_events=True)
