"""A proof never outlives its files: an object that is made again on another volume starts anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from retrieval_operator.api.constants import TAG_REPORT, TAG_STORAGE
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.observed import Observed, RegistryObserved, RunObserved, TrafficObserved
from retrieval_operator.domain.plan import TagRun
from retrieval_operator.domain.proofs import holding
from retrieval_operator.domain.simulate import World, run_until_settled

Make = Callable[..., RetrievalModel]


def observed(storage_id: str, **tags: str) -> Observed:
    run = RunObserved(run_id="r", step="train", key="k", report={"steps": 1}, tags=tags)
    return Observed(registry=RegistryObserved(runs={"train:k": run}), storage_id=storage_id)


@pytest.mark.parametrize(
    ("storage_id", "tags", "holds", "written"),
    [
        ("new", {TAG_STORAGE: "new"}, True, None),
        ("new", {TAG_STORAGE: "old"}, False, {TAG_REPORT: "", TAG_STORAGE: "new"}),
        ("new", {}, True, {TAG_STORAGE: "new"}),
        ("", {TAG_STORAGE: "old"}, True, None),
    ],
    ids=["the same storage", "another one", "a run of an older operator", "a storage that cannot be told apart"],
)
def test_a_report_holds_on_the_storage_it_is_about(
    storage_id: str, tags: dict[str, str], holds: bool, written: dict[str, str] | None
) -> None:
    seen, actions = holding(observed(storage_id, **tags))
    assert seen.registry is not None
    assert (seen.registry.runs["train:k"].report is not None) is holds
    assert [action.tags for action in actions if isinstance(action, TagRun)] == ([written] if written else [])


def test_nothing_is_concluded_while_the_registry_is_away() -> None:
    away = replace(observed("new"), registry=None)
    assert holding(away) == (away, ())


@pytest.mark.parametrize(
    ("storage_id", "again"),
    [("first", ["verify"]), ("second", ["train", "idxeval", "eval", "index", "verify"])],
    ids=["on the same volume only the answers are compared again", "on another one everything is done again"],
)
def test_an_object_that_is_made_again(storage_id: str, again: list[str], make: Make) -> None:
    world = World(storage_id="first")
    run_until_settled(make(), world)
    world.workloads.clear()
    world.stacks.clear()
    world.traffic = TrafficObserved()
    world.runs = {name: run for name, run in world.runs.items() if run.step != "verify"}
    world.storage_id = storage_id
    run_until_settled(make(), world)
    assert [work.step for work in world.workloads.values()] == again
    assert {run.tags[TAG_STORAGE] for run in world.runs.values()} == {storage_id}
    assert world.traffic.live is not None
