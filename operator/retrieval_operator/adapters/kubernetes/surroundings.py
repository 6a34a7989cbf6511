"""What must be in a cluster before work can succeed, and what keeps work that was started from running.

Two kinds of problems. Known beforehand: definitions that are not installed, claims that are missing, an address that
is somebody else's; they hold work back. Seen on work under way: quota, PodSecurity, a missing image or Secret; they are
told, the cluster itself tries again. So are a pod on a lost node, for which it does not, and a stack that is left out
since what it is cannot be read. Whether a Secret exists can only be seen so: nobody but the pods may read it, not
even its name.

    known from the cache      definitions (is their kind watched?), pods that wait or are lost, records of stacks
    asked for, and kept       claims by name; who has the name of the stable Service, only while the object has none;
                              the namespace's events, only while an attempt has fewer pods than it wants, or a pod of it
                              or of a stack waits for its volumes
    asked for each time       whether the namespace goes, only of an object that is being deleted

What is asked for only informs, and what must be repaired is in the cache: no pass ends for an answer that cannot be had
(429, 5xx), nor waits for it longer than a moment, and that once in a while. The last answer counts on; without one work
is held back as by a registry that is away, for what is not known to be there is not there either.

KServe's default mode is not looked at: every InferenceService of ours says itself that it is a Standard one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import filterfalse
from typing import Any

import structlog

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache
from retrieval_operator.adapters.kubernetes.children import is_going, seconds, taken
from retrieval_operator.adapters.kubernetes.kinds import (
    EVENT,
    INFERENCE_SERVICE,
    JOB,
    NAMESPACE,
    PERSISTENT_VOLUME_CLAIM,
    POD,
    PYTORCH_JOB,
    SERVICE,
    Object,
)
from retrieval_operator.adapters.kubernetes.pod_status import containers, first_lack, first_lost
from retrieval_operator.adapters.kubernetes.pods import storage_problem
from retrieval_operator.adapters.kubernetes.refusals import refusals
from retrieval_operator.adapters.kubernetes.servers import pods_by_stack
from retrieval_operator.adapters.kubernetes.services import stack_name
from retrieval_operator.adapters.kubernetes.stacks import unreadable_stacks
from retrieval_operator.adapters.kubernetes.traffic import stable_service_of
from retrieval_operator.adapters.kubernetes.workloads import has_ended, needs_pytorch_job
from retrieval_operator.api.constants import LABEL_STACK
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.identity import HASH_CHARS
from retrieval_operator.domain.observed import Problem
from retrieval_operator.ports import Rejected, Retryable

log = structlog.get_logger(__name__)

# An answer is kept so long: a step that waits for a dependency looks every 10 s, and people mend things in minutes.
_KEPT_S = 30
# Controllers make pods within a second or two, and kubelets mount volumes within some seconds more. A gut feeling.
_PATIENCE_S = 60

# So long an answer counts on while no newer one can be had. A gut feeling: longer than an API server takes to start.
_COUNTS_ON_S = 300
# A pass waits for an answer at most so long: a baking champion that fails has to go within its grace of 30 s. A gut
# feeling; a listing of thousands of events takes a second or two.
ANSWER_DEADLINE_S = 5.0

_HOST_LABEL_MAX = 63  # RFC 1123

_HIDDEN: Object = {}  # what this operator may not see
_NOT_KNOWN: Object = {}  # what no answer was had about


@dataclass(frozen=True)
class _Answer:
    """`what` the API server said at `known_at`. `is_late`: asked again, at `asked_at`, it gave no answer."""

    what: Any
    known_at: int
    asked_at: int
    is_late: bool = False


class KubernetesSurroundings:
    """Fills the port Surroundings. Only looks. `clock` gives seconds since the epoch."""

    def __init__(
        self, api: KubernetesApi, cache: Cache, clock: Callable[[], int], *, deadline_s: float = ANSWER_DEADLINE_S
    ) -> None:
        """`deadline_s` is for each answer; those that a pass needs are asked for at the same time."""
        self._api = api
        self._cache = cache
        self._clock = clock
        self._deadline_s = deadline_s
        self._answers: dict[tuple[str, ...], _Answer] = {}

    async def problems(self, model: RetrievalModel) -> Sequence[Problem]:
        namespace, storage, address, refused = await asyncio.gather(
            self._namespace(model), self._storage(model), self._address(model), self._refused(model)
        )
        return [
            *namespace,
            *self._definitions(model),
            *storage,
            *address,
            *self._waiting(model),
            *self._unreadable(model),
            *refused,
        ]

    async def storage_id(self, model: RetrievalModel) -> str:
        """The claim's UID; "" without a claim, and of one that is not there, not known, or not to be seen."""
        name = model.spec.storage.persistent_volume_claim
        claim = await self._claim(model, name) if name is not None else None
        return str(claim.get("metadata", {}).get("uid", "")) if claim else ""

    async def _namespace(self, model: RetrievalModel) -> list[Problem]:
        """An object that is being deleted may need a Job for its files, which a namespace that goes does not take."""
        if model.metadata.deletion_timestamp is None:
            return []
        name = model.metadata.namespace
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._api.get(NAMESPACE, None, name)
        except (Rejected, Retryable, TimeoutError):  # one that is not known to go stays: else its files would be left
            return []
        if found is None or "deletionTimestamp" not in found["metadata"]:
            return []
        return [Problem(dependency="namespace", message=f"namespace {name} is being deleted")]

    def _definitions(self, model: RetrievalModel) -> Iterator[Problem]:
        if needs_pytorch_job(model) and not self._cache.is_watched(PYTORCH_JOB):
            yield Problem(
                dependency="trainingOperator",
                message="this cluster has no PyTorchJob (kubeflow.org/v1); install the Kubeflow training-operator 1.9, "
                "or set training.backend: Job for a training on one node",
            )
        if not self._cache.is_watched(INFERENCE_SERVICE):
            yield Problem(
                dependency="kserve",
                message="this cluster has no InferenceService (serving.kserve.io/v1beta1); install KServe 0.20",
            )
        too_long = _too_long_for_kserve(model)
        if too_long:
            yield Problem(dependency="kserve", message=too_long, holds_back=False)

    async def _storage(self, model: RetrievalModel) -> list[Problem]:
        unmountable = storage_problem(model.spec.storage)
        problems = [Problem(dependency="storage", message=unmountable)] if unmountable else []
        namespace, claims = model.metadata.namespace, _claims(model)
        found = await asyncio.gather(*(self._claim(model, name) for name in claims))
        for (name, path), claim in zip(claims.items(), found, strict=True):
            problem = _claim_problem(f"{path}: PersistentVolumeClaim {namespace}/{name}", claim)
            problems += [problem] if problem else []
        return problems

    async def _claim(self, model: RetrievalModel, name: str) -> Any:
        """Asked for anew for an object that was made again: the claim may have been, too."""
        namespace = model.metadata.namespace
        ask = partial(self._api.get, PERSISTENT_VOLUME_CLAIM, namespace, name)
        return await self._kept(("claim", namespace, name, model.metadata.uid), ask)

    async def _address(self, model: RetrievalModel) -> list[Problem]:
        """Whether the name of the stable Service can be had: to know it before the training, not after it."""
        will_need_it = not model.spec.suspend and model.metadata.deletion_timestamp is None
        if not will_need_it or stable_service_of(self._cache, model) is not None:
            return []
        namespace, name = model.metadata.namespace, model.metadata.name
        ask = partial(self._api.get, SERVICE, namespace, name)
        found = await self._kept(("service", namespace, name, model.metadata.uid), ask)
        if found is _NOT_KNOWN:
            return [Problem(dependency="address", message=_not_known(f"Service {namespace}/{name}"))]
        why = taken(model, found) if found else None
        return [Problem(dependency="address", message=str(why))] if isinstance(why, Rejected) else []

    def _waiting(self, model: RetrievalModel) -> Iterator[Problem]:
        for attempt in self._under_way(model):
            pods = self._pods(attempt)
            lack = first_lack(pods)
            if lack is not None:
                yield Problem(dependency=lack.dependency, message=lack.message, holds_back=False)
            # Nothing may write beside it, so the attempt waits for it: until its deadline, if nobody is told.
            lost = first_lost(pods, self._clock())
            if lost:
                yield Problem(dependency="program", message=lost, holds_back=False)

    def _unreadable(self, model: RetrievalModel) -> Iterator[Problem]:
        for sentence in unreadable_stacks(self._cache, model):
            yield Problem(dependency="address", message=sentence, holds_back=False, keeps_files=True)

    async def _refused(self, model: RetrievalModel) -> list[Problem]:
        """What the events say of pods that are not made, or do not start, for too long."""
        stuck = {uid: attempt for attempt in self._under_way(model) for uid in self._stuck(attempt)}
        stuck |= {uid: server for server, pods in self._servers(model) for uid in self._creating(pods)}
        if not stuck:
            return []
        namespace = model.metadata.namespace
        events = await self._kept(("events", namespace), partial(self._api.list, EVENT, namespace, {}))
        return refusals(events, stuck)

    def _under_way(self, model: RetrievalModel) -> Iterator[Object]:
        """Attempts that should run; not those that a queue (Kueue) holds."""
        for kind in (JOB, PYTORCH_JOB):
            for attempt in self._cache.children(kind, model.metadata.namespace, model.metadata.uid):
                policy = attempt["spec"].get("runPolicy", attempt["spec"])
                if not (has_ended(attempt) or policy.get("suspend")):
                    yield attempt

    def _servers(self, model: RetrievalModel) -> Iterator[tuple[Object, Iterable[Object]]]:
        """The InferenceServices of stacks that stay, each with those of its pods that do."""
        pods = pods_by_stack(self._cache, model)
        servers = self._cache.children(INFERENCE_SERVICE, model.metadata.namespace, model.metadata.uid)
        for server in filterfalse(is_going, servers):
            stack = server["metadata"].get("labels", {}).get(LABEL_STACK)
            yield server, filterfalse(is_going, pods.get(stack, ()))

    def _pods(self, attempt: Object) -> list[Object]:
        return self._cache.children(POD, attempt["metadata"]["namespace"], attempt["metadata"]["uid"])

    def _stuck(self, attempt: Object) -> Iterator[str]:
        """UIDs of what events could explain: the attempt, when pods are missing; pods that wait for their volumes."""
        pods = self._pods(attempt)
        if len(pods) < _wanted_pods(attempt) and self._is_old(attempt):
            yield attempt["metadata"]["uid"]
        yield from self._creating(pods)

    def _creating(self, pods: Iterable[Object]) -> Iterator[str]:
        """UIDs of pods that a node has and that do not start for too long."""
        for pod in pods:
            reasons = {container.get("state", {}).get("waiting", {}).get("reason", "") for container in containers(pod)}
            if reasons & {"ContainerCreating", "PodInitializing"} and self._is_old(pod):
                yield pod["metadata"]["uid"]

    def _is_old(self, obj: Object) -> bool:
        return self._clock() - seconds(obj["metadata"]["creationTimestamp"]) >= _PATIENCE_S

    async def _kept(self, key: tuple[str, ...], ask: Callable[[], Awaitable[Any]]) -> Any:
        """The answer, of now or of the last _KEPT_S; _HIDDEN for what this operator may not see.

        One that cannot be had is not waited for so long, either: the last one counts on, or _NOT_KNOWN.
        """
        now = self._clock()
        known = self._answers.items()
        self._answers = {kept: answer for kept, answer in known if 0 <= now - answer.known_at < _COUNTS_ON_S}
        before = self._answers.get(key)
        if before is not None and 0 <= now - before.asked_at < _KEPT_S:
            return before.what
        found = await self._asked(key, ask, before or _Answer(_NOT_KNOWN, now, now), now)
        meanwhile = self._answers.get(key)  # events are those of a namespace: the pass of another object asks, too
        if not found.is_late or meanwhile is None or meanwhile is before or meanwhile.is_late:
            self._answers[key] = found
        return self._answers[key].what

    async def _asked(
        self, key: tuple[str, ...], ask: Callable[[], Awaitable[Any]], before: _Answer, now: int
    ) -> _Answer:
        try:
            async with asyncio.timeout(self._deadline_s):
                return _Answer(await ask(), now, now)
        except Rejected:
            return _Answer(_HIDDEN, now, now)
        except (Retryable, TimeoutError) as error:
            if not before.is_late:
                why = str(error) or f"no answer within {self._deadline_s:.0f} s"
                log.warning("going on without an answer of the API server", about=" ".join(key), error=why)
            return replace(before, asked_at=now, is_late=True)


