"""What the control plane needs goes away in the middle of a rollout and comes back: MLflow, the API server, itself.

Each rollout is an index refresh with a newer snapshot: a new generation under the champion's bundle. Clients that
ask all the time notice none of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lives.clients import asking
from lives.conftest import CHART
from lives.deployments import Release, away
from lives.full.refreshes import Refreshes, were_all_answered
from lives.images import name_again
from lives.namespaces import MLFLOW, OPERATOR
from lives.place import Kubectl, Object, Place, condition, is_true
from native_cluster.layout import Layout, default_state

from retrieval_operator.api.constants import ExitCode

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(3600)]

E2E = Path(__file__).parents[2]
_OPERATOR_POD = (OPERATOR, f"deployment/{OPERATOR}")  # asks in place of MLflow's, which is away
KINDS = ("jobs", "services", "inferenceservices", "poddisruptionbudgets", "pods")


def test_without_mlflow_a_candidate_waits_and_the_champion_is_repaired(
    imported: Place, kubectl: Kubectl, refreshes: Refreshes
) -> None:
    """It is away for longer than the program that builds the index is willing to wait with its report."""
    champion = refreshes.begin(29)
    key = refreshes.until_indexing()["id"]
    with away(kubectl, MLFLOW):
        waiting = imported.until("feed", _waits_for_mlflow, "waits for MLflow")
        assert is_true(waiting, "Ready")
        assert waiting["status"]["champion"] == champion
        imported.retrieve("feed", by=_OPERATOR_POD)
        imported.run("delete", "inferenceservice", f"feed-{champion['stack']}")
        imported.until("feed", lambda found: not is_true(found, "Ready"), "has no server")
        imported.until("feed", lambda found: is_true(found, "Ready"), "is repaired")
        imported.retrieve("feed", by=_OPERATOR_POD)
        imported.until("feed", lambda _: _has_ended(imported, f"feed-{key}-index-1"), "has given up its report")
        assert _last_words(imported, key) == (ExitCode.TEMPORARILY_UNAVAILABLE, "TemporarilyUnavailable")
        assert not is_true(imported.model("feed"), "Promoted")
    after = refreshes.finish(champion, attempts=2)
    assert after["generationKey"] == key
    imported.retrieve("feed")


def test_a_rollout_outlives_a_restart_of_the_api_server(
    imported: Place, cluster: Any, refreshes: Refreshes, clients_image: str
) -> None:
    if cluster.binaries is None:
        pytest.skip("not run: the API server of the named cluster is not ours to restart")
    with asking(imported, "feed", clients_image) as clients:
        former = refreshes.begin(30)
        refreshes.until_indexing()
        before = _children(imported)
        command = [sys.executable, "-m", "native_cluster", "restart", "kube-apiserver"]
        done = subprocess.run(command, cwd=E2E, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        champion = refreshes.finish(former)
        _is_untouched(before, _children(imported))
        refreshes.until_alone(champion)  # so that every client has come over
        were_all_answered(clients.stop(), former, champion)


@pytest.fixture
def newer(cluster: Any, tag: str) -> str:
    """The tag of a newer release: the images of this one by another name."""
    if cluster.binaries is None:
        pytest.skip("not run: images of the named cluster cannot be given another tag from here")
    return name_again(Layout.existing(default_state()), tag)


def test_an_upgrade_in_mid_rollout_touches_nothing(
    imported: Place,
    twins: tuple[Place, Place],
    kubectl: Kubectl,
    release: Release,
    refreshes: Refreshes,
    clients_image: str,
    newer: str,
) -> None:
    """Every default image changes. East stands by, served by a default one; what begins afterwards runs the new one."""
    east = twins[0]
    with asking(imported, "feed", clients_image) as clients:
        former = refreshes.begin(31)
        candidate = refreshes.until_indexing()
        before, beside, old = _children(imported), _children(east), _operator_pod(kubectl)
        with _upgraded(release, newer):
            operator = _operator_pod(kubectl)
            assert operator["uid"] != old["uid"], "the operator was not replaced"
            champion = refreshes.finish(former)
            assert champion["generationKey"] == candidate["id"]
            _is_untouched(before, _children(imported))
            assert _children(east) == beside
            begun = _images_of_jobs_since(imported, operator["creationTimestamp"])
            assert begun, "the new operator has started nothing"
            assert all(image.endswith(f":{newer}") for image in begun.values()), begun
        refreshes.until_alone(champion)
        were_all_answered(clients.stop(), former, champion)


@contextmanager
def _upgraded(release: Release, tag: str) -> Iterator[None]:
    """Within the block the release is one of this tag; then its operator's image is the one that ran before."""
    image = release.deployment()["spec"]["template"]["spec"]["containers"][0]["image"]
    try:
        release.upgrade(CHART, f"--set-string=images.tag={tag}")
        upgraded = release.deployment()["spec"]["template"]["spec"]["containers"][0]["image"]
        assert upgraded.endswith(f":{tag}"), upgraded
        yield
    finally:
        release.upgrade(CHART, f"--set=images.operator={image}")


