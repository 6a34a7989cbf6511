"""Builders for objects and worlds, so that a test says only what matters to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import RetrievalModelStatus, Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import Plan
from retrieval_operator.domain.simulate import Outcome, Outcomes, World, passing_report, run_until_settled, with_status
from retrieval_operator.domain.workloads import WorkloadSpec

WORSE = {"value": 0.30, "championValue": 0.40, "delta": -0.10, "lower": -0.12, "upper": -0.08}
UNDECIDED = {"value": 0.39, "championValue": 0.40, "delta": -0.01, "lower": -0.03, "upper": 0.01, "nToDecide": 9000}

MANIFEST = """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {name: feed, creationTimestamp: 1000}
spec:
  storage: {uri: /store}
  data: {uri: /data/one, revision: "1"}
  model: {base: "preset:tiny", dimensions: [128, 64]}
  promotion:
    gates:
      - {metric: recall, k: 10, pool: matched, min: "0.20", maxRegression: "0.02"}
"""


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    if value is ...:
        document.pop(leaf, None)
    else:
        document[leaf] = value


@pytest.fixture
def make() -> Callable[..., RetrievalModel]:
    """make({"spec.data.revision": "2"}, status=...) is the plain manifest with these paths set; `...` removes one."""

    def build(
        changes: dict[str, Any] | None = None,
        *,
        status: RetrievalModelStatus | None = None,
        annotations: dict[str, str] | None = None,
        generation: int = 1,
        deleting: bool = False,
    ) -> RetrievalModel:
        document = yaml.safe_load(MANIFEST)
        for path, value in (changes or {}).items():
            _set(document, path, value)
        document["metadata"] |= {"annotations": annotations or {}, "generation": generation}
        if deleting:
            document["metadata"]["deletionTimestamp"] = 2_000_000
        model = parse_manifest(document, "test")
        return model.model_copy(update={"status": status or RetrievalModelStatus()})

    return build


@pytest.fixture
def step() -> Callable[..., tuple[RetrievalModel, Plan]]:
    """One pass: decide, perform, let time go by. Returns the object with its new status, and the plan."""

    def one_pass(model: RetrievalModel, world: World, seconds: int = 1) -> tuple[RetrievalModel, Plan]:
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        world.tick(seconds)
        return with_status(model, plan.status), plan

    return one_pass


@pytest.fixture
def until(step: Callable[..., Any]) -> Callable[..., RetrievalModel]:
    """until(model, world, Step.EVALUATING): passes up to the first that finds the candidate at this step."""

    def passes(model: RetrievalModel, world: World, at: Step) -> RetrievalModel:
        for _ in range(60):
            model, _ = step(model, world)
            if model.status.candidate is not None and model.status.candidate.step is at:
                return model
        raise AssertionError(f"never came to {at}")

    return passes


@pytest.fixture
def live(make: Callable[..., RetrievalModel]) -> Callable[..., RetrievalModelStatus]:
    """live(world): the plain manifest's first stack goes live in this world; the status it ends with."""

    def first_life(world: World, changes: dict[str, Any] | None = None) -> RetrievalModelStatus:
        return run_until_settled(make(changes), world)[-1][1].status

    return first_life


@pytest.fixture
def second_life(make: Callable[..., RetrievalModel], live: Callable[..., Any]) -> Callable[..., RetrievalModel]:
    """second_life(world): a second revision has taken over from the first; the object with its status."""

    def two_lives(world: World, **more: Any) -> RetrievalModel:
        model = make({"spec.data.revision": "2"}, status=live(world), generation=2, **more)
        return with_status(model, run_until_settled(model, world)[-1][1].status)

    return two_lives


@pytest.fixture
def condition() -> Callable[[RetrievalModelStatus, ConditionType], tuple[str, str]]:
    """condition(status, ConditionType.READY) is (status, reason); ("absent", "") when it is not there."""

    def found(status: RetrievalModelStatus, kind: ConditionType) -> tuple[str, str]:
        conditions = {c.type: (str(c.status), str(c.reason)) for c in status.conditions}
        return conditions.get(kind, ("absent", ""))

    return found


def _measuring(entry: dict[str, Any]) -> Outcomes:
    """Every step succeeds, but evaluations against a champion measure this."""

    def outcome(workload: WorkloadSpec) -> Outcome:
        report = passing_report(workload)
        if report.get("champion") is not None:
            report["gates"] = [gate | entry for gate in report["gates"]]
        return Outcome(report=report)

    return outcome


@pytest.fixture
def worse() -> Outcomes:
    """Whoever is compared with a champion is clearly worse."""
    return _measuring(WORSE)


@pytest.fixture
def undecided() -> Outcomes:
    """Whoever is compared with a champion may be as good or not: 9000 members would tell."""
    return _measuring(UNDECIDED)
