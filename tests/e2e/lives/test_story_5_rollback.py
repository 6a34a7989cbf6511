"""Going back to a former stack: by itself when the new champion breaks, and by hand, whether its pods still run or not.

The champion that breaks is the one that a person approved in story 4.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from lives.clients import KINDS, Clients, Told, asking, pair
from lives.conftest import CONNECTION_AGE_S
from lives.place import DATASET, Object, Place, condition, is_promoted, is_true, names, seconds
from lives.shared_life import MODEL, NAME, Approval, Takeover
from lives.tracking import Tracking, tags

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

# Until traffic goes back from a champion without a server. Seen: 30 s, all of them the bake check's patience.
OUTAGE_S = 60
# A request that was sent before the way back fails as late as this: TIMEOUT_S of the clients, and what passes until the
# switch that was decided on is made, and kube-proxy knows it.
_LAST_FAILURE_S = 15
# After the last switch: older connections end, and some seconds of traffic are left to look at.
AFTERWARDS_S = CONNECTION_AGE_S + 5


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """Storage that lost a directory, until the end."""
    elsewhere = path.rename(path.with_name(f"{path.name}.lost"))
    try:
        yield
    finally:
        elsewhere.rename(path)


def champion_of(found: Object) -> Object:
    return dict(found["status"]["champion"])


def roll_back(place: Place, to: Object) -> Object:
    """Ask for it as a person does; the object once that stack is champion."""
    token = champion_of(place.model(NAME))["token"]
    place.annotate(NAME, rollback=f"{token}:{to['stack']}")
    return until_champion(place, to)


def until_champion(place: Place, stack: Object) -> Object:
    """The object once traffic is on this stack again, and nothing is left of the way there."""

    def is_back(found: Object) -> bool:
        status = found["status"]
        return status["champion"]["stack"] == stack["stack"] and "candidate" not in status and is_true(found, "Ready")

    return place.until(NAME, is_back, f"is back at stack {stack['stack']}", stalled=True)


@pytest.fixture
def clients(shared_life: Place, approval: Approval, clients_image: str) -> Iterator[Clients]:
    with asking(shared_life, NAME, clients_image) as clients:
        yield clients


def test_a_champion_that_breaks_within_the_window_is_rolled_back_by_itself(
    shared_life: Place, approval: Approval, clients: Clients, tracking: Tracking
) -> None:
    former, broken = approval.former, champion_of(approval.promoted)
    assert time.time() < seconds(broken["bakingUntil"]), "the window is over: too late to begin"
    broken_at = time.time()
    shared_life.count_from_now(NAME)
    with moved_away(shared_life.on_disk(broken["bundleUri"])):
        shared_life.run("delete", "pods", *shared_life.pods(NAME, broken["stack"]), "--wait=false")
        back = until_champion(shared_life, former)
        shared_life.until(NAME, lambda _: not shared_life.pods(NAME, broken["stack"]), "left it", stalled=True)
    time.sleep(AFTERWARDS_S)
    told = clients.stop()

    entry = back["status"]["history"][0]
    assert (entry["outcome"], entry["id"]) == ("RolledBack", broken["revision"]), entry
    # Which it is depends on how long a server needs until it looks for its bundle: 30 s are the bake check's patience.
    failed, unready = r"its servers failed: .* ended with exit code 65 \(BadInput\)", "it had no ready server$"
    assert re.search(f"{failed}|{unready}", entry["message"]), entry
    events = shared_life.events(NAME, "RolledBack")
    assert any(f"going back from stack {broken['stack']} to {former['stack']}" in message for message in events), events
    assert condition(back, "Stalled")["reason"] == "RolledBack", "what the manifest asks for is refused from here on"
    version = tracking.version(MODEL, broken["bundleId"])
    assert tags(version)["retrieval.verdict"] == "RolledBack"
    assert tracking.alias(MODEL, "champion") == former["modelVersion"] != version["version"]
    served_without_a_server(told, broken, former, broken_at, seconds(champion_of(back)["promotedAt"]))


def served_without_a_server(
    told: Mapping[str, Told], broken: Object, former: Object, broken_at: float, back_at: int
) -> None:
    """Requests may fail while no server is there, and only then; no answer mixes two stacks."""
    assert set(told) == set(KINDS)
    for kind, seen in told.items():
        lost = seen.seconds("failed")
        window = f"{lost[0] - broken_at:.0f} to {lost[-1] - broken_at:.0f} s after it broke" if lost else "never"
        print(f"{kind}: {seen.counts['failed']} of {seen.requests} failed, {window}")
        assert not set(seen.counts) - {pair(broken), pair(former), "failed"}, f"{kind}: {seen.counts}"
        assert all(broken_at - 1 <= second <= back_at + _LAST_FAILURE_S for second in lost), (
            f"{kind}: {window}, back after {back_at - broken_at:.0f} s: {seen.failures}"
        )
        assert seen.share(pair(former), since=back_at + CONNECTION_AGE_S) == 1.0, f"{kind}: {seen.counts}"
    print(f"traffic went back {back_at - broken_at:.0f} s after it broke")
    assert back_at - broken_at <= OUTAGE_S


@pytest.fixture(scope="module")
def reserved(shared_life: Place, approval: Approval, clients_image: str) -> tuple[Object, Object]:
    """The champion of before, and beside it the same bundle and index served otherwise, which is live: no training."""
    former = approval.former
    shared_life.patch(
        NAME,
        {
            "training": {"hyperparameters": {"steps": 80}},
            "promotion": {"mode": "Automatic"},
            "serving": {"connectionAgeSeconds": CONNECTION_AGE_S - 1},
        },
    )
    live = champion_of(shared_life.until_promoted(NAME))
    assert live["stack"] != former["stack"]
    assert pair(live) == pair(former)
    return former, live


def test_a_person_goes_back_at_once_to_a_stack_that_still_runs(
    shared_life: Place, reserved: tuple[Object, Object], clients: Clients
) -> None:
    former, live = reserved
    servers = shared_life.pods(NAME, former["stack"])
    assert servers, "the former stack is kept running for the window"
    back = roll_back(shared_life, former)
    shared_life.until(NAME, lambda _: not shared_life.pods(NAME, live["stack"]), "left the other one", stalled=True)
    assert shared_life.pods(NAME, former["stack"]) == servers, "it was running: nothing had to be started"
    time.sleep(AFTERWARDS_S)
    told = clients.stop()

    entry = back["status"]["history"][0]
    assert (entry["outcome"], entry["kind"], entry["id"]) == ("RolledBack", "Serving", live["stack"]), entry
    assert entry["message"].endswith("as was asked for"), entry
    assert condition(back, "Stalled")["reason"] == "RolledBack"
    nobody_noticed(told, former, live)


def test_a_person_goes_back_to_a_stack_whose_pods_are_gone(
    shared_life: Place, takeover: Takeover, reserved: tuple[Object, Object], clients: Clients, tracking: Tracking
) -> None:
    """Its servers are started first, and only then traffic moves."""
    first, live = takeover.former, reserved[0]
    assert not shared_life.pods(NAME, first["stack"])
    assert names(shared_life.list("inferenceservices", name=NAME)) == [f"{NAME}-{live['stack']}"]
    back = roll_back(shared_life, first)
    shared_life.until(NAME, lambda _: not shared_life.pods(NAME, live["stack"]), "left the other one", stalled=True)
    time.sleep(AFTERWARDS_S)
    told = clients.stop()

    champion = champion_of(back)
    assert pair(champion) == pair(first)
    outcomes = [(entry["outcome"], entry["id"]) for entry in back["status"]["history"][:2]]
    assert set(outcomes) == {("Promoted", first["revision"]), ("RolledBack", live["revision"])}, outcomes
    assert tracking.alias(MODEL, "champion") == first["modelVersion"]
    assert tags(tracking.version(MODEL, live["bundleId"]))["retrieval.verdict"] == "RolledBack"
    nobody_noticed(told, first, live)
    for kind, seen in told.items():
        assert seen.share(pair(first), since=seconds(champion["promotedAt"]) + CONNECTION_AGE_S) == 1.0, (
            f"{kind}: {seen.counts}"
        )


def nobody_noticed(told: Mapping[str, Told], *stacks: Object) -> None:
    pairs = {pair(stack) for stack in stacks}
    assert set(told) == set(KINDS)
    for kind, seen in told.items():
        print(f"{kind}: {seen.requests} requests")
        assert seen.requests
        assert not seen.unexpected(pairs), f"{kind}: {seen.unexpected(pairs)} of {seen.requests}: {seen.failures}"


def test_a_manifest_that_asks_for_what_is_live_is_content_without_any_work(
    shared_life: Place, takeover: Takeover, reserved: tuple[Object, Object]
) -> None:
    before, started = shared_life.model(NAME), workloads(shared_life)
    data = {"uri": takeover.former["dataUri"], "revision": DATASET}
    shared_life.patch(NAME, {"data": data, "serving": {"connectionAgeSeconds": CONNECTION_AGE_S}})
    after = shared_life.until(NAME, is_promoted, "is promoted")
    assert champion_of(after) == champion_of(before)
    begun = workloads(shared_life) - started
    assert not begun, begun


def workloads(place: Place) -> set[str]:
    """All attempts but the removals of files that nothing needs any more."""
    found = names([*place.list("jobs", name=NAME), *place.list("pytorchjobs", name=NAME)])
    return {name for name in found if "-collect-" not in name}
