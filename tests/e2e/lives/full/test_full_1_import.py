"""A finished bundle is imported by model.bundleUri: verified, registered, evaluated, indexed and served, not trained.

Then two mistakes that people make, an image that does not exist and too little memory: each ends with a reason that
names the mistake, the champion never notices, and the correction goes on from there.
"""

from __future__ import annotations

import json

import pytest
from lives.images import PREFIX
from lives.place import BUNDLE, Object, Place, condition, importing, is_true, names
from lives.tracking import Tracking, tags

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(3600)]

NO_SUCH_IMAGE = f"{PREFIX}no-such-server:1"


def test_nothing_was_trained(imported: Place) -> None:
    assert imported.list("pytorchjobs") == []
    steps = sorted(
        job["metadata"]["labels"]["retrieval-operator.io/step"] for job in imported.list("jobs", name="feed")
    )
    assert steps == ["eval", "idxeval", "index", "train", "verify"], steps


def test_the_bundle_serves_from_where_it_lies(imported: Place) -> None:
    champion = imported.model("feed")["status"]["champion"]
    bundle = json.loads((imported.path / "bundles" / "feed" / "bundle.json").read_text())
    assert champion["bundleUri"] == BUNDLE
    assert champion["bundleId"] == bundle["id"]
    answer = imported.retrieve("feed")
    assert (answer["bundle_id"], answer["generation_id"]) == (champion["bundleId"], champion["generationId"])


def test_mlflow_knows_the_import_as_a_version(imported: Place, tracking: Tracking) -> None:
    [version] = tracking.versions(f"{imported.namespace}.feed")
    found = tags(version)
    assert found["bundle_uri"] == BUNDLE
    assert found["bundle_id"] == imported.model("feed")["status"]["champion"]["bundleId"]
    assert found["retrieval.verdict"] == "Promoted"


@pytest.fixture(scope="module")
def hungry(imported: Place) -> str:
    """An object whose evaluation has too little memory. It goes its way while others look at the missing image."""
    little = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "200Mi"}}
    document = importing("hungry", promotion={"inconclusiveLimit": 2})
    document["spec"]["evaluation"]["resources"] = little
    imported.apply(document)
    return "hungry"


def test_an_image_that_does_not_exist_ends_the_candidate_and_is_named(imported: Place, hungry: str) -> None:
    before = imported.model("feed")["status"]["champion"]
    servers = imported.pods("feed", before["stack"])
    assert servers
    imported.patch("feed", {"serving": {"image": NO_SUCH_IMAGE}})
    waiting = imported.until("feed", _names_the_image, "says which image is missing")
    assert waiting["status"]["candidate"]["step"] == "Deploying"
    imported.retrieve("feed")
    refused = imported.until("feed", lambda found: is_true(found, "Stalled"), "is refused", stalled=True)
    verdict = condition(refused, "Stalled")
    assert verdict["reason"] == "DeploymentFailed", verdict
    assert NO_SUCH_IMAGE in verdict["message"], verdict
    assert is_true(refused, "Ready")
    assert refused["status"]["champion"] == before
    assert imported.pods("feed", before["stack"]) == servers, "the champion's servers are others than before"
    imported.retrieve("feed")


def test_the_refused_stack_is_removed(imported: Place) -> None:
    champion = imported.model("feed")["status"]["champion"]["stack"]
    imported.until(
        "feed", lambda _: imported.stacks("feed") == [champion], "has only its champion's servers", stalled=True
    )


def test_the_right_image_goes_on_from_there(imported: Place, clients_image: str) -> None:
    before = imported.model("feed")["status"]["champion"]
    imported.patch("feed", {"serving": {"image": clients_image}})
    after = imported.until_promoted("feed")["status"]["champion"]
    assert after["stack"] != before["stack"]
    assert (after["bundleId"], after["generationId"]) == (before["bundleId"], before["generationId"])
    imported.retrieve("feed")


def test_an_evaluation_without_memory_is_inconclusive_and_says_so(imported: Place, hungry: str) -> None:
    refused = imported.until(hungry, lambda found: is_true(found, "Stalled"), "is refused", stalled=True)
    verdict = condition(refused, "Stalled")
    assert verdict["reason"] == "EvaluationFailed", verdict
    assert "memory" in verdict["message"], verdict
    assert "spec.evaluation.resources.limits.memory" in verdict["message"], verdict
    assert refused["status"]["history"][0]["outcome"] == "Inconclusive"
    assert condition(refused, "GatesPassed")["status"] == "Unknown"
    evaluations = imported.list("jobs", name=hungry, step="eval")
    assert len(evaluations) == 2, names(evaluations)


def test_a_retry_with_more_memory_goes_on_from_there(imported: Place, hungry: str) -> None:
    kept = {one["metadata"]["uid"] for one in imported.list("jobs", name=hungry)}
    imported.patch(hungry, {"evaluation": {"resources": {"limits": {"memory": "4Gi"}}}})
    imported.annotate(hungry, retry="with-more-memory")
    handled = lambda found: found["status"].get("handledRetry") == "with-more-memory"  # noqa: E731
    imported.until(hungry, handled, "tries again", stalled=True)
    imported.until_promoted(hungry)
    again = [one for one in imported.list("jobs", name=hungry) if one["metadata"]["uid"] not in kept]
    steps = sorted(job["metadata"]["labels"]["retrieval-operator.io/step"] for job in again)
    assert steps == ["eval", "index", "verify"], f"what was complete was done again: {steps}"
    imported.run("delete", "retrievalmodel", hungry)


def _names_the_image(found: Object) -> bool:
    return NO_SUCH_IMAGE in (found["status"].get("candidate") or {}).get("message", "")
