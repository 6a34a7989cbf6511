"""The life of an operator process in a cluster, over the in-memory API server. Over a real one: tests/e2e/operator."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import kopf
import pytest
from kopf._core.engines.indexing import OperatorIndexers
from kopf._core.engines.probing import health_reporter
from kubernetes_world import KubernetesWorld
from typer.testing import CliRunner

from retrieval_operator import kopf_app, kubernetes_mode
from retrieval_operator.adapters.kubernetes import lease, own_pod
from retrieval_operator.adapters.kubernetes.feed import WATCHED
from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    JOB,
    LEASE,
    PYTORCH_JOB,
    RETRIEVAL_MODEL,
    Kind,
    Object,
)
from retrieval_operator.adapters.kubernetes.lease import LeaseLost
from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.cli import app, kubernetes_running
from retrieval_operator.cli.exits import Exit
from retrieval_operator.kubernetes_mode import KubernetesMode, cluster_ports
from retrieval_operator.perform import Ports
from retrieval_operator.ports import Rejected, Retryable
from retrieval_operator.settings import InvalidSettings, MlflowConnection, Settings
from retrieval_operator.telemetry import LEADER

NOW = 1_700_000_000
MODEL = {
    "apiVersion": RETRIEVAL_MODEL.api_version,
    "kind": RETRIEVAL_MODEL.kind,
    "metadata": {"name": "feed", "namespace": "ml"},
    "spec": {
        "storage": {"uri": "/storage"},
        "data": {"uri": "/data", "revision": "1"},
        "model": {"base": "preset:tiny"},
        "promotion": {"gates": [{"min": "0.1"}]},
    },
}


@asynccontextmanager
async def ports_of_nothing(mode: KubernetesMode) -> AsyncIterator[Ports]:
    """The objects of the cluster; what runs for them is in memory, where nothing ever ends."""
    memory = MemoryWorld(lambda: NOW)
    yield Ports(
        models=mode.models,
        workloads=memory.workloads,
        stacks=memory.stacks,
        traffic=memory.traffic,
        registry=memory.registry,
        surroundings=memory.surroundings,
    )


class SlowPass:
    """Ports whose surroundings answer when a test lets them, so that a pass is under way until then."""

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        self.was_cut = False

    @asynccontextmanager
    async def ports(self, mode: KubernetesMode) -> AsyncIterator[Ports]:
        async with ports_of_nothing(mode) as ports:
            ports.surroundings.problems = self._problems  # type: ignore[method-assign]
            yield ports

    async def _problems(self, _model: RetrievalModel) -> tuple[()]:
        self.asked.set()
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.was_cut = True
            raise
        return ()


class Process:
    def __init__(
        self, world: KubernetesWorld, *namespaces: str, make_ports: Callable[..., Any] = ports_of_nothing
    ) -> None:
        self.world = world
        settings = Settings(own_namespace="operator", namespaces=list(namespaces))
        self.mode = KubernetesMode(settings, world, make_ports)
        self.stop = asyncio.Event()

    async def start(self) -> asyncio.Task[None]:
        await self.mode.discover()
        return asyncio.create_task(self.mode.run(self.stop))

    def status(self) -> Any:
        return self.world.object(RETRIEVAL_MODEL, "ml", "feed").get("status")

    def holder(self) -> Any:
        return self.world.object(LEASE, "operator", "retrieval-operator")["spec"].get("holderIdentity")


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop run until it is so; a test that waits in vain is ended by its time-out."""
    while not condition():
        await asyncio.sleep(0)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    monkeypatch.setattr(kubernetes_mode, "_RETRY_S", 0)
    world = KubernetesWorld(lambda: NOW)
    world.put(MODEL)
    return Process(world)


async def test_an_operator_acts_once_it_has_the_lease_and_hands_it_on_when_told_to_stop(process: Process) -> None:
    running = await process.start()
    await until(process.status)
    assert process.status()["phase"] == "Training"
    assert process.holder()
    assert LEADER._value.get() == 1
    process.stop.set()
    await running
    assert not process.holder()
    assert LEADER._value.get() == 0


