"""Where a cluster keeps what it has, and which addresses are its own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

DEFAULT_NETWORK = 99
# The node sees its own directories there, so a state directory below one of them would hide itself.
COVERED = (Path("/run"), Path("/var/run"), Path("/var/lib"), Path("/var/log"), Path("/proc"))
# sun_path of a Unix socket, less its final zero byte.
_LONGEST_SOCKET_PATH = 107


class ClusterError(Exception):
    """The cluster cannot do what was asked; `log` is where to read on."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class NotRun(Exception):
    """This machine cannot run a cluster; the message says why. Never to be reported as passed."""


def default_state() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "retrieval-operator" / "cluster"


def default_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "retrieval-operator" / "cluster"


@dataclass(frozen=True)
class Layout:
    """`network` n makes 10.n.0.0/16 the cluster's; two clusters on one machine differ in both fields."""

    state: Path
    network: int = DEFAULT_NETWORK

    @classmethod
    def existing(cls, state: Path) -> Self:
        """That of a cluster that was started there; any, where there is none."""
        layout = cls(state)
        try:
            return cls(state, int(json.loads(layout.claim.read_text())["network"]))
        except FileNotFoundError:
            return layout

    @property
    def range(self) -> str:
        return f"10.{self.network}.0.0/16"

    @property
    def node_address(self) -> str:
        """The node's end of the veth pair: API server, kubelet and DNS."""
        return f"10.{self.network}.0.1"

    @property
    def host_address(self) -> str:
        """The host's end, where pods reach what runs beside the cluster."""
        return f"10.{self.network}.0.2"

    @property
    def pods(self) -> str:
        return f"10.{self.network}.64.0/18"

    @property
    def services(self) -> str:
        return f"10.{self.network}.128.0/18"

    @property
    def first_service(self) -> str:
        """Kubernetes gives it to `kubernetes.default`."""
        return f"10.{self.network}.128.1"

    @property
    def link(self) -> str:
        return f"rocluster{self.network}"

    @property
    def cgroup(self) -> str:
        return f"retrieval-cluster-{self.network}"

    @property
    def server(self) -> str:
        return f"https://{self.node_address}:6443"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def configuration(self) -> Path:
        return self.state / "configuration"

    @property
    def programs(self) -> Path:
        return self.state / "programs"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def run(self) -> Path:
        """/run as the node sees it."""
        return self.state / "run"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def node_socket(self) -> Path:
        return self.state / "node.sock"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd" / "containerd.sock"

    @property
    def claim(self) -> Path:
        """Written before anything is made on the host: without it, nothing there is this cluster's to remove."""
        return self.state / "claim.json"

    @property
    def ready(self) -> Path:
        """Written last by `up`: what was started, and how long it took."""
        return self.state / "ready.json"

    def log(self, program: str) -> Path:
        return self.logs / f"{program}.log"

    def check(self) -> None:
        """Refuse a state directory that cannot work."""
        if not 1 <= self.network <= 255:
            raise ClusterError(f"--network is {self.network}; it is the second byte of 10.n.0.0/16, so 1 to 255")
        for covered in COVERED:
            if self.state.resolve().is_relative_to(covered):
                raise ClusterError(
                    f"the state directory {self.state} is below {covered}, which the node covers with "
                    "a directory of its own; name another one with --state"
                )
        longest = str(self.containerd_socket.with_name("containerd.sock.ttrpc"))
        if len(longest) > _LONGEST_SOCKET_PATH:
            raise ClusterError(
                f"{longest} is {len(longest)} characters long; a socket's path has at most "
                f"{_LONGEST_SOCKET_PATH}: name a shorter directory with --state"
            )
