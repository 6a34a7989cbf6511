"""The operator as the chart starts it: with the Deployment's settings, and with the rights of its account alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from retrieval_operator.api.constants import GROUP, VERSION

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "retrieval-operator"
RELEASE = "retrieval-operator"
DEADLINE_S = 60


@pytest.fixture(params=["", "default"], ids=["all namespaces", "one namespace"])
def installed(helm, own_api_server: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    here = ("--namespace", "ops", "--kubeconfig", str(own_api_server))
    connection, watched = "mlflow.connections.default.uri=http://127.0.0.1:9", f"watch.namespaces={{{request.param}}}"
    values = ("--set", connection, *(("--set", watched) if request.param else ()))
    done = helm("install", RELEASE, str(CHART), "--create-namespace", *here, *values)
    assert done.returncode == 0, done.stderr
    yield
    done = helm("uninstall", RELEASE, "--no-hooks", *here)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def connection(own_api_server: Path) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(config_file=str(own_api_server)) as connected:
        yield connected


@pytest.fixture
def account(own_api_server: Path, connection: client.ApiClient, installed: None, tmp_path: Path) -> Path:
    """A kubeconfig of the operator's own account, with the token that its pod would have."""
    review = client.CoreV1Api(connection).create_namespaced_service_account_token(RELEASE, "ops", {"spec": {}})
    document = yaml.safe_load(own_api_server.read_text())
    document["users"] = [{"name": "admin", "user": {"token": review.status.token}}]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def deployed_environment(connection: client.ApiClient) -> dict[str, str]:
    deployment = client.AppsV1Api(connection).read_namespaced_deployment(RELEASE, "ops")
    [container] = deployment.spec.template.spec.containers
    assert container.args == ["kubernetes", "run"]
    return {variable.name: variable.value for variable in container.env}


def answer(port: int, path: str) -> str:
    """The body of a 200, "" for anything else."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return str(response.read().decode())
    except (urllib.error.URLError, OSError):
        return ""


def until(found: Callable[[], Any], process: subprocess.Popen[str], log: Path) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (seen := found()):
        words = f"the operator's log ends with:\n{log.read_text()[-3000:]}"
        assert process.poll() is None, f"it ended with {process.returncode}; {words}"
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s; {words}"
        time.sleep(0.2)
    return seen


def test_its_settings_and_rights_are_enough(account: Path, connection: client.ApiClient, tmp_path: Path) -> None:
    probes, metrics = free_ports(2)
    log = tmp_path / "operator.log"
    environment = {
        **os.environ,
        **deployed_environment(connection),
        "KUBECONFIG": str(account),
        # What a pod has for itself: its own ports, its own namespace.
        "RETRIEVAL_OPERATOR_PROBE_PORT": str(probes),
        "RETRIEVAL_OPERATOR_METRICS_PORT": str(metrics),
        "RETRIEVAL_OPERATOR_OWN_NAMESPACE": "ops",
    }
    program = Path(sys.executable).parent / "retrieval-operator"
    with log.open("w") as output:
        process = subprocess.Popen([str(program), "kubernetes", "run"], env=environment, stdout=output, stderr=output)
    try:
        until(lambda: answer(probes, "/healthz"), process, log)
        objects = client.CustomObjectsApi(connection)
        manifest = yaml.safe_load((ROOT / "examples" / "kubernetes" / "retrievalmodel.yaml").read_text())
        manifest["metadata"]["namespace"] = "default"
        objects.create_namespaced_custom_object(GROUP, VERSION, "default", "retrievalmodels", manifest)

        def dependencies() -> Any:
            status = objects.get_namespaced_custom_object(GROUP, VERSION, "default", "retrievalmodels", "feed")
            conditions = {one["type"]: one for one in status.get("status", {}).get("conditions", [])}
            return conditions.get("DependenciesReady")

        condition = until(dependencies, process, log)
        assert condition["status"] == "False"
        assert "PersistentVolumeClaim default/retrieval does not exist" in condition["message"]
        assert "retrieval_operator_reconcile_total" in answer(metrics, "/metrics")
        objects.delete_namespaced_custom_object(GROUP, VERSION, "default", "retrievalmodels", "feed")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    said = log.read_text()
    assert "forbidden" not in said.lower(), said
    assert all(json.loads(line)["level"] for line in said.splitlines()), said
