"""What people see while a training runs: a bar on a terminal, lines elsewhere, nothing from other ranks."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pytest
from rich.console import Console

from retrieval_trainer.journal import METRICS_EVERY_STEPS, Journal

LOOK = {"step": 3, "recall_uniform": 0.5, "popularity_recall_uniform": 0.4, "recall_popular": 0.3}
LOOK |= {"popularity_recall_popular": 0.2}


class Recorded:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.steps.append(step)


def run(*, terminal: bool, quiet: bool = False, steps: int = 25) -> tuple[str, list[int]]:
    """The text and the steps whose metrics were logged, of a training with one look."""
    text, metrics = io.StringIO(), Recorded()
    journal = Journal(
        metrics, quiet=quiet, console=Console(file=text, force_terminal=terminal, width=200, highlight=False)
    )
    with journal.steps(0, steps):
        for step in range(1, steps + 1):
            journal.step({"step": step, "loss": 1 / step}, 1000)
    journal.look(LOOK)
    return text.getvalue(), metrics.steps


@pytest.mark.parametrize("terminal", [True, False])
def test_the_last_step_and_the_look_are_shown(terminal: bool) -> None:
    text, _ = run(terminal=terminal)
    assert "loss 0.040" in text
    assert ("25/25" in text) is terminal
    assert ("step 25 of 25" in text) is not terminal
    assert "uniform 0.500 / 0.400, popular 0.300 / 0.200 (random 0.070)" in text


def test_a_log_is_not_filled_with_lines() -> None:
    """The first and the last; in between only what takes longer than ten seconds."""
    text, _ = run(terminal=False)
    assert text.count(" of 25: loss") == 2


def test_metrics_are_logged_now_and_then_and_at_the_end() -> None:
    _, steps = run(terminal=False)
    assert steps == [METRICS_EVERY_STEPS, 2 * METRICS_EVERY_STEPS, 25, LOOK["step"]]


def test_other_ranks_show_and_log_nothing() -> None:
    assert run(terminal=True, quiet=True) == ("", [])
