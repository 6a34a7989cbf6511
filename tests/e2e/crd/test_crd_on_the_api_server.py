"""The CRD on a real API server: what it accepts and refuses, in which words, and what kubectl makes of it.

The table is tests/unit/api_crd/cases.yaml, which a unit test holds against the pydantic types.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from manifest_cases import CASES, manifest
from merge_patch import merge_patch
from native_cluster.binaries import ready_programs
from native_cluster.layout import NotRun

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.constants import GROUP, KIND, VERSION
from retrieval_operator.api.crd import CRD_FILE
from retrieval_operator.api.status import (
    Candidate,
    CandidateKind,
    Champion,
    GateVerdict,
    HistoryEntry,
    RetrievalModelStatus,
    StackRecord,
    Step,
)
from retrieval_operator.api.wire import from_wire, to_wire

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
REFUSED = {title: case for title, case in CASES["refused"].items() if case["server"] != "accepted"}
UNKNOWABLE = {title: case for title, case in CASES["refused"].items() if case["server"] == "accepted"}
EXAMPLES = sorted(
    path.relative_to(ROOT) for path in ROOT.glob("examples/*/*.yaml") if f"kind: {KIND}" in path.read_text()
)
OBJECTS = (GROUP, VERSION, "default", "retrievalmodels")
KUBECTL_TIMEOUT_S = 60
MINUTE = 1_769_860_800  # 2026-01-31T12:00:00Z


# -- manifests -------------------------------------------------------------------------------------------------------


def refusals(call: Callable[[], Any]) -> dict[str, str]:
    """Messages by field of a refused call, one per line; a refusal of unknown fields names none."""
    with pytest.raises(ApiException) as caught:
        call()
    answer = json.loads(caught.value.body)
    assert answer["code"] in (400, 422), answer["message"]
    found: dict[str, str] = {}
    for cause in answer.get("details", {}).get("causes", []):
        found[cause["field"]] = f"{found.get(cause['field'], '')}{cause['message']}\n"
    return found or {"<strict>": answer["message"]}


# -- what is accepted and refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", CASES["accepted"])
def test_it_is_accepted_and_stored_as_it_was_written(objects: client.CustomObjectsApi, title: str) -> None:
    written = manifest(CASES["accepted"][title])
    stored = objects.create_namespaced_custom_object(*OBJECTS, written, dry_run="All", field_validation="Strict")
    assert stored["spec"] == written["spec"]  # no defaults: hashes are over what a user set


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_examples_are_accepted(objects: client.CustomObjectsApi, example: Path) -> None:
    written = yaml.safe_load((ROOT / example).read_text())
    written["metadata"].pop("namespace", None)  # this server has none of its own
    stored = objects.create_namespaced_custom_object(*OBJECTS, written, dry_run="All", field_validation="Strict")
    assert stored["spec"] == written["spec"]


@pytest.mark.parametrize("title", REFUSED)
def test_it_is_refused_with_words_a_person_understands(objects: client.CustomObjectsApi, title: str) -> None:
    case = REFUSED[title]
    found = refusals(
        lambda: objects.create_namespaced_custom_object(
            *OBJECTS, manifest(case), dry_run="All", field_validation="Strict"
        )
    )
    assert case["server"] in found.get(case["field"], f"nothing about {case['field']}, but {found}")


@pytest.mark.parametrize("title", UNKNOWABLE)
def test_what_the_api_server_cannot_know_is_accepted(objects: client.CustomObjectsApi, title: str) -> None:
    objects.create_namespaced_custom_object(
        *OBJECTS, manifest(UNKNOWABLE[title]), dry_run="All", field_validation="Strict"
    )


@pytest.mark.parametrize("title", CASES["edits"])
def test_an_edit_of_an_immutable_field_is_refused(objects: client.CustomObjectsApi, title: str) -> None:
    case = CASES["edits"][title]
    stored = objects.create_namespaced_custom_object(*OBJECTS, manifest(case, "from"))
    try:
        name, version = stored["metadata"]["name"], stored["metadata"]["resourceVersion"]
        edited = merge_patch(manifest(case, "to"), {"metadata": {"resourceVersion": version}})

        def edit() -> None:
            objects.replace_namespaced_custom_object(*OBJECTS, name, edited, dry_run="All", field_validation="Strict")

        if "field" not in case:
            edit()
            return
        assert "immutable; delete the object to change it" in refusals(edit)[case["field"]]
    finally:
        objects.delete_namespaced_custom_object(*OBJECTS, stored["metadata"]["name"])


# -- the status ------------------------------------------------------------------------------------------------------


@pytest.fixture
def feed(objects: client.CustomObjectsApi) -> Iterator[dict[str, Any]]:
    yield objects.create_namespaced_custom_object(*OBJECTS, CASES["manifest"])
    objects.delete_namespaced_custom_object(*OBJECTS, "feed")


def a_full_status(generation: int) -> RetrievalModelStatus:
    measured = {"n": 600, "value": 0.45192648754101267, "shown": "0.4519"}
    gates = [GateVerdict(gate="recall@10 (matched, all)", verdict="Passed", message="0.4519", **measured)]
    record = {
        "stack": "0407a56b",
        "bundle_id": "b-0123456789abcdef",
        "bundle_uri": "/store/default/feed/revisions/975a2f49/bundle",
        "generation_id": "g-0123456789abcdef",
        "generation_uri": "/store/default/feed/indexes/b783de0a",
        "generation_key": "b783de0a",
        "serving_hash": "57954937",
        "revision": "975a2f49",
        "as_of": MINUTE,
        "serving": {"replicas": {"min": 1}, "pod": {"env": [{"name": "A", "value": "b"}]}},
    }
    return RetrievalModelStatus(
        observed_generation=generation,
        phase="Evaluating",
        conditions=[
            Condition(
                type=ConditionType.READY,
                status="True",
                reason=Reason.CHAMPION_SERVING,
                message="stack 0407a56b serves",
                observed_generation=generation,
                last_transition_time=MINUTE,
            )
        ],
        champion=Champion(**record, promoted_at=MINUTE, baking_until=MINUTE + 3600, gates=gates),
        candidate=Candidate(
            id="142b38d5",
            kind=CandidateKind.REVISION,
            revision="142b38d5",
            generation=generation,
            step=Step.EVALUATING,
            started_at=MINUTE,
            step_started_at=MINUTE,
            attempts={"train-142b38d5": 2},
            gates=[gates[0].model_copy(update={"value": 0.5, "shown": "0.5000"})],
            overdue_since=MINUTE,
        ),
        history=[
            HistoryEntry(
                id="975a2f49",
                kind=CandidateKind.REVISION,
                revision="975a2f49",
                outcome="Promoted",
                reason=Reason.PROMOTED,
                at=MINUTE,
                gates=gates,
                record=StackRecord(**record),
            )
        ],
        immutable={"spec.storage.uri": "/store"},
    )


def write_status(objects: client.CustomObjectsApi, status: dict[str, Any]) -> dict[str, Any]:
    patched: dict[str, Any] = objects.patch_namespaced_custom_object_status(
        *OBJECTS, "feed", {"status": status}, field_validation="Strict"
    )
    return patched


def test_a_full_status_is_stored_whole_and_read_back_the_same(
    objects: client.CustomObjectsApi, feed: dict[str, Any]
) -> None:
    status = a_full_status(feed["metadata"]["generation"])
    stored = write_status(objects, to_wire(status))
    assert from_wire(stored["status"]) == status
    assert stored["spec"] == feed["spec"]
    assert stored["metadata"]["generation"] == feed["metadata"]["generation"]


def test_a_status_that_comes_with_a_manifest_is_ignored(objects: client.CustomObjectsApi) -> None:
    manifest = CASES["manifest"] | {"status": {"phase": "Live"}}
    assert "status" not in objects.create_namespaced_custom_object(*OBJECTS, manifest, dry_run="All")


def test_a_reason_of_a_newer_operator_is_not_refused(objects: client.CustomObjectsApi, feed: dict[str, Any]) -> None:
    status = to_wire(a_full_status(feed["metadata"]["generation"]))
    status["conditions"][0]["reason"] = "WeatherTooBad"
    assert write_status(objects, status)["status"]["conditions"][0]["reason"] == "WeatherTooBad"


def test_an_integer_is_no_time(objects: client.CustomObjectsApi, feed: dict[str, Any]) -> None:
    local = a_full_status(feed["metadata"]["generation"]).document()
    found = refusals(lambda: write_status(objects, local))
    assert "must be of type date-time" in found["status.champion.promotedAt"]
    assert "must be of type date-time" in found["status.conditions[0].lastTransitionTime"]


# -- kubectl ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kubectl(
    api_server: Path, objects: client.CustomObjectsApi, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs kubectl with a home of its own: its discovery cache goes by address, and ports come back."""
    try:
        binaries = ready_programs("kubectl")
    except NotRun as reason:
        pytest.skip(f"not run: {reason}")
    environment = {**os.environ, "KUBECONFIG": str(api_server), "HOME": str(tmp_path_factory.mktemp("kubectl"))}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binaries / "kubectl"), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=KUBECTL_TIMEOUT_S,
            env=environment,
        )

    return run


