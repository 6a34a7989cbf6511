"""A training that is suspended in its middle, resumed, and loses a pod later: it goes on from its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lives.namespaces import INTERRUPTED
from lives.place import Object, Place, is_true, manifest, names
from lives.tracking import Tracking

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(3600)]

STEPS, CHECKPOINT_EVERY = 160, 20
REPORTED_EVERY = 10  # retrieval_trainer.journal.METRICS_EVERY_STEPS


@pytest.fixture(scope="module")
def training(new_place: Callable[[str], Place]) -> Place:
    """A namespace in which `feed` is being trained by two pods and has written a first checkpoint."""
    place = new_place(INTERRUPTED)
    hyperparameters = {"steps": STEPS, "checkpointEverySteps": CHECKPOINT_EVERY}
    document = manifest(nodes=2)
    document["spec"]["training"]["hyperparameters"] |= hyperparameters
    place.apply(document)
    place.until("feed", lambda _: _reached(place) > 0, "has a checkpoint")
    return place


@pytest.fixture(scope="module")
def suspended(training: Place) -> int:
    """The step that it was suspended at, once its pods are gone."""
    training.patch("feed", {"suspend": True})
    training.until("feed", lambda _: not training.list("pods", step="train"), "is suspended and has no pods")
    return _reached(training)


@pytest.fixture(scope="module")
def resumed(training: Place, suspended: int) -> int:
    """The step of the first checkpoint after it was resumed."""
    training.patch("feed", {"suspend": False})
    training.until("feed", lambda _: _reached(training) > suspended, "has a newer checkpoint")
    return _reached(training)


@pytest.fixture(scope="module")
def killed(training: Place, resumed: int) -> Object:
    """The object once it was trained although its worker was taken away after that.

    By force: the kubelet gives it two seconds, enough for a checkpoint of a toy and for none of a model.
    """
    worker = next(name for name in names(_pods(training, attempt=2)) if "worker" in name)
    training.run("delete", "pod", worker, "--force", "--grace-period=0")
    return training.until("feed", lambda found: is_true(found, "TrainingSucceeded"), "is trained")


def test_suspension_stops_the_pods_and_keeps_the_record(training: Place, suspended: int) -> None:
    assert CHECKPOINT_EVERY <= suspended < STEPS
    [job] = training.list("pytorchjobs", step="train")
    assert job["spec"]["runPolicy"]["suspend"] is True
    assert is_true(training.model("feed"), "Suspended")


def test_it_resumes_at_the_step_at_which_it_was_suspended(training: Place, suspended: int, resumed: int) -> None:
    attempts = training.list("pytorchjobs", step="train")
    assert len(attempts) == 2, names(attempts)
    assert _went_on_from(training, attempt=2) == suspended


def test_a_killed_pod_costs_what_came_after_the_newest_checkpoint(
    training: Place, resumed: int, killed: Object
) -> None:
    attempts = training.list("pytorchjobs", step="train")
    assert len(attempts) == 2, f"a killed pod is no failed attempt: {names(attempts)}"
    went_on_from = _went_on_from(training, attempt=2)
    assert resumed <= went_on_from < STEPS
    print(f"suspended, resumed, killed after step {resumed}, went on from step {went_on_from} of {STEPS}")


def test_all_steps_were_done_and_few_of_them_twice(training: Place, killed: Object, tracking: Tracking) -> None:
    revision = killed["status"]["candidate"]["revision"]
    record = json.loads((_revision(training, revision) / "bundle" / "training.json").read_text())
    assert (record["steps"], record["ranks"]) == (STEPS, 2)
    reported = tracking.history(tracking.run(f"retrieval/{training.namespace}/feed", "train"), "loss")
    assert sorted(set(reported)) == list(range(REPORTED_EVERY, STEPS + 1, REPORTED_EVERY))
    twice = len(reported) - len(set(reported))
    # The suspension costs nothing, the killed pod at most the steps between two checkpoints.
    assert twice <= CHECKPOINT_EVERY // REPORTED_EVERY, f"reported steps: {reported}"


def test_it_is_promoted(training: Place, killed: Object) -> None:
    training.until_promoted("feed")
    training.retrieve("feed")


def _revision(place: Place, revision: str) -> Path:
    return place.path / place.namespace / "feed" / "revisions" / revision


def _reached(place: Place) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    complete = _revision(place, "*").relative_to(place.path) / "checkpoints" / "step-*" / "checkpoint.json"
    return max((int(path.parent.name.removeprefix("step-")) for path in place.path.glob(str(complete))), default=0)


def _pods(place: Place, *, attempt: int) -> list[Object]:
    return place.list("pods", step="train", attempt=str(attempt))


def _went_on_from(place: Place, *, attempt: int) -> int:
    """The step at which the master's newest process says it resumed."""
    master = next(name for name in names(_pods(place, attempt=attempt)) if "master" in name)
    lines = [line for line in place.run("logs", master).splitlines() if line.startswith("{")]
    said = [entry for entry in map(json.loads, lines) if entry["event"] == "resuming"]
    assert said, "\n".join(lines)
    return int(said[-1]["step"])
