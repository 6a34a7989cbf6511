"""What MLflow and the network answer becomes one of our errors, with a sentence that says what to check."""

from __future__ import annotations

import json

import httpx
import pytest
from pydantic import ValidationError

from retrieval_operator.adapters.mlflow import rest
from retrieval_operator.adapters.mlflow.connection import Connection, Pages
from retrieval_operator.adapters.mlflow.rest import REPORT_MAX_BYTES, AlreadyExists, NotFound, RestClient, TooLarge
from retrieval_operator.ports import Rejected, Retryable, Stale


async def no_sleep(seconds: float) -> None:
    pass


def client(handler, **connection) -> RestClient:
    settings = {"uri": "http://mlflow.test:5000", **connection}
    return RestClient(Connection(**settings), transport=httpx.MockTransport(handler), sleep=no_sleep)


def answers(status: int, body: object, headers: dict[str, str] | None = None):
    def handler(request: httpx.Request) -> httpx.Response:
        if isinstance(body, str):
            return httpx.Response(status, text=body, headers=headers)
        return httpx.Response(status, json=body, headers=headers)

    return handler


TRANSLATIONS = [
    ("a busy server", 429, "slow down", Retryable, "429: slow down"),
    (
        "a failing server",
        500,
        {"error_code": "INTERNAL_ERROR", "message": "database is locked"},
        Retryable,
        "is locked",
    ),
    ("a proxy without its server", 503, "<html>", Retryable, "503"),
    ("missing credentials", 401, "You are not authenticated", Rejected, "check the connection's credentials"),
    ("a host MLflow was not told of", 403, "Invalid Host header - attack", Rejected, "--allowed-hosts"),
    (
        "a user without rights",
        403,
        {"error_code": "PERMISSION_DENIED", "message": "no"},
        Rejected,
        "check what the user",
    ),
    ("a named thing that is gone", 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "m"}, NotFound, "m"),
    ("a server that is not MLflow", 404, "<html>Not Found", Rejected, "has no MLflow API"),
    ("a thing that is there", 400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "m"}, AlreadyExists, "m"),
    ("a bad request", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "bad name"}, Rejected, "bad name"),
    ("a login page behind a redirect", 302, "", Rejected, "redirects"),
    ("a login page", 200, "<html>Please sign in", Rejected, "not of a login page"),
    ("JSON that is no object", 200, [], Rejected, "something other than MLflow's JSON"),
]


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"), [case[1:] for case in TRANSLATIONS], ids=[case[0] for case in TRANSLATIONS]
)
async def test_an_answer_becomes_one_of_our_errors(status, body, kind, words):
    rest = client(answers(status, body))
    with pytest.raises(kind) as caught:
        await rest.get("runs/get", {"run_id": "r"})
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert "http://mlflow.test:5000" in str(caught.value)


async def test_the_host_to_allow_is_named_with_its_port():
    with pytest.raises(Rejected, match=r"'mlflow\.test:5000'"):
        await client(answers(403, "Invalid Host header - possible attack")).get("runs/get", {})


async def test_a_long_answer_is_cut_in_the_message():
    with pytest.raises(Retryable) as caught:
        await client(answers(500, "x\n" * 10_000)).get("runs/get", {})
    assert len(str(caught.value)) < 450
    assert "\n" not in str(caught.value)


async def test_what_is_missing_can_be_asked_for_without_an_error():
    rest = client(answers(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "m"}))
    assert await rest.find("runs/get", {"run_id": "r"}) is None


def test_missing_and_existing_things_mean_observe_again():
    assert issubclass(NotFound, Stale)
    assert issubclass(AlreadyExists, Stale)


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("disconnected")]
)
async def test_a_quick_transport_failure_is_tried_again(failure):
    tried = []

    def handler(request: httpx.Request) -> httpx.Response:
        tried.append(request)
        if len(tried) < 3:
            raise failure
        return httpx.Response(200, json={"fine": True})

    assert await client(handler).post("runs/create", {"a": 1}) == {"fine": True}
    assert [request.content for request in tried] == [b'{"a":1}'] * 3


