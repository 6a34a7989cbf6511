"""KubernetesApi over the official client's asyncio side. Objects stay plain JSON: no generated types are loaded.

Every PATCH names its content type: the client's own default is a JSON patch.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import yaml
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from retrieval_operator.adapters.kubernetes import own_pod
from retrieval_operator.adapters.kubernetes.kinds import Kind, Object, kind_of
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale

# A gut feeling: a busy API server answers within seconds; a pass must not wait for one that is gone.
REQUEST_TIMEOUT_S = 30.0
# Of one page of a listing; client-go's default.
_PAGE_ITEMS = 500
_JSON = "application/json"
_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML
_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
_DEFAULT_NAMESPACE = "default"
# How the library says that a file is no kubeconfig; the last two, when something else is in it.
_UNUSABLE = (ConfigException, OSError, yaml.YAMLError, TypeError, AttributeError)


@asynccontextmanager
async def connected(user_agent: str, *, kubeconfig: str = "", context: str = "") -> AsyncIterator[KubernetesClient]:
    """A client as `kubeconfig` or KUBECONFIG says, else as the pod's service account, else as ~/.kube/config.

    `context` is one of the kubeconfig's, "" for its current one. What stands before a "/" in `user_agent` is the field
    manager of creates and merge patches. Raises Rejected when none of them can be used.
    """
    configuration = Configuration()
    try:
        named = kubeconfig or os.environ.get("KUBECONFIG")
        if named or context or _IN_CLUSTER not in os.environ:
            loader = await load_kube_config(
                config_file=named or None, context=context or None, client_configuration=configuration
            )
            namespace = loader.current_context["context"].get("namespace")
        else:
            load_incluster_config(client_configuration=configuration)
            # A proxy in the pod's environment is for what is outside of the cluster; kopf's watches ignore it, too.
            configuration.client_session_kwargs = {"trust_env": False}
            namespace = own_pod.namespace()
    except _UNUSABLE as error:
        raise Rejected(
            f"found no way to reach a cluster (KUBECONFIG, service account, ~/.kube/config): {error}"
        ) from error
    client = ApiClient(configuration)
    client.user_agent = user_agent
    try:
        yield KubernetesClient(client, namespace or _DEFAULT_NAMESPACE)
    finally:
        await client.close()


class KubernetesClient:
    """Fills KubernetesApi. `namespace` is where its configuration says that one looks who names none."""

    def __init__(self, client: ApiClient, namespace: str = _DEFAULT_NAMESPACE) -> None:
        self._client = client
        self.namespace = namespace

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        answer = await self._request("GET", kind.path(namespace, name))
        return None if answer.code == 404 else answer.object(f"get {kind} {_shown(namespace, name)}")

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Object]:
        what = f"list {kind.plural}"
        query = {"limit": str(_PAGE_ITEMS)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        found: list[Object] = []
        while True:
            answer = await self._request("GET", kind.path(namespace), query=query)
            if answer.code == 404:
                raise Gone(f"{what}: {answer.message}")
            page = answer.object(what)
            # Items of a list do not say what they are.
            found += [{**item, "apiVersion": kind.api_version, "kind": kind.kind} for item in page.get("items") or []]
            rest = page.get("metadata", {}).get("continue")
            if not rest:
                return found
            query["continue"] = rest

    async def create(self, obj: Object) -> Object | None:
        kind, namespace, name = _address(obj)
        answer = await self._request("POST", kind.path(namespace), body=obj)
        if answer.reason == "AlreadyExists":
            return None
        return answer.object(f"create {kind} {_shown(namespace, name)}")

    async def apply_status(self, obj: Object, *, manager: str) -> Object:
        kind, namespace, name = _address(obj)
        answer = await self._request(
            "PATCH",
            f"{kind.path(namespace, name)}/status",
            body=obj,
            content_type=_APPLY_PATCH,
            query={"fieldManager": manager, "force": "true"},
        )
        return answer.object(f"apply {kind} {_shown(namespace, name)}")

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, *, resource_version: str = ""
    ) -> Object:
        if resource_version:
            patch = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": resource_version}}
        answer = await self._request("PATCH", kind.path(namespace, name), body=patch, content_type=_MERGE_PATCH)
        return answer.object(f"patch {kind} {_shown(namespace, name)}")

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "", foreground: bool = False) -> None:
        options: Object = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        answer = await self._request("DELETE", kind.path(namespace, name), body=options)
        if answer.code == 404 or (uid and answer.reason == "Conflict"):  # it is another object of that name
            return
        answer.object(f"delete {kind} {_shown(namespace, name)}")

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        content_type: str = _JSON,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send it. Raises Retryable when no answer comes."""
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": _JSON, "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._client.call_api(*request, _request_timeout=REQUEST_TIMEOUT_S)
            return Answer(int(response.status), await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Retryable(f"the API server does not answer: {type(error).__name__} {error}".rstrip()) from error


class Answer:
    """What the API server said: an object, or a Status with its reason and message."""

    def __init__(self, code: int, content: bytes) -> None:
        self.code = code
        try:
            document: Any = json.loads(content)
        except ValueError:  # a proxy on the way, or a path that no kind has
            document = None
        self._document: Object = document if isinstance(document, dict) else {}
        is_status = self._document.get("kind") == "Status"
        self.reason = str(self._document.get("reason", "")) if is_status else ""
        self.message = str(self._document.get("message", "")) if is_status else content.decode(errors="replace")[:200]

    def object(self, what: str) -> Object:
        """The object. Raises what the answer means; `what` was asked for."""
        if 200 <= self.code < 300:
            return self._document
        raise self._error(f"{what}: {self.message.strip() or f'HTTP status {self.code}'}")

    def _error(self, sentence: str) -> PortError:
        match self.code:
            case 404:
                # Without details there is no such path: the kind's definition is not installed, or not yet served.
                return Gone(sentence) if self._details().get("name") else Retryable(sentence)
            case 409:
                return Stale(sentence)
            case 403 if "NamespaceTerminating" in self._causes():
                return Gone(sentence)
            case 401 | 408 | 410 | 429:
                return Retryable(sentence)
            case code if code >= 500:
                return Retryable(sentence)
            case _:
                return Rejected(sentence)

    def _details(self) -> Object:
        details = self._document.get("details")
        return details if isinstance(details, dict) else {}

    def _causes(self) -> list[str]:
        return [str(cause.get("reason")) for cause in self._details().get("causes") or []]


def _address(obj: Object) -> tuple[Kind, str | None, str]:
    return kind_of(obj), obj["metadata"].get("namespace"), obj["metadata"]["name"]


def _shown(namespace: str | None, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name
