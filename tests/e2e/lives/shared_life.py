"""What becomes of the shared life after its first champion: the acts that more than one story is about.

Each returns what the stories look at; what was asked of the model meanwhile was asked by one pod of clients.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lives.clients import Told, asking
from lives.place import Object, Place, condition, generate, is_true, seconds
from lives.tracking import Tracking, tags

from retrieval_operator.api.constants import TAG_AWAITING

NAME = "feed"
MODEL = "feed.feed"  # in MLflow
REVIEWER = "Ada Lovelace"
# What story 3 asks for: a little less than the champion would be enough.
REGRESSION_GATE = {"metric": "recall", "k": 10, "pool": "matched", "min": "0.02", "maxRegression": "0.03"}
# Of the training of story 4, in its one pod.
PROCESSES = 2
# After a switch, until the share of the traffic on the new stack is taken.
SETTLED_S = 120
_MEASURED_S = 15
_MIN_ONLY = [{"metric": "recall", "k": 10, "pool": "matched", "min": "0.02"}]


@dataclass(frozen=True)
class Refusal:
    """The object before and after, its champion's pods before, and from when to when clients asked meanwhile."""

    before: Object
    servers: Mapping[str, str]
    after: Object
    began: int
    ended: int

    @property
    def entry(self) -> Object:
        return dict(self.after["status"]["history"][0])


@dataclass(frozen=True)
class Takeover:
    """`former` and `live` are champions, `told` is by kind of client; `refusal` came while the same clients asked.

    That nothing was refused is for the story of the refusal to raise, and for no other.
    """

    former: Object
    live: Object
    refusal: Refusal | AssertionError
    told: Mapping[str, Told]


def take_over(place: Place, image: str) -> Takeover:
    """A week of new data is promoted while clients ask, past the end of the former stack. `image` is the clients'.

    While they go on, so that it can be seen whether all of them have come over, a worse model is refused.
    """
    former = place.model(NAME)["status"]["champion"]
    uri = generate(place.path, "day-35", "--days=35")
    with asking(place, NAME, image) as clients:
        # One pod is enough from here on: the first life had two of each.
        data = {"uri": uri, "revision": "day-35"}
        place.patch(NAME, {"data": data, "training": {"nodes": 1}, "index": {"encodeShards": 1}})
        live = place.until_promoted(NAME)["status"]["champion"]
        place.until(NAME, lambda _: not place.list("pods", name=NAME, stack=former["stack"]), "has no former pod")
        refusal = _refuse(place)
        time.sleep(max(0.0, seconds(live["promotedAt"]) + SETTLED_S + _MEASURED_S - time.time()))
        told = clients.stop()
    return Takeover(former, live, refusal, told)


def _refuse(place: Place) -> Refusal | AssertionError:
    """A training of one step on the same data."""
    began, before = int(time.time()), place.model(NAME)
    servers = place.pods(NAME, before["status"]["champion"]["stack"])
    training = {"hyperparameters": {"steps": 1}}
    place.patch(NAME, {"training": training, "promotion": {"gates": [REGRESSION_GATE]}})
    try:
        after = place.until(NAME, lambda found: is_true(found, "Stalled"), "is refused", stalled=True)
    except AssertionError as error:
        return error
    return Refusal(before, servers, after, began, int(time.time()))


@dataclass(frozen=True)
class Approval:
    """`waiting` and `promoted` are the object before and after; `asked` is its version in MLflow when it waited."""

    former: Object
    waiting: Object
    asked: Object
    still_waiting: Object
    promoted: Object


def approve(place: Place, tracking: Tracking) -> Approval:
    """A model of a short training waits for a person, who approves it on its page in MLflow.

    Its training is a Job: one pod with two processes.
    """
    former = place.model(NAME)["status"]["champion"]
    training = {"backend": "Job", "processesPerNode": PROCESSES, "hyperparameters": {"steps": 20}}
    # Room for what is done to this champion afterwards.
    place.patch(
        NAME,
        {
            "training": training,
            "promotion": {"mode": "Manual", "gates": _MIN_ONLY},
            "rollback": {"windowSeconds": 900},
        },
    )
    waiting = place.until(NAME, _awaits_approval, "awaits approval")
    candidate = waiting["status"]["candidate"]
    asked = _question(place, tracking, candidate)
    place.annotate(NAME, approve=f"{candidate['stack']}-another-verdict")
    time.sleep(15)  # longer than the time after which it looks again
    still_waiting = place.model(NAME)
    tracking.tag_version(asked, "approved_by", REVIEWER)
    place.count_from_now(NAME)
    return Approval(former, waiting, asked, still_waiting, place.until_promoted(NAME))


def _question(place: Place, tracking: Tracking, candidate: Object) -> Object:
    """The candidate's version once its page asks; the status may say so a moment before."""
    found: list[Object] = []

    def is_asked(_: Object) -> bool:
        found[:] = [tracking.version(MODEL, candidate["bundleId"])]
        return tags(found[0]).get(TAG_AWAITING) == candidate["approvalToken"]

    place.until(NAME, is_asked, "asks on its version's page")
    return found[0]


def _awaits_approval(found: Object) -> bool:
    return bool(condition(found, "Promoted").get("reason") == "AwaitingApproval")
