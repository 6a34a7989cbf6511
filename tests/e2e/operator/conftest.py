"""The definition of crds/ on an API server of these tests' own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from retrieval_operator.api.constants import GROUP, VERSION
from retrieval_operator.api.crd import CRD_FILE

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60


@pytest.fixture(scope="module")
def kubeconfig(own_api_server: Path) -> Path:
    """Of a server that has RetrievalModels."""
    with config.new_client_from_config(config_file=str(own_api_server)) as connection:
        definition = yaml.safe_load((ROOT / "crds" / CRD_FILE).read_text())
        client.ApiextensionsV1Api(connection).create_custom_resource_definition(definition)
        deadline = time.monotonic() + DEADLINE_S
        while not _is_served(client.CustomObjectsApi(connection)):
            assert time.monotonic() < deadline, f"RetrievalModels are not served within {DEADLINE_S} s"
            time.sleep(0.1)
    return own_api_server


def _is_served(objects: client.CustomObjectsApi) -> bool:
    """Right after the definition its path answers 404, then its storage 429, for a moment; `default` comes late too."""
    try:
        objects.list_namespaced_custom_object(GROUP, VERSION, "default", "retrievalmodels")
    except ApiException as error:
        if error.status in (404, 429):
            return False
        raise
    return True