async def test_nothing_is_decided_before_every_kind_was_listed(process: Process) -> None:
    await process.mode.discover()
    process.world.fail("list", JOB, Retryable("busy"), times=3)
    running = asyncio.create_task(process.mode.run(process.stop))
    await until(process.status)
    process.stop.set()
    await running
    requests = [(verb, kind) for verb, kind, _ in process.world.requests]
    first_write = next(n for n, (verb, kind) in enumerate(requests) if verb != "list" and kind != "Lease")
    since = requests.index(("create", "Lease"))
    listed = [kind for verb, kind in requests[since:first_write] if verb == "list"]
    assert listed.count("Job") == 4
    assert listed[-len(WATCHED) :] == [kind.kind for kind in WATCHED]


@pytest.fixture
def slow_pass() -> SlowPass:
    return SlowPass()


@pytest.fixture
def busy(slow_pass: SlowPass) -> Process:
    """Its first pass is slow."""
    world = KubernetesWorld(lambda: NOW)
    world.put(MODEL)
    return Process(world, make_ports=slow_pass.ports)


async def test_a_lost_lease_cuts_the_pass_under_way_before_it_ends_the_process(
    busy: Process, slow_pass: SlowPass, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY_S", 0)
    running = await busy.start()
    await slow_pass.asked.wait()
    busy.world.change(LEASE, "operator", "retrieval-operator", {"spec": {"holderIdentity": "other"}})
    with pytest.raises(LeaseLost, match="held by other"):
        await running
    assert slow_pass.was_cut
    assert busy.status() is None
    assert busy.holder() == "other"
    assert LEADER._value.get() == 0


def test_told_to_stop_the_pass_under_way_ends_before_the_lease_is_handed_on(
    in_virtual_time: Callable[..., Any], busy: Process, slow_pass: SlowPass
) -> None:
    async def story() -> None:
        running = await busy.start()
        await slow_pass.asked.wait()
        busy.stop.set()
        await asyncio.sleep(kubernetes_mode._LAST_PASSES_S - 1)
        assert busy.holder(), "another one could act beside the pass"
        slow_pass.answer.set()
        await running

    in_virtual_time(story())
    assert not slow_pass.was_cut
    assert busy.status()["phase"] == "Training"
    assert not busy.holder()
    assert busy.world.requests[-1] == ("patch", "Lease", "retrieval-operator")


def test_told_to_stop_a_pass_that_hangs_is_cut_before_the_lease_is_handed_on(
    in_virtual_time: Callable[..., Any], busy: Process, slow_pass: SlowPass
) -> None:
    async def story() -> float:
        running = await busy.start()
        await slow_pass.asked.wait()
        busy.stop.set()
        await asyncio.sleep(kubernetes_mode._LAST_PASSES_S - 1)
        assert not slow_pass.was_cut
        await running
        return asyncio.get_running_loop().time()

    assert in_virtual_time(story()) == pytest.approx(kubernetes_mode._LAST_PASSES_S)
    assert slow_pass.was_cut
    assert not busy.holder()


async def test_without_the_lease_nothing_is_written_and_stopping_is_possible(process: Process) -> None:
    held = {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.kind,
        "metadata": {"name": "retrieval-operator", "namespace": "operator"},
        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 90},
    }
    process.world.put(held)
    running = await process.start()
    await until(lambda: ("get", "Lease", "retrieval-operator") in process.world.requests)
    process.stop.set()
    await running
    assert process.status() is None
    assert process.holder() == "other"


async def test_our_own_definition_is_waited_for_and_those_of_others_are_not(process: Process) -> None:
    world = process.world
    for kind in (RETRIEVAL_MODEL, INFERENCE_SERVICE, PYTORCH_JOB):
        world.uninstall(kind)
    discovering = asyncio.create_task(process.mode.discover())
    await until(lambda: world.requests.count(("list", "RetrievalModel", "")) > 2)
    assert not discovering.done()
    world._missing_kinds.discard(RETRIEVAL_MODEL)
    assert await discovering == [kind for kind in WATCHED if kind not in (INFERENCE_SERVICE, PYTORCH_JOB)]


