"""What the control plane needs goes away in the middle of a rollout and comes back: MLflow, the API server, itself.

Each rollout is an index refresh with a newer snapshot: a new generation under the champion's bundle. Clients that
ask all the time notice none of it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lives.clients import asking
from lives.conftest import CHART
from lives.deployments import MLFLOW, OPERATOR, Release, away
from lives.full.refreshes import Refreshes, were_all_answered
from lives.place import Kubectl, Object, Place, condition, is_true

pytestmark = [pytest.mark.e2e, pytest.mark.e2e_full, pytest.mark.timeout(3600)]

E2E = Path(__file__).parents[2]
_OPERATOR_POD = (OPERATOR, f"deployment/{OPERATOR}")  # asks in place of MLflow's, which is away
KINDS = ("jobs", "services", "inferenceservices", "poddisruptionbudgets", "pods")


def test_without_mlflow_a_candidate_waits_and_the_champion_is_repaired(
    imported: Place, kubectl: Kubectl, refreshes: Refreshes
) -> None:
    with away(kubectl, MLFLOW):
        champion = refreshes.begin(29)
        waiting = imported.until("feed", _waits_for_mlflow, "waits for MLflow")
        assert is_true(waiting, "Ready")
        assert waiting["status"]["champion"] == champion
        imported.retrieve("feed", by=_OPERATOR_POD)
        imported.run("delete", "inferenceservice", f"feed-{champion['stack']}")
        imported.until("feed", lambda found: not is_true(found, "Ready"), "has no server")
        imported.until("feed", lambda found: is_true(found, "Ready"), "is repaired")
        imported.retrieve("feed", by=_OPERATOR_POD)
        assert not is_true(imported.model("feed"), "Promoted")
    refreshes.finish(champion)
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


def test_an_upgrade_in_mid_rollout_touches_nothing(
    imported: Place, kubectl: Kubectl, release: Release, refreshes: Refreshes, clients_image: str
) -> None:
    with asking(imported, "feed", clients_image) as clients:
        former = refreshes.begin(31)
        candidate = refreshes.until_indexing()
        before, old = _children(imported), _operator_pods(kubectl)
        with _upgraded(release, "logLevel=debug"):
            assert not set(old) & set(_operator_pods(kubectl)), "the operator was not replaced"
            champion = refreshes.finish(former)
            assert champion["generationKey"] == candidate["id"]
            _is_untouched(before, _children(imported))
        refreshes.until_alone(champion)
        were_all_answered(clients.stop(), former, champion)


@contextmanager
def _upgraded(release: Release, *values: str) -> Iterator[None]:
    """The release has these values as well within the block. Its operator's image stays the one that runs."""
    image = release.deployment()["spec"]["template"]["spec"]["containers"][0]["image"]
    release.upgrade(CHART, f"--set=images.operator={image}", *(f"--set={value}" for value in values))
    try:
        yield
    finally:
        release.upgrade(CHART, f"--set=images.operator={image}")


def _operator_pods(kubectl: Kubectl) -> list[str]:
    return kubectl("--namespace", OPERATOR, "get", "pods", "--output=jsonpath={.items[*].metadata.uid}").split()


def _waits_for_mlflow(found: Object) -> bool:
    return condition(found, "Promoted").get("reason") == "RegistryUnavailable"


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
