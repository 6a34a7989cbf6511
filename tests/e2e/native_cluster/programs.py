"""The node's programs: their command lines, when each counts as ready, and in which order they start."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from native_cluster.configuration import user_kubeconfig
from native_cluster.layout import ClusterError, Layout
from native_cluster.node import HOSTNAME
from native_cluster.node_client import NodeClient, until

# Seen on two cores that others used as well: 15 s for the API server, 1-5 s for the rest. Then a wide margin.
READY_TIMEOUT_S = 180
# An API server with watchers drains for about that long.
STOP_TIMEOUT_S = 20


@dataclass(frozen=True, kw_only=True)
class Program:
    """`health` is a URL on the node's own loopback that answers 200 when it is ready; "" is asked otherwise."""

    name: str
    argv: tuple[str, ...]
    health: str = ""


def all_programs(layout: Layout, binaries: Path) -> tuple[Program, ...]:
    """In the order of their start."""
    return (
        Program(name="containerd", argv=(_installed("containerd"), "-c", f"{layout.configuration}/containerd.toml")),
        _etcd(layout, binaries),
        _api_server(layout, binaries),
        _controller_manager(layout, binaries),
        _scheduler(layout, binaries),
        _kubelet(layout, binaries),
        Program(
            name="kube-proxy",  # waits half a minute when the kubelet has not registered its node yet
            argv=(str(binaries / "kube-proxy"), f"--config={layout.configuration}/kube-proxy.yaml"),
            health="http://127.0.0.1:10256/livez",
        ),
        Program(
            name="coredns",
            argv=(str(binaries / "coredns"), "-conf", f"{layout.configuration}/Corefile"),
            health="http://127.0.0.1:8181/ready",
        ),
    )


def _etcd(layout: Layout, binaries: Path) -> Program:
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return Program(
        name="etcd",
        argv=(
            str(binaries / "etcd"),
            f"--data-dir={layout.state}/etcd",
            "--unsafe-no-fsync",  # a test cluster does not outlive its machine
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        ),
        health=f"{client}/health",
    )


def _api_server(layout: Layout, binaries: Path) -> Program:
    pki = layout.pki
    return Program(
        name="kube-apiserver",
        argv=(
            str(binaries / "kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            "--secure-port=6443",
            f"--bind-address={layout.node_address}",
            f"--advertise-address={layout.node_address}",
            f"--service-cluster-ip-range={layout.services}",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/kube-apiserver.crt",
            f"--tls-private-key-file={pki}/kube-apiserver.key",
            f"--cert-dir={pki}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/service-accounts.crt",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            "--allow-privileged=true",
            "--enable-aggregator-routing=true",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={layout.configuration}/audit-policy.yaml",
            f"--audit-log-path={layout.logs}/audit.log",
        ),
    )


def _own_identity(layout: Layout, name: str) -> tuple[str, ...]:
    path = user_kubeconfig(layout, name)
    return (f"--kubeconfig={path}", f"--authentication-kubeconfig={path}", f"--authorization-kubeconfig={path}")


def _controller_manager(layout: Layout, binaries: Path) -> Program:
    return Program(
        name="kube-controller-manager",
        argv=(
            str(binaries / "kube-controller-manager"),
            *_own_identity(layout, "kube-controller-manager"),
            f"--root-ca-file={layout.pki}/ca.crt",
            f"--service-account-private-key-file={layout.pki}/service-accounts.key",
            f"--cluster-signing-cert-file={layout.pki}/ca.crt",
            f"--cluster-signing-key-file={layout.pki}/ca.key",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ),
        health="https://127.0.0.1:10257/healthz",
    )


def _scheduler(layout: Layout, binaries: Path) -> Program:
    identity = _own_identity(layout, "kube-scheduler")
    return Program(
        name="kube-scheduler",
        argv=(str(binaries / "kube-scheduler"), *identity, "--leader-elect=false", "--bind-address=127.0.0.1"),
        health="https://127.0.0.1:10259/healthz",
    )


def _kubelet(layout: Layout, binaries: Path) -> Program:
    return Program(
        name="kubelet",
        argv=(
            str(binaries / "kubelet"),
            f"--config={layout.configuration}/kubelet.yaml",
            f"--kubeconfig={user_kubeconfig(layout, 'kubelet')}",
            f"--hostname-override={HOSTNAME}",
            f"--node-ip={layout.node_address}",
            f"--root-dir={layout.state}/kubelet",
        ),
        health="http://127.0.0.1:10248/healthz",
    )


def _installed(program: str) -> str:
    path = shutil.which(program)
    if not path:
        raise ClusterError(f"{program} is not installed")
    return path


def start(layout: Layout, client: NodeClient, program: Program, is_ready: Callable[[], bool] | None = None) -> None:
    """Start it and wait until it is ready; ClusterError with its log when it is not, at once when it has ended."""
    layout.programs.mkdir(parents=True, exist_ok=True)
    (layout.programs / f"{program.name}.json").write_text(json.dumps(program.argv))
    client.start(program.name)
    log = layout.log(program.name)

    def ready() -> bool:
        code = (client.programs() or {}).get(program.name)
        if code is not None:
            raise ClusterError(f"{program.name} ended with {code}", log)
        return is_ready() if is_ready else client.url_answers(program.health)

    until(ready, READY_TIMEOUT_S, f"{program.name} ready", log)


def stop(client: NodeClient, name: str) -> None:
    """TERM, then KILL. Nothing to do when it has ended, or no node answers."""

    def ended() -> bool:
        programs = client.programs()
        return programs is None or name not in programs or programs[name] is not None

    for number in (signal.SIGTERM, signal.SIGKILL):
        if ended():
            return
        client.signal(name, number)
        try:
            until(ended, STOP_TIMEOUT_S, f"the end of {name}")
        except ClusterError:
            if number == signal.SIGKILL:
                raise
