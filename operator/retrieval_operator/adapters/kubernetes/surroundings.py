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

KServe's default mode is not looked at: every InferenceService of ours says itself that it is a Standard one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import filterfalse
from typing import Any

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
from retrieval_operator.adapters.kubernetes.stacks import unreadable_stacks
from retrieval_operator.adapters.kubernetes.traffic import stable_service_of
from retrieval_operator.adapters.kubernetes.workloads import has_ended, needs_pytorch_job
from retrieval_operator.api.constants import LABEL_STACK
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.observed import Problem
from retrieval_operator.ports import Rejected

# An answer is kept so long: a step that waits for a dependency looks every 10 s, and people mend things in minutes.
_KEPT_S = 30
# Controllers make pods within a second or two, and kubelets mount volumes within some seconds more. A gut feeling.
_PATIENCE_S = 60

_UNKNOWN: Object = {}


class KubernetesSurroundings:
    """Fills the port Surroundings. Only looks. `clock` gives seconds since the epoch."""

    def __init__(self, api: KubernetesApi, cache: Cache, clock: Callable[[], int]) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._answers: dict[tuple[str, ...], tuple[int, Any]] = {}

    async def problems(self, model: RetrievalModel) -> Sequence[Problem]:
        return [
            *await self._namespace(model),
            *self._definitions(model),
            *await self._storage(model),
            *await self._address(model),
            *self._waiting(model),
            *self._unreadable(model),
            *await self._refused(model),
        ]

    async def storage_id(self, model: RetrievalModel) -> str:
        """The claim's UID; "" without a claim, while it is not there, or where this operator may not see it."""
        name = model.spec.storage.persistent_volume_claim
        claim = await self._claim(model, name) if name is not None else None
        return str(claim.get("metadata", {}).get("uid", "")) if claim else ""

    async def _namespace(self, model: RetrievalModel) -> list[Problem]:
        """An object that is being deleted may need a Job for its files, which a namespace that goes does not take."""
        if model.metadata.deletion_timestamp is None:
            return []
        name = model.metadata.namespace
        try:
            found = await self._api.get(NAMESPACE, None, name)
        except Rejected:  # as everything else that this operator may not see
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

    async def _storage(self, model: RetrievalModel) -> list[Problem]:
        unmountable = storage_problem(model.spec.storage)
        problems = [Problem(dependency="storage", message=unmountable)] if unmountable else []
        namespace = model.metadata.namespace
        for name, path in _claims(model).items():
            claim = await self._claim(model, name)
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
        why = taken(model, found) if found else None
        return [Problem(dependency="address", message=str(why))] if isinstance(why, Rejected) else []

    def _waiting(self, model: RetrievalModel) -> Iterator[Problem]:
        for attempt in self._under_way(model):
            pods = self._cache.children(POD, attempt["metadata"]["uid"])
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
            for attempt in self._cache.children(kind, model.metadata.uid):
                policy = attempt["spec"].get("runPolicy", attempt["spec"])
                if not (has_ended(attempt) or policy.get("suspend")):
                    yield attempt

    def _servers(self, model: RetrievalModel) -> Iterator[tuple[Object, Iterable[Object]]]:
        """The InferenceServices of stacks that stay, each with those of its pods that do."""
        pods = pods_by_stack(self._cache, model)
        for server in filterfalse(is_going, self._cache.children(INFERENCE_SERVICE, model.metadata.uid)):
            stack = server["metadata"].get("labels", {}).get(LABEL_STACK)
            yield server, filterfalse(is_going, pods.get(stack, ()))

    def _stuck(self, attempt: Object) -> Iterator[str]:
        """UIDs of what events could explain: the attempt, when pods are missing; pods that wait for their volumes."""
        pods = self._cache.children(POD, attempt["metadata"]["uid"])
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
        """The answer, of now or of the last _KEPT_S; _UNKNOWN for what this operator may not see."""
        now = self._clock()
        self._answers = {kept: (at, what) for kept, (at, what) in self._answers.items() if 0 <= now - at < _KEPT_S}
        if key not in self._answers:
            try:
                self._answers[key] = (now, await ask())
            except Rejected:
                self._answers[key] = (now, _UNKNOWN)
        return self._answers[key][1]


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
    if claim is None:
        return Problem(dependency="storage", message=f"{what} does not exist; create it or correct the name")
    if "deletionTimestamp" in claim.get("metadata", {}):
        return Problem(dependency="storage", message=f"{what} is being deleted; name another one")
    if claim.get("status", {}).get("phase") == "Lost":
        return Problem(dependency="storage", message=f"{what} has lost its volume; restore it or name another one")
    return None


def _wanted_pods(attempt: Object) -> int:
    spec = attempt["spec"]
    if "pytorchReplicaSpecs" in spec:
        return sum(replicas.get("replicas", 1) for replicas in spec["pytorchReplicaSpecs"].values())
    return int(spec.get("parallelism", 1))
