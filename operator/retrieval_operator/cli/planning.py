"""`plan`: what would happen, without doing it. The next pass is the real decision; what follows is simulated.

The simulation assumes that every step succeeds and every gate passes, and its heading says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from rich.console import RenderableType

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import Gate, RetrievalModelSpec
from retrieval_operator.api.status import GateVerdict, RetrievalModelStatus
from retrieval_operator.cli.output import facts, heading, table, word
from retrieval_operator.cli.steps import sentence, simulated_steps
from retrieval_operator.cli.words import age
from retrieval_operator.domain.changes import Effect, changed_paths, effect_of, effect_of_change
from retrieval_operator.domain.observed import Observed
from retrieval_operator.domain.plan import Action, Plan
from retrieval_operator.domain.power import ASSUMED_DISCORDANT_SHARE, Power, gate_power


@dataclass(frozen=True)
class Change:
    """What applying a manifest would change. `effect` None: the object is new. `paths`: changed fields with effects."""

    effect: Effect | None
    paths: tuple[tuple[str, Effect], ...] = ()


@dataclass(frozen=True)
class GatePower:
    """How likely an equal model passes a comparison. `measured`: the discordant share is from an evaluation."""

    gate: str
    power: Power
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Preview:
    """`steps`: (step, sentence) in order, simulated. `next_pass`: what the next pass does, decided for real."""

    key: str
    next_pass: Plan
    steps: tuple[tuple[str, str], ...]
    change: Change | None
    powers: tuple[GatePower, ...]


def preview(model: RetrievalModel, observed: Observed, plan: Plan, now: int, change: Change | None) -> Preview:
    return Preview(
        key=model.key,
        next_pass=plan,
        steps=tuple(simulated_steps(model, observed, now)),
        change=change,
        powers=tuple(_powers(model.spec, model.status)),
    )


def change_to(current: RetrievalModel | None, manifest: RetrievalModel) -> Change:
    """What a manifest means for the object as it is."""
    if current is None:
        return Change(None)
    paths = changed_paths(current.spec, manifest.spec)
    return Change(
        effect_of_change(current.spec, manifest.spec), tuple((f"spec.{path}", effect_of(path)) for path in paths)
    )


def changed_object(current: RetrievalModel | None, manifest: RetrievalModel) -> RetrievalModel:
    """The object as it would be after applying the manifest. Nothing is written."""
    if current is None:
        return manifest
    bumped = current.metadata.generation + bool(changed_paths(current.spec, manifest.spec))
    metadata = current.metadata.model_copy(update={"generation": bumped})
    return current.model_copy(update={"spec": manifest.spec, "metadata": metadata})


def show_preview(view: Preview) -> Iterator[RenderableType]:
    if view.change is not None:
        yield from _show_change(view.change)
    requeue = view.next_pass.requeue_after_s
    yield heading(view.key)
    yield facts(
        [
            ("Next", view.next_pass.why),
            ("Now", "; ".join(sentence(action) for action in view.next_pass.actions) or "nothing"),
            ("Looks again", "after a change" if requeue is None else f"in {age(round(requeue))}, or after a change"),
        ]
    )
    if view.steps:
        yield heading("Then", "simulated: as if every step succeeded and every gate passed")
        yield table(("STEP", "ACTION"), view.steps)
    if view.powers:
        yield heading("Power of the comparison gates", "how often a model that is just as good would be let through")
        yield table(
            ("GATE", "MARGIN", "MEMBERS", "EQUAL MODEL PASSES", "MEMBERS FOR 80 %", "DISCORDANT SHARE"),
            [_power_row(gate) for gate in view.powers],
            numeric=("MARGIN", "MEMBERS", "EQUAL MODEL PASSES", "MEMBERS FOR 80 %"),
        )


def preview_document(view: Preview) -> dict[str, Any]:
    """The same for programs."""
    return {
        "object": view.key,
        "change": None if view.change is None else _change_document(view.change),
        "next": view.next_pass.why,
        "actions": [_action_document(action) for action in view.next_pass.actions],
        "requeueAfterSeconds": view.next_pass.requeue_after_s,
        "simulatedSteps": [{"step": step, "action": action} for step, action in view.steps],
        "gatePower": [
            {"gate": gate.gate, "discordantShareMeasured": gate.measured, **vars(gate.power)} for gate in view.powers
        ],
    }


def _show_change(change: Change) -> Iterator[RenderableType]:
    if change.effect is None:
        yield heading("Change", "a new object")
        return
    yield heading("Change", f"{change.effect}" if change.paths else "none: the spec says what it said before")
    if change.paths:
        yield table(("FIELD", "EFFECT"), [(path, word(effect)) for path, effect in change.paths])


def _change_document(change: Change) -> dict[str, Any]:
    effect = "new object" if change.effect is None else str(change.effect)
    return {"effect": effect, "fields": {path: str(effect) for path, effect in change.paths}}


def _action_document(action: Action) -> dict[str, str]:
    return {"type": type(action).__name__, "says": sentence(action)}


def _powers(spec: RetrievalModelSpec, status: RetrievalModelStatus) -> Iterator[GatePower]:
    """Per comparison gate; members and discordant share from the newest evaluation that had it, else assumed."""
    known = {verdict.gate: verdict for verdict in _newest_last(status)}
    for gate in spec.promotion.gates:
        if gate.max_regression is not None:
            yield _power(gate, known.get(gate.identity), spec)


def _newest_last(status: RetrievalModelStatus) -> Sequence[GateVerdict]:
    gates = [verdict for entry in reversed(status.history) for verdict in entry.gates]
    return [*gates, *(status.candidate.gates if status.candidate else [])]


def _power(gate: Gate, seen: GateVerdict | None, spec: RetrievalModelSpec) -> GatePower:
    confidence = float(spec.evaluation.confidence)
    share = _measured_share(seen, confidence)
    power = gate_power(
        members=seen.n if seen and seen.n else spec.evaluation.min_samples,
        margin=float(gate.max_regression or 0),
        confidence=confidence,
        discordant_share=share or ASSUMED_DISCORDANT_SHARE,
    )
    return GatePower(gate.identity, power, measured=share is not None)


def _measured_share(seen: GateVerdict | None, confidence: float) -> float | None:
    """The variance per member behind an interval that was reported: ((delta - lower) / z)^2 * n; None when unknown."""
    if seen is None or seen.delta is None or seen.lower is None or not seen.n or seen.delta <= seen.lower:
        return None
    return ((seen.delta - seen.lower) / NormalDist().inv_cdf(confidence)) ** 2 * seen.n


def _power_row(gate: GatePower) -> tuple[str, ...]:
    power = gate.power
    origin = "measured" if gate.measured else "assumed"
    return (
        gate.gate,
        f"{power.margin:g}",
        str(power.members),
        f"{power.pass_if_equal:.0%}",
        str(power.members_needed) if power.members_needed else "no number is enough",
        f"{power.discordant_share:.2f} ({origin})",
    )
