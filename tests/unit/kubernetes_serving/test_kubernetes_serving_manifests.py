"""What a stack becomes in a cluster: golden manifests, and the rules they follow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from retrieval_operator.adapters.kubernetes import services
from retrieval_operator.adapters.kubernetes.inference_service import (
    bounds,
    bounds_of,
    disruption_budget,
    inference_service,
)
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.identity import HASH_CHARS
from retrieval_operator.ports import Rejected

IMAGES = {"encoderServer": "registry.example/encoder-server:1"}
FULL: dict[str, Any] = {
    "image": "registry.example/own-server:2",
    "connectionAgeSeconds": 30,
    "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"}},
    "pod": {
        "nodeSelector": {"pool": "serving"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": "reader",
        "imagePullSecrets": ["registry"],
        "labels": {"team": "feed", "app.kubernetes.io/managed-by": "somebody", "retrieval-operator.io/stack": "forged"},
        "annotations": {"note": "dark"},
        "env": [
            {"name": "MAX_BATCH_TOKENS", "value": "4096"},
            {"name": "EXPECTED_BUNDLE_ID", "value": "b-forged"},
            {"name": "PASSWORD", "value": "a$(b)$"},
        ],
        "volumes": [{"name": "scratch", "mountPath": "/scratch", "readOnly": False, "emptyDirSize": "1Gi"}],
        "sharedMemory": "256Mi",
    },
}


def model(name: str = "feed", **storage: str) -> RetrievalModel:
    document = {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": name, "namespace": "tenant"},
        "spec": {
            "storage": {"uri": "s3://bucket/store", "secretRef": "store", **storage},
            "data": {"uri": "s3://bucket/data", "revision": "1"},
            "model": {"base": "preset:tiny"},
            "promotion": {"gates": [{"min": "0.1"}]},
        },
    }
    found = parse_manifest(document, "test")
    return found.model_copy(update={"metadata": found.metadata.model_copy(update={"uid": "uid-of-feed"})})


def record(serving: dict[str, Any] | None = None) -> StackRecord:
    return StackRecord(
        stack="0a1b2c3d",
        bundle_id="b-1111",
        bundle_uri="s3://bucket/store/tenant/feed/revisions/aaaa/bundle",
        generation_id="g-2222",
        generation_uri="s3://bucket/store/tenant/feed/indexes/bbbb",
        generation_key="bbbb",
        serving_hash="cccc",
        revision="aaaa",
        serving=serving or {},
    )


def manifest(
    serving: dict[str, Any] | None = None, replicas: int = 1, max_replicas: int = 0, **storage: str
) -> dict[str, Any]:
    return inference_service(model(**storage), record(serving), IMAGES, replicas, max_replicas)


def written(*objects: Any) -> str:
    return yaml.safe_dump_all(objects, sort_keys=True, width=120)


def test_a_stack_by_default(golden: Callable[[str, str], None]) -> None:
    parts = (services.direct_service(model(), record()), disruption_budget(model(), record()), manifest())
    golden("kubernetes/stack.yaml", written(*parts))


def test_a_stack_with_all_that_a_person_may_set(golden: Callable[[str, str], None]) -> None:
    chosen = manifest(FULL, 2, 5, uri="/store", persistentVolumeClaim="store")
    golden("kubernetes/stack-full.yaml", written(chosen))


def test_the_stable_service(golden: Callable[[str, str], None]) -> None:
    selector = services.stack_labels(model(), "0a1b2c3d")
    annotations = services.live_annotations(record(), "former", 1_700_000_000)
    golden("kubernetes/stable-service.yaml", written(services.stable_service(model(), annotations, selector)))


@pytest.mark.parametrize(
    ("before", "after"), [((1, 0), (3, 0)), ((3, 0), (1, 0)), ((1, 4), (2, 6)), ((2, 2), (2, 9))], ids=str
)
def test_scaling_touches_nothing_that_kserve_copies_to_the_pods(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    stands = manifest(FULL, *before)
    patch = bounds(*after)
    assert set(patch) == {"metadata", "spec"}
    assert set(patch["spec"]["predictor"]) == {"minReplicas", "maxReplicas"}
    patched = copy.deepcopy(stands)
    patched["metadata"]["annotations"] |= patch["metadata"]["annotations"]
    patched["spec"]["predictor"] |= patch["spec"]["predictor"]
    assert patched == manifest(FULL, *after), "a scaled stack is the one that would have been made"
    assert patched["metadata"] == stands["metadata"]
    numbers = ("minReplicas", "maxReplicas")
    rest = [
        {key: value for key, value in one["spec"]["predictor"].items() if key not in numbers}
        for one in (stands, patched)
    ]
    assert rest[0] == rest[1]


@pytest.mark.parametrize("numbers", [(1, 0), (3, 0), (1, 4), (5, 5)], ids=str)
def test_the_bounds_are_read_back(numbers: tuple[int, int]) -> None:
    assert bounds_of(manifest(None, *numbers)) == numbers


def test_all_annotations_are_kserves_and_all_labels_are_of_the_stack_for_life() -> None:
    """A role on it (champion, candidate) would restart its pods with every switch."""
    metadata = manifest(FULL, 2, 5)["metadata"]
    assert all(key.startswith("serving.kserve.io/") for key in metadata["annotations"])
    ours = {"app.kubernetes.io/managed-by", "retrieval-operator.io/name", "retrieval-operator.io/stack"}
    assert set(metadata["labels"]) == {*ours, "networking.kserve.io/visibility"}


def test_the_budget_knows_the_stack_as_well_as_its_service() -> None:
    assert services.read_record(disruption_budget(model(), record())) == record()


def test_what_identifies_the_stack_wins_over_what_a_person_sets() -> None:
    predictor = manifest(FULL)["spec"]["predictor"]
    assert predictor["labels"] == {
        "team": "feed",
        "app.kubernetes.io/managed-by": "retrieval-operator",
        "retrieval-operator.io/name": "feed",
        "retrieval-operator.io/stack": "0a1b2c3d",
        "networking.kserve.io/visibility": "cluster-local",
    }
    environment = {one["name"]: one.get("value") for one in predictor["containers"][0]["env"]}
    assert environment["EXPECTED_BUNDLE_ID"] == "b-1111"
    assert environment["CONNECTION_AGE_SECONDS"] == "30"
    assert environment["MAX_BATCH_TOKENS"] == "4096"


@pytest.mark.parametrize(
    ("resources", "requests", "limits"),
    [
        ({}, {"cpu": "1", "memory": "2Gi"}, {"cpu": "1", "memory": "2Gi"}),
        (
            {"requests": {"cpu": "4"}},
            {"cpu": "4", "memory": "2Gi"},
            {"cpu": "4", "memory": "2Gi"},
        ),
        (
            {"limits": {"memory": "500Mi", "nvidia.com/gpu": "1"}},
            {"cpu": "1", "memory": "500Mi"},
            {"cpu": "1", "memory": "500Mi", "nvidia.com/gpu": "1"},
        ),
        (
            {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "3Gi"}},
            {"cpu": "100m", "memory": "1Gi"},
            {"cpu": "2", "memory": "3Gi"},
        ),
    ],
)
def test_no_request_or_limit_is_left_for_kserve_to_fill_in(
    resources: dict[str, Any], requests: dict[str, str], limits: dict[str, str]
) -> None:
    container = manifest({"resources": resources})["spec"]["predictor"]["containers"][0]
    assert container["resources"] == {"requests": requests, "limits": limits}


def test_the_pod_outlives_its_drain() -> None:
    predictor = manifest()["spec"]["predictor"]
    container = predictor["containers"][0]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    sleep_s, drain_s = container["lifecycle"]["preStop"]["sleep"]["seconds"], int(environment["DRAIN_SECONDS"])
    request_timeout_s = 30  # the server's REQUEST_TIMEOUT_SECONDS
    assert predictor["terminationGracePeriodSeconds"] > sleep_s + drain_s + request_timeout_s
    assert drain_s < int(environment["CONNECTION_AGE_SECONDS"])


def test_a_load_may_take_as_long_as_a_step_of_the_rollout() -> None:
    slow = model()
    promotion = slow.spec.promotion.model_copy(update={"progress_deadline_seconds": 7200})
    slow = slow.model_copy(update={"spec": slow.spec.model_copy(update={"promotion": promotion})})
    probe = inference_service(slow, record(), IMAGES, 1, 0)["spec"]["predictor"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 7200


def test_the_longest_name_is_one_that_kserve_can_use() -> None:
    """`isvc.<name>-predictor` is a label value; longer ones fail only in the Deployment."""
    longest = services.stack_name(model("n" * 32), "f" * HASH_CHARS)
    assert len(f"isvc.{longest}-predictor") <= 63
    assert len(longest) <= 48


def test_without_an_image_it_is_refused_with_the_remedy() -> None:
    with pytest.raises(Rejected, match="RETRIEVAL_OPERATOR_IMAGES"):
        inference_service(model(), record(), {}, 1, 0)


def test_both_services_lead_to_the_ports_of_the_pods() -> None:
    selector = services.stack_labels(model(), "0a1b2c3d")
    stable = services.stable_service(model(), {}, selector)
    direct = services.direct_service(model(), record())
    assert stable["spec"] == direct["spec"]
    predictor = manifest()["spec"]["predictor"]
    ports = {port["name"]: port["containerPort"] for port in predictor["containers"][0]["ports"]}
    assert ports == {port["name"]: port["targetPort"] for port in stable["spec"]["ports"]}
    assert selector.items() <= predictor["labels"].items()
    assert services.address(stable) == "http://feed.tenant.svc"
    assert services.address(direct) == "http://feed-0a1b2c3d.tenant.svc"