async def test_a_definition_that_came_while_we_waited_for_the_lease_ends_the_process(process: Process) -> None:
    process.world.uninstall(INFERENCE_SERVICE)
    await process.mode.discover()
    process.world._missing_kinds.clear()
    await process.mode.run(process.stop)
    assert process.stop.is_set()
    assert not process.holder()


async def test_a_kind_that_may_not_be_listed_ends_the_process_with_the_servers_words(process: Process) -> None:
    process.world.fail("list", JOB, Rejected("jobs.batch is forbidden"))
    with pytest.raises(Rejected, match="forbidden"):
        await kopf_app.serve(process.mode)


async def test_told_to_stop_it_waits_no_longer_for_a_cluster_that_is_not_ready(process: Process) -> None:
    process.world.uninstall(RETRIEVAL_MODEL)
    serving = asyncio.create_task(kopf_app.serve(process.mode))
    await until(lambda: process.world.requests)
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL, "a process without handlers that is PID 1 ignores it"
    signal.raise_signal(signal.SIGTERM)
    await serving
    assert {verb for verb, _, _ in process.world.requests} == {"list"}


def test_what_vanished_while_a_watch_was_lost_is_found_soon_after_it_lists_again(
    in_virtual_time: Callable[..., Any], process: Process
) -> None:
    listing = kopf_app._hear(process.mode, RETRIEVAL_MODEL)
    named = {"metadata": {**MODEL["metadata"], "name": "other"}}  # type: ignore[dict-item]
    other = {"type": None, "object": process.world.put({**MODEL, **named})}

    def known() -> list[str]:
        return [name for _, name, _ in process.mode.statuses()]

    def listings() -> list[str]:
        found = [kind for verb, kind, _ in process.world.requests if verb == "list"]
        process.world.requests.clear()
        return found

    async def story() -> None:
        every_kind = [kind.kind for kind in WATCHED]
        running = await process.start()
        await listing(event=other)  # of the watch that starts
        await asyncio.sleep(120)
        assert listings() == every_kind * 3, "to discover, with the Lease, and once the watches are there"
        process.world.remove(RETRIEVAL_MODEL, "ml", "feed")
        await asyncio.sleep(60)
        assert known() == ["feed", "other"], "nobody tells"
        assert listings() == []
        for _ in range(3):
            await listing(event=other)
        await asyncio.sleep(kubernetes_mode._RESYNC_AFTER_LISTING_S + 1)
        assert known() == ["other"]
        await asyncio.sleep(300)
        assert listings() == every_kind, "however often it is told, and without a resync that asks for the next one"
        process.stop.set()
        await running

    in_virtual_time(story())


def test_what_is_told_of_a_change_asks_for_no_listing(in_virtual_time: Callable[..., Any], process: Process) -> None:
    async def story() -> None:
        running = await process.start()
        await asyncio.sleep(60)
        process.world.requests.clear()
        changed = process.world.change(RETRIEVAL_MODEL, "ml", "feed", {"metadata": {"annotations": {"a": "b"}}})
        await kopf_app._hear(process.mode, RETRIEVAL_MODEL)(event={"type": "MODIFIED", "object": changed})
        await asyncio.sleep(60)
        assert "list" not in {verb for verb, _, _ in process.world.requests}
        process.stop.set()
        await running

    in_virtual_time(story())


