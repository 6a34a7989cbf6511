"""The metrics against naive references that order every tie in every way."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_indexer.evaluation.recall import corpus_recall, hit_rate, is_too_few_items, pool_recall, ranks

# Few distinct scores among few items, so that ties are the rule.
SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=2, max_size=6)


def orderings(scores: list[float]) -> list[tuple[int, ...]]:
    """All orders, best first, that agree with the scores; equally likely."""
    n = len(scores)
    return [p for p in permutations(range(n)) if all(scores[p[i]] >= scores[p[i + 1]] for i in range(n - 1))]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], list[int], int]:
    scores = draw(SCORES)
    positives = draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, max_size=3, unique=True))
    return scores, positives, draw(st.integers(1, len(scores) + 1))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_recall_and_hit_rate_are_means_over_all_orders_of_equals(case):
    scores, positives, k = case
    found = ranks(np.asarray(scores), np.asarray(positives))
    hits = [len(set(order[:k]) & set(positives)) for order in orderings(scores)]
    assert corpus_recall(found, k) == pytest.approx(np.mean(hits) / min(k, len(positives)))
    assert hit_rate(found, k) == pytest.approx(np.mean([h > 0 for h in hits]))


@settings(max_examples=40, deadline=None)
@given(SCORES, st.integers(1, 7))
def test_pool_recall_is_the_mean_over_all_orders_of_equals(scores, k):
    expected = np.mean([0 in order[:k] for order in orderings(scores)])
    value = pool_recall(np.asarray(scores[:1]), np.asarray([scores[1:]]), k)
    assert value[0] == pytest.approx(expected)


def test_recall_divides_by_what_could_be_found():
    scores = np.asarray([0.9, 0.8, 0.7, 0.6, 0.5])
    assert corpus_recall(ranks(scores, np.asarray([0, 1, 4])), 2) == 1.0  # both of the two places are right
    assert corpus_recall(ranks(scores, np.asarray([0, 1, 4])), 4) == pytest.approx(2 / 3)


def test_a_hidden_item_takes_no_place():
    scores = np.asarray([-np.inf, 0.8, -np.inf, 0.6])
    assert corpus_recall(ranks(scores, np.asarray([3])), 1) == 0.0
    assert corpus_recall(ranks(scores, np.asarray([3])), 2) == 1.0


def test_constant_scores_are_exactly_random_and_never_right():
    """A naive rank calls a collapsed encoder perfect: nothing is above the positive."""
    assert pool_recall(np.zeros(1), np.zeros((1, 142)), 10)[0] == pytest.approx(10 / 143)
    assert corpus_recall(ranks(np.zeros(1000), np.asarray([5])), 100) == pytest.approx(0.1)


def test_rounding_of_one_vector_scored_twice_is_a_tie():
    scores = np.asarray([0.5, 0.5 + 1e-7, 0.5 - 1e-7, 0.1], dtype=np.float32)
    found = ranks(scores, np.asarray([0, 1, 2]))
    assert found.above.tolist() == [0, 0, 0]
    assert found.tied.tolist() == [2, 2, 2]


def test_a_cut_at_a_fifth_of_the_candidates_is_too_coarse_to_gate():
    assert is_too_few_items(200, 1000)
    assert not is_too_few_items(199, 1000)
    assert not is_too_few_items(10, 143)
