"""What the client sends, and what it makes of answers. The real server's answers: tests/e2e/operator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from retrieval_operator.adapters.kubernetes import client as kubernetes_client
from retrieval_operator.adapters.kubernetes import own_pod
from retrieval_operator.adapters.kubernetes.client import Answer, KubernetesClient, connected
from retrieval_operator.adapters.kubernetes.kinds import JOB, NAMESPACE, POD, RETRIEVAL_MODEL, Kind
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale


def status(code: int, reason: str = "", message: str = "words", **details: Any) -> bytes:
    document = {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}
    return json.dumps(document).encode()


NAMED = {"name": "feed", "kind": "jobs"}
TERMINATING = {"causes": [{"reason": "NamespaceTerminating"}]}


@pytest.mark.parametrize(
    ("code", "content", "expected"),
    [
        (404, status(404, "NotFound", **NAMED), Gone),  # the object of a patch, or the namespace of a create
        (404, status(404, "NotFound"), Retryable),  # no such path: the definition is not installed
        (404, b"404 page not found\n", Retryable),
        (409, status(409, "Conflict", **NAMED), Stale),
        (403, status(403, "Forbidden", **NAMED), Rejected),
        (403, status(403, "Forbidden", **TERMINATING), Gone),
        (400, status(400, "BadRequest"), Rejected),
        (422, status(422, "Invalid", **NAMED), Rejected),
        (401, status(401, "Unauthorized"), Retryable),  # a token that was just replaced
        (429, status(429, "TooManyRequests", retryAfterSeconds=1), Retryable),
        (500, status(500, "InternalError"), Retryable),  # a webhook that does not answer
        (503, b"<html>a proxy</html>", Retryable),
        (504, status(504, "Timeout"), Retryable),
    ],
)
def test_an_answer_becomes_the_error_it_means(code: int, content: bytes, expected: type[PortError]) -> None:
    with pytest.raises(PortError) as caught:
        Answer(code, content).object("patch Job ml/feed")
    assert type(caught.value) is expected
    assert str(caught.value).startswith("patch Job ml/feed: ")


def test_the_words_of_the_server_reach_people() -> None:
    with pytest.raises(Rejected, match=r"^create Job ml/feed: spec\.template is immutable$"):
        Answer(422, status(422, "Invalid", "spec.template is immutable")).object("create Job ml/feed")


def test_an_answer_without_words_says_its_status() -> None:
    with pytest.raises(Retryable, match="HTTP status 502"):
        Answer(502, b"").object("get Job ml/feed")


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "path"),
    [
        (POD, "ml", "one", "/api/v1/namespaces/ml/pods/one"),
        (POD, None, "", "/api/v1/pods"),
        (JOB, "ml", "", "/apis/batch/v1/namespaces/ml/jobs"),
        (NAMESPACE, None, "ml", "/api/v1/namespaces/ml"),
        (NAMESPACE, "ignored", "ml", "/api/v1/namespaces/ml"),
        (RETRIEVAL_MODEL, None, "", "/apis/retrieval-operator.io/v1alpha1/retrievalmodels"),
    ],
)
def test_the_address_of_a_kind(kind: Kind, namespace: str | None, name: str, path: str) -> None:
    assert kind.path(namespace, name) == path


class Server:
    """Records requests; answers what a test has put in, in order."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[tuple[int, Any]] = []

    async def answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.requests.append((request.method, request.path, dict(request.query), json.loads(text) if text else None))
        self.headers.append(dict(request.headers))
        code, document = self.answers.pop(0)
        return web.json_response(document, status=code)


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Server, KubernetesClient]]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    async with connected("retrieval-operator/test") as client:
        yield server, client
    await runner.cleanup()


