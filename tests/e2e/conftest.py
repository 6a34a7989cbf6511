"""Kubernetes for tests: a real API server alone (`api_server`), or a whole single-node cluster (`cluster`).

RETRIEVAL_CLUSTER_BIN names the directory with etcd and kube-apiserver; without it tests of `api_server` are not run,
and say so. RETRIEVAL_E2E_KUBECONFIG names a cluster to use as it is; without it `cluster` is native_cluster's.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from native_cluster import leftovers
from native_cluster.binaries import Binaries
from native_cluster.cli import NOT_RUN
from native_cluster.layout import Layout, default_cache, default_state
from native_cluster.versions import BUSYBOX_IMAGE

E2E = Path(__file__).parent
KUBECONFIG = "RETRIEVAL_E2E_KUBECONFIG"
BINARIES = "RETRIEVAL_CLUSTER_BIN"
START_TIMEOUT_S = 120  # seen: 7 s on two idle cores; builds beside it take most of them
STOP_TIMEOUT_S = 30
TOKEN = "of-a-test-server-on-loopback"


@dataclass(frozen=True, kw_only=True)
class RunningCluster:
    """`busybox` is an image its nodes can run; `binaries` has a kubectl of its version, None: the one in PATH."""

    kubeconfig: Path
    busybox: str
    binaries: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Of programs that are to work with this cluster."""
        path = os.pathsep.join(filter(None, [str(self.binaries or ""), os.environ.get("PATH", "")]))
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}


@pytest.fixture(scope="session")
def cluster() -> Iterator[RunningCluster]:
    """A cluster with both controllers. A native one that runs already is used and left; else it ends with the tests.

    A native one is not run where its programs are not built yet (`make cluster-up` builds them): half an hour of
    compiling is not what somebody who runs tests expects.
    """
    if named := os.environ.get(KUBECONFIG):
        yield RunningCluster(kubeconfig=Path(named), busybox="busybox:1.37")
        return
    layout = Layout(default_state())
    runs_already = run_native("status").returncode == 0
    before = leftovers.snapshot(layout)
    started = run_native("up", "--no-prepare")
    if started.returncode == NOT_RUN:
        pytest.skip(started.stderr.strip())
    if started.returncode:
        pytest.fail(f"the cluster does not start:\n{started.stdout}{started.stderr}", pytrace=False)
    yield RunningCluster(
        kubeconfig=layout.kubeconfig, busybox=BUSYBOX_IMAGE, binaries=Binaries(default_cache()).directory
    )
    if runs_already:
        return
    stopped = run_native("down")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not leftovers.differences(before, leftovers.snapshot(layout))


def run_native(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m native_cluster`; every wait in it has a time-out of its own."""
    command = [sys.executable, "-m", "native_cluster", *arguments]
    return subprocess.run(command, cwd=E2E, capture_output=True, text=True, timeout=1800, check=False)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The path of a kubeconfig with all rights. Logs of both processes stay beside it."""
    yield from _api_server(tmp_path_factory)


@pytest.fixture(scope="module")
def own_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same, of a server that no other module uses: for tests that install or remove definitions."""
    yield from _api_server(tmp_path_factory)


def _api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = os.environ.get(BINARIES)
    if not directory:
        pytest.skip(f"not run: {BINARIES} does not say where etcd and kube-apiserver are")
    binaries = Path(directory)
    missing = [name for name in ("etcd", "kube-apiserver") if not (binaries / name).is_file()]
    if missing:
        pytest.skip(f"not run: {binaries} has no {' and no '.join(missing)}")
    home = tmp_path_factory.mktemp("api-server")
    with ExitStack() as running:  # left in reverse order: the API server stops before its etcd
        yield _start(binaries, home, running)


def _start(binaries: Path, home: Path, running: ExitStack) -> Path:
    client, peer, port = _free_ports(3)
    etcd_url, url = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{port}"
    etcd = running.enter_context(
        _process(
            home / "etcd.log",
            binaries / "etcd",
            f"--data-dir={home / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={etcd_url}",
            f"--advertise-client-urls={etcd_url}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--log-level=warn",
        )
    )
    _until(lambda: _answers(f"{etcd_url}/health"), etcd, home / "etcd.log")
    (home / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    _write_key(home / "service-accounts.key")
    server = running.enter_context(
        _process(
            home / "kube-apiserver.log",
            binaries / "kube-apiserver",
            f"--etcd-servers={etcd_url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--cert-dir={home / 'certificates'}",
            f"--token-auth-file={home / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={home / 'service-accounts.key'}",
            f"--service-account-signing-key-file={home / 'service-accounts.key'}",
        )
    )
    authority = home / "certificates" / "apiserver.crt"  # signed by itself when the server starts
    _until(lambda: authority.exists() and _answers(f"{url}/readyz", authority), server, home / "kube-apiserver.log")
    return _write_kubeconfig(home / "kubeconfig", url, authority)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now: another process could take one before its owner starts, which then fails aloud."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _process(log: Path, program: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen([program, *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            state = "is not ready" if code is None else f"ended with {code}"
            raise RuntimeError(f"{log.stem} {state}; the end of {log}:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _answers(url: str, authority: Path | None = None) -> bool:
    """Whether a GET is answered with 200."""
    trust = ssl.create_default_context(cafile=str(authority)) if authority else None
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5, context=trust) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _write_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.TraditionalOpenSSL, plain))


def _write_kubeconfig(path: Path, url: str, authority: Path) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(document))
    return path
