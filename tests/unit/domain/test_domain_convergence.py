"""From every crash point, with any action repeated and any observation stale, it converges; nothing is made twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.identity import revision_hash
from retrieval_operator.domain.observed import Observed, TrafficObserved
from retrieval_operator.domain.plan import Action, StopWorkload
from retrieval_operator.domain.simulate import World, run_until_settled, with_status

SETTLED_BY = 400


@dataclass(frozen=True)
class Disturbance:
    """What goes wrong in one pass."""

    performed: int | None = None  # only this many actions were performed, then the process died (no status written)
    repeated: bool = False  # every action performed twice
    stale_by: int = 0  # decided on the observation of so many passes ago
    status_lost: bool = False  # the status was wiped before this pass
    registry_away: bool = False
    without_time: bool = False  # nothing that runs makes progress meanwhile
    unready: bool = False  # no server is ready at this moment
    traffic_lost: bool = False  # somebody deleted the stable Service before this pass


disturbances = st.builds(
    Disturbance,
    performed=st.none() | st.integers(0, 4),
    repeated=st.booleans(),
    stale_by=st.integers(0, 3),
    status_lost=st.integers(0, 9).map(lambda draw: draw == 0),
    registry_away=st.integers(0, 4).map(lambda draw: draw == 0),
    without_time=st.booleans(),
    unready=st.booleans(),
)
# Of a lost traffic the status remembers the champion: together, both being lost is a new beginning. And no pass sees a
# world that is older than the one its status was written of.
losses = st.builds(
    lambda trouble, traffic_lost: replace(trouble, status_lost=False, stale_by=0, traffic_lost=traffic_lost),
    disturbances,
    st.integers(0, 4).map(lambda draw: draw == 0),
)


def disturbed(model: RetrievalModel, world: World, plan_of_trouble: list[Disturbance]) -> RetrievalModel:
    """Run one pass per disturbance."""
    seen: list[Observed] = []
    for trouble in plan_of_trouble:
        world.registry_is_up = not trouble.registry_away
        if trouble.unready:
            world.stacks |= {stack: replace(found, ready_replicas=0) for stack, found in world.stacks.items()}
        if trouble.traffic_lost:
            world.traffic = TrafficObserved(version=str(int(world.traffic.version or "0") + 1))
        seen.append(world.observe())
        if trouble.status_lost:
            model = with_status(model, RetrievalModelStatus())
        plan = decide(model, seen[max(0, len(seen) - 1 - trouble.stale_by)], world.now)
        for action in plan.actions[: trouble.performed]:
            world.apply(action)
            if trouble.repeated:
                world.apply(action)
        if trouble.performed is None:
            model = with_status(model, plan.status)
        if not trouble.without_time:
            world.tick()
    world.registry_is_up = True
    return model


def asked_for_more(make: Callable[..., RetrievalModel], world: World) -> tuple[RetrievalModel, str]:
    """An object with a champion that asks for a second revision; the champion's stack."""
    first = run_until_settled(make(), world)[-1][1]
    assert world.traffic.live is not None
    return make({"spec.data.revision": "2"}, status=first.status, generation=2), world.traffic.live.stack


def work_of(world: World) -> Counter[str]:
    """How many attempts were started at each piece of work."""
    return Counter(f"{spec.step}:{spec.key}" for spec in world.specs.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trouble=st.lists(disturbances, max_size=40), shards=st.sampled_from([1, 3]))
def test_a_first_life_converges_whatever_happens_on_the_way(
    make: Callable[..., RetrievalModel], trouble: list[Disturbance], shards: int
) -> None:
    world = World()
    model = disturbed(make({"spec.index.encodeShards": shards}), world, trouble)
    final, _ = run_until_settled(model, world, passes=SETTLED_BY)[-1]

    assert world.traffic.live is not None
    assert world.traffic.live.revision == revision_hash(final.spec, "")
    assert set(work_of(world).values()) == {1}, "every piece of work was started once"
    assert Counter(world.created).most_common(1)[0][1] == 1, "nothing was created twice"
    assert len(world.versions) == 1
    assert world.aliases == {"champion": "1"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trouble=st.lists(disturbances, max_size=40))
