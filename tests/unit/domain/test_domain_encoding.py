"""With several shards the items are encoded first, side by side; then the index is built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.constants import TAG_COLLECTED
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.plan import StartWorkload
from retrieval_operator.domain.simulate import Outcome, World, all_pass, run_until_settled
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py

SHARDED = {"spec.index.encodeShards": 4}


def started(world: World) -> list[str]:
    return [f"{spec.step}:{spec.key}" for spec in world.specs.values()]


def test_every_generation_is_encoded_under_its_own_key_and_then_built(live: Call) -> None:
    world = World()
    live(world, SHARDED)
    work = [piece for piece in started(world) if piece.startswith(("encode", "idx", "index"))]
    (first, evaluation), (second, serving) = work[:2], work[2:]
    assert [first, second] == [f"encode:{piece.partition(':')[2]}" for piece in (evaluation, serving)]
    assert [piece.partition(":")[0] for piece in (evaluation, serving)] == ["idxeval", "index"]
    assert {spec.shards for spec in world.specs.values() if spec.step is WorkloadStep.ENCODE} == {4}
    assert {spec.run_id for spec in world.specs.values() if spec.step is WorkloadStep.ENCODE} == {""}


def test_one_shard_is_encoded_by_the_build(live: Call) -> None:
    world = World()
    live(world)
    assert not [piece for piece in started(world) if piece.startswith("encode")]


def test_encoding_that_fails_is_tried_again_and_nothing_is_built_before_it_succeeds(make: Make) -> None:
    def outcome(work: WorkloadSpec) -> Outcome:
        fails = work.step is WorkloadStep.ENCODE and work.attempt == 1
        return Outcome(exit_code=74, reason="StorageFailed") if fails else all_pass(work)

    world = World(outcomes=outcome)
    run_until_settled(make(SHARDED), world)
    assert world.traffic.live is not None
    steps = [f"{spec.step}-{spec.attempt}" for spec in world.specs.values() if spec.step in ("encode", "idxeval")]
    assert steps == ["encode-1", "encode-2", "idxeval-1", "encode-1", "encode-2"]


@pytest.mark.parametrize(("code", "attempts"), [(65, 1), (74, 3)])
def test_encoding_that_cannot_succeed_ends_the_candidate(make: Make, code: int, attempts: int) -> None:
    def outcome(work: WorkloadSpec) -> Outcome:
        return Outcome(exit_code=code, message="no") if work.step is WorkloadStep.ENCODE else all_pass(work)

    world = World(outcomes=outcome)
    last = run_until_settled(make(SHARDED), world)[-1][1].status
    encoded = [spec.attempt for spec in world.specs.values() if spec.step is WorkloadStep.ENCODE]
    assert encoded == [*range(1, attempts + 1)]
    assert last.history[0].outcome == "Failed"
    assert "encode" in last.history[0].message
    assert {run.step: run.status for run in world.runs.values()} == {"train": "Finished", "idxeval": "Failed"}


def test_a_job_that_vanished_after_its_success_is_not_missed_once_the_build_has_begun(make: Make, step: Call) -> None:
    world = World()
    model = make(SHARDED)
    while not [piece for piece in started(world) if piece.startswith("idxeval")]:
        model, plan = step(model, world, seconds=0)
    world.workloads = {name: work for name, work in world.workloads.items() if work.step is not WorkloadStep.ENCODE}
    assert [a.workload.step for a in plan.actions if isinstance(a, StartWorkload)] == [WorkloadStep.INDEX_EVALUATION]
    _, plan = step(model, world)
    assert not [a for a in plan.actions if isinstance(a, StartWorkload)]


def test_a_retry_encodes_anew_what_is_missing(make: Make) -> None:
    fails = True

    def outcome(work: WorkloadSpec) -> Outcome:
        return Outcome(exit_code=65) if fails and work.step == "idxeval" else all_pass(work)

    world = World(outcomes=outcome)
    status = run_until_settled(make(SHARDED), world)[-1][1].status
    fails = False
    run_until_settled(make(SHARDED, status=status, annotations={"retrieval-operator.io/retry": "now"}), world)
    (key,) = [run.key for run in world.runs.values() if run.step == "idxeval"]
    assert [spec.attempt for spec in world.specs.values() if (spec.step, spec.key) == ("encode", key)] == [1, 2]
    assert world.traffic.live is not None


def test_encoding_makes_files_so_a_note_that_they_are_gone_goes(make: Make, step: Call) -> None:
    world = World()
    model = make(SHARDED)
    while "idxeval" not in {run.step for run in world.runs.values()}:
        model, _ = step(model, world)
    (slot,) = [slot for slot, run in world.runs.items() if run.step == "idxeval"]
    world.runs[slot] = replace(world.runs[slot], tags={TAG_COLLECTED: "feed-0-collect-1"})
    model, _ = step(model, world)
    assert world.runs[slot].tags, "else this is about nothing"
    assert started(world)[-1].startswith("encode")
    step(model, world)
    assert not world.runs[slot].tags
