"""The in-memory API server of the contract tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "contract" / "ports"))

from kubernetes_world import KubernetesWorld

NOW = 1_700_000_000


@pytest.fixture
def world() -> KubernetesWorld:
    return KubernetesWorld(lambda: NOW)
