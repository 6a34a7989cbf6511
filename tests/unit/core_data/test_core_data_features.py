"""Point in time: features are those of a plain reference, and nothing at or after `as_of` enters them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_core.dataset import FeatureView, open_dataset

DAY = 86_400
WINDOW_DAYS = 3
MEMBERS = ["ann", "bob", "cid"]
ITEMS = ["i0", "i1", "i2", "i3"]

# Times in half days, so that windows and ties are hit exactly.
rows = st.lists(
    st.tuples(st.sampled_from(MEMBERS), st.sampled_from(ITEMS), st.integers(0, 20), st.booleans()),
    min_size=1,
    max_size=30,
    unique_by=lambda row: row[:3],
)


def _open(factory, events, mode, window_days=WINDOW_DAYS):
    """A dataset with these events, and one training and one test positive of `cid` so that it is always valid."""
    files = factory()
    files.document["counts"] = {"windowDays": window_days}
    files.document["items"].pop("createdAt")
    files.document["split"] = {"mode": mode} | (
        {"testFrom": 1000 * DAY} if mode == "global" else {"testFraction": 0.34}
    )
    always = [("cid", "i0", 2000, False), ("cid", "i1", 3000, True)] if mode == "global" else []
    always += [("cid", "i2", -1, True)] if mode == "global" else []
    events = [(m, i, (t + 1) * DAY // 2, e) for m, i, t, e in [*events, *always]]
    for position, column in enumerate(files.interactions):
        files.interactions[column] = [event[position] for event in events]
    with tempfile.TemporaryDirectory() as directory:
        return open_dataset(str(files.write(Path(directory) / "d")))


def _visible(dataset):
    """(member, item, time, engaged) of all rows a feature may ever see, as plain tuples in time order."""
    events = dataset.events
    all_rows = zip(
        *(a.tolist() for a in (events.member, events.item, events.time, events.engaged, events.is_test)), strict=True
    )
    return [row[:4] for row in all_rows if dataset.split.mode == "global" or not row[4]]


def _in_window(time, as_of, window_days):
    return time < as_of and (window_days == 0 or time >= as_of - window_days * DAY)


@pytest.mark.parametrize("mode", ["global", "perMember"])
@pytest.mark.parametrize("window_days", [0, WINDOW_DAYS])
@settings(max_examples=40, deadline=None)
@given(events=rows, half_day=st.integers(0, 24), shift=st.sampled_from([-1, 0, 1]))
def test_features_are_those_of_a_plain_reference(small_dataset, mode, window_days, events, half_day, shift):
    if mode == "perMember":  # one positive on each side
        events = [*events, *[("cid", "i3", t, True) for t in (30, 31, 32)]]
    dataset = _open(small_dataset, events, mode, window_days)
    view, known = FeatureView(dataset), _visible(dataset)
    as_of = half_day * DAY // 2 + shift
    for item in range(len(ITEMS)):
        seen = [row for row in known if row[1] == item and _in_window(row[2], as_of, window_days)]
        features = view.item_features(item, as_of)
        assert features["impressions"] == len(seen)
        assert features["engagements"] == sum(row[3] for row in seen)
        counts = view.item_counts(np.asarray([item]), np.asarray([as_of]))
        assert (counts.impressions[0], counts.engagements[0]) == (features["impressions"], features["engagements"])
    for member in range(len(MEMBERS)):
        past = [row for row in known if row[0] == member and row[2] < as_of]
        positives = [row[1] for row in past if row[3]]
        features = view.member_features(member, as_of, max_history=2)
        assert features["activity"] == sum(row[3] and _in_window(row[2], as_of, window_days) for row in past)
        assert view.member_activity(np.asarray([member]), np.asarray([as_of]))[0] == features["activity"]
        assert [entry["title"] for entry in features["history"]] == [
            ["zero", "one", "two", "three"][i] for i in positives[-2:]
        ]
        assert view.positives_before(member, as_of).tolist() == positives


@settings(max_examples=25, deadline=None)
@given(events=rows, future=rows, as_of_half_day=st.integers(1, 24))
def test_events_planted_at_or_after_a_time_change_nothing_known_at_that_time(
    small_dataset, events, future, as_of_half_day
):
    planted = {row[:3]: row for row in events}
    for member, item, offset, engaged in future:
        row = (member, item, as_of_half_day - 1 + offset, engaged)  # the builder adds a half day
        planted.setdefault(row[:3], row)
    as_of = as_of_half_day * DAY // 2
    before, after = (FeatureView(_open(small_dataset, r, "global")) for r in (events, list(planted.values())))
    past = [row for row in events if (row[2] + 1) * DAY // 2 < as_of]
    only_past = FeatureView(_open(small_dataset, past, "global"))
    for view in (before, after):
        for item in range(len(ITEMS)):
            assert view.item_features(item, as_of) == only_past.item_features(item, as_of)
        for member in range(len(MEMBERS)):
            assert view.member_features(member, as_of, 10) == only_past.member_features(member, as_of, 10)
            assert view.positives_before(member, as_of).tolist() == only_past.positives_before(member, as_of).tolist()


def test_item_features_are_declared_columns_and_derived_fields(small_dataset, tmp_path):
    view = FeatureView(open_dataset(str(small_dataset().write(tmp_path / "d"))))
    assert view.item_features(1, 400) == {
        "title": "one",
        "topics": ["x", "y"],
        "words": 20.0,
        "author": "eve",
        "engagements": 1.0,
        "impressions": 2.0,
        "ageDays": 400 / DAY,
    }
    assert view.item_features(3, 399)["ageDays"] is None  # it does not exist yet
    assert view.item_features(3, 400)["ageDays"] == 0


def test_member_features_hold_static_item_columns_oldest_first(small_dataset, tmp_path):
    view = FeatureView(open_dataset(str(small_dataset().write(tmp_path / "d"))))
    features = view.member_features(0, 301, max_history=5)
    assert features == {
        "headline": "a chemist",
        "industry": "health",
        "activity": 2.0,
        "history": [
            {"title": "zero", "topics": ["x"], "words": 10.0, "author": "eve"},
            {"title": "two", "topics": [], "words": None, "author": "dan"},
        ],
    }
    assert [entry["title"] for entry in view.member_features(0, 301, max_history=1)["history"]] == ["two"]
    assert view.member_features(0, 301, max_history=0)["history"] == []
    assert view.member_features(0, 100, max_history=5)["history"] == []  # strictly before


def test_in_per_member_mode_no_test_part_is_seen_even_long_after_it(small_dataset, tmp_path):
    files = small_dataset()
    files.document["split"] = {"mode": "perMember", "testFraction": 0.5}
    view = FeatureView(open_dataset(str(files.write(tmp_path / "d"))))
    assert view.positives_before(0, 10**9).tolist() == [0]  # i2 at 300 is ann's test part
    assert view.item_features(2, 10**9)["impressions"] == 0
    files.document["split"] = {"mode": "global", "testFrom": 500}
    view = FeatureView(open_dataset(str(files.write(tmp_path / "e"))))
    assert view.positives_before(0, 10**9).tolist() == [0, 2]


def test_a_view_for_serving_sees_the_held_out_parts_and_still_nothing_from_the_future(small_dataset, tmp_path):
    files = small_dataset()
    files.document["split"] = {"mode": "perMember", "testFraction": 0.5}
    view = FeatureView(open_dataset(str(files.write(tmp_path / "d"))), for_serving=True)
    assert view.positives_before(0, 10**9).tolist() == [0, 2]
    assert view.positives_before(0, 300).tolist() == [0]  # strictly before


def test_counts_are_vectorised_over_items_and_times(small_dataset, tmp_path):
    view = FeatureView(open_dataset(str(small_dataset().write(tmp_path / "d"))))
    items, times = np.asarray([1, 1, 1, 2], dtype=np.int32), np.asarray([200, 201, 10**6, 0])
    counts = view.item_counts(items, times)
    assert counts.impressions.tolist() == [0, 2, 3, 0]
    assert counts.engagements.tolist() == [0, 1, 1, 0]
    assert counts.engagements.dtype == np.int64
    assert view.item_counts(np.empty(0, np.int32), np.empty(0, np.int64)).impressions.tolist() == []
    assert view.member_activity(np.asarray([0, 0]), np.asarray([101, 301])).tolist() == [1, 2]
