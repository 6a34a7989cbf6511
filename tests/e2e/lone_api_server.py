"""A real API server without a cluster: etcd and kube-apiserver on loopback, one user with all rights, an audit log.

No controller runs, so nothing becomes of what is written; RBAC, CRDs, watches and admission are the real thing.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

START_TIMEOUT_S = 120  # seen: 7 s on two idle cores; builds beside it take most of them
STOP_TIMEOUT_S = 30
TOKEN = "of-a-test-server-on-loopback"
AUDIT_LOG = "audit.log"
# Who asked for what and when, of every request; no bodies.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "users": ["system:apiserver"]}, {"level": "Metadata"}],
}


@contextmanager
def running(binaries: Path, home: Path) -> Iterator[Path]:
    """Both processes, of the programs in `binaries`, until the context ends. The path of a kubeconfig with all rights.

    Beside it, in `home`: the logs of both processes, and the audit log.
    """
    with ExitStack() as processes:  # left in reverse order: the API server stops before its etcd
        yield _start(binaries, home, processes)


def _start(binaries: Path, home: Path, processes: ExitStack) -> Path:
    client, peer, port = _free_ports(3)
    etcd_url, url = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{port}"
    etcd = processes.enter_context(
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
    (home / "audit-policy.yaml").write_text(yaml.safe_dump(_AUDIT_POLICY))
    (home / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    _write_key(home / "service-accounts.key")
    server = processes.enter_context(
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
            f"--audit-policy-file={home / 'audit-policy.yaml'}",
            f"--audit-log-path={home / AUDIT_LOG}",
        )
    )
    authority = home / "certificates" / "apiserver.crt"  # signed by itself when the server starts
    _until(lambda: _answers(f"{url}/readyz", authority), server, home / "kube-apiserver.log")
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
    """Whether a GET is answered with 200, by a server whose certificate is in the file `authority`, if one is named."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        # Whoever writes that file may be about to: until then it is not there, or empty (an SSLError is an OSError).
        trust = ssl.create_default_context(cafile=str(authority)) if authority else None
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
