"""The split: where the test part starts, and who is for tuning."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_core.dataset import open_dataset
from retrieval_core.dataset.spec import SplitSpec
from retrieval_core.dataset.split import NO_TEST_PART, resolve_split, validation_members

MEMBERS = 4
histories = st.lists(
    st.tuples(st.integers(0, MEMBERS - 1), st.integers(0, 12)), min_size=1, max_size=40
)  # (member, time), many ties
fractions = st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5, 0.9])


def _columns(rows):
    ordered = sorted(rows, key=lambda row: row[1])
    return np.asarray([m for m, _ in ordered], dtype=np.int32), np.asarray([t for _, t in ordered], dtype=np.int64)


@settings(max_examples=100, deadline=None)
@given(rows=histories, fraction=fractions)
def test_each_members_last_part_is_test_and_ties_stay_in_training(rows, fraction):
    member, time = _columns(rows)
    split = resolve_split(SplitSpec(mode="perMember", test_fraction=fraction), member, time, MEMBERS)
    is_test = split.is_test(member, time)
    for one in range(MEMBERS):
        times = sorted(t for m, t in rows if m == one)
        training = times[: len(times) - math.floor(len(times) * fraction + 1e-9)]
        expected = [t > training[-1] for t in times] if training else []
        assert is_test[member == one].tolist() == expected
        first_test = next((t for t, test in zip(times, expected, strict=True) if test), NO_TEST_PART)
        assert split.member_test_from[one] == first_test


@settings(max_examples=100, deadline=None)
@given(rows=histories, fraction=fractions)
def test_the_global_split_is_a_time_and_holds_at_least_the_fraction(rows, fraction):
    member, time = _columns(rows)
    split = resolve_split(SplitSpec(mode="global", test_fraction=fraction), member, time, MEMBERS)
    is_test = split.is_test(member, time)
    assert is_test.sum() >= math.floor(len(rows) * fraction + 1e-9)
    later = time > split.test_from
    assert later.sum() <= math.floor(len(rows) * fraction + 1e-9) or later.sum() < is_test.sum()
    assert split.document() == {"mode": "global", "testFrom": split.test_from}


@pytest.mark.parametrize(("size", "fraction", "expected"), [(15, 0.2, 3), (10, 0.3, 3), (4, 0.2, 0), (5, 0.2, 1)])
def test_decimal_fractions_are_meant_as_decimals(size, fraction, expected):
    """0.2 * 15 is 2.9999... in binary."""
    member, time = np.zeros(size, dtype=np.int32), np.arange(size)
    split = resolve_split(SplitSpec(mode="perMember", test_fraction=fraction), member, time, 1)
    assert split.is_test(member, time).sum() == expected


def test_per_member_mode_documents_its_fraction(small_dataset, tmp_path):
    files = small_dataset()
    files.document["split"] = {"mode": "perMember", "testFraction": "0.5"}
    dataset = open_dataset(str(files.write(tmp_path / "d")))
    assert dataset.split.document() == {"mode": "perMember", "testFraction": 0.5}
    assert dataset.split.test_from is None
    assert dataset.split.member_test_from.tolist() == [300, 400, 700]


def test_validation_members_are_a_stable_share_whoever_else_is_there():
    ids = np.asarray([f"member-{number}" for number in range(4000)], dtype=np.object_)
    chosen = validation_members(ids, 0.1)
    assert 0.08 < chosen.mean() < 0.12
    assert validation_members(ids[::-1], 0.1).tolist() == chosen[::-1].tolist()
    wider = validation_members(ids, 0.3)
    assert not (chosen & ~wider).any()
    assert not validation_members(ids, 0.0).any()
    # A known value: changing the hash would move members between tuning and gates.
    assert validation_members(np.asarray(["ann", "bob", "cid"], dtype=np.object_), 0.5).tolist() == [True, False, True]
