"""What is told of the stories on a cluster: how long each took, and where they cannot, or must not, be told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lives.durations import story_durations
from lives.namespaces import taken
from lives.nodes import elsewhere

LIVES = "tests/e2e/lives"


def report(file: str, when: str, duration: float) -> Any:
    return SimpleNamespace(location=(file, 7, "test_it"), when=when, duration=duration)


def test_a_story_takes_what_its_tests_and_their_setups_and_teardowns_take() -> None:
    reports = [
        report(f"{LIVES}/full/test_full_1_import.py", "setup", 60.0),
        report(f"{LIVES}/test_story_2_takeover_under_load.py", "call", 0.6),
        report(f"{LIVES}/test_story_1_first_life.py", "call", 1.0),
        report(f"{LIVES}/test_story_2_takeover_under_load.py", "setup", 200.0),
        report(f"{LIVES}/test_story_2_takeover_under_load.py", "teardown", 13.0),
        report("tests/e2e/test_cluster_smoke.py", "call", 1000.0),
    ]
    assert story_durations(reports) == [
        "story 1 first life               1 s",
        "story 2 takeover under load    214 s",
        "full 1 import                   60 s",
        "all                            275 s",
    ]


def test_without_a_story_nothing_is_told() -> None:
    assert story_durations([report("tests/e2e/test_cluster_smoke.py", "call", 1.0)]) == []


def node(name: str, machine_id: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"nodeInfo": {"machineID": machine_id}}}


@pytest.mark.parametrize(
    ("ids", "here", "named"),
    [
        (["a1"], "a1", []),
        (["a1", "b2"], "a1", ["node-2"]),
        (["b2", "b3"], "a1", ["node-1", "node-2"]),
        (["a1"], "", ["node-1"]),
        ([""], "", ["node-1"]),
    ],
    ids=["here", "one of two", "other machines", "a machine without an id", "neither has an id"],
)
def test_only_nodes_that_are_this_machine_have_its_directories(ids: list[str], here: str, named: list[str]) -> None:
    said = elsewhere([node(f"node-{number}", found) for number, found in enumerate(ids, 1)], here)
    assert [name for name in ("node-1", "node-2") if name in said] == named
    assert bool(said) == bool(named)


def test_no_story_is_told_over_namespaces_that_somebody_has() -> None:
    assert taken(["default", "kube-system", "mlflow-of-others"]) == ""
    said = taken(["default", "mlflow", "feed"])
    assert said.startswith("the named cluster has feed, mlflow, which the stories would overwrite and delete")
