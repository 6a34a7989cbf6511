"""The watches of the cluster and the life of the process, by kopf. The only module that imports it.

kopf is used for what it does best (watch streams that survive everything) and writes nothing: `on.event` needs no
finalizer and leaves no annotation. Each event goes to the feed; everything else is kubernetes_mode's.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import kopf

from retrieval_operator.adapters.kubernetes.feed import labels_of
from retrieval_operator.adapters.kubernetes.kinds import Kind
from retrieval_operator.kubernetes_mode import KubernetesMode

# The server ends a watch after 30 to 60 minutes, unless asked otherwise; each end is a request. It tells a bookmark
# every minute: three of them missing, and the connection is taken for dead.
_WATCH_S = 600  # an integer: the API server refuses 600.0
_SILENCE_S = 200.0


async def serve(mode: KubernetesMode) -> None:
    """Be the operator until SIGTERM or SIGINT: then end in good order. Raises what ended it otherwise."""
    stop, ready, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    _stop_on_signals(stop)  # at once: what is PID 1 and has no handlers is deaf to them, and discovering may take long
    kinds = await _discover(mode, stop)
    if kinds is None:
        return
    # Started before kopf: what is started after it, kopf cancels when it ends.
    control = asyncio.create_task(_control(mode, stop, ready, ended))
    port = mode.settings.probe_port
    try:
        await kopf.operator(
            registry=_registry(mode, kinds),
            settings=_settings(kinds),
            standalone=True,
            clusterwide=not mode.feed.namespaces,
            namespaces=mode.feed.namespaces,
            liveness_endpoint=f"http://0.0.0.0:{port}/healthz" if port else None,
            ready_flag=ready,
            stop_flag=ended,
        )
    finally:
        # kopf ends by itself only on a defect, or a signal before it was ready.
        control.cancel()
        await asyncio.wait({control})
    if not control.cancelled():
        control.result()


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _discover(mode: KubernetesMode, stop: asyncio.Event) -> Sequence[Kind] | None:
    """The kinds to watch; None when told to stop before they were known."""
    discovering = asyncio.create_task(mode.discover())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({discovering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else discovering.result()
    finally:
        for task in (discovering, stopping):
            task.cancel()
        await asyncio.wait({discovering, stopping})


async def _control(mode: KubernetesMode, stop: asyncio.Event, ready: asyncio.Event, ended: asyncio.Event) -> None:
    """Run the control plane while kopf watches, and let kopf end after it."""
    try:
        await ready.wait()
        _stop_on_signals(stop)  # in place of kopf's, which would cut the passes
        await mode.run(stop)
    finally:
        ended.set()


def _registry(mode: KubernetesMode, kinds: Sequence[Kind]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    kopf.on.probe(registry=registry, id="heartbeat")(_probe(mode))
    for kind in kinds:
        watch = kopf.on.event(
            group=kind.group, version=kind.version, plural=kind.plural, id=f"hear-{kind.plural}", registry=registry
        )
        watch(_hear(mode, kind))
    return registry


def _hear(mode: KubernetesMode, kind: Kind) -> Any:
    async def hear(event: Any, **_: Any) -> None:
        if event["type"] is None:
            mode.relisted()
        mode.feed.hear(kind, event["type"], event["object"])

    return hear


def _probe(mode: KubernetesMode) -> Any:
    async def probe(**_: Any) -> str:
        problem = mode.health_problem()
        if problem:
            raise kopf.PermanentError(problem)
        return "well"

    return probe


async def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """As client.py does: KUBECONFIG or the pod's service account, else ~/.kube/config."""
    if not os.environ.get("KUBECONFIG") and (account := kopf.login_with_service_account(**kwargs)):
        return account
    return kopf.login_with_kubeconfig(**kwargs)


def _settings(kinds: Sequence[Kind]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # kubernetes_mode finds out what is installed, without rights on definitions
    settings.watching.server_timeout = _WATCH_S
    settings.watching.inactivity_timeout = _SILENCE_S
    for kind in kinds:
        labels = labels_of(kind)
        if labels:
            selector = ",".join(f"{key}={value}" for key, value in labels.items())
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = selector
    return settings
