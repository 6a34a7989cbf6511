"""Per-member values of every metric for one scorer, and what its vectors look like; stored and read back as files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet, item_popularity
from retrieval_indexer.evaluation.pools import POOLS, Pools
from retrieval_indexer.evaluation.recall import corpus_recall, hit_rate, pool_recall, ranks
from retrieval_indexer.evaluation.scorers import Scorer, Stack, StackScorer
from retrieval_indexer.workspace import Workspace

Values = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]

# Raise it when the meaning of a stored value changes: it is part of the cache key.
ANSWERS_VERSION = 1
POOL_K = 10
LAST_FILE = "answers.json"
VALUES_FILE = "answers.parquet"
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


def metrics_for(ks: Sequence[int], gated: Sequence[Metric] = ()) -> list[Metric]:
    """Pool recall at the paper's 10, corpus recall and hit rate at every k, and whatever else the gates ask for."""
    pooled = [Metric("recall", POOL_K, pool) for pool in POOLS]
    whole = [Metric(name, k, "corpus") for name in ("recall", "hitRate") for k in ks]
    return list(dict.fromkeys([*pooled, *whole, *gated]))


def collect_answers(scorer: Scorer, evaluation: EvaluationSet, pools: Pools, metrics: Sequence[Metric]) -> Answers:
    """Score every member and compute every metric; one member's scores are in memory at a time."""
    values = {metric: np.full(len(evaluation), np.nan) for metric in metrics}
    finite = 0
    for index, scores in enumerate(scorer.scores(evaluation)):
        if not np.isfinite(scores).all():
            continue
        finite += 1
        for metric, value in _member_values(scores, index, evaluation, pools, metrics):
            values[metric][index] = value
    look = _look_at_vectors(scorer, evaluation) if isinstance(scorer, StackScorer) else {}
    return Answers(values=values, not_finite=len(evaluation) - finite, **look)


def _member_values(
    scores: npt.NDArray[np.floating], index: int, evaluation: EvaluationSet, pools: Pools, metrics: Sequence[Metric]
) -> Iterator[tuple[Metric, float]]:
    positives = evaluation.positives[index]
    visible = np.where(evaluation.hidden(index), -np.inf, scores)
    found = ranks(visible, positives)
    for metric in metrics:
        if metric.pool == "corpus":
            measure = corpus_recall if metric.name == "recall" else hit_rate
            yield metric, measure(found, metric.k)
        elif len(negatives := pools.rows[metric.pool][index]):
            # The member is the unit: several positives count as their average.
            yield metric, float(pool_recall(scores[positives], scores[negatives], metric.k).mean())


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
) -> Answers:
    """As `collect_answers`, but taken from the cache (a URI) when the same question was answered before."""
    if cache is None:
        return collect_answers(scorer, evaluation, pools, metrics)
    uri = f"{cache.rstrip('/')}/{answers_key(scorer.stack, evaluation, pools, metrics)}"
    if is_published(uri, LAST_FILE):
        return read_answers(local_path(uri), metrics)
    answers = collect_answers(scorer, evaluation, pools, metrics)
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


def write_answers(directory: Path, answers: Answers) -> None:
    columns = {str(metric): pa.array(values) for metric, values in answers.values.items()}
    write_table(directory / VALUES_FILE, columns)
    document = {
        "formatVersion": 1,
        "notFinite": answers.not_finite,
        "spread": answers.spread,
        "popularityCorrelation": answers.popularity_correlation,
    }
    write_json(directory / LAST_FILE, document)


def read_answers(directory: Path, metrics: Sequence[Metric]) -> Answers:
    document = read_json(directory / LAST_FILE)
    table = pq.read_table(directory / VALUES_FILE)
    return Answers(
        values={metric: table[str(metric)].to_numpy() for metric in metrics},
        not_finite=document["notFinite"],
        spread=document["spread"],
        popularity_correlation=document["popularityCorrelation"],
    )
