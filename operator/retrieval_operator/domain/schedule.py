"""Cron slots: which due time, if any, should be taken up now.

A slot is its scheduled UTC time as ISO text (so slots sort as text). Forbid: slots are looked at only while nothing is
in flight; the newest due one is taken, older ones are skipped. One missed by more than the starting deadline is too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from zoneinfo import ZoneInfo

from cronsim import CronSim

# A schedule that has been asleep for years is walked slot by slot; one minute slots over a week are 10080.
_MAX_WALK = 20_000


def due_slot(expression: str, time_zone: str, *, after: int, now: int, starting_deadline_s: int) -> str:
    """The newest slot in (after, now] that is not older than the starting deadline; "" when none is due."""
    newest = _newest(expression, time_zone, max(after, now - starting_deadline_s), now)
    return newest.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if newest else ""


def next_slot_at(expression: str, time_zone: str, now: int) -> int:
    """Seconds since the epoch of the first slot after now."""
    return int(next(_slots(expression, ZoneInfo(time_zone), now)).timestamp())


def slot_time(slot: str) -> int:
    """The scheduled time of a slot in seconds since the epoch; 0 for "" (no slot)."""
    return int(dt.datetime.fromisoformat(slot).timestamp()) if slot else 0


def _newest(expression: str, time_zone: str, after: int, now: int) -> dt.datetime | None:
    newest = None
    for _, slot in zip(range(_MAX_WALK), _slots(expression, ZoneInfo(time_zone), after), strict=False):
        if slot.timestamp() > now:
            break
        newest = slot
    return newest


def _slots(expression: str, zone: ZoneInfo, after: int) -> Iterator[dt.datetime]:
    """All slots after that moment, in order, each once, also on a day on which the clocks are set.

    As in Debian's cron, a star for the minute or the hour means whenever the clock shows it, so also in an hour that
    comes twice. Fixed times come once a day, those that the clock leaves out right after the gap. CronSim knows, but
    begun in the second of two such hours it goes back to slots of the first.
    """
    if any(field.startswith("*") for field in expression.split()[:2]):
        while True:
            slot = _next_shown(expression, zone, after)
            yield slot
            after = int(slot.timestamp())
    walk = CronSim(expression, dt.datetime.fromtimestamp(after, zone))
    yield from (slot for slot in walk if slot.timestamp() > after)


def _next_shown(expression: str, zone: ZoneInfo, after: int) -> dt.datetime:
    """The first moment after that one at which the clock shows a slot.

    CronSim steps from hour to hour by 3600 s. Where clocks are set by half an hour (Lord Howe) it then misses slots, so
    it is given a clock that is never set: the one of now, and if that does not go right up to the slot, the one then.
    """
    offset = _offset(after, zone)
    slot: dt.datetime = next(CronSim(expression, _at(after, offset)))
    then = _offset(slot.timestamp(), zone)
    if then != offset:
        walk = CronSim(expression, _at(after, then))
        slot = next(slot for slot in walk if _offset(slot.timestamp(), zone) == then)
    return slot


def _offset(seconds: float, zone: ZoneInfo) -> dt.timedelta:
    offset = dt.datetime.fromtimestamp(seconds, zone).utcoffset()
    assert offset is not None, "it has a zone"
    return offset


def _at(seconds: int, offset: dt.timedelta) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.timezone(offset))
