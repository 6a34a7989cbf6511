"""Markdown for the MLflow version's page: the verdict with numbers, as a reviewer wants to read it."""

from __future__ import annotations

from retrieval_operator.api.status import GateVerdict

# Shown before the text so that a person knows who wrote it and that edits do not last.
_HEADING = "*Written by Retrieval Operator; edits are replaced.*"
# MLflow holds at most 5000 characters; a longer text would be cut there and look changed for ever.
_MAX_CHARS = 4900


def version_description(gates: list[GateVerdict], outcome: str, run_id: str) -> str:
    """`outcome` is a word; `run_id` the evaluation's MLflow run, whose plot is shown, "" when unknown.

    Links are relative to MLflow's page, so they hold behind any public address of it.
    """
    rows = [
        "| gate | verdict | value | champion | delta | one-sided bounds | members |",
        "|---|---|---|---|---|---|---|",
        *(_row(gate) for gate in gates),
    ]
    plot = f"![evaluation](get-artifact?path=evaluation.png&run_id={run_id})\n" if run_id else ""
    notes = [f"- {gate.gate}: {gate.message}" for gate in gates]
    text = "\n".join([_HEADING, "", f"**Outcome: {outcome}**", "", *rows, "", plot, *notes])
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"


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
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _cell(text: str) -> str:
    """A segment may hold any character; a bar would end the cell."""
    return text.replace("|", r"\|")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
