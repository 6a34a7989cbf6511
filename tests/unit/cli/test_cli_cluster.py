"""`kubectl retrieval` against an API server in memory: what it shows, what it asks for, what it may not see."""

from __future__ import annotations

import asyncio
import json
import signal
import tomllib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_world import KubernetesWorld
from typer.testing import CliRunner, Result

from retrieval_operator.adapters.kubernetes import client
from retrieval_operator.adapters.kubernetes.events import EventRecorder
from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    JOB,
    POD,
    POD_DISRUPTION_BUDGET,
    PYTORCH_JOB,
    RETRIEVAL_MODEL,
    SERVICE,
    Kind,
)
from retrieval_operator.adapters.kubernetes.programs import Reporting
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.traffic import KubernetesTraffic
from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads
from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import (
    APPROVE_ANNOTATION,
    REJECT_ANNOTATION,
    RETRAIN_ANNOTATION,
    RETRY_ANNOTATION,
    ROLLBACK_ANNOTATION,
)
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import RetrievalModelStatus, StackRecord, Step
from retrieval_operator.api.types import rfc3339
from retrieval_operator.api.wire import to_wire
from retrieval_operator.cli import following
from retrieval_operator.cli.cluster import app, reading, writing
from retrieval_operator.domain import commands
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Rejected, Retryable

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
NAMESPACE = "search"
REPORTING = {"default": Reporting(tracking_uri="http://mlflow:5000", secret="")}
FORBIDDEN = 'pods is forbidden: User "jane" cannot list resource "pods"'
KINDS = (RETRIEVAL_MODEL, POD, SERVICE, JOB, POD_DISRUPTION_BUDGET, PYTORCH_JOB, INFERENCE_SERVICE)


class Cluster:
    """The object of conftest in namespace `search`, and what the operator and the other controllers made for it."""

    def __init__(self, manifest: dict[str, Any], now: int) -> None:
        self.now = now
        self.world = KubernetesWorld(lambda: self.now, is_limited=False)
        self.world.watch(*KINDS)
        self.manifest = manifest
        self.context_namespace = NAMESPACE

    def put(self, status: RetrievalModelStatus, *, namespace: str = NAMESPACE, name: str = "feed") -> None:
        metadata = {"name": name, "namespace": namespace}
        made = self.world.put({**self.manifest, "metadata": metadata})
        self.world.set_status(RETRIEVAL_MODEL, namespace, name, to_wire(status))
        metadata = {
            "generation": 3,
            "creationTimestamp": rfc3339(self.now - 3 * 86_400),
            "uid": made["metadata"]["uid"],
        }
        self.world.change(RETRIEVAL_MODEL, namespace, name, {"metadata": metadata})

    @property
    def model(self) -> RetrievalModel:
        obj = self.world.object(RETRIEVAL_MODEL, NAMESPACE, "feed")
        return parse_manifest(obj, "test")

    @property
    def annotations(self) -> dict[str, str]:
        return self.model.metadata.annotations

    @property
    def workloads(self) -> KubernetesWorkloads:
        images = {"trainer": "trainer:1", "indexer": "indexer:1", "data": "indexer:1"}
        world = self.world
        return KubernetesWorkloads(world.api, world.cache, lambda: self.now, images=images, reporting=REPORTING)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    def start_stack(self, record: StackRecord, servers: int, *, ready: bool = True) -> None:
        stacks = KubernetesStacks(self.world.api, self.world.cache, lambda: self.now, images={"encoderServer": "s:1"})
        self.do(stacks.create(self.model, record, 2))
        self.world.add_predictor_pods(NAMESPACE, f"feed-{record.stack}", servers, ready=ready)

    def switch(self, record: StackRecord) -> None:
        traffic = KubernetesTraffic(self.world.api, self.world.cache, lambda: self.now)
        version = self.do(traffic.observe(self.model)).version
        self.do(traffic.switch(self.model, record, version, self.now))


