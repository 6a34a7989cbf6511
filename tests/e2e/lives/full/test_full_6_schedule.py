"""A schedule: when its time has come the index is made of the data of then, and no edit is waited for meanwhile."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from lives.full.refreshes import Refreshes
from lives.place import Object, Place, condition, generate, is_promoted, is_true, names, seconds

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(1800)]


def test_a_slot_of_a_schedule_refreshes_the_index_once(imported: Place, refreshes: Refreshes) -> None:
    former = imported.model("feed")["status"]["champion"]
    refreshes.until_alone(former)
    uri, slot = generate(imported.path, "day-38", "--days=38"), _next_minute()
    schedule = f"{slot:%-M %-H %-d %-m} *"  # of this year only
    imported.patch("feed", {"data": {"uri": uri}, "index": {"refresh": {"schedule": schedule}}})
    waiting = imported.until("feed", is_promoted, "is what was asked for, for no slot is due yet")
    assert "candidate" not in waiting["status"]

    begun = imported.until("feed", lambda found: is_true(found, "Progressing"), "begins by itself")
    assert seconds(begun["status"]["candidate"]["startedAt"]) >= slot.timestamp()
    assert begun["status"]["champion"] == former

    done = imported.until("feed", lambda found: _slot_of(found) == f"{slot:%Y-%m-%dT%H:%M:%SZ}", "is refreshed")
    champion = done["status"]["champion"]
    assert champion["bundleId"] == former["bundleId"]
    assert champion["stack"] != former["stack"]
    assert champion["asOf"] > former["asOf"], "the new index is not of the data of then"
    for found in (begun, done):
        assert is_true(found, "Promoted"), "whoever waits for an edit waits for no schedule"
        assert _promoted_since(found) == _promoted_since(waiting)
        assert condition(found, "Reconciling") == {}
    assert imported.retrieve("feed")["generation_id"] == champion["generationId"]

    refreshes.until_alone(champion)
    assert "candidate" not in imported.model("feed")["status"]
    jobs = imported.list("jobs", name="feed", key=champion["generationKey"])
    assert names(jobs) == [f"feed-{champion['generationKey']}-index-1"]


def _next_minute() -> datetime:
    """A full minute with enough time before it to see that nothing begins earlier."""
    soonest = datetime.fromtimestamp(time.time(), UTC) + timedelta(seconds=15)
    return soonest.replace(second=0, microsecond=0) + timedelta(minutes=1)


def _slot_of(found: Object) -> str:
    return str(found["status"]["champion"].get("refreshSlot", ""))


def _promoted_since(found: Object) -> str:
    return str(condition(found, "Promoted")["lastTransitionTime"])
