"""How one MLflow is reached: address, credentials, certificates, patience. Part of the operator's configuration."""

from __future__ import annotations

import ssl
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, field_validator

from retrieval_operator.addresses import plain_address
from retrieval_operator.ports import Rejected

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Connection(BaseModel):
    """One configured MLflow. Holds paths to secrets, never a secret, so that it may be logged.

    `credentials` is a directory, as Kubernetes mounts a Secret: it holds either `token` (sent as a bearer token) or
    `username` and `password` (basic authentication); None sends none. `public_uri` is where people open the pages when
    that is not `uri` itself, "" when it is. Times are seconds.
    """

    # A refused URI may hold a password: the error must not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    uri: str
    public_uri: str = ""
    credentials: Path | None = None
    ca_file: Path | None = None
    # Gut feelings: a connection takes milliseconds where it works; the slowest call we make (a search on a busy SQLite)
    # took 0.1 s.
    connect_timeout_s: float = Field(default=3.0, gt=0)
    timeout_s: float = Field(default=15.0, gt=0)

    @field_validator("uri", "public_uri")
    @classmethod
    def _is_plain_address(cls, value: str) -> str:
        return plain_address(value) if value else value

    @property
    def host(self) -> str:
        return urlsplit(self.uri).hostname or ""

    @property
    def authority(self) -> str:
        """Host and port as sent in the Host header."""
        return urlsplit(self.uri).netloc

    def client(self, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
        """An HTTP client for this MLflow alone. Raises Rejected when `ca_file` cannot be read."""
        return httpx.AsyncClient(
            base_url=self.uri,
            auth=MountedCredentials(self.credentials) if self.credentials else None,
            verify=self._certificates(),
            timeout=httpx.Timeout(self.timeout_s, connect=self.connect_timeout_s),
            # uvicorn closes an idle connection after 5 s; ours goes first, so that no request meets a closing one.
            limits=httpx.Limits(keepalive_expiry=3.0),
            # Proxy settings of the environment would take loopback requests elsewhere.
            trust_env=self.host not in LOOPBACK,
            transport=transport,
        )

    def _certificates(self) -> ssl.SSLContext | bool:
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise Rejected(f"the CA file {self.ca_file} of the MLflow connection cannot be used: {error}") from error


class MountedCredentials(httpx.Auth):
    """Credentials read from their files at every request: a rotated Secret works without a restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token, username, password = (self._read(name) for name in ("token", "username", "password"))
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
            yield request
        elif username is not None and password is not None:
            yield from httpx.BasicAuth(username, password).auth_flow(request)
        else:
            raise Rejected(
                f"the credentials directory {self._directory} of the MLflow connection holds neither a file `token` "
                "nor files `username` and `password`"
            )

    def _read(self, name: str) -> str | None:
        try:
            return (self._directory / name).read_text().strip()
        except OSError:
            return None


class Pages:
    """Addresses of MLflow's pages, for people."""

    def __init__(self, connection: Connection) -> None:
        self._base = f"{connection.public_uri or connection.uri}/#"

    def home(self) -> str:
        return f"{self._base}/"

    def experiment(self, experiment_id: str) -> str:
        return f"{self._base}/experiments/{quote(experiment_id, safe='')}"

    def run(self, experiment_id: str, run_id: str) -> str:
        return f"{self.experiment(experiment_id)}/runs/{quote(run_id, safe='')}"

    def model(self, name: str) -> str:
        return f"{self._base}/models/{quote(name, safe='')}"

    def version(self, name: str, version: str) -> str:
        return f"{self.model(name)}/versions/{quote(version, safe='')}"
