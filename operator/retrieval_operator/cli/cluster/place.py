"""Which cluster and namespace a command is about, in kubectl's own options; and the objects there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import ValidationError

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.kinds import RETRIEVAL_MODEL, Object
from retrieval_operator.adapters.kubernetes.models import key_of
from retrieval_operator.api.constants import KIND
from retrieval_operator.api.objects import InvalidManifest, RetrievalModel, parse_stored
from retrieval_operator.api.wire import from_wire
from retrieval_operator.cli.shared import NotFound
from retrieval_operator.ports import Gone

NameArgument = Annotated[str, typer.Argument(help="NAME of the object.", show_default=False)]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", help="Of the object; default: that of the context.", show_default=False)
]
ContextOption = Annotated[
    str, typer.Option("--context", help="Of the kubeconfig; default: its current one.", show_default=False)
]
KubeconfigOption = Annotated[
    str, typer.Option("--kubeconfig", help="File to use; default: as kubectl finds it.", show_default=False)
]


@dataclass(frozen=True)
class Asked:
    """Where to look, as the options say; "" for what none was given for."""

    namespace: str
    context: str
    kubeconfig: str


@dataclass(frozen=True)
class Place:
    """A namespace of a cluster; None: all of them."""

    api: KubernetesApi
    namespace: str | None


@asynccontextmanager
async def opened(asked: Asked, *, all_namespaces: bool = False) -> AsyncIterator[Place]:
    """Connect as kubectl would. Raises Rejected when no configuration can be used."""
    from retrieval_operator.adapters.kubernetes.client import connected  # noqa: PLC0415 the client takes half a second

    async with connected("kubectl-retrieval", kubeconfig=asked.kubeconfig, context=asked.context) as client:
        yield Place(client, None if all_namespaces else asked.namespace or client.namespace)


async def find(place: Place, name: str) -> RetrievalModel:
    """The object. Raises NotFound, naming those there are; InvalidManifest for one that this program cannot read."""
    assert place.namespace is not None, "an object is asked for by name in one namespace"
    if "/" in name:
        raise typer.BadParameter(f"found {name}, expected a NAME; its namespace goes into --namespace")
    obj = await place.api.get(RETRIEVAL_MODEL, place.namespace, name)
    if obj is None:
        known = ", ".join(found["metadata"]["name"] for found in await _listed(place)) or "nothing"
        raise NotFound(f"{place.namespace}/{name} does not exist; there is: {known}")
    return read(obj)


async def find_all(place: Place, names: Sequence[str]) -> tuple[list[RetrievalModel], list[str]]:
    """The named objects, or all of the place; and a sentence on each of these that this program cannot read.

    Raises NotFound when one is missing, or when there is none at all; InvalidManifest for a named one.
    """
    if names:
        return [await find(place, name) for name in names], []
    models, problems = [], []
    objects = await _listed(place)
    for obj in objects:
        try:
            models.append(read(obj))
        except InvalidManifest as error:
            problems.append(str(error))
    if not objects:
        where = f"in namespace {place.namespace}; --all-namespaces looks everywhere" if place.namespace else "at all"
        raise NotFound(f"there is no {KIND} {where}")
    return models, problems


def read(obj: Object) -> RetrievalModel:
    """The object with its status. Raises InvalidManifest."""
    key = key_of(obj)
    model = parse_stored(obj, key)
    try:
        return model.model_copy(update={"status": from_wire(obj.get("status") or {})})
    except ValidationError as error:
        raise InvalidManifest(key, [f"status: cannot be read by this version of the program: {error}"]) from error


async def _listed(place: Place) -> list[Object]:
    try:
        return await place.api.list(RETRIEVAL_MODEL, place.namespace, {})
    except Gone as error:
        raise NotFound(f"this cluster does not know {KIND}s; install the operator's chart first ({error})") from error
