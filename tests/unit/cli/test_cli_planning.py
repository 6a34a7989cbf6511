from __future__ import annotations

from collections.abc import Iterator

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import GateVerdict, RetrievalModelStatus
from retrieval_operator.cli import planning
from retrieval_operator.cli.output import as_text
from retrieval_operator.cli.planning import Preview, change_to, changed_object, preview, show_preview
from retrieval_operator.domain.changes import Effect
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.observed import Observed, RegistryObserved
from retrieval_operator.domain.simulate import World, run_until_settled, with_status
from retrieval_operator.domain.workloads import WorkloadObserved


def settled(model: RetrievalModel, world: World) -> RetrievalModel:
    """The object after a whole life in this world."""
    last, plan = run_until_settled(model, world)[-1]
    return with_status(last, plan.status)


def previewed(current: RetrievalModel | None, manifest: RetrievalModel, observed: Observed, now: int) -> Preview:
    changed = changed_object(current, manifest)
    return preview(changed, observed, decide(changed, observed, now), now, change_to(current, manifest))


def with_spec(model: RetrievalModel, **parts: object) -> RetrievalModel:
    spec = model.spec.explicit()
    for name, part in parts.items():
        spec[name] = spec.get(name, {}) | part if isinstance(part, dict) else part
    return model.model_copy(update={"spec": type(model.spec).model_validate(spec)})


@pytest.fixture
def automatic(fresh: RetrievalModel) -> RetrievalModel:
    gates = [gate.explicit() for gate in fresh.spec.promotion.gates]
    return with_spec(fresh, promotion={"mode": "Automatic", "gates": gates})


@pytest.fixture
def world(now: int) -> World:
    return World(now=now)


def test_a_new_object_is_previewed_to_its_end(automatic: RetrievalModel, now: int, golden) -> None:
    view = previewed(None, automatic, Observed(registry=RegistryObserved()), now)
    golden("cli/plan_new.txt", as_text(show_preview(view)))


def test_a_changed_manifest_is_previewed_beside_the_champion(automatic: RetrievalModel, world: World, golden) -> None:
    current = settled(automatic, world)
    view = previewed(current, with_spec(automatic, data={"revision": "day-4"}), world.observe(), world.now)
    golden("cli/plan_change.txt", as_text(show_preview(view)))


@pytest.mark.parametrize(
    ("parts", "effect", "last_steps"),
    [
        ({"data": {"revision": "x"}}, Effect.REVISION, "Promoting"),
        ({"index": {"refresh": {"revision": "x"}}}, Effect.GENERATION, "Promoting"),
        ({"serving": {"connectionAgeSeconds": 5}}, Effect.STACK, "Promoting"),
        ({"serving": {"replicas": {"min": 2}}}, Effect.IN_PLACE, ""),
        ({}, Effect.IN_PLACE, ""),
    ],
)
def test_every_kind_of_change_reaches_its_promotion_in_the_preview(
    automatic: RetrievalModel, world: World, parts: dict[str, object], effect: Effect, last_steps: str
) -> None:
    """The champion has real ids, the simulation makes some up: both must agree, or the preview ends at a refusal."""
    current = settled(automatic, world)
    view = previewed(current, with_spec(automatic, **parts), world.observe(), world.now)
    assert view.change is not None
    assert view.change.effect is effect
    switches = [step for step, says in view.steps if says.startswith("switch new connections")]
    assert switches == ([last_steps] if last_steps else [])


def test_a_preview_changes_nothing_and_repeats_itself(automatic: RetrievalModel, world: World) -> None:
    current = settled(automatic, world)
    before = (world.observe(), list(world.created))
    changed = with_spec(automatic, data={"revision": "x"})
    views = [previewed(current, changed, world.observe(), world.now) for _ in range(2)]
    assert views[0] == views[1]
    assert (world.observe(), world.created) == before


def test_work_that_runs_is_shown_as_running(automatic: RetrievalModel, world: World) -> None:
    model = automatic
    for _ in range(2):  # the run, then the workload
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
    (running,) = [w for w in world.workloads.values() if isinstance(w, WorkloadObserved)]
    view = previewed(model, automatic, world.observe(), world.now)
    assert ("Training", f"{running.name} is running") in view.steps


def _verdict(**numbers: float) -> GateVerdict:
    known = {"gate": "recall@10 (matched, all)", "verdict": "Passed", "message": "", "n": 1000, "value": 0.4}
    return GateVerdict.model_validate(known | numbers)


def _powers(model: RetrievalModel, *gates: GateVerdict) -> list[planning.GatePower]:
    entry = model.status.history[0].model_copy(update={"gates": list(gates)})
    status = RetrievalModelStatus(history=[entry])
    found: Iterator[planning.GatePower] = planning._powers(model.spec, status)
    return list(found)


def test_the_power_rests_on_what_the_last_evaluation_measured(busy: RetrievalModel) -> None:
    """A half-width h of a one-sided 95 % bound means a variance of (h / 1.645)^2 n per member."""
    (measured, _) = _powers(busy, _verdict(delta=0.0, lower=-0.0164485, upper=0.0164485))
    assert measured.measured
    assert measured.power.discordant_share == pytest.approx(0.1, rel=1e-3)
    assert measured.power.members == 1000


def test_without_an_interval_the_assumption_is_called_one(busy: RetrievalModel) -> None:
    (assumed, _) = _powers(busy, _verdict())
    assert not assumed.measured
    assert assumed.power.discordant_share == 0.2
