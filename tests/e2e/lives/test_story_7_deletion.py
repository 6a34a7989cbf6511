"""Deletion: with its files (deletionPolicy Delete), without them (Retain), and with the whole namespace.

All objects are made from an imported bundle: nothing is trained. Two are deleted by themselves; the third goes with the
namespace, while neither the operator nor MLflow is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lives.conftest import GOES, LAST, STAYS
from lives.deployments import away
from lives.killing import made
from lives.namespaces import DOOMED, MLFLOW, OPERATOR
from lives.place import BUNDLE, STORAGE, Kubectl, Place, importing
from lives.tracking import Tracking, tags

from retrieval_operator.api.constants import FINALIZER, TAG_REPORT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

# Garbage collection, and pods with a grace period of 30 s. Seen: 35 s.
_SOON_S = 180


@pytest.fixture
def place(doomed: Place) -> Place:
    return doomed


def test_with_delete_the_files_go_and_then_the_object(place: Place, tracking: Tracking, audit_log: Path) -> None:
    place.until_promoted(GOES)
    assert files(place, GOES)
    runs = tracking.runs(f"retrieval/{DOOMED}/{GOES}")
    assert all(tags(run["data"])[TAG_REPORT] for run in runs), "a step without the proof of its report"
    began = time.time()
    place.run("delete", "retrievalmodel", GOES, "--timeout=300s")
    print(f"{GOES} is gone after {time.time() - began:.0f} s")
    assert not (place.path / DOOMED / GOES).exists()
    removals = [request.name for request in made(audit_log, DOOMED, began) if "-collect-" in request.name]
    assert len(removals) == 1, removals
    assert removals[0].startswith(f"{GOES}-")
    nothing_is_left_of(place, GOES)


def test_what_the_object_was_made_from_stays(place: Place) -> None:
    assert (place.path / Path(BUNDLE).relative_to(STORAGE) / "bundle.json").exists()
    assert files(place, STAYS), "the files of another object of the namespace"
    place.until_promoted(STAYS)
    place.retrieve(STAYS)


def test_mlflow_keeps_the_record_of_an_object_that_is_gone(place: Place, tracking: Tracking) -> None:
    [version] = tracking.versions(f"{DOOMED}.{GOES}")
    assert tags(version)["retrieval.verdict"] == "Promoted"
    runs = tracking.runs(f"retrieval/{DOOMED}/{GOES}")
    steps = sorted(tags(run["data"])["retrieval.step"] for run in runs)
    assert steps == ["eval", "idxeval", "index", "train", "verify"]
    proofs = {tags(run["data"]).get(TAG_REPORT, "") for run in runs}
    assert proofs == {""}, "a proof must not outlive the files that it is about"


def test_with_retain_the_object_goes_at_once_and_its_files_stay(place: Place) -> None:
    before = files(place, STAYS)
    place.run("delete", "retrievalmodel", STAYS, "--timeout=60s")
    nothing_is_left_of(place, STAYS)
    assert files(place, STAYS) == before


def test_made_again_it_serves_what_is_there(place: Place, audit_log: Path) -> None:
    since, before = time.time(), files(place, STAYS)
    place.apply(importing(STAYS))
    place.until_promoted(STAYS)
    place.retrieve(STAYS)
    again = [request.name for request in made(audit_log, DOOMED, since) if request.resource in ("jobs", "pytorchjobs")]
    assert all("-verify-" in name for name in again), f"what was complete was done again: {again}"
    assert before <= files(place, STAYS)


def test_a_namespace_that_is_deleted_keeps_what_the_operator_has_to_let_go_and_nothing_else(
    place: Place, kubectl: Kubectl
) -> None:
    place.until_promoted(LAST)
    with away(kubectl, MLFLOW):
        with away(kubectl, OPERATOR):
            kubectl("delete", "namespace", DOOMED, "--wait=false")
            for kind in ("pods", "services", "inferenceservices", "persistentvolumeclaims"):
                kubectl("--namespace", DOOMED, "wait", "--for=delete", kind, "--all", f"--timeout={_SOON_S}s")
            assert place.run("get", "retrievalmodels", "--output=name").split() == [
                f"retrievalmodel.retrieval-operator.io/{LAST}"
            ]
            until(lambda: FINALIZER in said_of_the_namespace(kubectl), "the namespace says what it waits for")
        began = time.monotonic()
        kubectl("wait", "--for=delete", f"namespace/{DOOMED}", f"--timeout={_SOON_S}s")
        print(f"the operator is back, MLflow is not: the namespace is gone after {time.monotonic() - began:.0f} s")


def files(place: Place, name: str) -> set[str]:
    root = place.path / place.namespace / name
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def nothing_is_left_of(place: Place, name: str) -> None:
    kinds = "jobs,services,inferenceservices,deployments,poddisruptionbudgets,pods"
    label = f"--selector=retrieval-operator.io/name={name}"
    until(lambda: not place.run("get", kinds, label, "--output=name"), f"nothing is left of {name}")


def until(holds: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < _SOON_S, f"after {_SOON_S} s it is not so that {what}"
        time.sleep(1)
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


def said_of_the_namespace(kubectl: Kubectl) -> str:
    return kubectl("get", "namespace", DOOMED, "--output=jsonpath={.status.conditions[*].message}")
