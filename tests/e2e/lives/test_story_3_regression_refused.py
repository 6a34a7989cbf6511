"""A model that got worse is refused with its numbers, before anything of it runs. The champion does not notice."""

from __future__ import annotations

import re

import pytest
from lives.clients import KINDS, pair
from lives.place import Place, condition, is_true, names
from lives.shared_life import MODEL, NAME, Refusal, Takeover
from lives.tracking import Tracking, tags

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def refusal(takeover: Takeover) -> Refusal:
    if isinstance(takeover.refusal, AssertionError):
        raise takeover.refusal
    return takeover.refusal


def test_the_verdict_has_the_numbers_of_both(refusal: Refusal) -> None:
    assert (refusal.entry["outcome"], refusal.entry["reason"]) == ("Rejected", "GatesFailed"), refusal.entry
    [gate] = refusal.entry["gates"]
    print(f"{gate['gate']}: {gate['value']:.3f}, the champion {gate['championValue']:.3f}; n {gate['n']}")
    assert gate["verdict"] == "Failed"
    assert gate["upper"] < -0.03 < 0 < gate["championValue"] - gate["value"], gate
    champion = refusal.after["status"]["champion"]["gates"][0]
    assert gate["championValue"] == pytest.approx(champion["value"]), "the champion is measured as when it came in"


@pytest.mark.parametrize("kind", ["GatesPassed", "Promoted", "Stalled"])
def test_the_conditions_say_why_with_numbers(refusal: Refusal, kind: str) -> None:
    found = condition(refusal.after, kind)
    assert found["status"] == ("True" if kind == "Stalled" else "False"), found
    assert found["reason"] == "GatesFailed", found
    assert_has_numbers(found["message"], refusal)


def test_an_event_says_why_with_numbers(shared_life: Place, refusal: Refusal) -> None:
    said = [message for message in shared_life.events(NAME, "GatesFailed") if refusal.entry["id"] in message]
    assert len(said) == 1, said
    assert_has_numbers(said[0], refusal)


def test_the_champion_is_untouched(shared_life: Place, refusal: Refusal) -> None:
    assert refusal.after["status"]["champion"] == refusal.before["status"]["champion"]
    assert is_true(refusal.after, "Ready")
    stack = refusal.before["status"]["champion"]["stack"]
    assert shared_life.pods(NAME, stack) == refusal.servers, "its servers are others than before"
    assert names(shared_life.list("inferenceservices", name=NAME)) == [f"{NAME}-{stack}"], "something of it ran"


@pytest.mark.parametrize("kind", KINDS)
def test_clients_do_not_notice(takeover: Takeover, refusal: Refusal, kind: str) -> None:
    told = takeover.told[kind].between(refusal.began, refusal.ended)
    print(f"{kind}: {told.requests} requests")
    assert told.requests
    stacks = [pair(refusal.before["status"]["champion"])]
    assert not told.unexpected(stacks), f"{kind}: {told.unexpected(stacks)} of {told.requests}: {told.failures}"


def test_mlflow_says_so_too(refusal: Refusal, tracking: Tracking) -> None:
    [version] = [one for one in tracking.versions(MODEL) if tags(one).get("revision") == refusal.entry["revision"]]
    assert tags(version)["retrieval.verdict"] == "Rejected"
    assert_has_numbers(version["description"], refusal)
    champion = tracking.version(MODEL, refusal.after["status"]["champion"]["bundleId"])
    assert tracking.alias(MODEL, "champion") == champion["version"]


def assert_has_numbers(message: str, refusal: Refusal) -> None:
    """The gate by its name, and the candidate's value to a few digits."""
    [gate] = refusal.entry["gates"]
    assert gate["gate"] in message, message
    numbers = [float(number) for number in re.findall(r"\d\.\d{3,}", message)]
    assert any(number == pytest.approx(gate["value"], abs=1e-3) for number in numbers), message
