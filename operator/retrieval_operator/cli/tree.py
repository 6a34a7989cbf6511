"""The tree of `status`: what serves, the candidate's way step by step, where one can go back to, what is next. Pure."""

from __future__ import annotations

from rich.text import Text
from rich.tree import Tree

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.status import Candidate, Champion, GateVerdict, HistoryEntry, Step
from retrieval_operator.cli.asking import former_stacks
from retrieval_operator.cli.output import word
from retrieval_operator.cli.views import Description, bounds_by_gate, gate_sentence, phase
from retrieval_operator.cli.way import NAMES, is_behind, way
from retrieval_operator.cli.words import age, clock_time, since
from retrieval_operator.domain.attempts import STOPPED, how_it_ended
from retrieval_operator.domain.observed import StackObserved
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadStep, piece

_STEP_OF: dict[WorkloadStep, Step] = {
    WorkloadStep.TRAIN: Step.TRAINING,
    WorkloadStep.INDEX_EVALUATION: Step.INDEXING_EVALUATION,
    WorkloadStep.INDEX_CHAMPION: Step.INDEXING_EVALUATION,
    WorkloadStep.EVALUATE: Step.EVALUATING,
    WorkloadStep.INDEX_SERVING: Step.INDEXING_SERVING,
    WorkloadStep.VERIFY: Step.VERIFYING,
}
_INDEXES = (WorkloadStep.INDEX_EVALUATION, WorkloadStep.INDEX_CHAMPION, WorkloadStep.INDEX_SERVING)
_NAME_WIDTH = max(map(len, NAMES.values())) + 2


def status_tree(view: Description, now: int) -> Tree:
    """One object."""
    model, status = view.model, view.model.status
    root = Tree(Text.assemble((model.key, "bold"), "  ", word(phase(model))))
    if view.attention:
        root.add(Text(view.attention, style="yellow"))
    for condition in status.conditions:
        if condition.type is ConditionType.DEPENDENCIES_READY and condition.status == "False":
            root.add(Text(f"Missing  {condition.message}"))
    if status.champion is not None:
        _add_champion(root, view, status.champion, now)
    if status.candidate is not None:
        _add_candidate(root, view, status.candidate, now)
    elif status.history and status.history[0].outcome not in ("Promoted", "Superseded"):
        _add_ending(root, view, status.history[0], now)
    _add_former(root, view)
    root.add(Text(f"Next  {view.why}"))
    return root


def _add_champion(root: Tree, view: Description, champion: Champion, now: int) -> None:
    ready = next((c for c in view.model.status.conditions if c.type is ConditionType.READY), None)
    version = f", version {champion.model_version} in MLflow" if champion.model_version else ""
    branch = root.add(
        Text.assemble(
            ("Champion ", "bold"),
            f"{champion.stack}  revision {champion.revision}{version}, promoted {since(champion.promoted_at, now)} ago",
        )
    )
    if champion.stack in view.stacks:
        branch.add(Text(_servers(view.stacks[champion.stack])))
    if ready is not None and ready.status != "True":
        branch.add(Text.assemble(word(ready.status), f" Ready: {ready.message}"))
    items = f" of {champion.items} items" if champion.items is not None else ""
    as_of = f" as of {clock_time(champion.as_of)}" if champion.as_of is not None else ""
    branch.add(Text(f"index {champion.generation_id}{items}{as_of}, from {champion.data_uri}"))
    if now < champion.baking_until:
        branch.add(Text(f"rollback window until {clock_time(champion.baking_until)}"))
    _add_gates(branch, view, champion.gates)


def _add_candidate(root: Tree, view: Description, candidate: Candidate, now: int) -> None:
    because = candidate.slot or candidate.refresh_slot or f"generation {candidate.generation}"
    title = (
        f"{candidate.kind.lower()} {candidate.id}  because of {because}, began {since(candidate.started_at, now)} ago"
    )
    branch = root.add(Text.assemble(("Candidate ", "bold"), title))
    if candidate.step is Step.PENDING and candidate.message:
        branch.add(Text(candidate.message))
    attempts = _attempts(view, candidate)
    for step in way(candidate, view.model.spec):
        mark, style = "then", "dim"
        if step is candidate.step:
            mark, style = "now", "bold"
        elif is_behind(step, candidate):
            mark, style = "done", "green"
        said = _said(view, candidate, step, now)
        line = branch.add(Text.assemble((f"{mark:<6}", style), f"{NAMES[step]:<{_NAME_WIDTH}}", said))
        for attempt in attempts.get(step, []):
            line.add(Text(_attempt(view, attempt, now)))
        if step is Step.EVALUATING:
            _add_gates(line, view, candidate.gates)