Kubectl = Callable[..., subprocess.CompletedProcess[str]]


def test_explain_tells_each_field_of_a_gate(kubectl: Kubectl) -> None:
    words = " ".join(kubectl("explain", "rm.spec.promotion.gates").stdout.split())
    assert "metric <string> enum: recall, hitRate metric: recall, or hitRate (corpus only)." in words
    assert "maxRegression <string> maxRegression: the largest drop against the champion that may be promoted." in words
    assert "k <integer> k: the first k answers count." in words


def test_explain_tells_each_field_of_a_prompt(kubectl: Kubectl) -> None:
    words = " ".join(kubectl("explain", "rm.spec.model.prompts.member.history.fields").stdout.split())
    assert "name <string> -required- name of a declared column or of a derived field of the dataset." in words
    assert "rendering <string> -required- enum: text, category, percentile rendering: text or category" in words
    assert "maxTokens <integer> maxTokens bounds the value's tokens" in words


def test_get_shows_phase_champion_candidate_and_gate(
    kubectl: Kubectl, objects: client.CustomObjectsApi, feed: dict[str, Any]
) -> None:
    write_status(objects, to_wire(a_full_status(feed["metadata"]["generation"])))
    header, row = kubectl("get", "rm").stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "CHAMPION", "CANDIDATE", "GATE", "AGE"]
    assert row.split()[:-1] == ["feed", "Evaluating", "0407a56b", "Evaluating", "0.4519"]


