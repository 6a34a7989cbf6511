"""The index is refreshed with newer items while clients ask all the time: a new stack, and not one failed request."""

from __future__ import annotations

import time

import pytest
from lives.clients import asking, pair
from lives.full.refreshes import Refreshes, were_all_answered
from lives.place import Object, Place

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(3600)]


def test_an_index_refresh_under_load_fails_no_request(
    imported: Place, refreshes: Refreshes, clients_image: str
) -> None:
    with asking(imported, "feed", clients_image) as clients:
        former = refreshes.begin(35)
        champion = refreshes.finish(former)
        switched = time.time()
        assert _trainings(imported) == []
        refreshes.until_alone(champion)
        told = clients.stop()
    were_all_answered(told, former, champion)
    for kind, seen in told.items():
        late = seen.seconds(pair(former))[-1] - switched
        print(f"{kind}: the last answer of the former stack came {late:.0f} s after the switch")
    assert champion["asOf"] > former["asOf"], "the new index is not of newer data"
    assert champion["items"] > former["items"]


def _trainings(place: Place) -> list[Object]:
    """An import has one job of step train, which verified its bundle, and no more."""
    return place.list("pytorchjobs") + place.list("jobs", name="feed", step="train")[1:]
