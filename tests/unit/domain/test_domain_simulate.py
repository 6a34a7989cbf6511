"""A preview begins in any real state: what exists keeps its own ids and times, and everything ahead fits to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.simulate import Outcome, World, run_until_settled, with_status
from retrieval_operator.domain.simulated_reports import passing_report
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]

AS_OF = 1_650_000_000


def real(number: int, prefix: str) -> str:
    return f"{prefix}-{number:016x}"


class RealWorld(World):
    """Programs give ids that follow from no key, and an evaluation has the time of its data."""

    def __init__(self) -> None:
        super().__init__(now=1_700_000_000)
        self.generations: dict[str, dict[str, Any]] = {}
        self.outcomes = self._real

    def _real(self, workload: WorkloadSpec) -> Outcome:
        report = passing_report(workload)
        arguments = dict(zip(workload.arguments, workload.arguments[1:], strict=False))
        if workload.step == "train":
            report["id"] = real(len(self.specs), "b")
        elif "asOf" in report and "count" in report:
            as_of = AS_OF if report["kind"] == "evaluation" else self.now
            report |= {"id": real(len(self.specs), "g"), "asOf": as_of, "count": 3037}
            self.generations[arguments["--out"]] = report
        elif workload.step == "eval":
            report["asOf"] = AS_OF
            for who in ("candidate", "champion"):
                if report[who]:
                    made = self.generations[arguments[f"--{who}-generation"]]
                    report[who] = {"bundleId": made["bundleId"], "generationId": made["id"]}
        elif workload.step == "verify":
            made = self.generations[arguments["--generation"]]
            report |= {"bundleId": made["bundleId"], "generationId": made["id"]}
        return Outcome(report=report)


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.data.revision": "2"},
        {"spec.index.refresh": {"revision": "monday"}},
        {"spec.serving.image": "server:2"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_from_every_pass_of_a_life_the_preview_ends_in_a_promotion(make: Make, changes: dict[str, Any]) -> None:
    world = RealWorld()
    model = make(changes, status=run_until_settled(make(), world)[-1][1].status, generation=2)
    previews = 0
    while True:
        previewed = run_until_settled(model, World.like(world.observe(), world.now))[-1][1]
        assert [entry.outcome for entry in previewed.status.history] == ["Promoted", "Promoted"]
        previews += 1
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
        world.tick()
        if plan.status.candidate is None and not plan.actions:
            break
    assert previews > 5, "else this looked at nothing"