async def test_an_unreachable_mlflow_is_retryable_after_three_tries():
    tried = []

    def handler(request: httpx.Request) -> httpx.Response:
        tried.append(request)
        raise httpx.ConnectError("Connection refused")

    with pytest.raises(Retryable, match=r"not reachable: Connection refused"):
        await client(handler).get("runs/get", {})
    assert len(tried) == 3


@pytest.mark.parametrize("failure", [httpx.ReadTimeout(""), httpx.ConnectTimeout("")])
async def test_a_time_out_is_not_tried_again_at_once(failure):
    tried = []

    def handler(request: httpx.Request) -> httpx.Response:
        tried.append(request)
        raise failure

    with pytest.raises(Retryable, match="did not answer in time"):
        await client(handler).get("runs/get", {})
    assert len(tried) == 1


async def test_an_untrusted_certificate_needs_a_person():
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    with pytest.raises(Rejected, match="CA file"):
        await client(handler).get("runs/get", {})


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_every_page_is_read(method):
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        token = request.url.params.get("page_token", "") if method == "GET" else _token(request)
        asked.append(token)
        pages = {"": ([1, 2], "second"), "second": ([3], "third"), "third": ([], "")}
        entries, following = pages[token]
        return httpx.Response(200, json={"runs": [{"n": n} for n in entries], "next_page_token": following})

    found = [entry["n"] async for entry in client(handler).pages(method, "runs/search", "runs", {"filter": "f"})]
    assert found == [1, 2, 3]
    assert asked == ["", "second", "third"]


async def test_a_page_that_is_too_large_is_read_in_parts(monkeypatch):
    """Runs come with all their metrics: a page of them has no size that is known beforehand."""
    monkeypatch.setattr(rest, "ANSWER_MAX_BYTES", 2000)
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        query = json.loads(request.content)
        start, size = int(query.get("page_token") or 0), query["max_results"]
        asked.append(size)
        entries = [{"n": n, "metrics": "x" * 300} for n in range(start, min(start + size, 300))]
        following = {"next_page_token": str(start + size)} if start + size < 300 else {}
        return httpx.Response(200, json={"runs": entries, **following})

    found = [entry["n"] async for entry in client(handler).pages("POST", "runs/search", "runs", {})]
    assert found == list(range(300))
    assert asked == [200, 100, 50, 25, 12, *[6] * 50]


async def test_one_entry_that_is_too_large_is_told(monkeypatch):
    monkeypatch.setattr(rest, "ANSWER_MAX_BYTES", 100)
    with pytest.raises(TooLarge):
        await anext(client(answers(200, {"runs": [{"n": "x" * 200}]})).pages("POST", "runs/search", "runs", {}))


async def test_an_answer_that_is_nested_too_deep_is_none_of_mlflows():
    with pytest.raises(Rejected, match="something other than MLflow's JSON"):
        await client(lambda _: httpx.Response(200, content=b"[" * 100_000)).get("runs/get", {})


def _token(request: httpx.Request) -> str:
    return json.loads(request.content).get("page_token", "")


async def test_an_answer_without_the_field_is_an_empty_page():
    assert [entry async for entry in client(answers(200, {})).pages("POST", "runs/search", "runs", {})] == []


