"""The definition of crds/ on an API server of these tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest
from operator_process import install_definition


@pytest.fixture(scope="module")
def kubeconfig(own_api_server: Path) -> Path:
    """Of a server that has RetrievalModels."""
    install_definition(own_api_server)
    return own_api_server
