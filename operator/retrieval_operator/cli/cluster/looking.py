"""Objects with all that runs for them, as the API server shows it to this person now.

The operator's own adapters read what it listed, so a status means the same in both. What a person may not list is
left out, and said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache
from retrieval_operator.adapters.kubernetes.children import seconds
from retrieval_operator.adapters.kubernetes.kinds import (
    EVENT,
    INFERENCE_SERVICE,
    JOB,
    POD,
    POD_DISRUPTION_BUDGET,
    PYTORCH_JOB,
    SERVICE,
    Kind,
    Object,
)
from retrieval_operator.adapters.kubernetes.pod_status import condition
from retrieval_operator.adapters.kubernetes.stacks import KubernetesStacks
from retrieval_operator.adapters.kubernetes.traffic import read_traffic
from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads
from retrieval_operator.api.constants import LABEL_MANAGED_BY, LABEL_NAME, MANAGED_BY
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.cli.views import Description, EventView
from retrieval_operator.cli.way import what_next
from retrieval_operator.domain.champion import with_memory
from retrieval_operator.domain.observed import Observed, StackObserved, TrafficObserved
from retrieval_operator.ports import Gone, Rejected

_RUNNING_FOR_IT = (POD, SERVICE, JOB, POD_DISRUPTION_BUDGET, PYTORCH_JOB, INFERENCE_SERVICE)
_OURS = {LABEL_MANAGED_BY: MANAGED_BY}


@dataclass(frozen=True)
class Seen:
    """What runs for objects, and a sentence on each kind that may not be listed."""

    cache: Cache
    problems: Sequence[str]


async def see(
    api: KubernetesApi, namespace: str | None, name: str = "", *, kinds: Sequence[Kind] = _RUNNING_FOR_IT
) -> Seen:
    """Of the object `name`, "" for all of the namespace (None: of every namespace)."""
    cache, problems = Cache(), []
    labels = {**_OURS, LABEL_NAME: name} if name else _OURS
    answers = await asyncio.gather(*(_list(api, kind, namespace, labels) for kind in kinds))
    for kind, answer in zip(kinds, answers, strict=True):
        if isinstance(answer, str):
            problems.append(answer)
            continue
        for obj in answer:
            cache.put(kind, obj)
    return Seen(cache, problems)


async def look(
    api: KubernetesApi, model: RetrievalModel, now: int, *, seen: Seen | None = None, with_events: bool = False
) -> Description:
    """All that `status` and `describe` show of the object, which only the latter shows events of.

    `seen` may have been listed for many; None: it is listed for this one.
    """
    namespace = model.metadata.namespace
    seen = seen or await see(api, namespace, model.metadata.name)
    cache, problems = seen.cache, list(seen.problems)
    events: list[EventView] = []
    traffic = TrafficObserved()
    stacks: Mapping[str, StackObserved] = {}
    try:
        events = await _events(api, model) if with_events else []
    except Rejected as error:
        problems.append(str(error))
    try:
        traffic = read_traffic(cache, model, now)
        stacks = await KubernetesStacks(api, cache, lambda: now, images={}).observe(model)
    except Rejected as error:
        problems.append(str(error))
    workloads = await KubernetesWorkloads(api, cache, lambda: now, images={}, reporting={}).observe(model)
    return Description(
        model=model,
        why=what_next(model, now),
        events=events,
        workloads=workloads,
        pods=_pods(cache, model),
        stacks=stacks,
        former=_former(model, traffic, stacks),
        logs=f"kubectl --namespace {namespace} logs job/NAME (of a PyTorchJob: pod/NAME-master-0)",
        attention="; ".join(f"not shown: {problem}" for problem in problems),
    )


async def former_stack(api: KubernetesApi, model: RetrievalModel, now: int) -> str:
    """The stack that was live before, as the traffic remembers it; "" for none, or when that cannot be read."""
    seen = await see(api, model.metadata.namespace, model.metadata.name, kinds=(SERVICE,))
    try:
        return _former(model, read_traffic(seen.cache, model, now), {})
    except Rejected:
        return ""


def _former(model: RetrievalModel, traffic: TrafficObserved, stacks: Mapping[str, StackObserved]) -> str:
    """With what only the status knows of it, as the operator does."""
    return with_memory(model, Observed(traffic=traffic, stacks=stacks)).traffic.previous


async def _list(api: KubernetesApi, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Object] | str:
    """The objects; none of a kind that is not installed. A refusal is its sentence."""
    try:
        return await api.list(kind, namespace, labels)
    except Gone:
        return []
    except Rejected as error:
        return str(error)


def _pods(cache: Cache, model: RetrievalModel) -> dict[str, tuple[int, int]]:
    """(ready, all) of each workload that has pods."""
    found: dict[str, tuple[int, int]] = {}
    for kind in (JOB, PYTORCH_JOB):
        for obj in cache.children(kind, model.metadata.namespace, model.metadata.uid):
            pods = cache.children(POD, model.metadata.namespace, obj["metadata"]["uid"])
            ready = sum(condition(pod, "Ready").get("status") == "True" for pod in pods)
            if pods:
                found[obj["metadata"]["name"]] = (ready, len(pods))
    return found


async def _events(api: KubernetesApi, model: RetrievalModel) -> list[EventView]:
    """What the operator told about this very object, oldest first."""
    told = await api.list(EVENT, model.metadata.namespace, _OURS)
    views = [
        EventView(
            type=event["type"],
            reason=event["reason"],
            message=event["message"],
            count=int(event.get("count") or 1),
            last_at=seconds(event["lastTimestamp"]),
        )
        for event in told
        if event["involvedObject"].get("uid") == model.metadata.uid
    ]
    return sorted(views, key=lambda event: event.last_at)