class TestArtifact:
    async def test_is_returned_byte_for_byte(self):
        def handler(request: httpx.Request) -> httpx.Response:
            assert request.url.path == "/get-artifact"
            assert dict(request.url.params) == {"run_id": "r", "path": "report.json"}
            return httpx.Response(200, content=b"\x00{}")

        assert await client(handler).artifact("r", "report.json") == b"\x00{}"

    async def test_that_is_missing_is_none(self):
        missing = answers(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No such artifact"})
        assert await client(missing).artifact("r", "report.json") is None

    @pytest.mark.parametrize(("files", "is_error"), [([], False), ([{"path": "report.json"}], True)])
    async def test_a_failing_store_counts_as_missing_only_when_the_list_says_so(self, files, is_error):
        def handler(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/get-artifact":
                return httpx.Response(500, text="NoSuchKey")
            return httpx.Response(200, json={"files": files})

        rest = client(handler)
        if is_error:
            with pytest.raises(Retryable):
                await rest.artifact("r", "report.json")
        else:
            assert await rest.artifact("r", "report.json") is None

    async def test_of_absurd_size_is_none_and_never_read_whole(self):
        read = []

        async def stream():
            for _ in range(100):
                read.append(1)
                yield b"x" * (REPORT_MAX_BYTES // 4)

        rest = client(lambda request: httpx.Response(200, content=stream()))
        assert await rest.artifact("r", "report.json") is None
        assert len(read) == 5


class TestCredentials:
    @staticmethod
    def seen(rest_settings) -> tuple[RestClient, list[str | None]]:
        headers: list[str | None] = []

        def handler(request: httpx.Request) -> httpx.Response:
            headers.append(request.headers.get("Authorization"))
            return httpx.Response(200, json={})

        return client(handler, **rest_settings), headers

    async def test_none_are_sent_when_none_are_configured(self):
        rest, headers = self.seen({})
        await rest.get("runs/get", {})
        assert headers == [None]

    async def test_a_token_goes_as_bearer_token_and_may_be_rotated(self, tmp_path):
        (tmp_path / "token").write_text("one\n")
        rest, headers = self.seen({"credentials": tmp_path})
        await rest.get("runs/get", {})
        (tmp_path / "token").write_text("two\n")
        await rest.get("runs/get", {})
        assert headers == ["Bearer one", "Bearer two"]

    async def test_user_and_password_go_as_basic_authentication(self, tmp_path):
        (tmp_path / "username").write_text("ann")
        (tmp_path / "password").write_text("secret")
        rest, headers = self.seen({"credentials": tmp_path})
        await rest.get("runs/get", {})
        assert headers == ["Basic YW5uOnNlY3JldA=="]

    async def test_an_empty_directory_is_told(self, tmp_path):
        rest, headers = self.seen({"credentials": tmp_path})
        with pytest.raises(Rejected, match="neither a file `token` nor files `username` and `password`"):
            await rest.get("runs/get", {})
        assert headers == []

    def test_are_nowhere_in_what_a_log_would_show(self, tmp_path):
        (tmp_path / "token").write_text("hunter2")
        assert "hunter2" not in repr(Connection(uri="http://m", credentials=tmp_path))

    def test_in_the_uri_are_refused_without_being_repeated(self):
        with pytest.raises(ValidationError) as caught:
            Connection(uri="http://ann:hunter2@mlflow.test")
        assert "credentials directory" in str(caught.value)
        assert "hunter2" not in str(caught.value)


class TestConnection:
    @pytest.mark.parametrize("uri", ["mlflow.test:5000", "sqlite:///mlflow.db", "file:///mlruns", "http://"])
    def test_an_address_that_is_not_http_is_refused(self, uri):
        with pytest.raises(ValidationError, match="expected an address"):
            Connection(uri=uri)

    async def test_a_path_prefix_is_kept(self):
        paths = []

        def handler(request: httpx.Request) -> httpx.Response:
            paths.append(request.url.path)
            return httpx.Response(200, json={})

        await client(handler, uri="https://tools.test/mlflow/").get("runs/get", {})
        assert paths == ["/mlflow/api/2.0/mlflow/runs/get"]

    def test_a_ca_file_that_cannot_be_read_is_told(self, tmp_path):
        with pytest.raises(Rejected, match="CA file"):
            Connection(uri="https://m", ca_file=tmp_path / "none.pem").client()

    def test_pages_are_those_of_the_public_address(self):
        pages = Pages(Connection(uri="http://mlflow.svc:5000", public_uri="https://mlflow.test/"))
        assert pages.home() == "https://mlflow.test/#/"
        assert pages.run("1", "abc") == "https://mlflow.test/#/experiments/1/runs/abc"
        assert pages.version("a b.feed", "3") == "https://mlflow.test/#/models/a%20b.feed/versions/3"