def _too_long_for_kserve(model: RetrievalModel) -> str:
    """Why KServe will serve no stack of this object, as a sentence; "" when it will.

    It makes a host name for each, also for one that nobody asks at it, by its domainTemplate (KServe 0.20,
    reconcilers/raw/raw_kube_reconciler.go). Its default is looked at; an administrator may have set another one.
    """
    name, namespace = model.metadata.name, model.metadata.namespace
    excess = len(f"{stack_name(model, HASH_CHARS * '0')}-predictor-{namespace}") - _HOST_LABEL_MAX
    if excess <= 0:
        return ""
    most = len(name) + len(namespace) - excess
    return (
        f"name and namespace have {len(name) + len(namespace)} characters together; unless KServe has another "
        f"domainTemplate than its default, it makes no host name of more than {most}, and so starts no server: make "
        "the object under a shorter name, or in another namespace"
    )


def _claims(model: RetrievalModel) -> dict[str, str]:
    """The claims that pods of this object mount, each with a field that names it."""
    spec = model.spec
    claims: dict[str, str] = {}
    if spec.storage.persistent_volume_claim is not None:
        claims[spec.storage.persistent_volume_claim] = "storage.persistentVolumeClaim"
    pods = {"training": spec.training.pod, "index": spec.index.pod}
    pods |= {"evaluation": spec.evaluation.pod, "serving": spec.serving.pod}
    for name, pod in pods.items():
        for volume in pod.volumes:
            if volume.persistent_volume_claim is not None:
                claims.setdefault(volume.persistent_volume_claim, f"{name}.pod.volumes")
    return claims


def _claim_problem(what: str, claim: Object | None) -> Problem | None:
    """One that is Pending is none: it may wait for its first pod, and that pod says so if it waits for more."""
    if claim is _NOT_KNOWN:
        return Problem(dependency="storage", message=_not_known(what))
    if claim is None:
        return Problem(dependency="storage", message=f"{what} does not exist; create it or correct the name")
    if "deletionTimestamp" in claim.get("metadata", {}):
        return Problem(dependency="storage", message=f"{what} is being deleted; name another one")
    if claim.get("status", {}).get("phase") == "Lost":
        return Problem(dependency="storage", message=f"{what} has lost its volume; restore it or name another one")
    return None


def _not_known(what: str) -> str:
    """Always the same words: a status is written when it changes."""
    return f"{what} could not be looked up, the API server gives no answer; it is asked again every {_KEPT_S} s"


def _wanted_pods(attempt: Object) -> int:
    spec = attempt["spec"]
    if "pytorchReplicaSpecs" in spec:
        return sum(replicas.get("replicas", 1) for replicas in spec["pytorchReplicaSpecs"].values())
    return int(spec.get("parallelism", 1))
