"""A real `mlflow server` on the loopback interface, for an operator that runs on one machine.

    <home>/services/mlflow/     the process directory: log, record (processes.py)
    <home>/mlflow/server.json   its port, the same for ever: people keep links, workloads keep its address;
                                and whether it ever answered
    <home>/mlflow/mlflow.db     SQLite; <home>/mlflow/artifacts/: reports, cards, plots

Its first start makes the database in many steps, and one that was cut there never starts again ("table ... already
exists"). So until it has answered once, an unfinished database is removed before each start: nobody has written to it.

It is supervised like every other process: it outlives the control plane, is found again, and is started again by its
wrapper when it dies. The control plane does not need it to run: without it, decisions that need the registry wait.

Measured (MLflow 3.17.2, 2 cores): answers 6 s after its start (8 s with a new database), of which the two imports of
mlflow are most; resident 2 x 260 MB, for `mlflow server` is a launcher that waits for the uvicorn process it starts.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from retrieval_operator.adapters.local import loopback
from retrieval_operator.adapters.local.home import LocalHome, make_directory, read_json, write_json
from retrieval_operator.adapters.local.processes import Command, ProcessObserved, Restarts, Supervisor
from retrieval_operator.adapters.local.programs import Program, clean_environment, command_line
from retrieval_operator.adapters.local.wrapper import last_lines
from retrieval_operator.api.pod import Pod
from retrieval_operator.ports import Rejected, Retryable

PROGRAMS = {"mlflow": Program(target=("-m", "mlflow", "server"), requires=("mlflow",), extra="trainer")}
# Twenty times what a start takes on idle cores: 29 s were seen on two busy ones.
START_TIMEOUT_S = 120.0
_HEALTH_TIMEOUT_S = 2.0
_HEALTH_POLL_S = 0.2
_GRACE_S = 10.0
# A killed process is gone from the process table a moment before the kernel closes its sockets.
_RELEASE_TIMEOUT_S = 1.0
_RELEASE_POLL_S = 0.02


class MlflowServer:
    """The server of one home. Holds no state: any number of control planes and commands may use one each."""

    def __init__(self, home: LocalHome, supervisor: Supervisor, *, port: int | None = None) -> None:
        """`port` is used the first time, when the home has recorded none; None chooses a free one."""
        self._home = home
        self._supervisor = supervisor
        self._wanted_port = port
        self._directory = home.service("mlflow")
        self._data = home.root / "mlflow"

    def uri(self) -> str:
        """Its address, whether it runs or not; the port is chosen and recorded by the first call in a home's life."""
        return f"http://{loopback.HOST}:{self._port()}"

    @property
    def log(self) -> Path:
        return self._directory / "log"

    async def ensure(self) -> None:
        """Start it unless it runs; returns at once, `wait_until_healthy` waits. Cheap, so call it often.

        Raises Rejected when a person must act: another program has its port, or mlflow is not installed.
        """
        await asyncio.to_thread(self._ensure)

    async def is_healthy(self) -> bool:
        """Whether it answers."""
        async with _client() as client:
            return await self._answers(client)

    async def wait_until_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises Retryable with the end of its log when it does not answer in time."""
        deadline = time.monotonic() + timeout_s
        async with _client() as client:
            while not await self._answers(client):
                if time.monotonic() >= deadline:
                    raise Retryable(
                        f"MLflow does not answer at {self.uri()} after {timeout_s:.0f} s; {self._last_words()}"
                    )
                await asyncio.sleep(_HEALTH_POLL_S)

    async def stop(self) -> None:
        """End it. Its data and its port stay."""
        await asyncio.to_thread(self._supervisor.stop, self._directory)

    def observe(self) -> ProcessObserved | None:
        """What the supervision knows of it, None when it was never started."""
        return self._supervisor.observe(self._directory)

    async def _answers(self, client: httpx.AsyncClient) -> bool:
        try:
            healthy = (await client.get(f"{self.uri()}/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False
        if healthy and not self._has_answered():
            write_json(self._port_file, {"port": self._port(), "answered": True})
        return healthy

    def _has_answered(self) -> bool:
        """Whether its database is complete; homes from before this was recorded have one."""
        return bool((read_json(self._port_file) or {}).get("answered", True))

    def _ensure(self) -> None:
        process = self.observe()
        if process is not None and process.state == "Running":
            return
        if PROGRAMS["mlflow"].missing():
            raise Rejected("mlflow is not installed; local mode needs it: pip install 'retrieval-operator[all]'")
        # Its own orphans would hold its port.
        self._supervisor.settle_lost(self._directory)
        port = self._port()
        if not _is_free_within(port, _RELEASE_TIMEOUT_S):
            if (process := self.observe()) is not None and process.state == "Running":
                return  # somebody else's `ensure` was faster
            raise Rejected(
                f"MLflow's port {port} is used by {loopback.owner(port)}; end it, or remove {self._port_file} to have "
                "another port chosen (links to its pages change)"
            )
        make_directory(self._data)
        if not self._has_answered():
            for unfinished in self._data.glob("mlflow.db*"):
                if unfinished.is_file():
                    unfinished.unlink()
        self._supervisor.restart(self._directory, self._command(port))

    def _command(self, port: int) -> Command:
        return Command(
            argv=command_line(PROGRAMS, "mlflow", self._arguments(port)),
            environment={
                **clean_environment(Pod()),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
                # Background jobs of MLflow's own: one more set of processes, for features that we do not use.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            grace_s=_GRACE_S,
            restarts=Restarts(),
        )

    def _arguments(self, port: int) -> list[str]:
        settings = {
            "--host": loopback.HOST,
            "--port": str(port),
            "--backend-store-uri": f"sqlite:///{self._data / 'mlflow.db'}",
            "--artifacts-destination": (self._data / "artifacts").as_uri(),
            # Another name that leads here is a web page's attempt to reach it through the browser (DNS rebinding).
            "--allowed-hosts": f"{loopback.HOST}:{port},localhost:{port}",
            "--workers": "1",  # enough for one machine
            "--uvicorn-opts": "--no-access-log",  # it would grow with every poll
        }
        return ["--serve-artifacts", *(word for setting in settings.items() for word in setting)]

    @property
    def _port_file(self) -> Path:
        return self._data / "server.json"

    def _port(self) -> int:
        if (recorded := read_json(self._port_file)) is None:
            with self._home.locked("mlflow-port"):
                recorded = read_json(self._port_file)
                if recorded is None:
                    port = self._wanted_port or loopback.choose(f"mlflow of {self._home.root}", ())
                    recorded = {"port": port, "answered": False}
                    write_json(self._port_file, recorded)
        return int(recorded["port"])

    def _last_words(self) -> str:
        process = self.observe()
        if process is None:
            return "it was never started"
        said = " / ".join(last_lines(str(self.log)).splitlines()[-3:])
        return f"it was started {process.starts} times and its log {self.log} ends with: {said}"


def _client() -> httpx.AsyncClient:
    # A proxy that the environment may name has no way to this machine's loopback.
    return httpx.AsyncClient(timeout=_HEALTH_TIMEOUT_S, trust_env=False)


def _is_free_within(port: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not loopback.is_free(port):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_RELEASE_POLL_S)
    return True
