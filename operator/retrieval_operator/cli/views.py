"""What the reading commands show, from plain data: an object, its events, its workloads, the plan of the next pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.constants import API_VERSION, KIND
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.spec import Gate, RetrievalModelSpec
from retrieval_operator.api.status import Candidate, Champion, GateVerdict, HistoryEntry, RetrievalModelStatus
from retrieval_operator.cli.output import facts, heading, table, word
from retrieval_operator.cli.words import NOTHING, age, clock_time, number, since
from retrieval_operator.domain.observed import StackObserved
from retrieval_operator.domain.workloads import WorkloadObserved

ROW_HEADERS = ("NAME", "PHASE", "STEP", "CANDIDATE", "CHAMPION", "GATE", "AGE", "MESSAGE")


@dataclass(frozen=True, kw_only=True)
class EventView:
    """An event as a person reads it: the same reason and message again only raise the count."""

    type: str
    reason: str
    message: str
    count: int
    last_at: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that `status` and `describe` show of one object.

    `pods`: (ready, all) of each workload that has some, by its name. `former`: the stack that was live before, as the
    traffic remembers it. `log_tails`: the last lines of each failed workload's log; `logs`: how to see others.
    `attention`: why the status may tell of the past, or what could not be read.
    """

    model: RetrievalModel
    why: str = ""
    page: str = ""
    events: Sequence[EventView] = ()
    workloads: Sequence[WorkloadObserved] = ()
    pods: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    stacks: Mapping[str, StackObserved] = field(default_factory=dict)
    former: str = ""
    log_tails: Mapping[str, str] = field(default_factory=dict)
    logs: str = ""
    attention: str = ""


def document(model: RetrievalModel) -> dict[str, Any]:
    """The object as a manifest with status; the spec holds what was set explicitly, so it can be applied again.

    Stacks in the status remember the variables they were started with: their literal values are not shown.
    """
    metadata = model.metadata.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {name: value for name, value in metadata.items() if value},
        "spec": model.spec.explicit(),
        "status": _without_values(model.status.document()),
    }


