"""The definition in the chart is that of crds/, with switches to leave it out and to keep it.

What Helm makes of it: tests/unit/chart.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from retrieval_operator.api.crd import chart_template, crd
from retrieval_operator.api.crd.__main__ import main

CHART = Path(__file__).parents[3] / "charts" / "retrieval-operator"
TEMPLATE = CHART / "templates" / "crd.yaml"


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