@pytest.fixture
def cluster(busy: RetrievalModel, now: int, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The operator's view of the object in the middle of its life: champion s-0002, s-0003 awaits approval."""
    manifest = {"apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind, "spec": busy.spec.explicit()}
    cluster = Cluster(manifest, now)

    @asynccontextmanager
    async def connected(user_agent: str, *, kubeconfig: str, context: str) -> AsyncIterator[KubernetesWorld]:
        cluster.world.namespace = cluster.context_namespace  # type: ignore[attr-defined]
        cluster.world.asked_for = (user_agent, kubeconfig, context)  # type: ignore[attr-defined]
        yield cluster.world

    monkeypatch.setattr(client, "connected", connected)
    for module in (reading, writing):
        monkeypatch.setattr(module, "now", lambda: cluster.now)
    candidate = busy.status.candidate
    assert candidate is not None
    waiting = candidate.model_copy(update={"approval_token": "s-0003-4f5e"})
    cluster.put(busy.status.model_copy(update={"candidate": waiting}))
    return cluster


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., Result]:
    """Run `kubectl retrieval ...`."""
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def record(busy: RetrievalModel) -> Callable[[int], StackRecord]:
    """record(2) is the champion's stack, s-0002."""
    champion = busy.status.champion
    assert champion is not None
    known = StackRecord.model_validate(champion.document())

    def make(number: int) -> StackRecord:
        return known.model_copy(update={"stack": f"s-{number:04d}", "model_version": str(number)})

    return make


def with_candidate(status: RetrievalModelStatus, **fields: object) -> RetrievalModelStatus:
    assert status.candidate is not None
    return status.model_copy(update={"candidate": status.candidate.model_copy(update=fields)})


# -- status ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(cluster: Cluster, busy: RetrievalModel, record: Callable[[int], StackRecord]) -> Cluster:
    """Two stacks, the second live; a training's first attempt failed, the second one runs in one of two pods."""
    for number in (1, 2):
        cluster.start_stack(record(number), servers=2)
        cluster.switch(record(number))
    at_training = {
        "step": Step.TRAINING,
        "gates": [],
        "stack": "",
        "bundle_id": "",
        "message": "feed-r3-train-2 is running",
        "attempts": {"train-r3": 2},
    }
    cluster.put(with_candidate(busy.status, **at_training).model_copy(update={"phase": "Training"}))
    first = commands.train(cluster.model, revision="r3", data_uri="/data/feed-3")
    cluster.now -= 1200
    cluster.do(cluster.workloads.start(cluster.model, first))
    cluster.now += 60
    cluster.world.finish_pytorch_job(NAMESPACE, first.name, 75, message="the storage answers 503")
    cluster.now += 540
    second = commands.workload_name(cluster.model, first.step, first.key, 2)
    cluster.do(cluster.workloads.start(cluster.model, type(first)(**{**vars(first), "name": second, "attempt": 2})))
    pods = cluster.world.start_pytorch_job(NAMESPACE, second)
    cluster.world.add_pod(
        cluster.world.object(PYTORCH_JOB, NAMESPACE, second),
        {"metadata": {"labels": cluster.world.object(POD, NAMESPACE, pods[0])["metadata"]["labels"]}},
        f"{second}-worker-0",
    )
    cluster.now += 600
    return cluster


def test_the_tree_shows_each_step_with_its_attempts_and_pods(
    training: Cluster, kubectl: Callable[..., Result], golden
) -> None:
    result = kubectl("status", "feed")
    assert result.exit_code == 0, result.output
    golden("cli/kubectl_status_training.txt", result.output)


def test_the_tree_of_what_awaits_approval_shows_the_gates(
    cluster: Cluster, kubectl: Callable[..., Result], record: Callable[[int], StackRecord], golden
) -> None:
    for number, ready in ((1, True), (2, True), (3, False)):
        cluster.start_stack(record(number), servers=2, ready=ready)
    cluster.switch(record(1))
    cluster.switch(record(2))
    cluster.start_stack(record(9), servers=1)
    golden("cli/kubectl_status_approval.txt", kubectl("status", "feed").output)


def test_the_tree_of_what_was_refused_says_why(
    cluster: Cluster, kubectl: Callable[..., Result], busy: RetrievalModel, golden
) -> None:
    cluster.put(busy.status.model_copy(update={"candidate": None, "phase": "Stalled"}))
    golden("cli/kubectl_status_refused.txt", kubectl("status", "feed").output)


def test_status_for_programs_has_the_data_and_no_values_of_variables(
    training: Cluster, kubectl: Callable[..., Result], record: Callable[[int], StackRecord]
) -> None:
    env = [{"name": "TOKEN", "value": "hunter2"}]
    secretive = record(4).model_copy(update={"serving": {"pod": {"env": env}}})
    training.start_stack(secretive, servers=1)
    shown = kubectl("status", "feed", "-o", "json").output
    assert "hunter2" not in shown
    document = json.loads(shown)
    assert [work["state"] for work in document["workloads"]] == ["Failed", "Running"]
    assert {stack["record"]["stack"]: stack["ready_replicas"] for stack in document["stacks"]} == {
        "s-0001": 2,
        "s-0002": 2,
        "s-0004": 1,
    }
    assert document["status"]["candidate"]["step"] == "Training"
    assert yaml.safe_load(kubectl("status", "feed", "-o", "yaml").output) == document
    assert [found["metadata"]["name"] for found in json.loads(kubectl("status", "-o", "json").output)] == ["feed"]


def test_where_is_looked_is_said_as_kubectl_users_say_it(cluster: Cluster, kubectl: Callable[..., Result]) -> None:
    cluster.put(RetrievalModelStatus(), namespace="other", name="jobs")
    assert "search/feed" in kubectl("status").output
    assert "other/jobs" not in kubectl("status").output
    assert "other/jobs" in kubectl("status", "-n", "other").output
    everywhere = kubectl("status", "-A").output
    assert "search/feed" in everywhere and "other/jobs" in everywhere
    kubectl("status", "feed", "--context", "prod", "--kubeconfig", "/etc/kube/config")
    assert cluster.world.asked_for == ("kubectl-retrieval", "/etc/kube/config", "prod")  # type: ignore[attr-defined]


def test_many_objects_cost_no_more_requests_than_one(cluster: Cluster, kubectl: Callable[..., Result]) -> None:
    kubectl("status")
    of_one = len(cluster.world.requests)
    for number in range(5):
        cluster.put(RetrievalModelStatus(), name=f"feed-{number}")
    cluster.world.requests.clear()
    kubectl("status", "-A")
    assert len(cluster.world.requests) == of_one


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "nobody"], 3, "search/nobody does not exist; there is: feed"),
        (["status", "-n", "empty"], 3, "there is no RetrievalModel in namespace empty"),
        (["status", "nobody", "-n", "empty"], 3, "empty/nobody does not exist; there is: nothing"),
        (["describe", "search/feed"], 2, "namespace goes into"),
        (["status", "feed", "-A"], 2, "expected one of them"),
        (["status", "feed", "-o", "xml"], 2, "table"),
        (["status", "--watch"], 2, "expected a terminal"),
        (["approve", "nobody"], 3, "search/nobody does not exist"),
        (["rollback", "feed", "--to", "s-9999"], 3, "found --to s-9999, expected a former stack: none (live: s-0002)"),
    ],
)
def test_exit_codes(kubectl: Callable[..., Result], arguments: list[str], code: int, words: str) -> None:
    result = kubectl(*arguments)
    assert (result.exit_code, words in result.output) == (code, True), result.output


