"""Who acts, since when, and until when: the Lease, and what stopping does to the pass under way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from controller_examples import NOW
from kubernetes_world import KubernetesWorld
from mode_process import MODEL, Process, ports_of_nothing, until
from typer.testing import CliRunner

from retrieval_operator import kubernetes_mode
from retrieval_operator.adapters.kubernetes import lease, own_pod
from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, LEASE
from retrieval_operator.adapters.kubernetes.lease import LeaseLost
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.cli import app, kubernetes_running
from retrieval_operator.cli.exits import Exit
from retrieval_operator.kubernetes_mode import KubernetesMode
from retrieval_operator.perform import Ports
from retrieval_operator.settings import InvalidSettings, Settings
from retrieval_operator.telemetry import LEADER


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


@pytest.fixture
def slow_pass() -> SlowPass:
    return SlowPass()


@pytest.fixture
def busy(slow_pass: SlowPass) -> Process:
    """Its first pass is slow."""
    world = KubernetesWorld(lambda: NOW)
    world.put(MODEL)
    return Process(world, make_ports=slow_pass.ports)


@pytest.fixture
def no_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a pod has the name of its namespace, and nothing is."""
    monkeypatch.setattr(own_pod, "_NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.delenv("RETRIEVAL_OPERATOR_OWN_NAMESPACE", raising=False)
    return tmp_path / "namespace"


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


async def test_a_definition_that_came_while_we_waited_for_the_lease_ends_the_process(process: Process) -> None:
    process.world.uninstall(INFERENCE_SERVICE)
    await process.mode.discover()
    process.world._missing_kinds.clear()
    await process.mode.run(process.stop)
    assert process.stop.is_set()
    assert not process.holder()


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
