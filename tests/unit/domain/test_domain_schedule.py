"""Slots while the clocks change, against what a clock on the wall shows minute by minute.

A schedule at fixed times of day runs once on such a day: what the repeated hour repeats is not due again, what is left
out is due right after the gap. One with a star for its minute or hour runs whenever the clock shows such a time.
"""

from __future__ import annotations

import datetime as dt
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval_operator.domain.schedule import due_slot, next_slot_at, slot_time

HALF_A_DAY = 43_200
CHANGES = [  # the zone, and the moment at which its clocks are set
    ("Europe/Berlin", "2025-10-26T01:00:00Z"),
    ("Europe/Berlin", "2026-03-29T01:00:00Z"),
    ("America/New_York", "2025-11-02T06:00:00Z"),
    ("America/New_York", "2026-03-08T07:00:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00:00Z"),  # by half an hour
    ("Australia/Lord_Howe", "2026-10-03T15:30:00Z"),
    ("UTC", "2025-10-26T01:00:00Z"),
]
FIXED = ["30 2 * * *", "45 1 * * *", "15,45 1-2 * * *", "0 2,3 * * *", "0 0-23 * * *", "30 1 * * 0"]
REPEATED = ["* * * * *", "*/7 * * * *", "35 * * * *", "0 */6 * * *", "*/10 1 * * *", "*/10 2 * * *", "*/20 5 * * 0"]


@cache
def on_the_wall(zone: str, changes_at: str, expression: str) -> list[int]:
    """Every slot of the day around the change."""
    middle, clock = slot_time(changes_at), ZoneInfo(zone)
    minutes = range(middle - HALF_A_DAY, middle + HALF_A_DAY, 60)
    shown = {minute: dt.datetime.fromtimestamp(minute, clock).replace(tzinfo=None, fold=0) for minute in minutes}
    last = max(shown.values())
    asked = set()
    for slot in CronSim(expression, shown[minutes[0]] - dt.timedelta(seconds=1)):
        if slot > last:
            break
        asked.add(slot)
    if expression in REPEATED:
        return [minute for minute in minutes if shown[minute] in asked]
    return sorted({next(minute for minute in minutes if shown[minute] >= slot) for slot in asked})


@example(CHANGES[0], "30 2 * * *", HALF_A_DAY + 600)
@example(CHANGES[4], "0 */6 * * *", 0)
@settings(deadline=None)
@given(st.sampled_from(CHANGES), st.sampled_from(FIXED + REPEATED), st.integers(0, 2 * HALF_A_DAY - 1))
def test_each_slot_comes_once_and_after_now_while_the_clocks_change(
    change: tuple[str, str], expression: str, begun: int
) -> None:
    zone, changes_at = change
    now = start = slot_time(changes_at) - HALF_A_DAY + begun
    slots = on_the_wall(zone, changes_at, expression)
    ahead = [slot for slot in slots if slot > start]
    for slot in ahead:
        assert next_slot_at(expression, zone, now) == slot
        now = slot
    assert next_slot_at(expression, zone, now) >= slot_time(changes_at) + HALF_A_DAY
    for known in (start, *ahead[:1]):
        newest = due_slot(expression, zone, after=known, now=now, starting_deadline_s=2 * HALF_A_DAY)
        assert slot_time(newest) == (now if now > known else 0), "what is waited for is what is taken, and only once"


@pytest.mark.parametrize("minute", [0, 15, 29])
def test_a_schedule_sleeps_through_an_hour_that_comes_twice(minute: int) -> None:
    """Else the object would be looked at once a second until its end."""
    now = slot_time("2025-10-26T01:00:00Z") + 60 * minute
    tomorrow = slot_time("2025-10-27T01:30:00Z")
    assert next_slot_at("30 2 * * *", "Europe/Berlin", now) == tomorrow
    taken = slot_time("2025-10-26T00:30:00Z")
    due = due_slot("30 2 * * *", "Europe/Berlin", after=max(taken, now - 60), now=now, starting_deadline_s=7200)
    assert due == "", "it was taken in the first of the two hours"
