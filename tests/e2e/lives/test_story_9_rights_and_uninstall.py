"""Told last: the rights of the operator are those that the stories used; then its chart goes, and comes back.

What serves does not notice: the same pods answer without the operator, and with the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import audit
import pytest
from lives.conftest import CHART
from lives.deployments import ACCOUNT, Release
from lives.killing import made
from lives.namespaces import OPERATOR, UNINSTALLED
from lives.place import Kubectl, Object, Place, is_true, manifest, names

from retrieval_operator.api.constants import FINALIZER

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

UNINSTALLER = f"{ACCOUNT}-uninstall"
# A release as it was when the chart had no more than the definition: see tests/e2e/chart.
OLDER = Path(__file__).parents[1] / "chart" / "retrieval-operator-0.0.1.tgz"
DEFINITION = "retrievalmodels.retrieval-operator.io"
HELD = "held"


def test_more_servers_are_started_in_place(shared_life: Place) -> None:
    """The champion has two from here on."""
    before = shared_life.model("feed")["status"]["champion"]
    servers = shared_life.pods("feed", before["stack"])
    shared_life.patch("feed", {"serving": {"replicas": {"min": 2}}})
    shared_life.until(
        "feed", lambda _: len(shared_life.pods("feed", before["stack"])) == 2, "has two servers", stalled=True
    )
    after = until_it_serves(shared_life)["status"]["champion"]
    assert after["stack"] == before["stack"]
    assert servers.items() <= shared_life.pods("feed", before["stack"]).items(), "a server was replaced"


def test_a_service_deleted_by_hand_comes_back_and_nothing_else_happens(shared_life: Place) -> None:
    before = shared_life.model("feed")["status"]
    servers, children_before = shared_life.pods("feed", before["champion"]["stack"]), children(shared_life)
    shared_life.count_from_now("feed")
    shared_life.run("delete", "service", "feed")
    shared_life.until("feed", lambda _: "feed" in names(shared_life.list("services")), "has its Service", stalled=True)
    shared_life.retrieve("feed")
    after = until_it_serves(shared_life)["status"]
    assert after["champion"] == before["champion"]
    assert after["history"] == before["history"]
    assert shared_life.pods("feed", before["champion"]["stack"]) == servers
    changed = children(shared_life).items() - children_before.items()
    assert [name for name, _uid in changed] == ["Service feed"]
    assert any("stable address was gone" in message for message in shared_life.events("feed", "StackRepaired"))


@pytest.fixture(scope="module")
def used(operator: float, shared_life: Place, audit_log: Path) -> audit.Comparison:
    """What the operator did since it was installed, beside the table of its rights."""
    requests = [request for request in audit.read(audit_log) if request.asked_at >= operator]
    return audit.compare(requests, ACCOUNT, OPERATOR)


def test_no_request_was_refused_for_want_of_a_right(used: audit.Comparison) -> None:
    assert [*map(str, used.refused)] == []


def test_every_right_was_used_by_some_story(used: audit.Comparison) -> None:
    assert [*map(str, used.unlisted)] == []
    assert [*map(str, used.unused)] == [], f"all but what audit.EXCUSED explains ({len(audit.EXCUSED)} rights)"


@dataclass(frozen=True)
class Served:
    """What there was before the chart went. `pods` and `children` are UIDs by name."""

    answer: Object
    pods: dict[str, str]
    children: dict[str, str]
    image: str
    at: float


@pytest.fixture(scope="module")
def held(new_place: Callable[[str], Place]) -> Place:
    """A namespace with an object that the operator's finalizer holds, and that is suspended before it does anything."""
    place = new_place(UNINSTALLED)
    place.apply(manifest(HELD, suspend=True, deletionPolicy="Delete"))
    place.until(HELD, lambda found: FINALIZER in found["metadata"].get("finalizers", []), "is held")
    return place


@pytest.fixture(scope="module")
def served(shared_life: Place, held: Place, release: Release) -> Served:
    [container] = release.deployment()["spec"]["template"]["spec"]["containers"]
    stack = shared_life.model("feed")["status"]["champion"]["stack"]
    pods = shared_life.pods("feed", stack)
    return Served(shared_life.retrieve("feed"), pods, children(shared_life), container["image"], time.time())


