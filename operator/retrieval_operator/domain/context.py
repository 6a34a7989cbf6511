"""What one pass of `decide` knows: the object, the observed world, the time; and the words to say what it found."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import MESSAGE_MAX_CHARS, RETRY_ANNOTATION, TAG_RETRY
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import RetrievalModelSpec
from retrieval_operator.api.status import (
    Candidate,
    Champion,
    GateVerdict,
    Outcome,
    RetrievalModelStatus,
    StackRecord,
    Step,
)
from retrieval_operator.api.text import printable
from retrieval_operator.domain.observed import Observed, RegistryObserved
from retrieval_operator.domain.plan import Action


@dataclass(frozen=True)
class Context:
    """Everything a decision may look at. `champion` is what the traffic says, not what the status remembers.

    `record` is the stack that the candidate becomes, once a milestone of this walk has worked it out.
    """

    model: RetrievalModel
    observed: Observed
    now: int
    champion: Champion | None
    record: StackRecord | None = None

    @property
    def spec(self) -> RetrievalModelSpec:
        return self.model.spec

    @property
    def status(self) -> RetrievalModelStatus:
        return self.model.status

    @property
    def registry(self) -> RegistryObserved | None:
        return self.observed.registry

    @property
    def missing(self) -> str:
        """What new work would miss, in sentences; "" when nothing. The registry is left out: steps wait for it."""
        problems = [p for p in self.observed.problems if p.holds_back and p.dependency != "registry"]
        return "; ".join(f"{problem.dependency}: {problem.message}" for problem in problems)

    @property
    def registry_trouble(self) -> str:
        """Why nothing is known of the registry, in a sentence; what waits for it goes on by itself."""
        said = [p.message for p in self.observed.problems if p.dependency == "registry"]
        return cut("; ".join(["waiting for MLflow", *said]))

    @property
    def refused(self) -> str:
        """What a port refused in the pass before, in a sentence; "" for nothing."""
        return "; ".join(p.message for p in self.observed.problems if p.dependency == "request")

    @property
    def handled_retry(self) -> str:
        """The retry that was acted on last, "" for none; of a wiped status, the annotation's if a tag remembers it."""
        asked = self.model.metadata.annotations.get(RETRY_ANNOTATION, "")
        runs = self.registry.runs.values() if self.registry else ()
        is_remembered = asked and any(run.tags.get(TAG_RETRY) == asked for run in runs)
        return self.status.handled_retry or (asked if is_remembered else "")


@dataclass(frozen=True)
class Waiting:
    """The candidate is at `step` and cannot go further in this pass.

    `blocked`: something outside stands still (the registry is away, a person is asked), so the progress deadline does.
    `candidate` carries what was learnt on the way (ids, attempts).
    """

    step: Step
    candidate: Candidate
    actions: tuple[Action, ...] = ()
    message: str = ""
    requeue_after_s: float | None = None
    blocked: Reason | None = None


@dataclass(frozen=True)
class Ended:
    """The candidate is over. `record` is the stack it got as far as, None when it never had one."""

    outcome: Outcome
    reason: Reason
    message: str
    candidate: Candidate
    record: StackRecord | None = None
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True)
class Passed:
    """A milestone is behind the candidate; the next one may look. `record`: see Context, None leaves it as it is."""

    candidate: Candidate
    record: StackRecord | None = None


Progress = Waiting | Ended | Passed


def cut(message: str) -> str:
    """Messages in a status hold at most 1024 characters, and nothing that a terminal acts on."""
    message = printable(message)
    return message if len(message) <= MESSAGE_MAX_CHARS else f"{message[: MESSAGE_MAX_CHARS - 1]}…"


def with_facts(candidate: Candidate, **facts: object) -> Candidate:
    """A copy that knows more."""
    return candidate.model_copy(update=facts)


def failed(candidate: Candidate, reason: Reason, message: str, record: StackRecord | None = None) -> Ended:
    return Ended("Failed", reason, cut(message), candidate, record)


def gates_table(gates: list[GateVerdict]) -> str:
    """One sentence per gate, the decisive ones first."""
    order = {"Failed": 0, "Inconclusive": 1, "Passed": 2}
    ranked = sorted(gates, key=lambda gate: (gate.dry_run, order[gate.verdict]))
    return "; ".join(
        f"{gate.gate} {gate.verdict}{' (dry run)' if gate.dry_run else ''}: {gate.message}" for gate in ranked
    )


__all__ = ["Context", "Ended", "Passed", "Progress", "Waiting", "cut", "failed", "gates_table", "replace", "with_facts"]
