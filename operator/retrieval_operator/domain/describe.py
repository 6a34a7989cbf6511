"""Markdown for the MLflow version's page: the verdict with numbers, as a reviewer wants to read it."""

from __future__ import annotations

from retrieval_operator.api.status import GateVerdict

# Shown before the text so that a person knows who wrote it and that edits do not last.
_HEADING = "*Written by Retrieval Operator; edits are replaced.*"


def version_description(gates: list[GateVerdict], outcome: str, page: str) -> str:
    """`outcome` is a word; `page` the address of the experiment with the plots, "" when unknown."""
    rows = [
        "| gate | verdict | value | champion | delta | one-sided bounds | members |",
        "|---|---|---|---|---|---|---|",
        *(_row(gate) for gate in gates),
    ]
    notes = [f"- {gate.gate}: {gate.message}" for gate in gates]
    link = [f"\nPlots and per-member results: the evaluation run, artifact `evaluation.png`, in {page}"] if page else []
    return "\n".join([_HEADING, "", f"**Outcome: {outcome}**", "", *rows, "", *notes, *link])


def _row(gate: GateVerdict) -> str:
    bounds = f"{_number(gate.lower)} to {_number(gate.upper)}" if gate.lower is not None else "-"
    name = f"{gate.gate} (dry run)" if gate.dry_run else gate.gate
    cells = (
        name,
        gate.verdict,
        _number(gate.value),
        _number(gate.champion_value),
        _number(gate.delta),
        bounds,
        str(gate.n),
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