def test_a_cluster_without_the_definition_is_told_from_one_without_objects(
    cluster: Cluster, kubectl: Callable[..., Result]
) -> None:
    cluster.world.uninstall(RETRIEVAL_MODEL)
    for arguments in (["status"], ["describe", "feed"]):
        result = kubectl(*arguments)
        assert (result.exit_code, "does not know RetrievalModels" in result.output) == (3, True), result.output


def test_one_object_that_cannot_be_read_hides_no_other(cluster: Cluster, kubectl: Callable[..., Result]) -> None:
    odd = {"storage": {"uri": "/s"}, "colour": "red"}
    cluster.world.put({**cluster.manifest, "metadata": {"name": "odd", "namespace": NAMESPACE}, "spec": odd})
    result = kubectl("status")
    assert (result.exit_code, "search/feed" in result.stdout) == (0, True), result.output
    assert "search/odd: spec.colour: unknown field" in result.stderr
    assert kubectl("status", "odd").exit_code == 2


@pytest.mark.parametrize("kind", [POD, SERVICE, JOB, PYTORCH_JOB, INFERENCE_SERVICE, POD_DISRUPTION_BUDGET])
def test_what_a_person_may_not_list_is_said_and_the_rest_is_shown(
    training: Cluster, kubectl: Callable[..., Result], kind: Kind
) -> None:
    training.world.fail("list", kind, Rejected(FORBIDDEN))
    result = kubectl("status", "feed")
    assert result.exit_code == 0, result.output
    assert f"not shown: {FORBIDDEN}" in result.output
    assert "Champion s-0002" in result.output


def test_a_right_to_read_objects_that_is_missing_is_a_sentence(
    cluster: Cluster, kubectl: Callable[..., Result]
) -> None:
    cluster.world.fail("list", RETRIEVAL_MODEL, Rejected("retrievalmodels is forbidden"))
    result = kubectl("status")
    assert (result.exit_code, result.output) == (2, "retrievalmodels is forbidden\n")


def test_without_the_other_controllers_kinds_there_is_nothing_to_say(
    cluster: Cluster, kubectl: Callable[..., Result]
) -> None:
    cluster.world.uninstall(PYTORCH_JOB)
    cluster.world.uninstall(INFERENCE_SERVICE)
    result = kubectl("status", "feed")
    assert (result.exit_code, "not shown" in result.output) == (0, False), result.output


def test_watching_draws_the_tree_until_a_signal(
    cluster: Cluster, kubectl: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "check_watch", lambda _: None)  # there is no terminal here
    monkeypatch.setattr(following, "_LOOK_S", 0.01)
    get, looks = cluster.world.get, []

    async def get_then_stop(kind: Kind, namespace: str | None, name: str) -> Any:
        looks.append(name)
        if len(looks) == 3:
            signal.raise_signal(signal.SIGINT)
        return await get(kind, namespace, name)

    monkeypatch.setattr(cluster.world, "get", get_then_stop)
    result = kubectl("status", "feed", "--watch")
    assert (result.exit_code, looks) == (0, ["feed"] * 3), result.output
    assert "a person approves or rejects stack s-0003" in result.output


