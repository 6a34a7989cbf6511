"""Up, down, status: the order of things, and what is undone when one of them fails."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from native_cluster import configuration, controllers, host, images, prerequisites, programs
from native_cluster.kubectl import Kubectl
from native_cluster.layout import ClusterError, Layout
from native_cluster.node import HOSTNAME
from native_cluster.node_client import NodeClient, locked, until
from native_cluster.versions import BUSYBOX_IMAGE, PAUSE_IMAGE

NODE_READY_TIMEOUT_S = 120
RECOVERY_TIMEOUT_S = 30
_COREDNS_ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: native-cluster:coredns}
rules:
  - {apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: native-cluster:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: native-cluster:coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: coredns}]
"""


@dataclass(frozen=True, kw_only=True)
class Status:
    """`programs` maps each to its exit code, None while it runs; empty when no node answers."""

    programs: dict[str, int | None]
    ready: bool
    controllers: bool

    @property
    def started(self) -> bool:
        """A start was completed and its node lives; the node starts programs again that ended since."""
        return self.ready and bool(self.programs)

    @property
    def running(self) -> bool:
        return self.started and all(code is None for code in self.programs.values())


class Cluster:
    def __init__(self, layout: Layout, binaries: Path, say: Callable[[str], None]) -> None:
        self._layout = layout
        self._binaries = binaries
        self._say = say
        self._client = NodeClient(layout)
        self.kubectl = Kubectl(binaries / "kubectl", layout.kubeconfig)

    def status(self) -> Status:
        record = {}
        with suppress(FileNotFoundError, json.JSONDecodeError):
            record = json.loads(self._layout.ready.read_text())
        return Status(
            programs=self._client.programs() or {},
            ready=bool(record),
            controllers=bool(record.get("controllers")),
        )

    def up(self, manifests: controllers.Sources | None) -> None:
        """Start what does not run yet; None leaves the controllers out. What a failed start made is undone again."""
        with self._alone():
            status = self.status()
            if status.started:
                until(
                    lambda: self.status().running,
                    RECOVERY_TIMEOUT_S,
                    "all programs of the running cluster (see status)",
                )
                self._say("the cluster runs")
                if manifests and not status.controllers:
                    self._add_controllers(manifests)
                return
            self._clear()
            prerequisites.check_routes(self._layout)
            try:
                self._start()
                self._client.keep()
                self._record_ready(with_controllers=False)
                if manifests:
                    self._add_controllers(manifests)
            except BaseException:
                self._say("the start failed; what it made is being removed, the logs stay")
                self._clear()
                raise

    def down(self) -> None:
        """Stop and remove everything but the logs. Fine on a cluster that is half started, crashed, or not there."""
        if not self._layout.state.exists():
            return
        with self._alone():
            self._clear()

    def restart(self, name: str) -> None:
        """Stop one program politely and start it again, as an upgrade of the control plane would."""
        with self._alone():
            known = {program.name: program for program in programs.all_programs(self._layout, self._binaries)}
            if name not in known:
                raise ClusterError(f"there is no program {name}; there are {', '.join(known)}")
            if self._client.programs() is None:
                raise ClusterError("the cluster is down")
            with self._step(f"{name} stopped"):
                programs.stop(self._client, name)
            with self._step(f"{name} ready"):
                programs.start(self._layout, self._client, known[name], self._checks.get(name))

    @property
    def _checks(self) -> dict[str, Callable[[], bool]]:
        """How to tell that a program without a health URL on the node's loopback is ready."""
        return {"containerd": self._containerd_answers, "kube-apiserver": self.kubectl.ready}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._layout.check()
        lock = self._layout.state / "command.lock"
        with locked(lock, busy=f"another up or down works on {self._layout.state}; wait for it"):
            yield

    def _start(self) -> None:
        layout = self._layout
        shutil.rmtree(layout.logs, ignore_errors=True)
        for directory in (layout.logs / "node", layout.run, layout.state / "var-lib", layout.images):
            directory.mkdir(parents=True)
        host.claim(layout)
        with self._step("keys and configuration"):
            configuration.write_all(layout)
        with self._step("namespaces and network"):
            host.add_cgroups(layout)
            self._client.start_node()
            host.add_link(layout, self._client.pid())
        for program in programs.all_programs(layout, self._binaries):
            with self._step(program.name):
                programs.start(layout, self._client, program, self._checks.get(program.name))
                if program.name == "containerd":
                    self._load_images()
                if program.name == "kube-apiserver":
                    self.kubectl.apply(_COREDNS_ROLE)
        with self._step("node ready"):
            until(self._node_ready, NODE_READY_TIMEOUT_S, f"node {HOSTNAME} ready", layout.log("kubelet"))

    def _load_images(self) -> None:
        shell = shutil.which("busybox")
        assert shell, "checked with the prerequisites"
        pause = images.Image(name=PAUSE_IMAGE, files={"pause": self._binaries / "pause"}, entrypoint=("/pause",))
        for image in (pause, images.busybox(BUSYBOX_IMAGE, Path(shell))):
            self._load(image)

    def _load(self, image: images.Image) -> None:
        archive = self._layout.images / f"{image.name.replace('/', '_')}.tar"
        images.pack(image, archive)
        images.load(self._layout, archive)
        archive.unlink()

    def _add_controllers(self, sources: controllers.Sources) -> None:
        for image in controllers.controller_images(self._binaries):
            with self._step(image.name):
                self._load(image)
        chosen = controllers.all_controllers(self._layout, sources, self.kubectl)
        for controller in chosen:
            with self._step(f"{controller.name} applied"):
                controllers.apply(controller, self.kubectl)
        for controller in chosen:
            with self._step(f"{controller.name} ready"):
                controllers.complete(controller, self.kubectl, self._layout.logs / "node" / "pods")
        self._record_ready(with_controllers=True)

    def _record_ready(self, *, with_controllers: bool) -> None:
        record = {"controllers": with_controllers, "network": self._layout.network, "at": int(time.time())}
        partial = self._layout.ready.with_suffix(".part")
        partial.write_text(json.dumps(record))
        partial.rename(self._layout.ready)

    def _containerd_answers(self) -> bool:
        try:
            images.containerd(self._layout, "version")
        except ClusterError:
            return False
        return True

    def _node_ready(self) -> bool:
        conditions = self.kubectl.get("node", HOSTNAME).get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def _clear(self) -> None:
        """The same for a cluster that is healthy, half started, crashed or gone; nothing of it is worth a farewell.

        The audit log is complete: the API server writes a line before it answers.
        """
        self._layout.ready.unlink(missing_ok=True)
        if self._layout.claim.exists():
            host.remove_link(self._layout)
            self._client.exit()
            host.remove_cgroups(self._layout)
            host.restore_kernel_settings(self._layout)
            self._layout.claim.unlink()
        host.remove_state(self._layout)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._say(f"  {name}: {time.monotonic() - began:.1f} s")
