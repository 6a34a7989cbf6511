"""The chart as Helm renders it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[3] / "charts" / "retrieval-operator"
Objects = Mapping[tuple[str, str, str], Any]
Render = Callable[..., Objects]


@pytest.fixture
def render(helm) -> Render:
    """Objects of the chart by (kind, namespace, name); keywords are values, as Helm's --set-json takes them."""

    def rendered(*arguments: str) -> Objects:
        done = helm(
            "template", "retrieval-operator", str(CHART), "--namespace", "ops", "--kube-version", "1.30.0", *arguments
        )
        assert done.returncode == 0, done.stderr
        objects = {}
        for document in yaml.safe_load_all(done.stdout):
            if document is not None:
                metadata = document["metadata"]
                name = document["kind"], metadata.get("namespace", ""), metadata["name"]
                assert name not in objects, f"{name} is rendered twice"
                objects[name] = document
        return objects

    return rendered


@pytest.fixture
def notes(helm, tmp_path: Path) -> Callable[..., str]:
    """What Helm prints after an installation. `helm template` leaves it out, so here it becomes a template like any."""
    chart = shutil.copytree(CHART, tmp_path / "chart")
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text('notes: {{ tpl (.Files.Get "notes.txt") . | toJson }}')
    show = ("--show-only", "templates/notes.yaml", "--namespace", "ops", "--kube-version", "1.30.0")

    def printed(*arguments: str) -> str:
        done = helm("template", "retrieval-operator", str(chart), *show, *arguments)
        assert done.returncode == 0, done.stderr
        return str(yaml.safe_load(done.stdout)["notes"])

    return printed