def test_a_second_revision_takes_over_whatever_happens_and_the_champion_serves_all_the_time(
    make: Callable[..., RetrievalModel], trouble: list[Disturbance]
) -> None:
    world = World()
    model, former = asked_for_more(make, world)
    model = disturbed(model, world, trouble)
    final, _ = run_until_settled(model, world, passes=SETTLED_BY)[-1]

    assert world.traffic.live.revision == revision_hash(final.spec, "")
    assert former in world.stacks, "the former stack is kept for the rollback window"
    assert set(work_of(world).values()) == {1}
    assert Counter(world.created).most_common(1)[0][1] == 1
    assert world.aliases == {"champion": "2"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trouble=st.lists(losses, max_size=40))
def test_a_stable_service_deleted_at_any_moment_costs_no_stack_no_work_and_no_verdict(
    make: Callable[..., RetrievalModel], trouble: list[Disturbance]
) -> None:
    world = World()
    model, former = asked_for_more(make, world)
    model = disturbed(model, world, trouble)
    final, plan = run_until_settled(model, world, passes=SETTLED_BY)[-1]

    assert world.traffic.live is not None
    assert world.traffic.live.revision == revision_hash(final.spec, "")
    assert set(world.stacks) == {former, world.traffic.live.stack}, "as without any loss"
    assert set(work_of(world).values()) == {1}
    made = Counter(entry for entry in world.created if not entry.startswith("switch"))
    assert made.most_common(1)[0][1] == 1, "nothing but the address was made twice"
    assert [entry.outcome for entry in plan.status.history] == ["Promoted", "Promoted"]
    assert world.aliases == {"champion": "2"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trouble=st.lists(disturbances, max_size=40), at_pass=st.integers(0, 12))
def test_a_spec_edited_in_mid_flight_wins_whatever_happens(
    make: Callable[..., RetrievalModel], trouble: list[Disturbance], at_pass: int
) -> None:
    world = World()
    model = disturbed(make(), world, trouble[:at_pass])
    edited = make({"spec.data.revision": "2"}, status=model.status, generation=2)

    model = disturbed(edited, world, trouble[at_pass:])
    final, _ = run_until_settled(model, world, passes=SETTLED_BY)[-1]

    assert world.traffic.live is not None
    assert world.traffic.live.revision == revision_hash(final.spec, "")
    assert all(workload.state != "Running" for workload in world.workloads.values())


@pytest.mark.parametrize("stop_after", range(16))
def test_a_status_wiped_at_any_step_neither_retrains_nor_promotes_again(
    make: Callable[..., RetrievalModel], stop_after: int
) -> None:
    world = World()
    model = make()
    for _ in range(stop_after):
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
        world.tick()

    run_until_settled(with_status(model, RetrievalModelStatus()), world)

    assert set(work_of(world).values()) == {1}
    assert sum(entry.startswith("switch") for entry in world.created) == 1


@dataclass
class RememberingWorld(World):
    """Counts what was stopped while it ran, by step and key: the records of workloads are collected in the end."""

    stopped: Counter[str] = field(default_factory=Counter)

    def apply(self, action: Action) -> None:
        work = self.workloads.get(action.name) if isinstance(action, StopWorkload) else None
        if work is not None and work.state == "Running":
            self.stopped[f"{work.step}:{work.key}"] += 1
        super().apply(action)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trouble=st.lists(disturbances, max_size=40), turns=st.lists(st.sampled_from("123"), max_size=4))
def test_a_manifest_that_goes_back_and_forth_ends_where_it_was_left(
    make: Callable[..., RetrievalModel], trouble: list[Disturbance], turns: list[str]
) -> None:
    world, model = RememberingWorld(), make()
    share = max(1, len(trouble) // (len(turns) + 1))
    for number, revision in enumerate(["1", *turns]):
        model = make({"spec.data.revision": revision}, status=model.status, generation=number + 1)
        model = disturbed(model, world, trouble[number * share : (number + 1) * share])
    final, _ = run_until_settled(model, world, passes=SETTLED_BY)[-1]

    assert world.traffic.live is not None
    assert world.traffic.live.revision == revision_hash(final.spec, "")
    assert "RolledBack" not in [entry.outcome for entry in final.status.history], "nobody rolled anything back"
    starts = work_of(world)
    again = {work for work in starts if starts[work] > 1 + world.stopped[work] and "collect" not in work}
    assert not again, f"started again without having been stopped: {sorted(world.workloads.values(), key=str)}"


def test_a_settled_object_asks_for_no_write(make: Callable[..., RetrievalModel]) -> None:
    world = World()
    plan = run_until_settled(make(), world)[-1][1]
    for _ in range(5):
        world.tick(60)
        again = decide(with_status(make(), plan.status), world.observe(), world.now)
        assert again.actions == ()
        assert again.status == plan.status
