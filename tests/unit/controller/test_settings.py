from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from retrieval_operator.settings import InvalidSettings, Settings, default_home, load_settings


@pytest.mark.parametrize(
    ("data_home", "expected"),
    [
        ("/data", "/data/retrieval-operator"),
        ("", "/people/me/.local/share/retrieval-operator"),
        ("relative/path", "/people/me/.local/share/retrieval-operator"),  # the specification: to be ignored
    ],
)
def test_the_default_home_follows_the_xdg_specification(
    monkeypatch: pytest.MonkeyPatch, data_home: str, expected: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", data_home)
    monkeypatch.setenv("HOME", "/people/me")
    assert default_home() == Path(expected)


def test_every_setting_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "HOME": "/elsewhere",
        "MLFLOW_URI": "https://mlflow.example.com",
        "PORTS": '{"default/feed": 8600}',
        "WORKERS": "2",
        "LOG_LEVEL": "debug",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"RETRIEVAL_OPERATOR_{name}", value)
    settings = load_settings()
    assert settings.home == Path("/elsewhere")
    assert settings.mlflow_uri == "https://mlflow.example.com"
    assert settings.ports == {"default/feed": 8600}
    assert (settings.workers, settings.log_level) == (2, "debug")


def test_settings_of_a_cluster_are_read_as_the_chart_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"uri": "http://mlflow.ml:5000", "publicUri": "https://mlflow.example.com", "podSecret": "mlflow"}
    values = {
        "NAMESPACES": '["ml", "search"]',
        "IMAGES": '{"trainer": "registry.example.com/trainer:1", "encoderServer": "server@sha256:0"}',
        "CONNECTIONS": json.dumps({"default": {**connection, "credentials": "/etc/mlflow/default"}}),
        "METRICS_PORT": "9090",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"RETRIEVAL_OPERATOR_{name}", value)
    settings = load_settings()
    assert settings.namespaces == ["ml", "search"]
    assert settings.images.trainer == "registry.example.com/trainer:1"
    assert settings.images.indexer.startswith("retrieval-indexer:")
    assert settings.images.model_dump(by_alias=True)["encoderServer"] == "server@sha256:0"
    assert settings.connections["default"].public_uri == "https://mlflow.example.com"
    assert settings.connections["default"].credentials == Path("/etc/mlflow/default")
    assert (settings.metrics_port, settings.probe_port) == (9090, 8080)


def test_what_is_wrong_within_json_is_named_with_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRIEVAL_OPERATOR_CONNECTIONS", '{"default": {"uri": "http://ann:hunter2@mlflow.test"}}')
    with pytest.raises(InvalidSettings, match=r"RETRIEVAL_OPERATOR_CONNECTIONS\.default\.uri: .*password") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_a_setting_that_is_no_json_is_named_with_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRIEVAL_OPERATOR_IMAGES", "retrieval-trainer:1")
    with pytest.raises(InvalidSettings, match=r'RETRIEVAL_OPERATOR_IMAGES: found no JSON; .*as JSON: \{"trainer"'):
        load_settings()


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRIEVAL_OPERATOR_MLFLOW_URI", "")
    assert load_settings().mlflow_uri is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKERS", "0"),
        ("WORKERS", "many"),
        ("MLFLOW_URI", "sqlite:///x"),
        ("LOG_FORMAT", "xml"),
        ("MLFLOW_URI", "http://mlflow.test:port"),
        ("PORTS", "8600"),
        ("PORTS", "{8600"),
        ("PORTS", '{"default/feed": 70000}'),
        ("POLL_SECONDS", "0"),
        ("IMAGES", '{"trainer": ""}'),
        ("IMAGES", '{"coach": "x"}'),
        ("CONNECTIONS", "[]"),
        ("NAMESPACES", "ml"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"RETRIEVAL_OPERATOR_{name}", value)
    with pytest.raises(InvalidSettings, match=f"RETRIEVAL_OPERATOR_{name}"):
        load_settings()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://ann:hunter2@mlflow.test", "holds a user or password"),
        ("http://hunter2@mlflow.test", "holds a user or password"),
        ("mlflow://ann:hunter2@mlflow.test", "found '…@mlflow.test'; expected an address"),
        ("ann:hunter2@mlflow.test", "expected an address"),
        ("http://ann:x/hunter2@mlflow.test", "expected an address"),
        ("http://ann:hunter2@mlflow.test:x", "expected an address"),
        ("http://ann:hunter2@mlflow\u2100.test", "expected an address"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, uri: str, words: str
) -> None:
    monkeypatch.setenv("RETRIEVAL_OPERATOR_MLFLOW_URI", uri)
    with pytest.raises(InvalidSettings, match=words) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValidationError) as direct:
        Settings()
    assert "hunter2" not in str(direct.value)
