"""Two objects of the same name in two namespaces, of the same bundle and data: all their hashes are the same.

Whatever told them apart by name, label or hash alone would mix them up here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lives.place import Object, Place, names
from lives.tracking import Tracking, tags

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(3600)]

KINDS = ("jobs", "services", "inferenceservices", "poddisruptionbudgets")


def test_they_have_the_same_hashes_and_names(twins: tuple[Place, Place]) -> None:
    east, west = (place.model("feed")["status"]["champion"] for place in twins)
    assert [east[field] for field in ("stack", "revision", "generationKey")] == [
        west[field] for field in ("stack", "revision", "generationKey")
    ]
    for kind in KINDS:
        here, there = (names(place.list(kind, name="feed")) for place in twins)
        assert here == there, kind
        assert here, kind


def test_every_child_belongs_to_the_object_beside_it(twins: tuple[Place, Place]) -> None:
    for place in twins:
        own = {place.model("feed")["metadata"]["uid"]}
        own |= {one["metadata"]["uid"] for one in place.list("inferenceservices")}  # KServe's children have our labels
        owners = {
            f"{kind}/{child['metadata']['name']}": [owner["uid"] for owner in child["metadata"]["ownerReferences"]]
            for kind in KINDS
            for child in place.list(kind, name="feed")
        }
        assert all(len(found) == 1 and found[0] in own for found in owners.values()), owners


def test_each_address_leads_to_its_own_servers(twins: tuple[Place, Place]) -> None:
    for place in twins:
        status = place.model("feed")["status"]
        assert f"feed.{place.namespace}." in status["address"], status["address"]
        place.retrieve("feed")
        slices = [one for one in place.list("endpointslices") if _service(one) == "feed"]
        targets = {
            endpoint["targetRef"]["uid"] for one in slices for endpoint in one["endpoints"] or () if _ready(endpoint)
        }
        assert targets == set(place.pods("feed", status["champion"]["stack"]).values())


def test_each_writes_below_its_own_root(twins: tuple[Place, Place]) -> None:
    for place in twins:
        own = {path.name for path in (place.path / place.namespace / "feed").iterdir()}
        assert own >= {"indexes", "evaluations", "verifications"}, own
        other = next(twin for twin in twins if twin is not place)
        assert not (place.path / other.namespace).exists()


def test_mlflow_keeps_them_apart(twins: tuple[Place, Place], tracking: Tracking) -> None:
    for place in twins:
        owner = f"local/{place.namespace}/feed"
        [version] = tracking.versions(f"{place.namespace}.feed")
        assert tags(version)["owner"] == owner
        runs = tracking.runs(f"retrieval/{place.namespace}/feed")
        assert {tags(run["data"])["owner"] for run in runs} == {owner}
        steps = sorted(tags(run["data"])["retrieval.step"] for run in runs)
        assert steps == ["eval", "idxeval", "index", "train", "verify"], steps


@pytest.fixture(scope="module")
def changed(twins: tuple[Place, Place]) -> Iterator[tuple[Place, Object, dict[str, str]]]:
    """East's status and servers before West got other servers, and then was deleted."""
    east, west = twins
    before = east.model("feed")["status"]
    servers = east.pods("feed", before["champion"]["stack"])
    west.patch("feed", {"serving": {"connectionAgeSeconds": 30}})
    west.until_promoted("feed")
    west.run("delete", "retrievalmodel", "feed")
    yield east, before, servers


def test_a_change_and_the_end_of_one_are_not_noticed_by_the_other(
    changed: tuple[Place, Object, dict[str, str]], twins: tuple[Place, Place]
) -> None:
    east, before, servers = changed
    west = twins[1]
    west.run("wait", "--for=delete", "pods", "--selector=retrieval-operator.io/name=feed", "--timeout=180s")
    assert west.list("inferenceservices") == []
    after = east.model("feed")["status"]
    assert after["champion"] == before["champion"]
    assert east.pods("feed", before["champion"]["stack"]) == servers
    east.retrieve("feed")


def _ready(endpoint: Object) -> bool:
    return bool(endpoint["conditions"]["ready"])


def _service(endpoint_slice: Object) -> str:
    return str(endpoint_slice["metadata"]["labels"]["kubernetes.io/service-name"])
