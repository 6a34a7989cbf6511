"""The first life of a RetrievalModel, with the real parts: from one manifest to an answer through the stable Service.

PyTorchJob with a master and a worker (gloo) -> bundle -> MLflow version -> Indexed Job -> evaluation -> gates ->
serving generation -> InferenceService -> verified -> promoted. The namespace enforces PodSecurity "restricted".
"""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
from lives.conftest import DATASET
from lives.place import Place, names
from lives.tracking import Tracking, tags

from retrieval_operator.api.constants import TAG_IMAGE, TAG_SERVER_IMAGE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(7200)]


def test_people_can_wait_for_the_promotion_with_kubectl(shared_life: Place) -> None:
    shared_life.run("wait", "--for=condition=Promoted", "retrievalmodel/feed", "--timeout=10s")


def test_two_pods_trained_and_two_pods_encoded(shared_life: Place) -> None:
    trainings = shared_life.list("pytorchjobs", name="feed", step="train")
    assert len(trainings) == 1, names(trainings)
    replicas = trainings[0]["spec"]["pytorchReplicaSpecs"]
    assert {role: one["replicas"] for role, one in replicas.items()} == {"Master": 1, "Worker": 1}
    bundle = shared_life.on_disk(shared_life.model("feed")["status"]["champion"]["bundleUri"])
    assert json.loads((bundle / "training.json").read_text())["ranks"] == 2, "they did not train together"
    encodings = shared_life.list("jobs", name="feed", step="encode")
    assert encodings
    assert all(one["status"]["succeeded"] == one["spec"]["completions"] == 2 for one in encodings)


def test_mlflow_has_the_digests_of_what_ran(shared_life: Place, tracking: Tracking) -> None:
    """With each run that of its program, with the verification that of the servers that it asked, too."""
    runs = [tags(run["data"]) for run in tracking.runs(f"retrieval/{shared_life.namespace}/feed")]
    assert {run["retrieval.step"] for run in runs} == {"train", "idxeval", "eval", "index", "verify"}
    # An image that came to the node without a registry has no name before its digest.
    digest = re.compile(r"(.+@)?sha256:[0-9a-f]{64}")
    for run in runs:
        wanted = {TAG_IMAGE} | ({TAG_SERVER_IMAGE} if run["retrieval.step"] == "verify" else set())
        assert all(digest.fullmatch(run.get(tag, "")) for tag in wanted), run


def test_the_stable_service_answers_with_the_champions_ids(shared_life: Place) -> None:
    status = shared_life.model("feed")["status"]
    members = pq.read_table(shared_life.path / "data" / DATASET / "members", columns=["member_id"])
    answer = shared_life.ask(status["address"], {"member_id": str(members["member_id"][0].as_py()), "k": 10})
    champion = status["champion"]
    assert (answer["bundle_id"], answer["generation_id"]) == (champion["bundleId"], champion["generationId"])
    assert len(answer["ids"]) == len(set(answer["ids"])) == 10