@pytest.fixture(scope="module")
def uninstalled(served: Served, release: Release) -> Iterator[None]:
    """Until another test installs it again; the stories of `full` need it."""
    began = time.monotonic()
    release.uninstall()
    print(f"uninstalled after {time.monotonic() - began:.0f} s", flush=True)
    yield
    if not release.exists():
        release.upgrade(CHART, f"--set=images.operator={served.image}")


def test_the_chart_goes_and_the_hook_takes_the_finalizer_off(
    uninstalled: None, held: Place, kubectl: Kubectl, audit_log: Path
) -> None:
    assert kubectl("--namespace", OPERATOR, "get", "all,serviceaccounts", "--output=name").split() == [
        "serviceaccount/default"
    ]
    for kind in ("clusterroles", "clusterrolebindings"):
        assert "retrieval-operator" not in kubectl("get", kind, "--output=name")
    assert FINALIZER not in held.model(HELD)["metadata"].get("finalizers", [])
    requests = [request for request in audit.read(audit_log) if request.user == UNINSTALLER]
    found = audit.compare(requests, UNINSTALLER, OPERATOR, scopes=("uninstall", "uninstallOwn"))
    assert found.problems() == []


def test_objects_and_what_serves_stay(uninstalled: None, served: Served, shared_life: Place) -> None:
    stack = shared_life.model("feed")["status"]["champion"]["stack"]
    assert shared_life.pods("feed", stack) == served.pods
    assert children(shared_life) == served.children
    assert shared_life.retrieve("feed") == served.answer


def test_without_the_operator_an_object_can_be_deleted(uninstalled: None, held: Place) -> None:
    held.run("delete", "retrievalmodel", HELD, "--timeout=30s")


def test_the_next_release_takes_everything_up_and_restarts_nothing(
    uninstalled: None, served: Served, shared_life: Place, release: Release, kubectl: Kubectl, audit_log: Path
) -> None:
    """It is upgraded from an older chart, whose definition lacks what this one added."""
    release.install_definition(OLDER)
    older = columns(kubectl)
    release.upgrade(CHART, f"--set=images.operator={served.image}")
    assert columns(kubectl) != older, "the definition was not upgraded with the chart"
    shared_life.patch("feed", {"rollback": {"windowSeconds": 61}})
    model = until_it_serves(shared_life)
    assert shared_life.pods("feed", model["status"]["champion"]["stack"]) == served.pods
    assert children(shared_life) == served.children
    assert made(audit_log, shared_life.namespace, served.at) == []
    assert shared_life.retrieve("feed") == served.answer


def test_it_acts_on_what_it_found(uninstalled: None, served: Served, shared_life: Place) -> None:
    """One server is enough again: one of the two that were there goes."""
    stack = shared_life.model("feed")["status"]["champion"]["stack"]
    shared_life.patch("feed", {"serving": {"replicas": {"min": 1}}})
    shared_life.until("feed", lambda _: len(shared_life.pods("feed", stack)) == 1, "has one server", stalled=True)
    assert shared_life.pods("feed", stack).items() <= served.pods.items()


def until_it_serves(place: Place) -> Object:
    """The object once somebody has looked at it as it is now, whatever an earlier story left it waiting for."""
    return place.until("feed", lambda found: is_true(found, "Ready"), "is looked after, and serves", stalled=True)


def children(place: Place) -> dict[str, str]:
    """UIDs by kind and name."""
    kinds = "jobs,pytorchjobs,services,inferenceservices,poddisruptionbudgets,deployments,replicasets"
    found = json.loads(place.run("get", kinds, "--output=json"))["items"]
    return {f"{one['kind']} {one['metadata']['name']}": one["metadata"]["uid"] for one in found}


def columns(kubectl: Kubectl) -> str:
    return kubectl("get", "customresourcedefinition", DEFINITION, "--output=jsonpath={.spec.versions[0]}")
