"""What can be said of the chart without Helm: its rules are the code's, and its schema knows every value."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from retrieval_operator.adapters.kubernetes import feed, kinds, permissions

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "retrieval-operator"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_the_rules_are_those_of_the_code() -> None:
    committed = (CHART / "files" / "permissions.yaml").read_text()
    command = f"python -m {permissions.__name__} > charts/retrieval-operator/files/permissions.yaml"
    assert committed == permissions.permissions_yaml(), f"if the change is intended: {command}"
    assert yaml.safe_load(committed) == permissions.document()


def test_every_permission_is_of_a_known_kind_once_and_says_why() -> None:
    for scope, rows in permissions.SCOPES.items():
        named = [(row.kind, row.subresource) for row in rows]
        assert len(set(named)) == len(named), scope
        assert all(row.kind in kinds.KINDS and row.why and row.verbs for row in rows), scope
        # A right in a namespace is one on that namespace, too.
        in_one = [row.kind.namespaced or row.kind == kinds.NAMESPACE for row in rows]
        assert all(each == (scope != "cluster") for each in in_one), scope


def test_what_is_watched_may_be_watched_and_nothing_else() -> None:
    assert {row.kind for row in permissions.WATCHED if "watch" in row.verbs} == set(feed.WATCHED)
    assert all("list" in row.verbs for row in permissions.WATCHED if "watch" in row.verbs)


def test_secrets_are_named_and_never_read() -> None:
    assert "secrets" not in {row.kind.plural for rows in permissions.SCOPES.values() for row in rows}


def test_chart_and_project_have_the_same_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


def objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in the schema, by its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from objects(inner, f"{path}.{name}")
    for word in ("additionalProperties", "items"):
        if isinstance(schema.get(word), dict):
            yield from objects(schema[word], f"{path}.*")


def test_the_schema_refuses_what_it_does_not_name_and_describes_what_it_does() -> None:
    for path, schema in objects(SCHEMA):
        if schema["type"] == "object" and path != ".global":  # `global` is Helm's
            assert "additionalProperties" in schema, path
        if not path.endswith(".*"):
            assert schema.get("description", "").endswith("."), path


def test_schema_and_values_name_the_same() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(schema: dict[str, Any], value: Any, path: str) -> None:
        if "properties" in schema:
            assert set(schema["properties"]) - {"global"} == set(value), path
            for name, inner in value.items():
                compare(schema["properties"][name], inner, f"{path}.{name}")

    compare(SCHEMA, values, "")