async def test_a_listing_that_is_refused_while_it_acts_is_tried_again(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API server that starts answers 403 until it has read its roles."""
    for constant in ("_RESYNC_AFTER_LISTING_S", "_RESYNC_S", "_RETRY_AFTER_RESYNC_S"):
        monkeypatch.setattr(kubernetes_mode, constant, 0)
    running = await process.start()
    await until(process.status)
    process.world.fail("list", JOB, Rejected("jobs.batch is forbidden"))
    process.world.requests.clear()
    last = ("list", str(WATCHED[-1]), "")
    await until(lambda: running.done() or process.world.requests.count(last) > 1)
    assert not running.done()
    process.stop.set()
    await running


class WorldWithRoles(KubernetesWorld):
    """In the `forbidden` namespaces nothing may be listed; the values are the kinds, none given: every kind."""

    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__(clock)
        self.forbidden: dict[str, tuple[Kind, ...]] = {}

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Object]:
        if namespace in self.forbidden and kind in (self.forbidden[namespace] or (kind,)):
            raise Rejected(f'{kind.plural} is forbidden in the namespace "{namespace}"')
        return await super().list(kind, namespace, labels)


@pytest.fixture
def namespaced(monkeypatch: pytest.MonkeyPatch) -> Process:
    """Looks after the namespaces ml and gone; each turn of its loop is due at once."""
    for constant in ("_RETRY_S", "_RESYNC_AFTER_LISTING_S", "_RESYNC_S", "_RETRY_AFTER_RESYNC_S", "_MISSING_KINDS_S"):
        monkeypatch.setattr(kubernetes_mode, constant, 0)
    world = WorldWithRoles(lambda: NOW)
    for namespace in ("ml", "gone"):
        world.put({**MODEL, "metadata": {"name": "feed", "namespace": namespace}})
    return Process(world, "ml", "gone")


@pytest.mark.parametrize("kinds", [(), (JOB,)], ids=["every kind", "a kind that is listed later"])
async def test_a_namespace_without_our_role_is_left_out_and_the_others_are_looked_after(
    namespaced: Process, kinds: tuple[Kind, ...], log: StringIO
) -> None:
    namespaced.world.forbidden["gone"] = kinds
    running = await namespaced.start()
    await until(namespaced.status)
    namespaced.stop.set()
    await running
    assert [namespace for namespace, _, _ in namespaced.mode.statuses()] == ["ml"]
    assert "status" not in namespaced.world.object(RETRIEVAL_MODEL, "gone", "feed")
    [warning] = [line for line in map(json.loads, log.getvalue().splitlines()) if "is left out" in line["event"]]
    assert (warning["level"], warning["namespace"]) == ("warning", "gone")
    assert "watch.namespaces" in warning["event"]


async def test_a_namespace_that_is_left_out_is_not_watched(
    namespaced: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf would end the process when its watch is refused."""
    asked: dict[str, Any] = {}

    async def operator(**settings: Any) -> None:
        asked.update(settings)

    monkeypatch.setattr(kopf, "operator", operator)
    namespaced.world.forbidden["gone"] = ()
    await kopf_app.serve(namespaced.mode)
    assert (asked["clusterwide"], asked["namespaces"]) == (False, ["ml"])


async def test_a_namespace_that_was_left_out_and_can_be_listed_again_ends_the_process(namespaced: Process) -> None:
    namespaced.world.forbidden["gone"] = ()
    running = await namespaced.start()
    await until(namespaced.status)
    namespaced.world.forbidden["gone"] = (JOB,)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not namespaced.stop.is_set(), "it would be left out again at once"
    del namespaced.world.forbidden["gone"]
    await running
    assert namespaced.stop.is_set()
    assert not namespaced.holder()


async def test_a_namespace_that_loses_our_role_ends_the_process_which_starts_again_without_it(
    namespaced: Process,
) -> None:
    running = await namespaced.start()
    await until(namespaced.status)
    namespaced.world.fail("list", JOB, Rejected("jobs.batch is forbidden"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not namespaced.stop.is_set(), "an API server that starts refuses for a moment"
    namespaced.world.forbidden["gone"] = ()
    await running
    assert namespaced.stop.is_set()
    assert not namespaced.holder()


async def test_an_operator_that_may_list_none_of_its_namespaces_ends_with_the_servers_words(
    namespaced: Process,
) -> None:
    namespaced.world.forbidden |= {"ml": (), "gone": ()}
    with pytest.raises(Rejected, match='forbidden in the namespace "gone"'):
        await namespaced.mode.discover()


async def test_a_control_loop_that_does_not_move_and_a_pass_that_does_not_end_are_unhealthy(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert process.mode.health_problem() == ""
    process.mode._heartbeat_at -= 1000
    assert "control loop has not moved for 1000 s" in process.mode.health_problem()
    process.mode._heartbeat_at += 1000
    process.mode.queue.add("ml/feed")
    await process.mode.queue.get()
    assert process.mode.health_problem() == ""
    monkeypatch.setattr(kubernetes_mode, "PASS_DEADLINE_S", -1.0)
    assert "a pass has not ended" in process.mode.health_problem()


async def test_the_probe_fails_for_good_when_the_process_is_unhealthy(process: Process) -> None:
    probe = kopf_app._probe(process.mode)
    assert await probe(memo=None) == "well"
    process.mode._heartbeat_at -= 1000
    with pytest.raises(kopf.PermanentError, match="has not moved"):
        await probe(memo=None)


async def test_over_http_the_probe_of_an_unhealthy_process_fails(process: Process) -> None:
    """By kopf's own server, which the chart's livenessProbe asks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/healthz"
    ready = asyncio.Event()
    serving = asyncio.create_task(
        health_reporter(
            url,
            memo=kopf.Memo(),
            indices=OperatorIndexers().indices,
            registry=kopf_app._registry(process.mode, WATCHED),
            settings=kopf_app._settings(WATCHED),
            ready_flag=ready,
        )
    )
    await until(lambda: ready.is_set() or serving.done())
    async with httpx.AsyncClient(trust_env=False) as kubelet:
        process.mode._heartbeat_at -= 1000
        assert (await kubelet.get(url)).status_code >= 500
        process.mode._heartbeat_at += 1000
        assert (await kubelet.get(url)).status_code == 200
    serving.cancel()
    await asyncio.wait({serving})


def test_children_are_selected_by_our_label_on_the_server_and_kopf_writes_no_events() -> None:
    settings = kopf_app._settings(WATCHED)
    selectors = settings.watching.label_selectors
    assert selectors["batch", "v1", "jobs"] == "app.kubernetes.io/managed-by=retrieval-operator"
    assert (RETRIEVAL_MODEL.group, RETRIEVAL_MODEL.version, RETRIEVAL_MODEL.plural) not in selectors
    assert not settings.posting.enabled
    assert settings.scanning.disabled


async def test_the_ports_are_made_from_the_settings() -> None:
    connections = {"default": MlflowConnection(uri="http://mlflow.test:5000", pod_secret="mlflow")}
    settings = Settings(own_namespace="operator", connections=connections)
    mode = KubernetesMode(settings, KubernetesWorld(lambda: NOW))
    async with cluster_ports(mode) as ports:
        assert ports.models is mode.models
        assert await ports.models.keys() == []


@pytest.fixture
def no_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a pod has the name of its namespace, and nothing is."""
    monkeypatch.setattr(own_pod, "_NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.delenv("RETRIEVAL_OPERATOR_OWN_NAMESPACE", raising=False)
    return tmp_path / "namespace"


async def test_in_a_pod_the_lease_is_in_its_own_namespace(no_pod: Path) -> None:
    no_pod.write_text("ops\n")
    world = KubernetesWorld(lambda: NOW)
    mode = KubernetesMode(Settings(), world, ports_of_nothing)
    await mode.discover()
    stop = asyncio.Event()
    running = asyncio.create_task(mode.run(stop))
    await until(lambda: world.objects(LEASE))
    assert world.objects(LEASE)[0]["metadata"]["namespace"] == "ops"
    stop.set()
    await running


@pytest.mark.usefixtures("no_pod")
def test_outside_of_a_pod_no_namespace_is_guessed_for_the_lease(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A guess would be another than that of the chart's operator, and both would act at once."""
    with pytest.raises(InvalidSettings):
        KubernetesMode(Settings(), KubernetesWorld(lambda: NOW))
    named = {"cluster": {"server": "http://127.0.0.1:9"}, "name": "a"}, {"context": {"cluster": "a"}, "name": "a"}
    document = {"clusters": named[:1], "contexts": named[1:], "current-context": "a"}
    (tmp_path / "kubeconfig").write_text(json.dumps(document))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(kubernetes_running, "configure_foreign_logging", lambda: None)  # of the tests' own process
    refused = CliRunner().invoke(app, ["kubernetes", "run"])
    assert refused.exit_code == Exit.USAGE
    assert "RETRIEVAL_OPERATOR_OWN_NAMESPACE: found nothing" in refused.output
    assert "would act at once" in refused.output
