"""With promotion.mode Manual a model waits for a person, who approves it on its page in MLflow.

It is trained as where there is no training-operator: training.backend is Job.
"""

from __future__ import annotations

import json

import pytest
from lives.place import Place, condition, names
from lives.shared_life import MODEL, NAME, PROCESSES, REVIEWER, Approval
from lives.tracking import Tracking, tags

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]


def test_a_job_trained_it_with_several_processes_in_its_pod(approval: Approval, shared_life: Place) -> None:
    candidate = approval.waiting["status"]["candidate"]
    attempt = {"name": NAME, "step": "train", "key": candidate["revision"]}
    jobs = shared_life.list("jobs", **attempt)
    assert [job["status"].get("succeeded") for job in jobs] == [1], names(jobs)
    assert shared_life.list("pytorchjobs", **attempt) == []
    bundle = shared_life.on_disk(approval.promoted["status"]["champion"]["bundleUri"])
    assert json.loads((bundle / "training.json").read_text())["ranks"] == PROCESSES


def test_it_waits_ready_to_serve_and_says_for_what(approval: Approval) -> None:
    candidate, promoted = approval.waiting["status"]["candidate"], condition(approval.waiting, "Promoted")
    assert candidate["step"] == "AwaitingApproval"
    assert (promoted["status"], promoted["reason"]) == ("False", "AwaitingApproval")
    assert f"approved_by on version {candidate['modelVersion']}" in promoted["message"], promoted
    assert candidate["approvalToken"] in promoted["message"], promoted
    assert condition(approval.waiting, "EncoderReady")["status"] == "True", "it is verified before a person is asked"
    assert approval.waiting["status"]["champion"]["token"] == approval.former["token"]


def test_its_page_in_mlflow_asks_and_has_the_numbers(approval: Approval) -> None:
    candidate = approval.waiting["status"]["candidate"]
    assert tags(approval.asked)["retrieval.awaiting_approval"] == candidate["approvalToken"]
    [gate] = candidate["gates"]
    assert gate["gate"] in approval.asked["description"], approval.asked["description"]
    assert f"{gate['value']:.4f}" in approval.asked["description"], approval.asked["description"]


def test_an_approval_of_another_verdict_counts_for_nothing(approval: Approval) -> None:
    assert approval.still_waiting["status"]["candidate"]["step"] == "AwaitingApproval"
    assert approval.still_waiting["status"]["champion"]["token"] == approval.former["token"]


def test_it_goes_on_once_it_is_approved(approval: Approval) -> None:
    candidate, champion = approval.waiting["status"]["candidate"], approval.promoted["status"]["champion"]
    assert (champion["stack"], champion["bundleId"]) == (candidate["stack"], candidate["bundleId"])


def test_history_and_event_say_who_approved(approval: Approval, shared_life: Place) -> None:
    entry = approval.promoted["status"]["history"][0]
    assert entry["outcome"] == "Promoted"
    assert entry["message"].endswith(f"approved by {REVIEWER}"), entry
    assert any(message.endswith(f"approved by {REVIEWER}") for message in shared_life.events(NAME, "Promoted"))


def test_the_alias_in_mlflow_follows(approval: Approval, tracking: Tracking) -> None:
    version = tracking.version(MODEL, approval.promoted["status"]["champion"]["bundleId"])
    assert tracking.alias(MODEL, "champion") == version["version"] == approval.asked["version"]
    assert tags(version)["retrieval.verdict"] == "Promoted"
