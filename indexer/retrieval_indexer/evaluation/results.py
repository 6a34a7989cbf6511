"""The tables of evaluation.json: every metric of every subject, and the candidate against every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_indexer.evaluation.answers import Answers, Metric
from retrieval_indexer.evaluation.bootstrap import mean_bounds, paired_bounds
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet

FORMAT_VERSION = 1
# For the table of all metrics: 2,000 resamples place a 95 % bound within 0.1 standard errors. Gates use more.
TABLE_RESAMPLES = 2_000

Row = dict[str, Any]


def metric_rows(
    evaluation: EvaluationSet, subjects: Mapping[str, Answers], segments: Sequence[str], *, confidence: float, seed: int
) -> list[Row]:
    """One row per subject, metric and segment with members; with scores that are not finite there is no value."""
    rows = []
    for subject, answers in subjects.items():
        for segment in segments:
            members = evaluation.segment(segment)
            if members is None or not members.any():
                continue
            for metric, values in answers.values.items():
                chosen = values[members & np.isfinite(values)]
                row = {"subject": subject, **_name(metric), "segment": segment, "n": len(chosen)}
                if answers.not_finite:
                    rows.append(row | {"value": None, "lower": None, "upper": None, "problem": "NonFinite"})
                elif len(chosen):
                    bounds = mean_bounds(
                        chosen, low=0, high=1, confidence=confidence, seed=seed, resamples=TABLE_RESAMPLES
                    )
                    rows.append(row | {"value": bounds.mean, "lower": bounds.lower, "upper": bounds.upper})
    return rows


def comparison_rows(
    evaluation: EvaluationSet, subjects: Mapping[str, Answers], segments: Sequence[str], *, confidence: float, seed: int
) -> list[Row]:
    """Paired differences of the candidate to every other subject, per metric and segment."""
    rows = []
    candidate = subjects["candidate"]
    for name, other in subjects.items():
        if name == "candidate" or candidate.not_finite or other.not_finite:
            continue
        for segment in segments:
            members = evaluation.segment(segment)
            if members is None:
                continue
            for metric, values in candidate.values.items():
                chosen = members & np.isfinite(values) & np.isfinite(other.values[metric])
                if not chosen.any():
                    continue
                bounds = paired_bounds(
                    values[chosen],
                    other.values[metric][chosen],
                    confidence=confidence,
                    seed=seed,
                    resamples=TABLE_RESAMPLES,
                )
                rows.append(
                    {
                        "subject": "candidate",
                        "baseline": name,
                        **_name(metric),
                        "segment": segment,
                        "n": int(chosen.sum()),
                        "discordant": bounds.discordant,
                        "delta": bounds.mean,
                        "lower": bounds.lower,
                        "upper": bounds.upper,
                        "method": bounds.method,
                    }
                )
    return rows


def _name(metric: Metric) -> Row:
    return {"metric": metric.name, "k": metric.k, "pool": metric.pool}
