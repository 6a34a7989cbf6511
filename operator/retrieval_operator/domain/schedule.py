"""Cron slots: which due time, if any, should be taken up now.

A slot is its scheduled UTC time as ISO text (so slots sort as text). Forbid: slots are looked at only while nothing is
in flight; the newest due one is taken, older ones are skipped. One missed by more than the starting deadline is too.
"""

from __future__ import annotations

import datetime as dt
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
    return int(next(CronSim(expression, _local(now, time_zone))).timestamp())


def slot_time(slot: str) -> int:
    """The scheduled time of a slot in seconds since the epoch; 0 for "" (no slot)."""
    return int(dt.datetime.fromisoformat(slot).timestamp()) if slot else 0


def _newest(expression: str, time_zone: str, after: int, now: int) -> dt.datetime | None:
    newest = None
    walk = CronSim(expression, _local(after, time_zone))
    for _, slot in zip(range(_MAX_WALK), walk, strict=False):
        if slot.timestamp() > now:
            break
        newest = slot
    return newest


def _local(seconds: int, time_zone: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, ZoneInfo(time_zone))
