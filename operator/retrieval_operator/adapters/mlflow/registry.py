"""The Registry port over MLflow's REST API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import httpx

from retrieval_operator.adapters.mlflow.connection import Connection, Pages
from retrieval_operator.adapters.mlflow.rest import RestClient
from retrieval_operator.adapters.mlflow.runs import Runs
from retrieval_operator.adapters.mlflow.versions import Versions
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.observed import RegistryObserved, RunStatus
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion
from retrieval_operator.ports import Rejected


class MlflowRegistry:
    """Runs, versions and aliases of every object, each in the MLflow that its `spec.registry.connection` names.

    `cluster` sets this control plane's objects apart from those of others that share an MLflow: the owner of all that
    an object has there is <cluster>/<namespace>/<name>. A settled object costs three requests per observation, and no
    write. `now` gives seconds since the epoch. Use from one event loop, and `close` in the end.
    """

    def __init__(
        self,
        connections: Mapping[str, Connection],
        *,
        cluster: str = "local",
        now: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._cluster = cluster
        self._servers = {
            name: _Server(connection, RestClient(connection, transport=transport, now=now), now)
            for name, connection in connections.items()
        }

    async def close(self) -> None:
        for server in self._servers.values():
            await server.rest.close()

    async def observe(self, model: RetrievalModel) -> RegistryObserved:
        """`page` is the experiment's, with all runs and their plots, or MLflow's own before there is an experiment."""
        owner = self._owner(model.key)
        with self._server(model) as server:
            runs = await server.runs.observe(owner, _experiment(model))
            versions, aliases = await server.versions.observe(owner, model.registered_model_name)
        experiment_id = server.runs.known_experiment_id(_experiment(model))
        page = server.pages.experiment(experiment_id) if experiment_id else server.pages.home()
        return RegistryObserved(runs=runs, versions=versions, aliases=aliases, page=page)

    async def ensure_run(self, model: RetrievalModel, run: EnsureRun) -> None:
        with self._server(model) as server:
            await server.runs.ensure(self._owner(model.key), _experiment(model), run)

    async def tag_run(self, model: RetrievalModel, run_id: str, tags: Mapping[str, str]) -> None:
        with self._server(model) as server:
            await server.runs.tag(run_id, tags)

    async def set_run_status(self, model: RetrievalModel, run_id: str, status: RunStatus) -> None:
        with self._server(model) as server:
            await server.runs.set_status(run_id, status)

    async def register_version(self, model: RetrievalModel, version: RegisterVersion) -> None:
        with self._server(model) as server:
            run = await server.runs.get(version.run_id)
            await server.versions.register(self._owner(model.key), model.registered_model_name, version, run)

    async def describe_version(
        self, model: RetrievalModel, version: str, tags: Mapping[str, str], description: str | None
    ) -> None:
        with self._server(model) as server:
            await server.versions.describe(model.registered_model_name, version, tags, description)

    async def set_alias(self, model: RetrievalModel, alias: str, version: str) -> None:
        with self._server(model) as server:
            await server.versions.set_alias(model.registered_model_name, alias, version)

    def forget(self, key: str) -> None:
        for server in self._servers.values():
            server.runs.forget(self._owner(key))

    def _owner(self, key: str) -> str:
        return f"{self._cluster}/{key}"

    @contextmanager
    def _server(self, model: RetrievalModel) -> Iterator[_Server]:
        """The object's MLflow. Raises Rejected for an unknown one, and when an answer is JSON that is not MLflow's."""
        name = model.spec.registry.connection
        if name not in self._servers:
            raise Rejected(
                f"spec.registry.connection: found {name!r}, the operator is configured with "
                f"{', '.join(sorted(self._servers)) or 'no connection at all'}"
            )
        server = self._servers[name]
        try:
            yield server
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found = f"without the field {error}" if isinstance(error, KeyError) else f"of another shape ({error})"
            raise Rejected(
                f"{server.uri} answered with JSON {found}, which is not MLflow's; check that this is the address of "
                "an MLflow server and that no gateway answers in its place"
            ) from error


class _Server:
    """One MLflow and what is remembered of it."""

    def __init__(self, connection: Connection, rest: RestClient, now: Callable[[], float]) -> None:
        self.uri = connection.uri
        self.rest = rest
        self.pages = Pages(connection)
        self.runs = Runs(rest, now)
        self.versions = Versions(rest)


def _experiment(model: RetrievalModel) -> str:
    return f"retrieval/{model.key}"