def test_get_wide_adds_the_details(kubectl: Kubectl, objects: client.CustomObjectsApi, feed: dict[str, Any]) -> None:
    write_status(objects, to_wire(a_full_status(feed["metadata"]["generation"])))
    header, row = kubectl("get", "ml", "-o", "wide").stdout.splitlines()
    assert header.split()[6:] == ["READY", "DATA", "BUNDLE", "INDEX", "NEW", "MESSAGE"]
    assert row.split()[6:] == [
        *("True", "1", "b-0123456789abcdef", "g-0123456789abcdef", "0.5000"),
        *("stack", "0407a56b", "serves"),
    ]


def test_wait_looks_at_the_generation_a_condition_speaks_of(
    kubectl: Kubectl, objects: client.CustomObjectsApi, feed: dict[str, Any]
) -> None:
    edit = {"spec": {"data": {"revision": "2"}}}
    generation = objects.patch_namespaced_custom_object(*OBJECTS, "feed", edit)["metadata"]["generation"]
    assert generation == feed["metadata"]["generation"] + 1

    write_status(objects, to_wire(a_full_status(generation - 1)))
    of_the_edit_before = kubectl("wait", "--for=condition=Ready", "rm/feed", "--timeout=2s")
    assert of_the_edit_before.returncode == 1
    assert "timed out waiting for the condition" in of_the_edit_before.stderr

    write_status(objects, to_wire(a_full_status(generation)))
    of_this_edit = kubectl("wait", "--for=condition=Ready", "rm/feed", f"--timeout={KUBECTL_TIMEOUT_S}s")
    assert of_this_edit.stdout.strip() == f"retrievalmodel.{GROUP}/feed condition met"


def test_two_appliers_of_variables_do_not_take_each_others(
    kubectl: Kubectl, feed: dict[str, Any], tmp_path: Path
) -> None:
    for manager in ("one", "two"):
        document = merge_patch(
            CASES["manifest"], {"spec": {"serving": {"pod": {"env": [{"name": manager, "value": "x"}]}}}}
        )
        path = tmp_path / f"{manager}.yaml"
        path.write_text(yaml.safe_dump(document))
        applied = kubectl("apply", "--server-side", f"--field-manager={manager}", "-f", str(path), "--force-conflicts")
        assert applied.returncode == 0, applied.stderr
    stored = json.loads(kubectl("get", "rm", "feed", "-o", "json").stdout)
    assert [variable["name"] for variable in stored["spec"]["serving"]["pod"]["env"]] == ["one", "two"]


def test_the_definition_can_be_applied_by_kubectl(kubectl: Kubectl) -> None:
    """Client-side apply keeps the whole text in an annotation, of which 256 KiB are allowed."""
    applied = kubectl("apply", "-f", str(ROOT / "crds" / CRD_FILE))
    assert applied.returncode == 0, applied.stderr
