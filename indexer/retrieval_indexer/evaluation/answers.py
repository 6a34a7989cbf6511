"""Per-member values of every metric for one scorer, and what its vectors look like; stored and read back as files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from retrieval_core.files import canonical_json, is_published, local_path, publish, read_json, write_json
from retrieval_core.generation.writer import write_table
from retrieval_indexer.checks import finite_rows, sample_rows
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet, Mask, Rows, item_popularity
from retrieval_indexer.evaluation.pools import POOLS, Pool, Pools
from retrieval_indexer.evaluation.recall import corpus_recall, hit_rate, pool_recall, ranks
from retrieval_indexer.evaluation.scorers import Scorer, Scores, Stack, StackScorer
from retrieval_indexer.workspace import Workspace

Values = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]

# Raise it when the meaning of a stored value changes: it is part of the cache key.
ANSWERS_VERSION = 2
POOL_K = 10
LAST_FILE = "answers.json"
VALUES_FILE = "answers.parquet"
# The two subjects of a stored file.
OWN, NOT_PERSONAL = "own", "notPersonal"
# Mean distance 1 - cosine to the common direction below which all vectors are nearly one: ten times what bf16 rounding
# adds (1e-5 to 1e-4 of a cosine). Gut feeling; an untrained base is at 1e-2 and above.
COLLAPSED_SPREAD = 1e-4


@dataclass(frozen=True, order=True)
class Metric:
    """`recall@10 matched`: recall in a pool or the corpus, hitRate in the corpus."""

    name: str
    k: int
    pool: str

    def __str__(self) -> str:
        return f"{self.name}@{self.k} {self.pool}"


@dataclass(frozen=True)
class Answers:
    """What one scorer did for the members of an evaluation set."""

    values: Mapping[Metric, Values]
    """Per member [m], in [0, 1]; NaN where the member has no value (its pools were too small)."""
    not_finite: int = 0
    """Members with a score that was not finite. With any, no value of this scorer means anything."""
    spread: float | None = None
    """The smaller of items' and members' mean 1 - cosine to their common direction; None for a baseline."""
    popularity_correlation: float | None = None
    """Spearman correlation of item popularity with the mean cosine to the members; None when it is not defined."""

    @property
    def collapsed(self) -> bool:
        return self.spread is not None and self.spread < COLLAPSED_SPREAD


@dataclass(frozen=True)
class StackAnswers:
    """What a stack did for the members, and what its item vectors did without knowing the member."""

    own: Answers
    not_personal: Answers


def metrics_for(ks: Sequence[int], gated: Sequence[Metric] = ()) -> list[Metric]:
    """Pool recall at the paper's 10, corpus recall and hit rate at every k, and whatever else the gates ask for."""
    pooled = [Metric("recall", POOL_K, pool) for pool in POOLS]
    whole = [Metric(name, k, "corpus") for name in ("recall", "hitRate") for k in ks]
    return list(dict.fromkeys([*pooled, *whole, *gated]))


def collect_answers(scorer: Scorer, evaluation: EvaluationSet, pools: Pools, metrics: Sequence[Metric]) -> Answers:
    """Score every member and compute every metric; one member's scores are in memory at a time."""
    scores = ((own,) for own in scorer.scores(evaluation))
    [answers] = _collect(scores, 1, evaluation, pools, metrics)
    return answers


def collect_stack_answers(
    scorer: StackScorer, evaluation: EvaluationSet, pools: Pools, metrics: Sequence[Metric]
) -> StackAnswers:
    """As `collect_answers`, for a stack with and without its members, in one pass; and a look at its vectors."""
    own, not_personal = _collect(scorer.paired_scores(evaluation), 2, evaluation, pools, metrics)
    return StackAnswers(replace(own, **_look_at_vectors(scorer, evaluation)), not_personal)


def _collect(
    scores: Iterable[Sequence[Scores]], count: int, evaluation: EvaluationSet, pools: Pools, metrics: Sequence[Metric]
) -> list[Answers]:
    """Answers of `count` scorers, of which `scores` has, per member, one array [n] each."""
    values = [{metric: np.full(len(evaluation), np.nan) for metric in metrics} for _ in range(count)]
    finite = [0] * count
    for index, of_member in enumerate(scores):
        hidden, positives = evaluation.hidden(index), evaluation.positives[index]
        negatives = {name: rows[index] for name, rows in pools.rows.items()}
        for number, own in enumerate(of_member):
            if not np.isfinite(own).all():
                continue
            finite[number] += 1
            for metric, value in _member_values(own, hidden, positives, negatives, metrics):
                values[number][metric][index] = value
    return [Answers(own, len(evaluation) - known) for own, known in zip(values, finite, strict=True)]


