"""The first life of a RetrievalModel, with the real parts: from one manifest to an answer through the stable Service.

PyTorchJob with a master and a worker (gloo) -> bundle -> MLflow version -> Indexed Job -> evaluation -> gates ->
serving generation -> InferenceService -> verified -> promoted. The namespace enforces PodSecurity "restricted".
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from lives.conftest import EXAMPLES, FEED, MLFLOW, Kubectl, Object

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(7200)]

NAME = "feed"
LIFE_TIMEOUT_S = 2400  # seen on two busy cores: 252 s, half of them for the training
_POLL_S = 3.0
# In this order each becomes True on the way to a first champion.
MILESTONES = ("TrainingSucceeded", "ModelRegistered", "GatesPassed", "IndexReady", "EncoderReady", "Promoted", "Ready")


@pytest.fixture(scope="module")
def promoted(kubectl: Kubectl, feed: Path) -> Object:
    """The object after its first promotion. Each milestone is printed with the time it took since the manifest."""
    began = time.monotonic()
    kubectl("apply", "--filename=-", documents=[manifest()])
    seen: set[str] = set()
    while True:
        found = read(kubectl)
        conditions = {one["type"]: one for one in found.get("status", {}).get("conditions", [])}
        reached = [name for name in MILESTONES if conditions.get(name, {}).get("status") == "True"]
        for name in (name for name in reached if name not in seen):
            seen.add(name)
            print(f"{name}: {time.monotonic() - began:.0f} s")
        stalled = conditions.get("Stalled", {})
        assert stalled.get("status") != "True", f"{stalled['reason']}: {stalled['message']}"
        if seen == set(MILESTONES):
            return found
        assert time.monotonic() - began < LIFE_TIMEOUT_S, yaml.safe_dump(found["status"])
        time.sleep(_POLL_S)


def manifest() -> Object:
    """That of examples/kubernetes, on two nodes and in two shards, with a training of seconds and gates to match."""
    found: Object = yaml.safe_load((EXAMPLES / "retrievalmodel.yaml").read_text())
    spec = found["spec"]
    steps = {"steps": 80, "batchSize": 32, "learningRate": "0.001", "checkpointEverySteps": 20}
    spec["training"] |= {"nodes": 2, "processesPerNode": 1, "hyperparameters": steps}
    spec["index"]["encodeShards"] = 2
    spec["promotion"]["gates"] = [{"metric": "recall", "k": 10, "pool": "matched", "min": "0.02"}]
    spec["rollback"]["windowSeconds"] = 60
    for part in ("training", "index", "serving", "evaluation"):
        spec[part]["resources"]["requests"]["cpu"] = "200m"  # all of it has room beside the cluster on two cores
    return found


def read(kubectl: Kubectl) -> Object:
    found: Object = json.loads(kubectl("--namespace", FEED, "get", "retrievalmodel", NAME, "--output=json"))
    return found


def test_people_can_wait_for_the_promotion_with_kubectl(kubectl: Kubectl, promoted: Object) -> None:
    kubectl("--namespace", FEED, "wait", "--for=condition=Promoted", f"retrievalmodel/{NAME}", "--timeout=10s")


def test_two_pods_trained_and_two_pods_encoded(kubectl: Kubectl, promoted: Object) -> None:
    training = only(kubectl, "pytorchjobs", "train")
    replicas = training["spec"]["pytorchReplicaSpecs"]
    assert {role: one["replicas"] for role, one in replicas.items()} == {"Master": 1, "Worker": 1}
    encodings = items(kubectl, "jobs", "encode")
    assert encodings
    assert all(one["status"]["succeeded"] == one["spec"]["completions"] == 2 for one in encodings)


def test_the_stable_service_answers_with_the_champions_ids(kubectl: Kubectl, feed: Path, promoted: Object) -> None:
    champion = promoted["status"]["champion"]
    answer = ask(kubectl, promoted["status"]["address"], {"member_id": a_member(feed), "k": 10})
    assert (answer["bundle_id"], answer["generation_id"]) == (champion["bundleId"], champion["generationId"])
    assert len(answer["ids"]) == len(set(answer["ids"])) == 10


def only(kubectl: Kubectl, kind: str, step: str) -> Object:
    found = items(kubectl, kind, step)
    assert len(found) == 1, f"{kind} of step {step}: {[one['metadata']['name'] for one in found]}"
    return found[0]


def items(kubectl: Kubectl, kind: str, step: str) -> list[Object]:
    """The object's children of a kind that belong to a step."""
    selector = f"--selector=retrieval-operator.io/name={NAME},retrieval-operator.io/step={step}"
    found: list[Object] = json.loads(kubectl("--namespace", FEED, "get", kind, selector, "--output=json"))["items"]
    return found


def ask(kubectl: Kubectl, address: str, query: Object) -> Object:
    """What a client in another namespace is answered, by the Service's name."""
    program = (
        "import sys, urllib.request; "
        "request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json'}); "
        "print(urllib.request.urlopen(request, timeout=30).read().decode())"
    )
    client = ("--namespace", MLFLOW, "exec", "deployment/mlflow", "--", "python3", "-c", program)  # any pod with Python
    answer: Object = json.loads(kubectl(*client, f"{address}/v1/retrieve", json.dumps(query)))
    return answer


def a_member(storage: Path) -> str:
    members = pq.read_table(storage / "data" / "day-28" / "members", columns=["member_id"])
    return str(members["member_id"][0].as_py())
