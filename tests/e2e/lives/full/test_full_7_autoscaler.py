"""An autoscaler comes and goes with serving.replicas.max: in place, and nobody who asks notices."""

from __future__ import annotations

import pytest
from lives.full.refreshes import Refreshes
from lives.place import Object, Place, is_true

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(900)]


def test_a_bound_gives_the_champion_an_autoscaler_and_its_end_takes_it_away(
    imported: Place, refreshes: Refreshes
) -> None:
    """Without a metrics-server it leaves the number as it is. The servers are replaced, one by one, each time."""
    champion = imported.model("feed")["status"]["champion"]
    refreshes.until_alone(champion)
    imported.patch("feed", {"serving": {"replicas": {"min": 1, "max": 2}}})
    _until_bounds(imported, champion, [(1, 2)])
    imported.patch("feed", {"serving": {"replicas": {"min": 1, "max": None}}})
    _until_bounds(imported, champion, [])


def _until_bounds(place: Place, champion: Object, wanted: list[tuple[int, int]]) -> None:
    """The champion's autoscalers have these bounds, and its servers are those that follow. It answers all the time."""
    deployment = f"feed-{champion['stack']}-predictor"

    def bounded(found: Object) -> bool:
        _answers(place, champion)
        return is_true(found, "Ready") and _bounds(place, deployment) == wanted

    def rolled_out(_: Object) -> bool:
        _answers(place, champion)
        return _is_rolled_out(place, deployment)

    place.until("feed", bounded, f"has autoscalers {wanted}")
    # The class of autoscaler is part of the pods' template, which KServe has changed before.
    status = place.until("feed", rolled_out, "has its servers")["status"]
    assert status["champion"] == champion
    assert "candidate" not in status, "it is no rollout"
    assert place.stacks("feed") == [champion["stack"]]


def _answers(place: Place, champion: Object) -> None:
    answer = place.retrieve("feed")
    assert (answer["bundle_id"], answer["generation_id"]) == (champion["bundleId"], champion["generationId"])


def _bounds(place: Place, deployment: str) -> list[tuple[int, int]]:
    """Of the autoscalers of a deployment."""
    found = [one["spec"] for one in place.list("horizontalpodautoscalers")]
    aimed = [spec for spec in found if spec["scaleTargetRef"]["name"] == deployment]
    return [(spec["minReplicas"], spec["maxReplicas"]) for spec in aimed]


def _is_rolled_out(place: Place, deployment: str) -> bool:
    """One server, ready, and of the newest template."""
    found = place.get("deployment", deployment)
    status = found["status"]
    numbers = [status.get(kind, 0) for kind in ("replicas", "updatedReplicas", "availableReplicas")]
    return status["observedGeneration"] == found["metadata"]["generation"] and numbers == [1, 1, 1]