def _said(view: Description, candidate: Candidate, step: Step, now: int) -> str:
    """What is known of one step: what waits in it now, what came out of it."""
    parts = []
    if step is candidate.step:
        message = f": {candidate.message}" if candidate.message else ""
        parts.append(f"for {since(candidate.step_started_at, now)}{message}")
    elif is_behind(step, candidate):
        results = {Step.TRAINING: candidate.bundle_id, Step.REGISTERING: _version(candidate)}
        parts.append(results.get(step, ""))
    if step is Step.DEPLOYING and candidate.stack:
        stack = view.stacks.get(candidate.stack)
        parts.append(f"{candidate.stack}, {_servers(stack)}" if stack else candidate.stack)
    return "; ".join(part for part in parts if part)


def _version(candidate: Candidate) -> str:
    return f"version {candidate.model_version} in MLflow" if candidate.model_version else ""


def _add_ending(root: Tree, view: Description, entry: HistoryEntry, now: int) -> None:
    """How the last candidate ended, when it did not become champion."""
    at_step = f" at {NAMES[entry.step]}" if entry.step is not None and entry.step in NAMES else ""
    title = (f"{entry.kind.lower()} {entry.id}  ", word(entry.outcome), f" {since(entry.at, now)} ago{at_step}")
    branch = root.add(Text.assemble(("Ended ", "bold"), *title))
    branch.add(Text(f"{entry.reason}: {entry.message}" if entry.message else str(entry.reason)))
    _add_gates(branch, view, entry.gates)


def _add_former(root: Tree, view: Description) -> None:
    """Where a rollback can go, and what runs besides."""
    former = former_stacks(view.model, view.former)
    status = view.model.status
    in_use = {status.champion.stack if status.champion else "", status.candidate.stack if status.candidate else ""}
    others = [stack for stack in sorted(view.stacks) if stack not in {*former, *in_use}]
    if not former and not others:
        return
    branch = root.add(Text.assemble(("Other stacks", "bold")))
    for stack in former:
        seen = view.stacks.get(stack)
        state = f"{_servers(seen)}; a rollback can go there" if seen else "does not run; a rollback starts it again"
        branch.add(Text(f"{stack}  was live, {state}"))
    for stack in others:
        branch.add(Text(f"{stack}  {_servers(view.stacks[stack])}; nothing asks for it any more"))


def _add_gates(branch: Tree, view: Description, gates: list[GateVerdict]) -> None:
    bounds = bounds_by_gate(view.model.spec)
    for gate in gates:
        branch.add(gate_sentence(gate, bounds.get(gate.gate, "")))


def _attempts(view: Description, candidate: Candidate) -> dict[Step, list[WorkloadObserved]]:
    """The candidate's attempts that still have a record, by step, oldest first; those before a retry left out."""
    found: dict[Step, list[WorkloadObserved]] = {}
    for work in sorted(view.workloads, key=lambda work: (work.started_at, work.attempt, work.name)):
        if work.piece in candidate.attempts and work.attempt > candidate.ignored_attempts.get(work.piece, 0):
            found.setdefault(_step_of(work, candidate), []).append(work)
    return found


def _step_of(work: WorkloadObserved, candidate: Candidate) -> Step:
    """An encoding belongs to the index with its key, whose own attempts may be yet to come."""
    if work.step is not WorkloadStep.ENCODE:
        return _STEP_OF.get(work.step, candidate.step)
    known = [step for step in _INDEXES if piece(step, work.key) in candidate.attempts]
    return _STEP_OF[known[0]] if known else candidate.step


def _attempt(view: Description, work: WorkloadObserved, now: int) -> str:
    if work.state == "Running":
        ready, pods = view.pods.get(work.name, (0, 0))
        readiness = f", {ready} of {pods} pods ready" if pods else ""
        return f"{work.name} is running for {since(work.started_at, now)}{readiness}"
    if work.state == "Succeeded":
        return f"{work.name} took {age(work.finished_at - work.started_at)}"
    return f"{work.name} was stopped" if work.reason == STOPPED else how_it_ended(work)


def _servers(stack: StackObserved) -> str:
    asked = f"{stack.replicas} to {stack.max_replicas}" if stack.max_replicas else str(stack.replicas)
    why = "" if stack.ready_replicas >= max(stack.replicas, 1) else stack.failed or stack.waits_for
    return f"{stack.ready_replicas} of {asked} servers ready" + (f": {why}" if why else "")
