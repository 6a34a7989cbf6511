"""The commands of the chart's hooks, and of an administrator where these could not run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from retrieval_operator.adapters.kubernetes import uninstall
from retrieval_operator.cli.shared import told

_PAUSE_S = 2.0

StopOption = Annotated[
    str | None,
    typer.Option("--stop", metavar="NAMESPACE/DEPLOYMENT", help="First stop the operator, which sets the finalizer."),
]
NamespaceOption = Annotated[
    list[str] | None, typer.Option("--namespace", help="Only objects of this namespace; may be given again.")
]
DeleteOption = Annotated[
    bool, typer.Option("--delete-objects", help="Before that, delete the objects and wait until they are gone.")
]


@told
def release_finalizers(
    stop: StopOption = None, namespace: NamespaceOption = None, delete_objects: DeleteOption = False
) -> None:
    """Take the operator's finalizer off every RetrievalModel. Objects, files and MLflow's record stay.

    The chart runs it before it is uninstalled. What has deletionPolicy Delete can then be deleted; its files stay.

    For example:
      retrieval-operator kubernetes release-finalizers --namespace feed
      retrieval-operator kubernetes release-finalizers --stop retrieval-operator/retrieval-operator
    """
    deployment = _deployment(stop)
    asyncio.run(_release(deployment, namespace or (), delete_objects=delete_objects))


async def _release(deployment: tuple[str, str] | None, namespaces: Sequence[str], *, delete_objects: bool) -> None:
    from retrieval_operator.adapters.kubernetes.client import connected  # noqa: PLC0415 the client takes half a second

    async with connected("retrieval-operator/uninstall") as api:
        if delete_objects:
            for key in await uninstall.delete_objects(api, namespaces, _pause):
                typer.echo(f"{key} is deleted")
        if deployment is not None:
            await uninstall.stop_operator(api, *deployment, _pause)
            typer.echo(f"the operator {'/'.join(deployment)} is stopped")
        for key in await uninstall.release_finalizers(api, namespaces, _pause):
            typer.echo(f"{key} has no finalizer of the operator any more")


async def _pause() -> None:
    await asyncio.sleep(_PAUSE_S)


def _deployment(text: str | None) -> tuple[str, str] | None:
    """NAMESPACE/NAME as a pair. A usage error when it is none."""
    if text is None:
        return None
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise typer.BadParameter(f'found "{text}", expected NAMESPACE/DEPLOYMENT', param_hint="--stop")
    return namespace, name