# -- describe ----------------------------------------------------------------------------------------------------------


def test_describe_shows_workloads_and_the_object_s_own_events(
    training: Cluster, kubectl: Callable[..., Result], golden
) -> None:
    training.put(RetrievalModelStatus(), name="another")
    recorder = EventRecorder(training.world.api, "operator-0")
    for name, message in (("feed", "Revision r3: Training"), ("another", "of somebody else")):
        about = training.world.object(RETRIEVAL_MODEL, NAMESPACE, name)
        event = EmitEvent(type="Normal", reason=Reason.TRAINING, message=message)
        training.do(recorder.record(about, event, training.now - 600))
    result = kubectl("describe", "feed")
    assert result.exit_code == 0, result.output
    golden("cli/kubectl_describe.txt", result.output)
    document = json.loads(kubectl("describe", "feed", "-o", "json").output)
    assert [event["message"] for event in document["events"]] == ["Revision r3: Training"]


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("approve", APPROVE_ANNOTATION, "s-0003-4f5e"),
        ("reject", REJECT_ANNOTATION, "s-0003-4f5e"),
        ("retrain", RETRAIN_ANNOTATION, "1"),
        ("retry", RETRY_ANNOTATION, "2023-11-14 22:13:20Z"),
    ],
)
def test_a_request_becomes_its_annotation(
    cluster: Cluster, kubectl: Callable[..., Result], command: str, name: str, value: str
) -> None:
    result = kubectl(command, "feed")
    assert (result.exit_code, result.output.startswith("search/feed: ")) == (0, True), result.output
    assert cluster.annotations == {name: value}


def test_of_approve_and_reject_the_last_one_counts(cluster: Cluster, kubectl: Callable[..., Result]) -> None:
    for command in ("approve", "reject"):
        assert kubectl(command, "feed").exit_code == 0
    assert cluster.annotations == {REJECT_ANNOTATION: "s-0003-4f5e"}


@pytest.mark.parametrize("may_see_services", [True, False])
def test_a_rollback_goes_to_what_the_traffic_remembers_else_to_the_history(
    cluster: Cluster,
    kubectl: Callable[..., Result],
    busy: RetrievalModel,
    record: Callable[[int], StackRecord],
    may_see_services: bool,
) -> None:
    for number in (1, 2):
        cluster.start_stack(record(number), servers=1)
        cluster.switch(record(number))
    (promoted,) = [entry for entry in busy.status.history if entry.outcome == "Promoted"]
    older = promoted.model_copy(update={"record": record(0)})
    cluster.put(busy.status.model_copy(update={"history": [*busy.status.history, older]}))
    if not may_see_services:
        cluster.world.fail("list", SERVICE, Rejected("services is forbidden"))
    result = kubectl("rollback", "feed")
    target = "s-0001" if may_see_services else "s-0000"
    assert f"traffic goes back from s-0002 to {target}" in result.output
    token = busy.status.champion.token if busy.status.champion else ""
    assert cluster.annotations == {ROLLBACK_ANNOTATION: f"{token}:{target}"}


def test_what_was_changed_meanwhile_is_not_asked_for(
    cluster: Cluster, kubectl: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the object and asking, somebody else changes it."""
    get = cluster.world.get

    async def get_then_change(kind: Kind, namespace: str | None, name: str) -> Any:
        found = await get(kind, namespace, name)
        cluster.world.change(kind, NAMESPACE, "feed", {"metadata": {"labels": {"team": "ads"}}})
        return found

    monkeypatch.setattr(cluster.world, "get", get_then_change)
    result = kubectl("approve", "feed")
    assert result.exit_code == 1
    assert "changed meanwhile, so nothing is asked; look again: kubectl retrieval status feed" in result.output
    assert cluster.annotations == {}


@pytest.mark.parametrize(
    ("error", "code"),
    [(Rejected("retrievalmodels is forbidden"), 2), (Retryable("the API server does not answer"), 1)],
)
def test_a_refused_request_is_a_sentence(
    cluster: Cluster, kubectl: Callable[..., Result], error: Rejected | Retryable, code: int
) -> None:
    cluster.world.fail("patch", RETRIEVAL_MODEL, error)
    result = kubectl("approve", "feed")
    assert (result.exit_code, result.output) == (code, f"{error}\n")


# -- the program -------------------------------------------------------------------------------------------------------


def test_kubectl_finds_the_program_by_its_name() -> None:
    scripts = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]
    assert scripts["kubectl-retrieval"] == "retrieval_operator.cli.cluster:main"
