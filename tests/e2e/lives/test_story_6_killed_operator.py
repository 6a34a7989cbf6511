"""The operator is killed whenever it did something new for a life: each step, each child, and while the object goes.

The life is that of an operator that nobody disturbs: the same children, each made once, the same record in MLflow. The
first time the Lease of the dead one has to run out; after that a person takes it off, so that the next one begins while
the dead one's last request is a few seconds old.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lives.killing import Killer, family, killing, made, removed
from lives.namespaces import KILLED
from lives.place import Kubectl, Object, Place, manifest
from lives.tracking import Tracking, tags

from retrieval_operator.adapters.kubernetes.children import seconds
from retrieval_operator.api.status import Step

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

# Of a revision without approval, up to its promotion; after that it bakes. Of Promoting there is no sign but the switch
# itself: nothing waits for another server, and the status is written after it.
STEPS = [
    *(Step.TRAINING, Step.REGISTERING, Step.INDEXING_EVALUATION, Step.EVALUATING),
    *(Step.INDEXING_SERVING, Step.DEPLOYING, Step.VERIFYING),
]
SWITCH = "created services feed"
# What is done in the milliseconds until the signal comes, such as the other parts of a stack and its step.
MISSED_AT_MOST = 3


@dataclass(frozen=True)
class Killed:
    place: Place
    model: Object
    killer: Killer

    @property
    def since(self) -> float:
        return seconds(self.model["metadata"]["creationTimestamp"])


@pytest.fixture(scope="module")
def killed(new_place: Callable[[str], Place], shared_life: Place, kubectl: Kubectl, audit_log: Path) -> Killed:
    """The same life as the shared one, but for a shorter training."""
    place = new_place(KILLED)
    killer = Killer(kubectl, audit_log, KILLED, patient_at="created pytorchjobs feed-*-train-1")
    with killing(killer):
        place.apply(manifest(nodes=2, index={"encodeShards": 2}, training={"hyperparameters": {"steps": 20}}))
        model = place.until_promoted("feed")
        model = place.until("feed", lambda found: "candidate" not in found["status"], "has no candidate")
    print(f"killed {len(killer.kills)} times")
    return Killed(place, model, killer)


@pytest.fixture(scope="module")
def undisturbed(shared_life: Place, audit_log: Path) -> Counter[str]:
    """The children of the shared life, up to its first promotion."""
    since = seconds(shared_life.model("feed")["metadata"]["creationTimestamp"])
    found = [family(request) for request in made(audit_log, shared_life.namespace, since)]
    return Counter(found[: found.index("services feed") + 1])


def test_it_was_killed_at_every_step_and_after_every_creation(killed: Killed, undisturbed: Counter[str]) -> None:
    expected = {f"step {step}" for step in STEPS} | {f"created {child}" for child in undisturbed}
    assert SWITCH in expected
    assert not expected - set(killed.killer.signs), f"not seen: {sorted(expected - set(killed.killer.signs))}"
    missed = expected - set(killed.killer.kills)
    assert len(missed) <= MISSED_AT_MOST, f"it was dead already at {sorted(missed)}"
    assert SWITCH not in missed, killed.killer.kills


def test_each_child_was_created_once(killed: Killed, audit_log: Path) -> None:
    names = Counter((request.resource, request.name) for request in made(audit_log, KILLED, killed.since))
    assert set(names.values()) == {1}, names


def test_the_children_are_those_of_an_undisturbed_life(
    killed: Killed, undisturbed: Counter[str], audit_log: Path
) -> None:
    assert Counter(map(family, made(audit_log, KILLED, killed.since))) == undisturbed
    assert removed(audit_log, KILLED, killed.since) == []


def test_no_work_was_disturbed(killed: Killed) -> None:
    jobs = killed.place.list("jobs", name="feed")
    assert jobs
    for job in jobs:
        status = job["status"]
        assert status["succeeded"] == job["spec"]["completions"], job["metadata"]["name"]
        assert not status.get("failed"), job["metadata"]["name"]
    [training] = killed.place.list("pytorchjobs", name="feed")
    replicas = training["status"]["replicaStatuses"]
    assert replicas["Master"]["succeeded"] == 1
    assert not any(one.get("failed") for one in replicas.values()), replicas


def test_it_was_promoted_once_and_serves(killed: Killed) -> None:
    history = killed.model["status"]["history"]
    assert [(entry["outcome"], entry["id"]) for entry in history] == [
        ("Promoted", killed.model["status"]["champion"]["revision"])
    ]
    answer = killed.place.retrieve("feed")
    champion = killed.model["status"]["champion"]
    assert (answer["bundle_id"], answer["generation_id"]) == (champion["bundleId"], champion["generationId"])


def test_mlflow_has_one_run_of_each_step_and_one_version(killed: Killed, tracking: Tracking) -> None:
    runs = tracking.runs(f"retrieval/{KILLED}/feed")
    steps = sorted(tags(run["data"])["retrieval.step"] for run in runs)
    assert steps == ["eval", "idxeval", "index", "train", "verify"]
    [version] = tracking.versions(f"{KILLED}.feed")
    assert tags(version)["retrieval.verdict"] == "Promoted"


def test_it_goes_with_its_files_though_the_operator_is_killed_again_and_again(
    killed: Killed, kubectl: Kubectl, audit_log: Path
) -> None:
    place = killed.place
    place.patch("feed", {"deletionPolicy": "Delete"})
    place.until("feed", lambda found: "finalizers" in found["metadata"], "is held until its files are removed")
    killer = Killer(kubectl, audit_log, KILLED)
    with killing(killer):
        place.run("delete", "retrievalmodel", "feed", "--timeout=600s")
    print(f"killed {len(killer.kills)} times")
    assert not (place.path / KILLED / "feed").exists()
    removals = [request for request in made(audit_log, KILLED, killed.since) if "-collect-" in request.name]
    assert len(removals) == 1, removals
    assert len(killer.kills) >= 4, "hardly disturbed"