def _member_values(
    scores: Scores, hidden: Mask, positives: Rows, negatives: Mapping[str, Pool], metrics: Sequence[Metric]
) -> Iterator[tuple[Metric, float]]:
    found = ranks(np.where(hidden, -np.inf, scores), positives)
    for metric in metrics:
        if metric.pool == "corpus":
            measure = corpus_recall if metric.name == "recall" else hit_rate
            yield metric, measure(found, metric.k)
        elif len(rows := negatives[metric.pool]):
            # The member is the unit: several positives count as their average.
            yield metric, float(pool_recall(scores[positives], scores[rows], metric.k).mean())


def _look_at_vectors(scorer: StackScorer, evaluation: EvaluationSet) -> dict[str, Any]:
    items, members = scorer.stack.generation.served_vectors, scorer.member_vectors
    if not (finite_rows(members).all() and finite_rows(items).all()):
        return {}
    sample = members[sample_rows(len(members), 1000)]
    popularity = item_popularity(evaluation.view, evaluation.corpus, evaluation.as_of)
    return {
        "spread": min(_spread(items[sample_rows(len(items), 10_000)]), _spread(sample)),
        "popularity_correlation": _rank_correlation(popularity, items @ sample.mean(axis=0)),
    }


def _rank_correlation(popularity: npt.NDArray[np.int64], cosines: Vectors) -> float | None:
    """Spearman's; None where one side is constant: nothing was popular yet, or the encoder collapsed."""
    if np.ptp(popularity) == 0 or np.ptp(cosines) == 0:
        return None
    return float(spearmanr(popularity, cosines).statistic)


def _spread(vectors: Vectors) -> float:
    """Mean of 1 - cosine to the mean direction; one vector alone is not collapsed."""
    if len(vectors) < 2:
        return 1.0
    mean = vectors.astype(np.float64).mean(axis=0)
    length = np.linalg.norm(mean)
    return float(1 - (vectors @ (mean / length)).mean()) if length > 0 else 1.0


def cached_answers(
    scorer: StackScorer, evaluation: EvaluationSet, pools: Pools, metrics: Sequence[Metric], cache: str | None
) -> StackAnswers:
    """As `collect_stack_answers`, but taken from the cache (a URI) when the same question was answered before."""
    if cache is None:
        return collect_stack_answers(scorer, evaluation, pools, metrics)
    uri = f"{cache.rstrip('/')}/{answers_key(scorer.stack, evaluation, pools, metrics)}"
    if is_published(uri, LAST_FILE):
        return read_answers(local_path(uri), metrics)
    answers = collect_stack_answers(scorer, evaluation, pools, metrics)
    workspace = Workspace(uri)
    write_answers(workspace.directory, answers)
    publish(workspace.directory, uri, LAST_FILE)
    return answers


def answers_key(stack: Stack, evaluation: EvaluationSet, pools: Pools, metrics: Sequence[Metric]) -> str:
    """Hash of all that decides the answers."""
    inputs = {
        "version": ANSWERS_VERSION,
        "bundleId": stack.bundle.id,
        "generationId": stack.generation.id,
        "set": evaluation.digest(),
        "pools": pools.digest(),
        "metrics": [str(metric) for metric in metrics],
    }
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:16]


def write_answers(directory: Path, answers: StackAnswers) -> None:
    subjects = {OWN: answers.own, NOT_PERSONAL: answers.not_personal}
    columns = {
        _column(subject, metric): pa.array(values)
        for subject, found in subjects.items()
        for metric, values in found.values.items()
    }
    write_table(directory / VALUES_FILE, columns)
    document = {
        "formatVersion": 1,
        "notFinite": {subject: found.not_finite for subject, found in subjects.items()},
        "spread": answers.own.spread,
        "popularityCorrelation": answers.own.popularity_correlation,
    }
    write_json(directory / LAST_FILE, document)


def read_answers(directory: Path, metrics: Sequence[Metric]) -> StackAnswers:
    document = read_json(directory / LAST_FILE)
    table = pq.read_table(directory / VALUES_FILE)

    def found(subject: str) -> Answers:
        values = {metric: table[_column(subject, metric)].to_numpy() for metric in metrics}
        return Answers(values, document["notFinite"][subject])

    own = replace(found(OWN), spread=document["spread"], popularity_correlation=document["popularityCorrelation"])
    return StackAnswers(own, found(NOT_PERSONAL))


def _column(subject: str, metric: Metric) -> str:
    return f"{subject} {metric}"
