"""New data is promoted while pods query: over kept-alive connections, over new ones, and by gRPC.

They go on past the end of the former stack. Nobody notices but by the ids in the answers.
"""

from __future__ import annotations

import pytest
from lives.clients import KINDS, pair
from lives.conftest import CONNECTION_AGE_S
from lives.place import Place, names, seconds
from lives.shared_life import MODEL, NAME, SETTLED_S, Takeover
from lives.tracking import Tracking, tags

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

# Servers end connections at their age, more or less a tenth, so that clients do not come all at once. Beside it: until
# kube-proxy has heard of the switch, and the clock's seconds.
LAST_ANSWER_S = 1.1 * CONNECTION_AGE_S + 5


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_fails_and_no_answer_mixes_two_stacks(takeover: Takeover, kind: str) -> None:
    told, stacks = takeover.told[kind], (pair(takeover.former), pair(takeover.live))
    print(f"{kind}: {told.requests} requests, {[told.counts[stack] for stack in stacks]} by the two stacks")
    assert not told.unexpected(stacks), f"{told.unexpected(stacks)} of {told.requests}: {told.failures}"
    assert all(told.counts[stack] for stack in stacks), f"not asked on both sides of the switch: {told.counts}"


@pytest.mark.parametrize("kind", KINDS)
def test_clients_follow_within_the_connections_age(takeover: Takeover, kind: str) -> None:
    last = takeover.told[kind].seconds(pair(takeover.former))[-1] - seconds(takeover.live["promotedAt"])
    print(f"{kind}: last answer of the former stack {last} s after the switch")
    assert last <= LAST_ANSWER_S, f"{kind} clients were answered by the former stack for {last} s"


@pytest.mark.parametrize("kind", KINDS)
def test_all_traffic_is_on_the_new_stack_after_two_minutes(takeover: Takeover, kind: str) -> None:
    share = takeover.told[kind].share(pair(takeover.live), since=seconds(takeover.live["promotedAt"]) + SETTLED_S)
    print(f"{kind}: {share:.0%} of the traffic on the new stack after {SETTLED_S} s")
    assert share == 1.0, f"{kind}: {share:.3f}"


def test_the_former_stack_is_gone_before_the_clients_stop(shared_life: Place, takeover: Takeover) -> None:
    stacks = shared_life.list("inferenceservices", name=NAME)
    assert names(stacks) == [f"{NAME}-{takeover.live['stack']}"]
    assert any(takeover.former["stack"] in message for message in shared_life.events(NAME, "StackCollected"))


def test_the_alias_in_mlflow_follows_the_traffic(takeover: Takeover, tracking: Tracking) -> None:
    version = tracking.version(MODEL, takeover.live["bundleId"])
    assert tracking.alias(MODEL, "champion") == version["version"] == takeover.live["modelVersion"]
    assert tags(version)["retrieval.verdict"] == "Promoted"
