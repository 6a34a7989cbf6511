"""evaluation.png: how good each subject is, and whether the candidate may replace the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

Row = Mapping[str, Any]

# Okabe and Ito's palette, told apart with every common colour vision; markers tell subjects apart without colour.
STYLES: dict[str, tuple[str, str]] = {
    "candidate": ("#0072B2", "o"),
    "champion": ("#D55E00", "s"),
    "notPersonal": ("#E69F00", "D"),
    "popularity": ("#009E73", "^"),
    "popularityTrained": ("#56B4E9", "<"),
    "untrained": ("#CC79A7", "v"),
    "random": ("#666666", "x"),
}
# A segment may be long: wrapped there, two lines leave the axes their half of the figure.
SEGMENT_COLUMNS = 36
# What a first stack is compared with: scores that are the same for all members, or nearly so.
COMPARED = ("notPersonal", "popularity", "popularityTrained")


def plot_evaluation(document: Mapping[str, Any], margins: Sequence[float | None], path: Path) -> None:
    """Draw evaluation.json for people. `margins`: maxRegression of each gate, None where it has none."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), constrained_layout=True)
    _draw_recall(left, [row for row in document["metrics"] if row["segment"] == "all" and row["value"] is not None])
    _draw_differences(right, document, margins)
    dataset = document["dataset"]
    label = "SYNTHETIC data: " if dataset["provenance"] == "synthetic" else ""
    figure.suptitle(
        f"{label}{dataset['name']}, {document['members']['evaluated']} held-out members, "
        f"candidate {document['candidate']['bundleId']}",
        parse_math=False,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_recall(axes: Any, rows: Sequence[Row]) -> None:
    rows = [row for row in rows if row["metric"] == "recall"]
    groups = list(dict.fromkeys((row["k"], row["pool"]) for row in rows))
    subjects = [subject for subject in STYLES if any(row["subject"] == subject for row in rows)]
    for number, subject in enumerate(subjects):
        own = {(row["k"], row["pool"]): row for row in rows if row["subject"] == subject}
        present = [(place, own[group]) for place, group in enumerate(groups) if group in own]
        values = np.asarray([row["value"] for _, row in present])
        errors = np.abs([values - [r["lower"] for _, r in present], [r["upper"] for _, r in present] - values])
        colour, marker = STYLES[subject]
        # Side by side within 0.8 of a group's width, however many there are.
        places = [place + 0.8 * ((number + 0.5) / len(subjects) - 0.5) for place, _ in present]
        axes.errorbar(places, values, yerr=errors, fmt=marker, color=colour, markersize=5, capsize=2, label=subject)
    axes.set_xticks(range(len(groups)), [f"recall@{k}\n{pool}" for k, pool in groups])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("recall, mean over members")
    axes.set_title("Recall with one-sided bounds")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()


def _draw_differences(axes: Any, document: Mapping[str, Any], margins: Sequence[float | None]) -> None:
    """Gates against the champion, with their margins; without a champion, the candidate against the baselines."""
    if document["champion"] is not None:
        names = _draw_gates(axes, document["gates"], margins)
        other = "champion (| = -maxRegression)"
    else:
        names = _draw_baselines(axes, document["comparisons"])
        other = "baseline"
    axes.set_yticks(range(len(names)), names, parse_math=False)  # a segment may hold dollar signs
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel(f"candidate - {other}, per member")
    axes.set_title("Difference with one-sided bounds")
    axes.grid(axis="x", alpha=0.3)
    if not names:
        axes.text(0.5, 0.5, "nothing to compare", transform=axes.transAxes, ha="center")


def _draw_gates(axes: Any, gates: Sequence[Row], margins: Sequence[float | None]) -> list[str]:
    """One line per measured gate; returns their names."""
    measured = [pair for pair in zip(gates, margins, strict=True) if pair[0]["delta"] is not None]
    for place, (row, margin) in enumerate(measured):
        _draw_difference(axes, row, place, "candidate")
        if margin is not None:
            axes.plot([-margin, -margin], [place - 0.3, place + 0.3], color=STYLES["champion"][0], linewidth=2)
    return [
        f"{row['metric']}@{row['k']} {row['pool']}\n{fill(row['segment'], SEGMENT_COLUMNS)}, n={row['n']}"
        for row, _ in measured
    ]


def _draw_baselines(axes: Any, comparisons: Sequence[Row]) -> list[str]:
    """One line per recall and a mark per baseline, all members; returns the names of the lines."""
    rows = [row for row in comparisons if row["segment"] == "all" and row["metric"] == "recall"]
    lines = list(dict.fromkeys((row["k"], row["pool"]) for row in rows))
    for row in rows:
        if row["baseline"] in COMPARED:
            place = lines.index((row["k"], row["pool"])) + 0.2 * (COMPARED.index(row["baseline"]) - 1)
            _draw_difference(axes, row, place, row["baseline"])
    return [f"recall@{k}\n{pool}" for k, pool in lines]


def _draw_difference(axes: Any, row: Row, place: float, style: str) -> None:
    colour, marker = STYLES[style]
    error = np.abs([[row["delta"] - row["lower"]], [row["upper"] - row["delta"]]])
    axes.errorbar([row["delta"]], [place], xerr=error, fmt=marker, color=colour, markersize=5, capsize=4)
