"""The life of an operator process in a cluster, over the in-memory API server. Over a real one: tests/e2e/operator."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import httpx
import kopf
import pytest
from controller_examples import NOW
from kopf._core.engines.indexing import OperatorIndexers
from kopf._core.engines.probing import health_reporter
from kubernetes_world import KubernetesWorld
from mode_process import MODEL, Process, until

from retrieval_operator import kopf_app, kubernetes_mode
from retrieval_operator.adapters.kubernetes.feed import WATCHED
from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, JOB, PYTORCH_JOB, RETRIEVAL_MODEL
from retrieval_operator.kubernetes_mode import KubernetesMode, cluster_ports
from retrieval_operator.ports import Rejected, Retryable
from retrieval_operator.settings import MlflowConnection, Settings


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


async def test_our_own_definition_is_waited_for_and_those_of_others_are_not(process: Process) -> None:
    world = process.world
    for kind in (RETRIEVAL_MODEL, INFERENCE_SERVICE, PYTORCH_JOB):
        world.uninstall(kind)
    discovering = asyncio.create_task(process.mode.discover())
    await until(lambda: world.requests.count(("list", "RetrievalModel", "")) > 2)
    assert not discovering.done()
    world._missing_kinds.discard(RETRIEVAL_MODEL)
    assert await discovering == [kind for kind in WATCHED if kind not in (INFERENCE_SERVICE, PYTORCH_JOB)]


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
