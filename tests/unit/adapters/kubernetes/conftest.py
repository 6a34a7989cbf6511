"""The in-memory API server of the contract tests."""

from __future__ import annotations

import pytest
from kubernetes_world import KubernetesWorld

NOW = 1_700_000_000


@pytest.fixture
def world() -> KubernetesWorld:
    return KubernetesWorld(lambda: NOW)
