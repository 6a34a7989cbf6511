"""The definition in the chart is that of crds/, with switches to leave it out and to keep it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retrieval_operator.api.crd import chart_template, crd
from retrieval_operator.api.crd.__main__ import main

CHART = Path(__file__).parents[3] / "charts" / "retrieval-operator"
TEMPLATE = CHART / "templates" / "crd.yaml"
Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def helm() -> Helm:
    """Runs helm, from RETRIEVAL_CLUSTER_BIN or the PATH."""
    places = os.pathsep.join([os.environ.get("RETRIEVAL_CLUSTER_BIN", ""), os.environ["PATH"]])
    program = shutil.which("helm", path=places)
    if program is None:
        pytest.skip("not run: there is no helm on the PATH")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], check=False, capture_output=True, text=True, timeout=60)

    return run


def test_the_committed_template_is_what_the_types_say() -> None:
    command = "python -m retrieval_operator.api.crd --chart > charts/retrieval-operator/templates/crd.yaml"
    assert TEMPLATE.read_text() == chart_template(), f"if the change of the types is intended: {command}"


def test_check_looks_at_the_template_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--chart", "--check", str(TEMPLATE)]) == 0
    assert main(["--check", str(TEMPLATE)]) == 1
    assert "python -m retrieval_operator.api.crd > " in capsys.readouterr().err


def test_without_its_switches_the_template_is_the_definition() -> None:
    lines = [line for line in chart_template().splitlines() if "{{" not in line]
    definition = yaml.safe_load("\n".join(lines))
    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == crd()


def rendered(helm: Helm, *arguments: str) -> Any:
    """The one document of the chart, None when there is none."""
    done = helm("template", "test", str(CHART), "--kube-version", "1.29.0", *arguments)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_helm_renders_the_definition_and_keeps_it(helm: Helm) -> None:
    definition = rendered(helm)
    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == crd()


def test_helm_renders_it_without_the_annotation(helm: Helm) -> None:
    assert rendered(helm, "--set", "crds.keep=false") == crd()


def test_helm_leaves_it_out(helm: Helm) -> None:
    assert rendered(helm, "--set", "crds.install=false") is None


def test_helm_refuses_a_kubernetes_whose_cel_has_no_optional_types(helm: Helm) -> None:
    refused = helm("template", "test", str(CHART), "--kube-version", "1.28.9")
    assert refused.returncode != 0
    assert "incompatible with Kubernetes v1.28.9" in refused.stderr


def test_helm_refuses_a_value_that_does_not_exist(helm: Helm) -> None:
    refused = helm("template", "test", str(CHART), "--kube-version", "1.29.0", "--set", "crd.install=false")
    assert refused.returncode != 0
    assert "additional properties 'crd' not allowed" in refused.stderr


def test_helm_lint_finds_nothing(helm: Helm) -> None:
    linted = helm("lint", "--strict", str(CHART))
    assert linted.returncode == 0, linted.stdout + linted.stderr
