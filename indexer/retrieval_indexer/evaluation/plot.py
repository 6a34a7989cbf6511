"""evaluation.png: how good each subject is, and whether the candidate may replace the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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
    "popularity": ("#009E73", "^"),
    "untrained": ("#CC79A7", "v"),
    "random": ("#666666", "x"),
}


def plot_evaluation(document: Mapping[str, Any], margins: Sequence[float | None], path: Path) -> None:
    """Draw evaluation.json for people. `margins`: maxRegression of each gate, None where it has none."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), constrained_layout=True)
    _draw_recall(left, [row for row in document["metrics"] if row["segment"] == "all" and row["value"] is not None])
    _draw_differences(right, document, margins)
    dataset = document["dataset"]
    label = "SYNTHETIC data: " if dataset["provenance"] == "synthetic" else ""
    figure.suptitle(
        f"{label}{dataset['name']}, {document['members']['evaluated']} held-out members, "
        f"candidate {document['candidate']['bundleId']}"
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
        places = [place + 0.13 * (number - (len(subjects) - 1) / 2) for place, _ in present]
        axes.errorbar(places, values, yerr=errors, fmt=marker, color=colour, capsize=3, label=subject)
    axes.set_xticks(range(len(groups)), [f"recall@{k}\n{pool}" for k, pool in groups])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("recall, mean over members")
    axes.set_title("Recall with one-sided bounds")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()


def _draw_differences(axes: Any, document: Mapping[str, Any], margins: Sequence[float | None]) -> None:
    """Gates against the champion, with their margins; without a champion, the candidate against popularity."""
    if document["champion"] is not None:
        pairs = list(zip(document["gates"], margins, strict=True))
        other = "champion"
    else:
        rows = [row for row in document["comparisons"] if row["baseline"] == "popularity" and row["segment"] == "all"]
        pairs = [(row, None) for row in rows if row["metric"] == "recall"]
        other = "popularity"
    measured = [(row, margin) for row, margin in pairs if row["delta"] is not None]
    for place, (row, margin) in enumerate(measured):
        error = np.abs([[row["delta"] - row["lower"]], [row["upper"] - row["delta"]]])
        axes.errorbar([row["delta"]], [place], xerr=error, fmt="o", color=STYLES["candidate"][0], capsize=4)
        if margin is not None:
            axes.plot([-margin, -margin], [place - 0.3, place + 0.3], color=STYLES["champion"][0], linewidth=2)
    names = [f"{row['metric']}@{row['k']} {row['pool']}\n{row['segment']}, n={row['n']}" for row, _ in measured]
    axes.set_yticks(range(len(measured)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel(f"candidate - {other}, per member")
    axes.set_title("Difference with one-sided bounds" + (" | = -maxRegression" if other == "champion" else ""))
    axes.grid(axis="x", alpha=0.3)
    if not measured:
        axes.text(0.5, 0.5, "nothing to compare", transform=axes.transAxes, ha="center")
