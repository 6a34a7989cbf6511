"""What an audit log says about rights: lines as a real API server wrote them, shortened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import audit
import pytest
from audit import Right, compare, read, table

OPERATOR = "system:serviceaccount:ops:retrieval-operator"
PATCHED_STATUS = {
    "kind": "Event",
    "apiVersion": "audit.k8s.io/v1",
    "level": "Metadata",
    "auditID": "8854486b-cdc1-4e66-834c-f19f11f5867d",
    "stage": "ResponseComplete",
    "requestURI": "/apis/retrieval-operator.io/v1alpha1/namespaces/feed/retrievalmodels/feed/status"
    "?fieldManager=retrieval-operator-status&force=true",
    "verb": "patch",
    "user": {"username": OPERATOR, "groups": ["system:serviceaccounts", "system:authenticated"]},
    "sourceIPs": ["127.0.0.1"],
    "userAgent": "retrieval-operator",
    "objectRef": {
        "resource": "retrievalmodels",
        "namespace": "feed",
        "name": "feed",
        "apiGroup": "retrieval-operator.io",
        "apiVersion": "v1alpha1",
        "subresource": "status",
    },
    "responseStatus": {"metadata": {}, "code": 200},
    "requestReceivedTimestamp": "2026-11-22T20:33:48.710268Z",
    "stageTimestamp": "2026-11-22T20:33:48.715501Z",
    "annotations": {"authorization.k8s.io/decision": "allow"},
}
JOBS = {"resource": "jobs", "namespace": "feed", "name": "feed-1", "apiGroup": "batch", "apiVersion": "v1"}
LEASES = {"resource": "leases", "namespace": "ops", "name": "retrieval-operator", "apiGroup": "coordination.k8s.io"}
ALL_JOBS = {"resource": "jobs", "apiGroup": "batch", "apiVersion": "v1"}
FORBIDDEN = {
    "status": "Failure",
    "message": f'jobs.batch is forbidden: User "{OPERATOR}" cannot watch resource "jobs" at the cluster scope',
    "reason": "Forbidden",
    "code": 403,
}


@pytest.fixture
def log(tmp_path: Path):
    """Writes an audit log: each line is the one above, with these fields in place of its own."""

    def write(*lines: dict[str, Any], name: str = "audit.log") -> Path:
        path = tmp_path / name
        events = [{**PATCHED_STATUS, "auditID": f"{name}-{number}", **line} for number, line in enumerate(lines)]
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        return tmp_path / "audit.log"

    return write


def problems(log: Path, **of: Any) -> list[str]:
    """Without the rights that these few requests do not use."""
    return [problem for problem in compare(read(log), OPERATOR, "ops", **of).problems() if "unused" not in problem]


def test_a_request_is_read_with_its_moments(log) -> None:
    [request] = read(log({}))
    assert (request.verb, request.group, request.resource) == ("patch", "retrieval-operator.io", "retrievalmodels")
    assert (request.subresource, request.namespace, request.name) == ("status", "feed", "feed")
    assert (request.user, request.code) == (OPERATOR, 200)
    assert request.answered_at - request.asked_at == pytest.approx(0.005233, abs=1e-6)
    assert request.is_write
    assert str(request) == "patch retrievalmodels/status feed in feed: 200"


def test_a_watch_is_one_request_though_it_has_two_lines(log) -> None:
    begun = {"auditID": "w", "verb": "watch", "stage": "ResponseStarted", "objectRef": ALL_JOBS}
    ended = {**begun, "stage": "ResponseComplete", "stageTimestamp": "2026-11-22T20:43:48.715501Z"}
    [request] = read(log(begun, ended))
    assert request.answered_at - request.asked_at < 1
    assert not request.is_write


def test_requests_about_no_object_and_a_line_that_is_being_written_are_left_out(log) -> None:
    path = log({"objectRef": None, "requestURI": "/apis"}, {})
    with path.open("a") as unfinished:
        unfinished.write('{"kind":"Event","audi')
    assert [request.name for request in read(path)] == ["feed"]


def test_full_predecessors_of_the_log_are_read_first(log) -> None:
    log({"objectRef": JOBS, "verb": "create"}, name="audit-2026-11-22T20-30-00.000.log")
    assert [request.resource for request in read(log({}))] == ["jobs", "retrievalmodels"]


def test_a_right_is_used_by_whoever_has_it_alone(log) -> None:
    path = log({}, {"user": {"username": "admin"}, "verb": "create", "objectRef": JOBS})
    unused = compare(read(path), OPERATOR, "ops").unused
    assert Right("watched", "retrieval-operator.io", "retrievalmodels", "status", "patch") not in unused
    assert Right("watched", "batch", "jobs", "", "create") in unused


def test_a_listing_of_all_namespaces_uses_the_right_of_the_watched_ones(log) -> None:
    path = log({"verb": "list", "objectRef": ALL_JOBS})
    assert Right("watched", "batch", "jobs", "", "list") not in compare(read(path), OPERATOR, "ops").unused


def test_the_subresource_is_another_right_than_the_object(log) -> None:
    finalizer = {**PATCHED_STATUS["objectRef"], "subresource": ""}  # type: ignore[dict-item]
    unused = compare(read(log({"objectRef": finalizer})), OPERATOR, "ops").unused
    assert Right("watched", "retrieval-operator.io", "retrievalmodels", "", "patch") not in unused
    assert Right("watched", "retrieval-operator.io", "retrievalmodels", "status", "patch") in unused


def test_the_lease_is_of_the_own_namespace_only(log) -> None:
    ours, theirs = {"objectRef": LEASES}, {"objectRef": {**LEASES, "namespace": "feed"}}
    right = Right("own", "coordination.k8s.io", "leases", "", "patch")
    assert right not in compare(read(log(ours)), OPERATOR, "ops").unused
    assert right in compare(read(log(theirs)), OPERATOR, "ops").unused
    assert problems(log(theirs)) == ["used, and not in the table: patch leases.coordination.k8s.io (watched)"]


def test_what_the_table_does_not_have_is_told(log) -> None:
    path = log({"verb": "get", "objectRef": {"resource": "secrets", "namespace": "feed", "name": "s"}})
    assert problems(path) == ["used, and not in the table: get secrets (watched)"]


def test_an_apply_that_makes_its_object_needs_create_as_well(log) -> None:
    made = {"responseStatus": {"code": 201}}
    status = "retrievalmodels/status.retrieval-operator.io"
    assert problems(log(made)) == [f"used, and not in the table: create {status} (watched)"]
    assert problems(log({"objectRef": JOBS, **made})) == []


def test_a_refusal_is_told_with_the_servers_words_and_uses_no_right(log) -> None:
    path = log({"verb": "watch", "objectRef": ALL_JOBS, "responseStatus": FORBIDDEN})
    [problem] = problems(path)
    assert problem.startswith("refused: watch jobs: 403 jobs.batch is forbidden")
    assert Right("watched", "batch", "jobs", "", "watch") in compare(read(path), OPERATOR, "ops").unused


@pytest.mark.parametrize(("namespace", "is_told"), [("feed", False), ("other", True)])
def test_what_was_allowed_there_at_another_time_is_no_missing_right(log, namespace: str, is_told: bool) -> None:
    """An API server that starts answers 403 until it has read its roles."""
    refused = {"verb": "create", "objectRef": JOBS, "responseStatus": FORBIDDEN}
    allowed = {"verb": "create", "objectRef": {**JOBS, "namespace": namespace}}
    path = log(refused, allowed)
    assert bool(problems(path)) == is_told
    assert bool(compare(read(path), OPERATOR, "ops").refused_once) != is_told


def test_a_refusal_by_mistake_of_the_object_is_no_refusal_of_rights(log) -> None:
    path = log({"verb": "create", "objectRef": JOBS, "responseStatus": {"code": 409, "reason": "AlreadyExists"}})
    comparison = compare(read(path), OPERATOR, "ops")
    assert not comparison.refused
    assert Right("watched", "batch", "jobs", "", "create") not in comparison.unused


def test_every_right_used_leaves_nothing_to_say(log) -> None:
    def line(right: Right) -> dict[str, Any]:
        namespace = "ops" if right.scope == "own" else "feed"
        about = {"resource": right.resource, "subresource": right.subresource, "apiGroup": right.group}
        return {"verb": right.verb, "objectRef": {**about, "namespace": namespace}}

    assert compare(read(log(*map(line, table()))), OPERATOR, "ops", excused={}).problems() == []


def test_the_uninstaller_has_a_table_of_its_own(log) -> None:
    path = log({"verb": "list", "objectRef": {"resource": "retrievalmodels", "apiGroup": "retrieval-operator.io"}})
    unused = compare(read(path), OPERATOR, "ops", scopes=("uninstall", "uninstallOwn")).unused
    assert {right.scope for right in unused} == {"uninstall", "uninstallOwn"}
    assert Right("uninstall", "retrieval-operator.io", "retrievalmodels", "", "list") not in unused


def test_only_rights_that_exist_are_excused_and_each_with_a_reason() -> None:
    assert audit.EXCUSED.keys() <= table()
    assert all(audit.EXCUSED.values())


def test_the_full_stories_must_use_what_the_others_may_leave(log) -> None:
    suspension = Right("watched", "kubeflow.org", "pytorchjobs", "", "patch")
    assert suspension not in compare(read(log({})), OPERATOR, "ops").unused
    unused = compare(read(log({})), OPERATOR, "ops", excused=audit.EXCUSED_IN_FULL).unused
    assert suspension in unused
    assert not set(unused) & audit.EXCUSED_IN_FULL.keys()
