"""Reports and metrics against a real `mlflow server` on loopback, and what happens when it is away."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenacity

from retrieval_core import reporting
from retrieval_core.errors import BadArguments, BadInput, TemporarilyUnavailable
from retrieval_core.reporting import MetricsLogger, MlflowRun, report

pytestmark = pytest.mark.component


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The URI of a tracking server on SQLite, as local mode starts it."""
    directory = tmp_path_factory.mktemp("mlflow")
    uri = f"http://127.0.0.1:{free_port()}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2]),
        *("--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--workers", "1"),
        *("--artifacts-destination", str(directory / "artifacts")),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_healthy(uri, process)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@tenacity.retry(stop=tenacity.stop_after_delay(90), wait=tenacity.wait_fixed(0.2), reraise=True)
def wait_until_healthy(uri: str, process: subprocess.Popen) -> None:
    assert process.poll() is None, "mlflow server ended"
    with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
        assert answer.status == 200


@pytest.fixture
def client(server):
    import mlflow

    return mlflow.MlflowClient(server)


@pytest.fixture
def run_id(server, client, monkeypatch) -> str:
    """A fresh run, named by the environment as for any program of ours."""
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("RETRIEVAL_RUN_ID", run_id)
    return run_id


@pytest.fixture
def last_file(tmp_path) -> Path:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps({"formatVersion": 1, "id": "b-0123456789abcdef"}))
    return path


def download(client, run_id: str, name: str, directory: Path) -> bytes:
    return Path(client.download_artifacts(run_id, name, str(directory))).read_bytes()


def test_a_report_is_artifacts_metrics_and_the_hash_of_report_json(run_id, client, last_file, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("# Card")
    artifacts = {"bundle/bundle.json": last_file, "bundle/README.md": card}
    report(last_file, artifacts=artifacts, metrics={"recall": 0.5, "broken": float("nan")})
    data = client.get_run(run_id).data
    content = download(client, run_id, "report.json", tmp_path)
    assert content == last_file.read_bytes()
    assert data.tags["retrieval.report"] == hashlib.sha256(content).hexdigest()
    assert data.metrics == {"recall": 0.5}
    assert download(client, run_id, "bundle/bundle.json", tmp_path) == content
    assert download(client, run_id, "bundle/README.md", tmp_path) == b"# Card"


def test_a_complete_report_is_left_alone(run_id, client, last_file, tmp_path):
    report(last_file, metrics={"recall": 0.5})
    report(last_file, artifacts={"late.json": last_file}, metrics={"recall": 0.7})
    assert client.get_run(run_id).data.metrics == {"recall": 0.5}
    assert [file.path for file in client.list_artifacts(run_id)] == ["report.json"]


def test_a_report_that_was_cut_off_is_completed(run_id, client, last_file, monkeypatch):
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        import mlflow

        patch.setattr(mlflow.MlflowClient, "set_tag", cut)
        report(last_file, metrics={"recall": 0.5})
    assert "retrieval.report" not in client.get_run(run_id).data.tags
    report(last_file, metrics={"recall": 0.5})
    assert "retrieval.report" in client.get_run(run_id).data.tags
    assert len(client.get_metric_history(run_id, "recall")) == 1


def test_another_last_file_replaces_the_report(run_id, client, last_file, tmp_path):
    report(last_file)
    last_file.write_text("{}")
    report(last_file)
    assert download(client, run_id, "report.json", tmp_path) == b"{}"
    assert client.get_run(run_id).data.tags["retrieval.report"] == hashlib.sha256(b"{}").hexdigest()


def test_a_run_that_does_not_exist_is_refused_at_once(server, last_file):
    with pytest.raises(BadInput, match="refuses to record run 0123"):
        MlflowRun(server, "0123").report(last_file, {}, {})


def test_metrics_arrive_and_those_that_are_not_finite_do_not(run_id, client):
    with MetricsLogger() as metrics:
        for step in range(700):  # more than one request holds
            metrics.log({"loss": 1.0 / (step + 1), "norm": float("inf")}, step)
    history = client.get_metric_history(run_id, "loss")
    assert sorted(point.step for point in history) == list(range(700))
    assert client.get_metric_history(run_id, "norm") == []


def test_metrics_wait_while_mlflow_is_away(run_id, client, server, monkeypatch):
    """The first attempt goes to a port where nothing listens; the values are there at the second."""
    monkeypatch.setattr(reporting, "METRICS_INTERVAL_S", 0.01)
    run = MlflowRun(f"http://127.0.0.1:{free_port()}", run_id)
    metrics = MetricsLogger(run)
    metrics.log({"loss": 2.0}, step=1)
    assert metrics._send() is False
    run.client = MlflowRun(server, run_id).client
    metrics.close()
    assert [point.value for point in client.get_metric_history(run_id, "loss")] == [2.0]


@pytest.mark.parametrize("set_alone", ["MLFLOW_TRACKING_URI", "RETRIEVAL_RUN_ID"])
def test_half_an_environment_is_refused(set_alone, last_file, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RETRIEVAL_RUN_ID", raising=False)
    monkeypatch.setenv(set_alone, "x")
    with pytest.raises(BadArguments, match=f"{set_alone} is set but"):
        report(last_file)
    with pytest.raises(BadArguments):
        MetricsLogger()


def test_without_an_environment_nothing_is_reported_and_mlflow_is_not_even_imported(last_file):
    code = (
        "import sys, pathlib; from retrieval_core.reporting import report, MetricsLogger\n"
        f"report(pathlib.Path({str(last_file)!r}))\n"
        "with MetricsLogger() as metrics: metrics.log({'loss': 1.0}, 1)\n"
        "assert 'mlflow' not in sys.modules"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RETRIEVAL_RUN_ID")
    }
    core = Path(reporting.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(core)}, check=True, timeout=60)


def test_an_mlflow_that_stays_away_is_temporarily_unavailable(last_file):
    run = MlflowRun(f"http://127.0.0.1:{free_port()}", "0123", retry_seconds=1.0)
    with pytest.raises(TemporarilyUnavailable, match=r"could not be reached for 1 s.*it will only report"):
        run.report(last_file, {}, {})


def test_metrics_never_fail_a_training_whose_mlflow_stays_away(monkeypatch):
    monkeypatch.setattr(reporting, "METRICS_INTERVAL_S", 0.01)
    with MetricsLogger(MlflowRun(f"http://127.0.0.1:{free_port()}", "0123")) as metrics:
        for step in range(50):
            metrics.log({"loss": 1.0}, step)