def _operator_pod(kubectl: Kubectl) -> Object:
    """The metadata of the newest: it is created once the one before has ended."""
    selector = "--selector=app.kubernetes.io/component=control-plane"
    found = json.loads(kubectl("--namespace", OPERATOR, "get", "pods", selector, "--output=json"))["items"]
    newest: Object = max((pod["metadata"] for pod in found), key=lambda metadata: metadata["creationTimestamp"])
    return newest


def _images_of_jobs_since(place: Place, since: str) -> dict[str, str]:
    """Of the jobs that were created after this second, by name."""
    return {
        job["metadata"]["name"]: job["spec"]["template"]["spec"]["containers"][0]["image"]
        for job in place.list("jobs", name="feed")
        if job["metadata"]["creationTimestamp"] > since
    }


def _has_ended(place: Place, job: str) -> bool:
    status = place.get("job", job)["status"]
    assert not status.get("succeeded"), f"{job} reported before MLflow was away"
    return bool(status.get("failed"))


def _last_words(place: Place, key: str) -> tuple[int, str]:
    """Exit code and reason of the one attempt at a generation that was made."""
    [pod] = place.list("pods", name="feed", key=key)
    [container] = pod["status"]["containerStatuses"]
    ended = container["state"]["terminated"]
    return ended["exitCode"], json.loads(ended["message"])["reason"]


def _waits_for_mlflow(found: Object) -> bool:
    is_missed = condition(found, "DependenciesReady").get("reason") == "RegistryUnavailable"
    return is_missed and "waiting for MLflow" in condition(found, "Promoted").get("message", "")


def _children(place: Place) -> dict[str, tuple[str, Any]]:
    """What is there and stays, by name: UID and generation, of pods the number of restarts."""
    found = {}
    for kind in KINDS:
        for one in place.list(kind, name="feed"):
            metadata = one["metadata"]
            if "deletionTimestamp" in metadata:
                continue  # of the stack before, which drains
            state = _restarts(one) if kind == "pods" else metadata.get("generation")
            found[f"{kind}/{metadata['name']}"] = (metadata["uid"], state)
    return found


def _restarts(pod: Object) -> int:
    return sum(one["restartCount"] for one in pod["status"].get("containerStatuses", ()))


def _is_untouched(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert any(name.startswith("jobs/") and "-index-" in name for name in before), "no index was being built"
    others = {name: (before[name], after.get(name)) for name in before if after.get(name) != before[name]}
    # The stable Service's selector is the switch itself.
    others = {name: found for name, found in others.items() if name != "services/feed"}
    assert not others, f"changed, by name (before, after): {others}"
    jobs = [name for name in after if name.startswith("jobs/") and name not in before]
    assert all(name.endswith("-1") for name in jobs), f"second attempts: {jobs}"
