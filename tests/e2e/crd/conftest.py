"""The definition of crds/ on the API server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from retrieval_operator.api.constants import GROUP, VERSION
from retrieval_operator.api.crd import CRD_FILE

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60


@pytest.fixture(scope="session")
def objects(api_server: Path) -> Iterator[client.CustomObjectsApi]:
    """The API for custom objects, once the definition is established and RetrievalModels are served."""
    with config.new_client_from_config(config_file=str(api_server)) as connection:
        definition = yaml.safe_load((ROOT / "crds" / CRD_FILE).read_text())
        definitions = client.ApiextensionsV1Api(connection)
        definitions.create_custom_resource_definition(definition)
        custom = client.CustomObjectsApi(connection)
        _until(lambda: _is_served(custom))
        conditions = _conditions(definitions, definition)
        assert conditions["Established"] == "True"
        assert "NonStructuralSchema" not in conditions
        yield custom


def _is_served(custom: client.CustomObjectsApi) -> bool:
    """Right after the definition its path answers 404, then its storage 429, for a moment; `default` comes late too."""
    try:
        custom.list_namespaced_custom_object(GROUP, VERSION, "default", "retrievalmodels")
    except ApiException as error:
        if error.status in (404, 429):
            return False
        raise
    return True


def _conditions(definitions: client.ApiextensionsV1Api, definition: dict[str, Any]) -> dict[str, str]:
    read = definitions.read_custom_resource_definition(definition["metadata"]["name"])
    return {condition.type: condition.status for condition in read.status.conditions}


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s"
        time.sleep(0.1)