def _without_values(part: Any) -> Any:
    """Without the values of environment variables, wherever there are some."""
    if isinstance(part, list):
        return [_without_values(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    env = [{k: v for k, v in variable.items() if k != "value"} for variable in part.get("env", [])]
    return {name: _without_values(inner) for name, inner in part.items()} | ({"env": env} if env else {})


def row(model: RetrievalModel, now: int) -> tuple[str | Text, ...]:
    """One object as one line of `get` and of the live table."""
    status = model.status
    return (
        model.key,
        word(phase(model)),
        status.candidate.step if status.candidate else NOTHING,
        _candidate_name(status.candidate),
        status.champion.stack if status.champion else NOTHING,
        _leading_gate(status),
        since(model.metadata.creation_timestamp, now),
        message(model),
    )


def phase(model: RetrievalModel) -> str:
    if model.metadata.deletion_timestamp is not None:
        return "Deleting"
    return model.status.phase or "Pending"


def message(model: RetrievalModel) -> str:
    """The sentence that matters most now: what stalls, what is under way, else how the champion is."""
    status = model.status
    if status.observed_generation != model.metadata.generation:
        return "not seen by a controller yet"
    by_type = {condition.type: condition for condition in status.conditions}
    stalled = by_type.get(ConditionType.STALLED)
    if stalled is not None:
        return stalled.message
    if model.metadata.deletion_timestamp is not None:
        return "it is being deleted"  # the other conditions are of before
    if status.candidate is not None and status.candidate.message:
        return status.candidate.message
    ready = by_type.get(ConditionType.READY)
    return ready.message if ready else ""


def describe(view: Description, now: int) -> Iterator[RenderableType]:
    """Top to bottom: where it stands and what comes next, then the evidence."""
    yield from _summary(view, now)
    status = view.model.status
    if status.champion is not None:
        yield from _champion(status.champion, view.model.spec, now)
    if status.candidate is not None:
        yield from _candidate(status.candidate, view.model.spec, now)
    if status.conditions:
        yield heading("Conditions")
        yield table(
            ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"),
            [
                (c.type, word(c.status), c.reason, since(c.last_transition_time, now), c.message)
                for c in status.conditions
            ],
        )
    if status.history:
        yield from _history(status.history, view.model.spec, now)
    yield from _workloads(view.workloads, view.logs, now)
    if view.events:
        yield heading("Events")
        yield table(
            ("LAST", "TYPE", "REASON", "COUNT", "MESSAGE"),
            [(since(e.last_at, now), word(e.type), e.reason, str(e.count), e.message) for e in view.events],
            numeric=("COUNT",),
        )
    for name, tail in view.log_tails.items():
        yield heading(f"Log of {name}", "its last lines")
        yield Text(tail)


def status_document(view: Description) -> dict[str, Any]:
    """What `status` shows, for programs."""
    return {
        **document(view.model),
        "attention": view.attention,
        "next": view.why,
        "page": view.page,
        "workloads": [{**vars(workload), "step": str(workload.step)} for workload in view.workloads],
        "stacks": [_stack_document(stack) for _, stack in sorted(view.stacks.items())],
    }


def describe_document(view: Description) -> dict[str, Any]:
    """What `describe` shows, for programs."""
    return {
        **status_document(view),
        "events": [vars(event) for event in view.events],
        "logTails": dict(view.log_tails),
    }


def _stack_document(stack: StackObserved) -> dict[str, Any]:
    return {**vars(stack), "record": _without_values(stack.record.document())}


def gates_view(gates: Sequence[GateVerdict], spec: RetrievalModelSpec) -> Iterator[RenderableType]:
    """Each gate with its numbers: value, the champion's, the difference and its interval, the bounds, the verdict."""
    bounds = bounds_by_gate(spec)
    yield table(
        ("GATE", "MEMBERS", "VALUE", "CHAMPION", "DELTA", "INTERVAL", "BOUND", "VERDICT"),
        [
            (
                gate.gate,
                str(gate.n),
                number(gate.value),
                number(gate.champion_value),
                number(gate.delta, sign=True),
                _interval(gate),
                bounds.get(gate.gate, NOTHING),
                Text.assemble(word(gate.verdict), " (dry run)" if gate.dry_run else ""),
            )
            for gate in gates
        ],
        numeric=("MEMBERS", "VALUE", "CHAMPION", "DELTA"),
        wrapped=("GATE", "INTERVAL", "BOUND"),
    )
    for gate in gates:
        yield Text(f"{gate.gate}: {gate.message}")


def bounds_by_gate(spec: RetrievalModelSpec) -> dict[str, str]:
    """What each gate asks for now, by its identity."""
    return {gate.identity: _bounds(gate) for gate in spec.promotion.gates}


def gate_sentence(gate: GateVerdict, bounds: str) -> Text:
    """The same in a line: `recall@10 (matched, all) 0.4210, champion 0.4050, +0.0160 [...], >= 0.30: Passed`."""
    numbers = [number(gate.value)] if gate.value is not None else [gate.message]
    if gate.champion_value is not None:
        numbers.append(f"champion {number(gate.champion_value)}")
    if gate.delta is not None:
        numbers.append(f"{number(gate.delta, sign=True)} {_interval(gate)}")
    if bounds:
        numbers.append(bounds)
    verdict = (word(gate.verdict), " (dry run)" if gate.dry_run else "")
    return Text.assemble(f"{gate.gate}  {', '.join(numbers)}: ", *verdict)


def _summary(view: Description, now: int) -> Iterator[RenderableType]:
    metadata, status = view.model.metadata, view.model.status
    yield Text.assemble((view.model.key, "bold"), "  ", word(phase(view.model)))
    created = f"{clock_time(metadata.creation_timestamp)} ({since(metadata.creation_timestamp, now)} ago)"
    yield facts(
        [
            ("Attention", view.attention),
            ("Message", message(view.model)),
            ("Next", view.why),
            ("Address", status.address),
            ("MLflow", view.page),
            ("Generation", f"{metadata.generation} (observed {status.observed_generation})"),
            ("Created", created if metadata.creation_timestamp else ""),
        ]
    )


def _champion(champion: Champion, spec: RetrievalModelSpec, now: int) -> Iterator[RenderableType]:
    yield heading("Champion", champion.stack)
    baking = now < champion.baking_until
    window = f"until {clock_time(champion.baking_until)}" if baking else "over"
    yield facts(
        [
            ("Revision", champion.revision),
            ("Bundle", champion.bundle_id),
            ("Index", champion.generation_id),
            ("Data", champion.data_uri),
            ("Version", f"{champion.model_version} in MLflow" if champion.model_version else ""),
            ("Promoted", f"{clock_time(champion.promoted_at)} ({since(champion.promoted_at, now)} ago)"),
            ("Rollback window", window),
        ]
    )
    if champion.gates:
        yield Text("")
        yield from gates_view(champion.gates, spec)


def _candidate(candidate: Candidate, spec: RetrievalModelSpec, now: int) -> Iterator[RenderableType]:
    yield heading("Candidate", _candidate_name(candidate))
    attempts = ", ".join(f"{step} {attempt}" for step, attempt in candidate.attempts.items())
    yield facts(
        [
            ("Kind", candidate.kind),
            ("Step", f"{candidate.step} for {since(candidate.step_started_at, now)}"),
            ("Started", f"{clock_time(candidate.started_at)} ({since(candidate.started_at, now)} ago)"),
            ("Because of", candidate.slot or candidate.refresh_slot or f"generation {candidate.generation}"),
            ("Data", candidate.data_uri),
            ("Bundle", candidate.bundle_id),
            ("Stack", candidate.stack),
            ("To approve", candidate.approval_token),
            ("Attempts", attempts),
            ("Message", candidate.message),
        ]
    )
    if candidate.gates:
        yield Text("")
        yield from gates_view(candidate.gates, spec)


def _history(history: Sequence[HistoryEntry], spec: RetrievalModelSpec, now: int) -> Iterator[RenderableType]:
    yield heading("History", "newest first")
    yield table(
        ("ENDED", "OUTCOME", "KIND", "REVISION", "STACK", "REASON", "MESSAGE"),
        [
            (
                since(entry.at, now),
                word(entry.outcome),
                entry.kind,
                entry.revision,
                entry.record.stack if entry.record else NOTHING,
                entry.reason,
                entry.message,
            )
            for entry in history
        ],
    )
    refused = next((entry for entry in history if entry.gates and entry.outcome in ("Rejected", "Inconclusive")), None)
    if refused is not None:
        yield heading("Gates of the last refused candidate", refused.id)
        yield from gates_view(refused.gates, spec)


def _workloads(workloads: Sequence[WorkloadObserved], logs: str, now: int) -> Iterator[RenderableType]:
    if not workloads:
        return
    yield heading("Workloads", f"{logs} shows one's output" if logs else "")
    yield table(
        ("NAME", "STATE", "EXIT", "STARTED", "TOOK", "MESSAGE"),
        [
            (
                w.name,
                word(w.state),
                NOTHING if w.exit_code is None else str(w.exit_code),
                since(w.started_at, now),
                age((w.finished_at or now) - w.started_at),
                f"{w.reason}: {w.message}" if w.reason else w.message,
            )
            for w in sorted(workloads, key=lambda w: (w.started_at, w.name))
        ],
        numeric=("EXIT",),
    )


def _candidate_name(candidate: Candidate | None) -> str:
    return f"{candidate.kind.lower()} {candidate.id}" if candidate else NOTHING


def _leading_gate(status: RetrievalModelStatus) -> str:
    """The first gate's value, the candidate's while it has one: `recall@10 0.412 (+0.014)`."""
    gates = (status.candidate.gates if status.candidate else []) or (status.champion.gates if status.champion else [])
    if not gates:
        return NOTHING
    name, value = gates[0].gate.partition(" ")[0], number(gates[0].value)
    return f"{name} {value}" if gates[0].delta is None else f"{name} {value} ({number(gates[0].delta, sign=True)})"


def _bounds(gate: Gate) -> str:
    """What the spec asks for now: `>= 0.05, drop <= 0.01`."""
    parts = [f">= {gate.min}" if gate.min is not None else ""]
    parts += [f"drop <= {gate.max_regression}" if gate.max_regression is not None else ""]
    parts += [f"drop from best <= {gate.max_drop_from_best}" if gate.max_drop_from_best is not None else ""]
    return ", ".join(part for part in parts if part)


def _interval(gate: GateVerdict) -> str:
    if gate.lower is None and gate.upper is None:
        return NOTHING
    return f"[{number(gate.lower, sign=True)}, {number(gate.upper, sign=True)}]"