def job(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one", "namespace": "ml"}, **fields}


Served = tuple[Server, KubernetesClient]
JOBS = "/apis/batch/v1/namespaces/ml/jobs"


async def test_every_patch_names_its_content_type(server: Served) -> None:
    served, client = server
    served.answers = [(200, job())] * 2
    await client.patch(JOB, "ml", "one", {"metadata": {"labels": {"a": None}}}, resource_version="7")
    await client.apply_status(job(status={"x": 1.5}), manager="me")
    assert [headers["Content-Type"] for headers in served.headers] == [
        "application/merge-patch+json",
        "application/apply-patch+yaml",
    ]
    by_us = {"fieldManager": "me", "force": "true"}
    patch = {"metadata": {"labels": {"a": None}, "resourceVersion": "7"}}
    assert served.requests == [
        ("PATCH", f"{JOBS}/one", {}, patch),
        ("PATCH", f"{JOBS}/one/status", by_us, job(status={"x": 1.5})),
    ]


async def test_requests_carry_the_token_and_our_name(server: Served) -> None:
    served, client = server
    served.answers = [(200, job())]
    await client.get(JOB, "ml", "one")
    assert served.headers[0]["Authorization"] == "Bearer secret-token"
    assert served.headers[0]["User-Agent"] == "retrieval-operator/test"


async def test_a_long_listing_is_read_page_by_page(server: Served) -> None:
    served, client = server
    served.answers = [
        (200, {"kind": "JobList", "metadata": {"continue": "more"}, "items": [{"metadata": {"name": "one"}}]}),
        (200, {"kind": "JobList", "metadata": {}, "items": [{"metadata": {"name": "two"}}]}),
    ]
    found = await client.list(JOB, None, {"b": "2", "a": "1"})
    assert [(obj["kind"], obj["metadata"]["name"]) for obj in found] == [("Job", "one"), ("Job", "two")]
    first, second = (query for _, _, query, _ in served.requests)
    assert first == {"limit": "500", "labelSelector": "a=1,b=2"}
    assert second == {**first, "continue": "more"}


async def test_a_deletion_takes_dependents_with_it_and_minds_the_uid(server: Served) -> None:
    served, client = server
    served.answers = [(200, job()), (200, job()), (404, None), (409, {"kind": "Status", "reason": "Conflict"})]
    await client.delete(JOB, "ml", "one")
    await client.delete(JOB, "ml", "one", uid="u1", foreground=True)
    await client.delete(JOB, "ml", "one")
    await client.delete(JOB, "ml", "one", uid="u1")
    assert [body for _, _, _, body in served.requests][:2] == [
        {"propagationPolicy": "Background"},
        {"propagationPolicy": "Foreground", "preconditions": {"uid": "u1"}},
    ]


async def test_what_exists_already_is_told_from_a_conflict(server: Served) -> None:
    served, client = server
    served.answers = [
        (409, {"kind": "Status", "reason": "AlreadyExists"}),
        (409, {"kind": "Status", "reason": "Conflict", "message": "quota changed"}),
        (201, job()),
    ]
    assert await client.create(job()) is None
    with pytest.raises(Stale):
        await client.create(job())
    assert await client.create(job()) == job()


async def test_what_is_not_there_is_none_and_what_is_not_answered_may_be_asked_again(server: Served) -> None:
    served, client = server
    served.answers = [(404, {"kind": "Status", "reason": "NotFound"})]
    assert await client.get(JOB, "ml", "one") is None
    client._client.configuration.host = "http://127.0.0.1:1"
    with pytest.raises(Retryable, match="does not answer"):
        await client.get(JOB, "ml", "one")


async def test_without_a_way_to_a_cluster_it_is_said_where_was_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(Rejected, match=r"KUBECONFIG, service account, ~/\.kube/config"):
        async with connected("test"):
            pass


CONFIGURATION = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": name, "cluster": {"server": f"http://{name}.example"}} for name in ("one", "two")],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [
        {"name": "first", "context": {"cluster": "one", "user": "u"}},
        {"name": "second", "context": {"cluster": "two", "user": "u", "namespace": "ml"}},
    ],
    "current-context": "first",
}


@pytest.mark.parametrize(
    ("context", "host", "namespace"),
    [("", "http://one.example", "default"), ("second", "http://two.example", "ml")],
)
async def test_a_context_says_which_cluster_and_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: str, host: str, namespace: str
) -> None:
    """The kubeconfig that is named goes before KUBECONFIG."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    (tmp_path / "named").write_text(yaml.safe_dump(CONFIGURATION))
    async with connected("test", kubeconfig=str(tmp_path / "named"), context=context) as client:
        assert (client._client.configuration.host, client.namespace) == (host, namespace)


@pytest.mark.parametrize("text", ["clusters: [", "[]", "just a text", ""])
async def test_a_kubeconfig_that_is_none_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(Rejected, match="found no way to reach a cluster"):
        async with connected("test", kubeconfig=str(tmp_path / "kubeconfig")):
            pass


async def test_an_unknown_context_is_said(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(CONFIGURATION))
    with pytest.raises(Rejected, match="third"):
        async with connected("test", kubeconfig=str(tmp_path / "kubeconfig"), context="third"):
            pass


async def test_in_a_pod_the_namespace_is_the_pod_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(kubernetes_client, "load_incluster_config", lambda client_configuration: None)
    (tmp_path / "namespace").write_text("ml\n")
    monkeypatch.setattr(own_pod, "_NAMESPACE_FILE", tmp_path / "namespace")
    async with connected("test") as client:
        assert client.namespace == "ml"


async def test_in_a_pod_no_proxy_is_asked_for_the_api_server(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by kopf, whose default it is. A kubeconfig's user may need one."""
    served, outside = server
    served.answers = [(200, {"kind": "Job"})]
    host = outside._client.configuration.host

    def in_cluster(client_configuration: Configuration) -> None:
        client_configuration.host = host

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(kubernetes_client, "load_incluster_config", in_cluster)
    monkeypatch.setattr(own_pod, "_NAMESPACE_FILE", tmp_path / "namespace")
    async with connected("test") as client:
        assert await client.get(JOB, "ml", "one") == {"kind": "Job"}
    with pytest.raises(Retryable, match="does not answer"):
        await outside.get(JOB, "ml", "one")
