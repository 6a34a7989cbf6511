"""Kubernetes for tests: a real API server alone (`api_server`), or a whole single-node cluster (`cluster`).

The programs of `api_server` are found by native_cluster.binaries.ready_programs; where there are none its tests are not
run, and say so. RETRIEVAL_E2E_KUBECONFIG names a cluster to use as it is; without it `cluster` is native_cluster's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lone_api_server
import pytest
from native_cluster import leftovers, prerequisites
from native_cluster.binaries import Binaries, ready_programs
from native_cluster.cli import NOT_RUN
from native_cluster.layout import Layout, NotRun, default_cache, default_state
from native_cluster.lending import lent
from native_cluster.node_client import NodeClient
from native_cluster.versions import BUSYBOX_IMAGE

E2E = Path(__file__).parent
KUBECONFIG = "RETRIEVAL_E2E_KUBECONFIG"


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
    layout, kept = Layout(default_state()), Binaries(default_cache())
    try:  # before anything is looked at: a machine that cannot may lack the very programs that look
        prerequisites.check_machine(layout)
        prerequisites.check_prepared(kept)
    except NotRun as reason:
        pytest.skip(f"not run: {reason}")
    before = leftovers.own(leftovers.snapshot(layout), layout)
    with lent(run_native) as started:
        if started.returncode == NOT_RUN:
            pytest.skip(started.stderr.strip())
        if started.returncode:
            pytest.fail(f"the cluster does not start:\n{started.stdout}{started.stderr}", pytrace=False)
        namespaces = leftovers.namespaces_of(NodeClient(layout).pid())
        yield RunningCluster(kubeconfig=layout.kubeconfig, busybox=BUSYBOX_IMAGE, binaries=kept.directory)
    if run_native("status").returncode == 0:  # it ran before, and is left
        return
    after = leftovers.own(leftovers.snapshot(layout), layout, namespaces)
    assert not leftovers.differences(before, after)


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
    try:
        binaries = ready_programs("etcd", "kube-apiserver")
    except NotRun as reason:
        pytest.skip(f"not run: {reason}")
    with lone_api_server.running(binaries, tmp_path_factory.mktemp("api-server")) as kubeconfig:
        yield kubeconfig
