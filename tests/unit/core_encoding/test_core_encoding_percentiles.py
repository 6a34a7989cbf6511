"""Percentile tables: equal edges, zeros, unknown, unseen buckets, a single value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval_core.errors import BadInput
from retrieval_core.prompts import Percentiles
from retrieval_core.prompts.percentiles import Table


@pytest.mark.parametrize(
    ("values", "edges", "buckets"),
    [
        pytest.param([], (), (), id="no values"),
        pytest.param([0, 0, 0], (), (), id="only zeros"),
        pytest.param([0, np.nan, np.inf], (), (), id="no numbers"),
        pytest.param([7], (), (100,), id="a single value"),
        pytest.param([7, 7, 7], (), (100,), id="equal edges collapse"),
        pytest.param([1, 1, 1, 5], (3.0,), (75, 100), id="edges lie halfway between seen values"),
        pytest.param([0, 0, 1, 3], (2.0,), (50, 100), id="zeros do not count"),
        pytest.param([-4, -2, 2, 6], (-3.0, 0.0, 4.0), (25, 50, 75, 100), id="negative numbers"),
    ],
)
def test_a_table_has_only_the_buckets_that_training_values_fell_into(values, edges, buckets):
    table = Table.fit(np.array(values, dtype=np.float64))
    assert (table.edges, table.buckets) == (edges, buckets)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (None, "<|pct.unknown|>"),
        (float("nan"), "<|pct.unknown|>"),
        (float("inf"), "<|pct.unknown|>"),
        (0, "<|pct.zero|>"),
        (-0.0, "<|pct.zero|>"),
        (1, "<|pct.50|>"),
        (1.9, "<|pct.50|>"),
        (2.1, "<|pct.100|>"),
        (3, "<|pct.100|>"),
        (10**9, "<|pct.100|>"),
        (-5, "<|pct.50|>"),
    ],
)
def test_a_value_that_training_did_not_see_goes_to_the_nearest_bucket_it_did(value, token):
    assert Table.fit([1, 1, 3, 3, 0]).token(value) == token


def test_without_any_training_number_a_number_is_unknown_and_zero_is_zero():
    table = Table.fit([0, 0])
    assert (table.token(3), table.token(0)) == ("<|pct.unknown|>", "<|pct.zero|>")


def test_a_hundred_different_values_get_a_hundred_buckets():
    table = Table.fit(np.arange(1, 101))
    assert [table.token(value) for value in range(1, 101)] == [f"<|pct.{bucket}|>" for bucket in range(1, 101)]


NUMBERS = st.one_of(
    st.integers(-3, 20).map(float), st.floats(allow_nan=False, allow_infinity=False), st.floats(1.0, 1.0 + 1e-15)
)


@settings(max_examples=200)
@given(arrays(np.float64, st.integers(1, 60), elements=NUMBERS))
def test_training_values_get_the_bucket_of_their_rank(values):
    """Against the definition, value by value: 100 x the share of numbers at or below it, rounded up."""
    table = Table.fit(values)
    numbers = values[values != 0]
    for value in numbers:
        bucket = -(-100 * int((numbers <= value).sum()) // len(numbers))
        assert table.token(value) == f"<|pct.{bucket}|>"


@settings(max_examples=100)
@given(arrays(np.float64, st.integers(1, 60), elements=NUMBERS), st.lists(NUMBERS, min_size=2))
def test_a_larger_value_never_gets_a_lower_bucket_and_only_seen_buckets_exist(values, probes):
    table = Table.fit(values)
    tokens = [table.token(probe) for probe in sorted(probes) if probe != 0]
    buckets = [int(token[6:-2]) for token in tokens if token != "<|pct.unknown|>"]
    assert buckets == sorted(buckets)
    assert set(buckets) <= set(table.buckets)


def test_tables_survive_the_file(percentiles):
    assert Percentiles.parse(percentiles.document(), "prompts.json") == percentiles
    assert percentiles.document().keys() == {"member.activity", "item.engagements"}


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"edges": [1.0], "buckets": [5]}, "1 buckets need one edge less"),
        ({"edges": [2.0, 1.0], "buckets": [5, 6, 7]}, "must be ascending"),
        ({"edges": [], "buckets": [101]}, "found 101"),
    ],
)
def test_a_changed_table_is_refused(table, complaint):
    with pytest.raises(BadInput, match=complaint):
        Percentiles.parse({"item.engagements": table}, "prompts.json")


def test_a_percentile_of_something_that_is_not_a_number_is_refused(spec):
    with pytest.raises(BadInput, match=r"'item.engagements'.*numbers are member\.activity"):
        Percentiles.fit(spec, {"member.activity": np.ones(3)})
