"""MLflow's REST API 2.0 with errors translated to ours. Knows HTTP and JSON, nothing of runs, versions or owners.

PortError
├── Retryable     unreachable, 5xx, 429
│   ├── NoAnswer            a time-out, our own or a gateway's (504)
│   └── Stale
│       ├── NotFound        MLflow's RESOURCE_DOES_NOT_EXIST: a named thing is not there (any more)
│       └── AlreadyExists   MLflow's RESOURCE_ALREADY_EXISTS: somebody created it in the meantime
└── Rejected      401, 403, a redirect, another 4xx, an answer that is not MLflow's
    └── TooLarge            more than ANSWER_MAX_BYTES, or REPORT_MAX_BYTES
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from retrieval_operator.adapters.mlflow.connection import Connection
from retrieval_operator.adapters.mlflow.outage import NoAnswer, Outage
from retrieval_operator.ports import Rejected, Retryable, Stale

API = "/api/2.0/mlflow/"
# A run comes with all its metrics, an evaluation's of the widest manifest with 1700: 62 kB. So such a page has 12 MB at
# most, and one of an object with default settings, all of whose runs it may hold, less than 1.
PAGE_SIZE = 200
# The control plane's memory must not depend on what somebody uploads: JSON takes up to 25 times its bytes when it is
# read. A report of the widest manifest has 0.6 MB.
ANSWER_MAX_BYTES = 16 * 2**20
REPORT_MAX_BYTES = 2 * 2**20
# What passes within milliseconds: a refused connection during a restart, a kept-alive connection that was closed.
# Time-outs are left out: a second one would hold a worker of the control plane for another `timeout_s`.
_QUICK_FAILURES = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class NotFound(Stale):
    """The run, version, model or experiment that was named does not exist."""


class AlreadyExists(Stale):
    """Something of that name exists."""


class TooLarge(Rejected):
    """The answer was cut off."""


@dataclass(frozen=True)
class _Answer:
    status: int
    content: bytes
    location: str

    def document(self) -> dict[str, Any] | None:
        """The JSON object of the body, None when it is anything else."""
        try:
            document = json.loads(self.content)
        except (ValueError, RecursionError):  # the latter of one that is nested too deep
            return None
        return document if isinstance(document, dict) else None


class RestClient:
    """Requests to one MLflow.

    Quick transport failures are tried three times within 2.5 s, creations too: a creation that reached MLflow although
    its answer was lost leaves a twin, and whoever creates looks for twins afterwards. While MLflow is silent
    (outage.py), calls fail at once. `now` gives seconds.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._http = connection.client(transport)
        self._sleep = sleep
        self._outage = Outage(now)
        self._store_outage = Outage(now)  # of what keeps the artifacts

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return await self.send("GET", path, params=params)

    async def find(self, path: str, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """`get`, or None when the named thing does not exist."""
        try:
            return await self.get(path, params)
        except NotFound:
            return None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self.send("POST", path, body=body)

    async def send(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One call of the API. `path` as in MLflow's reference, such as `runs/search`. Raises PortError only."""
        call = f"{method} {path}"
        with self._outage.request():
            answer = await self._exchange(method, API + path, params=params, body=body)
            self._raise_for_status(answer, call)
        document = answer.document()
        if document is None:
            raise Rejected(
                f"{self._connection.uri} answered {call} with something other than MLflow's JSON; check that this "
                "is the address of an MLflow server and not of a login page before it"
            )
        return document

    async def pages(
        self, method: str, path: str, field: str, query: Mapping[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """Every entry of a search, page by page: the objects under `field` of the answers.

        A page that is too large is asked for anew in parts: MLflow's token names an offset, whatever the page's size.
        Raises KeyError for an answer that holds something else instead, TooLarge for a single entry that is.
        """
        token, size = "", PAGE_SIZE
        while True:
            page = {**query, "max_results": size} | ({"page_token": token} if token else {})
            try:
                answer = await (self.get(path, page) if method == "GET" else self.post(path, page))
            except TooLarge:
                if size == 1:
                    raise
                size //= 2
                continue
            # MLflow leaves an empty list out, and then its answer is empty: anything else is not "there are none".
            for entry in answer[field] if answer.keys() - {"next_page_token"} else []:
                yield entry
            token = answer.get("next_page_token", "")
            if not token:
                return

    async def artifact(self, run_id: str, path: str) -> bytes | None:
        """The bytes of a run's artifact; None when it is not there or larger than REPORT_MAX_BYTES.

        Asks at the address that MLflow's own page uses: it serves every artifact store, proxied by MLflow or not.
        A time-out is no sign of MLflow's outage here: it may be the store's, which has one of its own.
        """
        self._outage.check()
        try:
            with self._store_outage.request():
                asked = {"run_id": run_id, "path": path}
                answer = await self._exchange("GET", "/get-artifact", params=asked, max_bytes=REPORT_MAX_BYTES)
                self._raise_for_status(answer, f"GET get-artifact {path}")
        except (NotFound, TooLarge):
            return None
        except NoAnswer:
            raise  # to ask more would only take another time-out
        except Retryable:
            # Some artifact stores answer 500 for an object that is missing.
            if await self._has_artifact(run_id, path):
                raise
            return None
        self._outage.answered()
        return answer.content

    async def _has_artifact(self, run_id: str, path: str) -> bool:
        listed = await self.find("artifacts/list", {"run_id": run_id}) or {}
        return any(entry.get("path") == path for entry in listed.get("files", []))

    async def _exchange(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        max_bytes: int | None = None,
    ) -> _Answer:
        """`max_bytes`: None for ANSWER_MAX_BYTES."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_QUICK_FAILURES),
            stop=stop_after_attempt(3) | stop_after_delay(2.5),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return await attempts(self._exchange_once, method, url, params, body, max_bytes or ANSWER_MAX_BYTES)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def _exchange_once(
        self,
        method: str,
        url: str,
        params: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
        max_bytes: int,
    ) -> _Answer:
        async with self._http.stream(method, url, params=params, json=body) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > max_bytes:
                    raise TooLarge(
                        f"{self._connection.uri}: the answer to {method} {url} is over {max_bytes >> 20} MiB"
                    )
            return _Answer(response.status_code, bytes(content), response.headers.get("Location", ""))

    def _unreachable(self, error: httpx.HTTPError) -> Rejected | Retryable:
        uri = self._connection.uri
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Rejected(f"the certificate of {uri} is not trusted ({error}); check the connection's CA file")
        if isinstance(error, httpx.TimeoutException):
            return NoAnswer(f"MLflow at {uri} did not answer in time ({type(error).__name__})")
        return Retryable(f"MLflow at {uri} is not reachable: {error or type(error).__name__}")

    def _raise_for_status(self, answer: _Answer, call: str) -> None:
        """Nothing for 2xx. The messages say what was asked, what came back and what to check."""
        if 200 <= answer.status < 300:
            return
        uri, status = self._connection.uri, answer.status
        document = answer.document()
        said = _short(str(document.get("message", "")) if document else answer.content.decode(errors="replace"))
        match status, (document or {}).get("error_code"):
            case _, "RESOURCE_ALREADY_EXISTS":
                raise AlreadyExists(f"MLflow at {uri}: {said}")
            case 404, "RESOURCE_DOES_NOT_EXIST":
                raise NotFound(f"MLflow at {uri}: {said}")
            case 404, _:
                raise Rejected(f"{uri} has no MLflow API (404 for {call}); check the address and its path")
            case 401, _:
                raise Rejected(f"MLflow at {uri} refused the credentials (401); check the connection's credentials")
            case 403, None if "Host header" in said:
                raise Rejected(
                    f"MLflow at {uri} refuses requests for the host {self._connection.authority!r} (403); start it "
                    "with --allowed-hosts naming that host, with and without port"
                )
            case 403, _:
                raise Rejected(f"MLflow at {uri} forbids {call} (403: {said}); check what the user may do there")
            case _ if status == 429 or status >= 500:
                kind = NoAnswer if status == 504 else Retryable
                raise kind(f"MLflow at {uri} failed {call} ({status}: {said})")
            case _ if status < 400:
                raise Rejected(f"{uri} redirects {call} to {answer.location!r}; expected MLflow itself at this address")
            case _:
                raise Rejected(f"MLflow at {uri} refused {call} ({status}: {said})")


def _short(text: str) -> str:
    """One line of at most 300 characters: it ends in conditions and events."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"
