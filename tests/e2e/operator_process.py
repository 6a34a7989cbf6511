"""The operator as a process at an API server, and a person who applies objects: for tests and for the benchmark."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from retrieval_operator.adapters.kubernetes import permissions
from retrieval_operator.adapters.kubernetes.kinds import RETRIEVAL_MODEL, Kind
from retrieval_operator.api.constants import GROUP, VERSION
from retrieval_operator.api.crd import CRD_FILE

ROOT = Path(__file__).parents[2]
SIMULATED = (sys.executable, str(Path(__file__).parent / "operator" / "simulated_operator.py"))
REAL = (str(Path(sys.executable).parent / "retrieval-operator"), "kubernetes", "run")
NAMESPACE = "default"
ACCOUNT = "operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"  # as the API server calls it
DEADLINE_S = 90


def until(condition: Callable[[], Any], what: str, operator: Operator | None = None) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert operator is None or operator.process.poll() is None, f"the operator ended before: {what}"
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.1)


class Cluster:
    """What a person does with kubectl."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        connection = config.new_client_from_config(config_file=str(kubeconfig))
        self.objects = client.CustomObjectsApi(connection)
        self.core = client.CoreV1Api(connection)
        self.leases = client.CoordinationV1Api(connection)
        self.definitions = client.ApiextensionsV1Api(connection)
        self.created: set[str] = set()

    def create(self, name: str, namespace: str = NAMESPACE, **spec: Any) -> None:
        document = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "RetrievalModel",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "storage": {"uri": "/storage"},
                "data": {"uri": "/data/1", "revision": "1"},
                "model": {"base": "preset:tiny"},
                "promotion": {"gates": [{"min": "0.1"}]},
                **spec,
            },
        }
        self.objects.create_namespaced_custom_object(GROUP, VERSION, namespace, "retrievalmodels", document)
        if namespace == NAMESPACE:
            self.created.add(name)

    def patch(self, name: str, patch: dict[str, Any]) -> None:
        self.objects.patch_namespaced_custom_object(GROUP, VERSION, NAMESPACE, "retrievalmodels", name, patch)

    def get(self, name: str) -> dict[str, Any] | None:
        try:
            return self.objects.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, "retrievalmodels", name)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def delete(self, name: str) -> None:
        self.objects.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, "retrievalmodels", name)
        self.created.discard(name)

    def promoted(self, name: str) -> dict[str, Any] | None:
        """The object, once its present generation is promoted."""
        found = self.get(name)
        assert found is not None
        for condition in found.get("status", {}).get("conditions", []):
            is_current = condition["observedGeneration"] == found["metadata"]["generation"]
            if condition["type"] == "Promoted" and condition["status"] == "True" and is_current:
                return found
        return None

    def reasons(self, name: str) -> set[str]:
        events = self.core.list_namespaced_event(NAMESPACE, field_selector=f"involvedObject.name={name}").items
        return {event.reason for event in events}

    def holder(self) -> str:
        try:
            return self.leases.read_namespaced_lease("retrieval-operator", NAMESPACE).spec.holder_identity or ""
        except ApiException:
            return ""


class Operator:
    """One process."""

    def __init__(self, command: Sequence[str], kubeconfig: Path, log: Path, **settings: str) -> None:
        with socket.socket() as probes, socket.socket() as metrics:
            for one in (probes, metrics):
                one.bind(("127.0.0.1", 0))
            self.probe_port, self.metrics_port = probes.getsockname()[1], metrics.getsockname()[1]
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "RETRIEVAL_OPERATOR_PROBE_PORT": str(self.probe_port),
            "RETRIEVAL_OPERATOR_METRICS_PORT": str(self.metrics_port),
            "RETRIEVAL_OPERATOR_OWN_NAMESPACE": NAMESPACE,
            **settings,
        }
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stderr=output)

    def stop(self) -> int:
        """Ask it to end, and wait. Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()

    def page(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def resident_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


def install_definition(kubeconfig: Path) -> None:
    """The definition of crds/, and wait until it is served."""
    with config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        definition = yaml.safe_load((ROOT / "crds" / CRD_FILE).read_text())
        client.ApiextensionsV1Api(connection).create_custom_resource_definition(definition)
        until(lambda: is_served(client.CustomObjectsApi(connection)), "RetrievalModels are served")


def is_served(objects: client.CustomObjectsApi, kind: Kind = RETRIEVAL_MODEL, namespace: str = NAMESPACE) -> bool:
    """Right after the definition its path answers 404, then its storage 429, for a moment; `default` comes late too."""
    try:
        objects.list_namespaced_custom_object(kind.group, kind.version, namespace, kind.plural)
    except ApiException as error:
        if error.status in (404, 429):
            return False
        raise
    return True


def limit_to_rights(kubeconfig: Path, path: Path) -> Path:
    """Write a kubeconfig with exactly the rights that the chart gives the operator: more, and its requests fail."""
    with config.new_client_from_config(config_file=str(kubeconfig)) as connection:
        core, rights = client.CoreV1Api(connection), client.RbacAuthorizationV1Api(connection)
        metadata = {"name": ACCOUNT}
        core.create_namespaced_service_account(NAMESPACE, {"metadata": metadata})
        rules = permissions.document()
        rights.create_cluster_role({"metadata": metadata, "rules": rules["watched"] + rules["cluster"]})
        rights.create_namespaced_role(NAMESPACE, {"metadata": metadata, "rules": rules["own"]})
        account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
        role = {"apiGroup": "rbac.authorization.k8s.io", "name": ACCOUNT}
        binding = {"metadata": metadata, "subjects": [account]}
        rights.create_cluster_role_binding({**binding, "roleRef": {**role, "kind": "ClusterRole"}})
        rights.create_namespaced_role_binding(NAMESPACE, {**binding, "roleRef": {**role, "kind": "Role"}})
        token = core.create_namespaced_service_account_token(ACCOUNT, NAMESPACE, {"spec": {}}).status.token
    document = yaml.safe_load(kubeconfig.read_text())
    document["users"] = [{"name": "admin", "user": {"token": token}}]
    path.write_text(yaml.safe_dump(document))
    return path
