"""The definition of crds/ on the API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client, config
from operator_process import install_definition

from retrieval_operator.api.crd import CRD_FILE


@pytest.fixture(scope="session")
def objects(api_server: Path) -> Iterator[client.CustomObjectsApi]:
    """The API for custom objects, once the definition is established and RetrievalModels are served."""
    install_definition(api_server)
    with config.new_client_from_config(config_file=str(api_server)) as connection:
        definitions = client.ApiextensionsV1Api(connection)
        read = definitions.read_custom_resource_definition(CRD_FILE.removesuffix(".yaml"))
        conditions = {condition.type: condition.status for condition in read.status.conditions}
        assert conditions["Established"] == "True"
        assert "NonStructuralSchema" not in conditions
        yield client.CustomObjectsApi(connection)
