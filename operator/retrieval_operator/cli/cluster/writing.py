"""The commands that ask for something: each sets an annotation that names what was seen; the operator does the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.kinds import RETRIEVAL_MODEL
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.cli import asking
from retrieval_operator.cli.asking import Request
from retrieval_operator.cli.cluster.looking import former_stack
from retrieval_operator.cli.cluster.place import (
    Asked,
    ContextOption,
    KubeconfigOption,
    NameArgument,
    NamespaceOption,
    find,
    opened,
)
from retrieval_operator.cli.shared import told
from retrieval_operator.kubernetes_mode import now
from retrieval_operator.ports import Stale

RequestOf = Callable[[KubernetesApi, RetrievalModel], Awaitable[Request]]


@told
def approve(
    name: NameArgument, namespace: NamespaceOption = "", context: ContextOption = "", kubeconfig: KubeconfigOption = ""
) -> None:
    """Let the candidate that awaits approval (promotion.mode: Manual) take over.

    For example:
      kubectl retrieval approve feed --namespace feed
    """
    _ask(Asked(namespace, context, kubeconfig), name, asking.approval)


@told
def reject(
    name: NameArgument, namespace: NamespaceOption = "", context: ContextOption = "", kubeconfig: KubeconfigOption = ""
) -> None:
    """Refuse the candidate that awaits approval; the champion keeps serving.

    For example:
      kubectl retrieval reject feed --namespace feed
    """
    _ask(Asked(namespace, context, kubeconfig), name, asking.rejection)


@told
def rollback(
    name: NameArgument,
    to: Annotated[str, typer.Option("--to", metavar="STACK", help="Default: the stack that was live before.")] = "",
    namespace: NamespaceOption = "",
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = "",
) -> None:
    """Return to a former stack. It is started again when it does not run any more.

    For example:
      kubectl retrieval rollback feed --namespace feed
      kubectl retrieval rollback feed --to 0b6c1d2e
    """

    async def request(api: KubernetesApi, model: RetrievalModel) -> Request:
        return asking.rollback(model, to, await former_stack(api, model, now()))

    asyncio.run(_request(Asked(namespace, context, kubeconfig), name, request))


@told
def retry(
    name: NameArgument, namespace: NamespaceOption = "", context: ContextOption = "", kubeconfig: KubeconfigOption = ""
) -> None:
    """Give fresh attempts to what failed or was refused, without changing the manifest.

    For example:
      kubectl retrieval retry feed --namespace feed
    """
    _ask(Asked(namespace, context, kubeconfig), name, lambda model: asking.retry(model, now()))


@told
def retrain(
    name: NameArgument, namespace: NamespaceOption = "", context: ContextOption = "", kubeconfig: KubeconfigOption = ""
) -> None:
    """Train once more with the same manifest, as a schedule would.

    For example:
      kubectl retrieval retrain feed --namespace feed
    """
    _ask(Asked(namespace, context, kubeconfig), name, asking.retrain)


def _ask(asked: Asked, name: str, request_of: Callable[[RetrievalModel], Request]) -> None:
    async def request(_: KubernetesApi, model: RetrievalModel) -> Request:
        return request_of(model)

    asyncio.run(_request(asked, name, request))


async def _request(asked: Asked, name: str, request_of: RequestOf) -> None:
    """Set the annotations on the object as it was read. Raises Stale when it is another one by now."""
    async with opened(asked) as place:
        model = await find(place, name)
        request = await request_of(place.api, model)
        metadata = model.metadata
        patch = {"metadata": {"annotations": dict(request.annotations)}}
        try:
            await place.api.patch(
                RETRIEVAL_MODEL, metadata.namespace, metadata.name, patch, resource_version=metadata.resource_version
            )
        except Stale as error:
            again = f"kubectl retrieval status {metadata.name} --namespace {metadata.namespace}"
            raise Stale(f"{model.key} was changed meanwhile, so nothing is asked; look again: {again}") from error
    typer.echo(f"{model.key}: {request.sentence}")
