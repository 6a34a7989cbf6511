"""What encoding and searching cost beside the plain way of doing the same, both measured in one run.

Seconds say how fast this machine is just now; a ratio of two things measured in turns says something about the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrieval_core.bundle import Bundle
from retrieval_core.dataset import open_dataset
from retrieval_core.dataset.features import FeatureView
from retrieval_core.encoding import Encoder, Vectors, normalise, run_batch
from retrieval_core.generation import Generation

MEMBERS = 256  # some seconds of encoding for the toy model; gut feeling
QUERIES = 64
ROUNDS = 5
CLOSE = 1e-5  # what fp32 may differ by (design: within 1e-5 of the reference)


@dataclass(frozen=True)
class Ratio:
    """Median seconds of both ways over the rounds, and the median of their ratio: above 1, ours is faster."""

    what: str
    ours_s: float
    plain_s: float
    times_faster: float


def ratios(bundle_uri: str, generation_uri: str, dataset_uri: str) -> list[Ratio]:
    """Encoding and searching of a served stack's bundle and generation."""
    encoder, generation = Encoder(Bundle.open(bundle_uri)), Generation.open(generation_uri)
    prompts = member_prompts(encoder, dataset_uri)
    token_ids = encoder.token_ids(prompts)
    tokens = sum(len(ids) for ids in token_ids)
    queries = encoder.encode_prompts(prompts[:QUERIES])
    k = min(generation.manifest.served_k, generation.count)
    corpus = f"{generation.count} x {generation.dimension}, k {k}, {generation.manifest.factory}"
    return [
        against(
            f"encode {len(prompts)} members ({tokens:,} tokens): sorted batches, beside one by one",
            lambda: encoder.encode_prompts(prompts),
            lambda: one_by_one(encoder, prompts),
        ),
        against(
            "encode the same: sorted batches, beside batches of the same budget as they come",
            lambda: encoder.encode_prompts(prompts),
            lambda: as_they_come(encoder, token_ids),
        ),
        against(
            f"search 1 query ({corpus}): beside numpy's matrix product and partition",
            lambda: scores_of(generation, queries[:1], k),
            lambda: exact_scores(generation.served_vectors, queries[:1], k),
        ),
        against(
            f"search {QUERIES} queries at once: beside one by one",
            lambda: scores_of(generation, queries, k),
            lambda: np.concatenate([scores_of(generation, queries[row : row + 1], k) for row in range(QUERIES)]),
        ),
    ]


def against(what: str, ours: Callable[[], Vectors], plain: Callable[[], Vectors]) -> Ratio:
    """Both in turns, after a first round that warms up and shows that both compute the same."""
    difference = float(np.abs(ours() - plain()).max())
    if difference > CLOSE:
        raise SystemExit(f"bench: {what}: the two differ by {difference:g}, so their times say nothing")
    rounds = [(seconds(ours), seconds(plain)) for _ in range(ROUNDS)]
    median = np.median(np.array([(mine, other, other / mine) for mine, other in rounds]), axis=0)
    return Ratio(what, *(float(value) for value in median))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def member_prompts(encoder: Encoder, dataset_uri: str) -> list[str]:
    """Prompts of the dataset's first members as of its end, with their histories."""
    dataset = open_dataset(dataset_uri)
    view, as_of = FeatureView(dataset, for_serving=True), dataset.last_event_time + 1
    history = encoder.bundle.prompts.member.history
    longest = history.max_items if history else 0
    members = range(min(MEMBERS, len(dataset.member_ids)))
    return [encoder.renderer.member(view.member_features(member, as_of, longest)) for member in members]


def one_by_one(encoder: Encoder, prompts: list[str]) -> Vectors:
    return np.concatenate([encoder.encode_prompts([prompt]) for prompt in prompts])


def as_they_come(encoder: Encoder, token_ids: list[list[int]]) -> Vectors:
    """Batches in the given order, each padded to its longest row: rows x longest row is within the budget."""
    vectors, batch = [], [token_ids[0]]
    for ids in token_ids[1:]:
        if (len(batch) + 1) * max(len(ids), *(len(row) for row in batch)) > encoder.token_budget:
            vectors.append(normalise(run_batch(encoder.model, batch)).numpy())
            batch = []
        batch.append(ids)
    vectors.append(normalise(run_batch(encoder.model, batch)).numpy())
    return np.concatenate(vectors)


def scores_of(generation: Generation, queries: Vectors, k: int) -> Vectors:
    return np.stack(generation.search(queries, k).scores)


def exact_scores(vectors: Vectors, queries: Vectors, k: int) -> Vectors:
    scores = queries @ vectors.T
    best = np.argpartition(scores, -k, axis=1)[:, -k:] if k < scores.shape[1] else np.argsort(scores, axis=1)
    return -np.sort(-np.take_along_axis(scores, best, axis=1), axis=1)
