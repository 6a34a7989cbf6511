"""observe -> decide -> perform -> write status -> requeue. No question about the business is answered here.

One pass may be cut anywhere and repeated: every action is idempotent, and the status states only what was observed.
What ends a pass, and when the next one comes:

    settled      nothing was done                                plan.requeue_after_s, or (4)
    acted        something was done                              at once: its effect has to be observed
    repeated     the very same actions as in the pass before     backed off (2): the world has not followed yet
    stale        somebody was faster (Stale), or what it needs
                 is being deleted, such as a namespace (Gone)    at once, then backed off
    delayed      a port said "not now" (Retryable)               backed off (2); what came after it was not tried (1, 3)
    refused      a port said "never" (Rejected)                  backed off (1, 2, 3)
    gone         the object does not exist any more              never
    crashed      anything else, a defect                         backed off

(1) The registry is a record for people, so its trouble skips only the other actions on the registry: serving goes on.
    A pass does not wait long for the registry's part of what it observes either: what is late counts as trouble.
(2) While the champion does not serve, at plan.requeue_after_s if that is earlier, though not within 5 s: what the plan
    waits for then is a rollback or a repair, which must not come late because something else is refused. What is
    refused as the repair itself is backed off.
(3) The other actions go on, unless they rely on it (`trouble`): a repair that a quota forbids must not keep a mended
    image from its rollout. What serves relies on nothing and is tried in any case. People read the reason in an Event,
    and decisions in the next pass's problems; of what is put off they hear when that lasts.
(4) About every hour, an object at a time: nobody tells of an alias that somebody moved in MLflow, nor of a clock that
    was set while a schedule's timer ran.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retrieval_operator.api.conditions import ConditionType, Reason
from retrieval_operator.api.constants import MESSAGE_MAX_CHARS
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.conditions import not_looked_after
from retrieval_operator.domain.observed import Observed, Problem, RegistryObserved
from retrieval_operator.domain.plan import Action, EmitEvent, Plan
from retrieval_operator.perform import REGISTRY_ACTIONS, Ports, perform
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale
from retrieval_operator.telemetry import PassRecord, measured
from retrieval_operator.trouble import Trouble, Troubles
from retrieval_operator.work_queue import QueueStopped, WorkQueue

Decide = Callable[[RetrievalModel, Observed, int], Plan]
Clock = Callable[[], int]
Moment = Literal["before", "after"]
OnAction = Callable[[Moment, Action], None]
Outcome = Literal["settled", "acted", "repeated", "stale", "delayed", "refused", "gone", "crashed"]

# A pass that hangs must not hold its object for ever. A gut feeling: draining a stack is the longest port call.
PASS_DEADLINE_S = 300.0
# What a pass waits for its view of the registry, so that repairs and rollbacks are not late for it; the adapter goes on
# where it was cut. A gut feeling: after a restart an object with thousands of runs may need several such looks.
REGISTRY_DEADLINE_S = 30
# How often a champion that does not serve is looked at whatever is refused meanwhile; the bake check's grace is 30 s.
_SERVING_EVERY_S = 5.0
# What is put off in so many passes in a row is told: with the queue's back-off that is trouble of more than 5 s.
_LASTING_PASSES = 4
# How often a settled object is looked at, and by how much the objects' turns differ at most, so that they do not all
# come at once. A hundred objects cost the API server a request in half a minute.
_SETTLED_EVERY_S = 3600.0
_SETTLED_SPREAD_S = 600.0


def ignore_action(_moment: Moment, _action: Action) -> None:
    """The default of `on_action`."""


@dataclass(frozen=True)
class PassResult:
    outcome: Outcome
    requeue_after_s: float | None = None  # of a settled pass; of one that is backed off: at the latest


@dataclass(frozen=True)
class RegistryView:
    """The registry as of one poll. `asked` is what people had asked for by then: a change makes the view too old."""

    observed: RegistryObserved
    polled_at: int
    asked: tuple[object, ...]


class Controller:
    """Reconciles objects by key. Remembers only what may be lost: the last registry view, actions and refusals."""

    def __init__(
        self,
        ports: Ports,
        decide: Decide,
        clock: Clock,
        *,
        registry_poll_s: int = 30,
        pass_deadline_s: float = PASS_DEADLINE_S,
        registry_deadline_s: int = REGISTRY_DEADLINE_S,
        on_action: OnAction = ignore_action,
    ) -> None:
        """`clock` gives seconds since the epoch. `on_action` is called around each action; it may end the pass."""
        self._ports = ports
        self._decide = decide
        self._clock = clock
        self._registry_poll_s = registry_poll_s
        self._pass_deadline_s = pass_deadline_s
        self._registry_deadline_s = registry_deadline_s
        self._on_action = on_action
        self._registry_views: dict[str, RegistryView] = {}
        self._last_actions: dict[str, Sequence[Action]] = {}
        self._refusals: dict[str, Sequence[Problem]] = {}
        self._put_off: dict[str, int] = {}  # in how many passes in a row

    async def work(self, queue: WorkQueue, workers: int) -> None:
        """Reconcile keys of the queue until it is stopped; returns when the passes under way have ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(queue))

    async def _worker(self, queue: WorkQueue) -> None:
        while True:
            try:
                key = await queue.get()
            except QueueStopped:
                return
            try:
                _requeue(queue, key, await self.reconcile(key))
            finally:
                queue.done(key)

    async def reconcile(self, key: str) -> PassResult:
        """One pass. What ports raise, and any defect, ends in the result, the log and the metrics, never in a raise."""
        with measured(PassRecord(key)) as record:
            try:
                result = await self._pass_in_time(key, record)
            except Gone as error:
                if await self._exists(key):
                    result, record.error = PassResult("stale"), error
                else:
                    result = PassResult("gone")
            except Stale as error:
                result, record.error = PassResult("stale"), error
            except (Retryable, Rejected) as error:
                result, record.error = _troubled(error), error
            except Exception as error:  # the boundary: one object's defect must not end the control plane
                result, record.error = PassResult("crashed"), error
            if result.outcome == "gone":
                self._forget(key)
            record.outcome = result.outcome
        return result

    async def preview(self, model: RetrievalModel) -> tuple[Observed, Plan]:
        """What a pass would see and do now, however long that takes. Nothing is performed or written."""
        observed = await self._observe(model)
        return observed, self._decide(model, observed, self._clock())

    async def _exists(self, key: str) -> bool:
        """False only when that is known."""
        try:
            return await self._ports.models.get(key) is not None
        except PortError:
            return True

    async def _pass_in_time(self, key: str, record: PassRecord) -> PassResult:
        try:
            async with asyncio.timeout(self._pass_deadline_s):
                return await self._pass(key, record)
        except TimeoutError as error:
            raise Retryable(f"the pass took longer than {self._pass_deadline_s:.0f} s and was cut") from error

    async def _pass(self, key: str, record: PassRecord) -> PassResult:
        model = await self._ports.models.get(key)
        if model is None:
            return PassResult("gone")
        record.about(model.status)
        refused_before = self._refusals.pop(key, ())
        try:
            observed = await self._observe(model, self._registry_deadline_s)
        except Rejected as error:
            await self._tell_unreadable(model, error)
            raise
        observed = replace(observed, problems=(*observed.problems, *refused_before))
        now = self._clock()
        plan = self._decide(model, observed, now)
        record.about(plan.status)
        trouble = await self._perform(model, plan, now, record)
        if plan.status.document() != model.status.document():
            await self._ports.models.write_status(model, plan.status)
            record.wrote_status = True
        self._tell_what_lasts(key, trouble)
        if trouble is not None:
            record.error = trouble.error
            return _troubled(trouble.error, None if trouble.of_serving else _at_the_latest(plan))
        return self._result(key, plan, is_old=bool(refused_before))

    async def _observe(self, model: RetrievalModel, registry_deadline_s: int | None = None) -> Observed:
        workloads, stacks, traffic, problems, registry = await asyncio.gather(
            self._ports.workloads.observe(model),
            self._ports.stacks.observe(model),
            self._ports.traffic.observe(model),
            self._ports.surroundings.problems(model),
            self._observe_registry(model, registry_deadline_s),
        )
        unreachable = [registry] if isinstance(registry, Problem) else []
        return Observed(
            workloads=tuple(workloads),
            stacks=stacks,
            traffic=traffic,
            registry=None if isinstance(registry, Problem) else registry,
            problems=(*problems, *unreachable),
            storage_id=await self._ports.surroundings.storage_id(model),  # last: `problems` has asked for the same
        )

    async def _observe_registry(self, model: RetrievalModel, deadline_s: int | None) -> RegistryObserved | Problem:
        """The last view while it is good enough, else a new one. Only needed views cost the registry a request."""
        now = self._clock()
        asked = (model.metadata.uid, model.metadata.generation, tuple(sorted(model.metadata.annotations.items())))
        view = self._registry_views.get(model.key)
        if (
            view is not None
            and view.asked == asked
            and model.status.candidate is None
            and 0 <= now - view.polled_at < self._registry_poll_s
        ):
            return view.observed
        self._registry_views.pop(model.key, None)
        try:
            async with asyncio.timeout(deadline_s):
                observed = await self._ports.registry.observe(model)
        except TimeoutError:
            late = f"its runs and reports were not read within {deadline_s} s; the next look goes on from there"
            return Problem(dependency="registry", message=late)
        except (Retryable, Rejected) as error:  # refused credentials must not stop the champion's repair either
            return Problem(dependency="registry", message=str(error))
        self._registry_views[model.key] = RegistryView(observed, now, asked)
        return observed

    async def _perform(self, model: RetrievalModel, plan: Plan, now: int, record: PassRecord) -> Trouble | None:
        """Perform in order what troubles allow. Returns the first of them, if the status may be written anyway."""
        troubles = Troubles(plan.status.champion.stack if plan.status.champion is not None else "")
        for action in plan.actions:
            if not troubles.allow(action):
                continue
            if isinstance(action, REGISTRY_ACTIONS):
                self._registry_views.pop(model.key, None)
            error = await self._perform_one(model, action, now, record)
            if error is not None:
                troubles.note(action, error)
        return troubles.first

    async def _perform_one(
        self, model: RetrievalModel, action: Action, now: int, record: PassRecord
    ) -> Retryable | Rejected | None:
        self._on_action("before", action)
        try:
            await perform(self._ports, model, action, now)
        except (Stale, Gone):
            raise  # the status describes an object that is not this one any more
        except Retryable as error:
            return error
        except Rejected as error:
            await self._refused(model, action, error, now)
            return error
        record.actions.append(type(action).__name__)
        self._on_action("after", action)
        return None

    async def _refused(self, model: RetrievalModel, action: Action, error: Rejected, now: int) -> None:
        """Tell people now, and the next decision."""
        message = f"{type(action).__name__} was refused: {error}"[:MESSAGE_MAX_CHARS]
        dependency: Literal["registry", "request"] = "registry" if isinstance(action, REGISTRY_ACTIONS) else "request"
        problem = Problem(dependency=dependency, message=message, holds_back=False)
        self._refusals[model.key] = (*self._refusals.get(model.key, ()), problem)
        await self._ports.models.emit(model, EmitEvent(type="Warning", reason=Reason.BACKING_OFF, message=message), now)

    def _tell_what_lasts(self, key: str, trouble: Trouble | None) -> None:
        """A port that puts the same object off again and again is a problem of the next pass, as a refusal is."""
        if trouble is None or isinstance(trouble.error, Rejected) or trouble.of_registry:
            self._put_off.pop(key, None)
            return
        self._put_off[key] = self._put_off.get(key, 0) + 1
        if self._put_off[key] >= _LASTING_PASSES:
            message = f"{type(trouble.action).__name__} is put off: {trouble.error}"[:MESSAGE_MAX_CHARS]
            problem = Problem(dependency="request", message=message, holds_back=False)
            self._refusals[key] = (*self._refusals.get(key, ()), problem)

    async def _tell_unreadable(self, model: RetrievalModel, error: Rejected) -> None:
        """Nothing can be decided, and nobody would know: say so in the status, and once as an event."""
        message = f"nothing is done for the object, and what serves is not looked after: {error}"[:MESSAGE_MAX_CHARS]
        now = self._clock()
        status = not_looked_after(model.status, model.metadata.generation, Reason.UNREADABLE, message, now)
        if status.document() == model.status.document():
            return
        await self._ports.models.write_status(model, status)
        await self._ports.models.emit(model, EmitEvent(type="Warning", reason=Reason.UNREADABLE, message=message), now)

    def _result(self, key: str, plan: Plan, *, is_old: bool) -> PassResult:
        """`is_old`: the status says of a refusal what is not true any more, unless this pass was refused, too."""
        actions = [action for action in plan.actions if not isinstance(action, EmitEvent)]
        before = self._last_actions.get(key, [])
        self._last_actions[key] = actions
        if not actions:
            return PassResult("settled", 0.0 if is_old else plan.requeue_after_s)
        return PassResult("repeated", _at_the_latest(plan)) if actions == before else PassResult("acted")

    def _forget(self, key: str) -> None:
        self._registry_views.pop(key, None)
        self._last_actions.pop(key, None)
        self._refusals.pop(key, None)
        self._put_off.pop(key, None)
        self._ports.registry.forget(key)


def _troubled(error: Retryable | Rejected, at_the_latest: float | None = None) -> PassResult:
    """Of a pass that a port kept from its end."""
    return PassResult("refused" if isinstance(error, Rejected) else "delayed", at_the_latest)


def _at_the_latest(plan: Plan) -> float | None:
    """In how many seconds the next pass has to come, however long the back-off is; None when that may decide."""
    if plan.requeue_after_s is None or not _lacks_its_champion(plan.status):
        return None
    return max(_SERVING_EVERY_S, plan.requeue_after_s)


def settled_for_s(key: str) -> float:
    """After so many seconds an object that is settled is looked at all the same; always the same for one key."""
    return _SETTLED_EVERY_S + _SETTLED_SPREAD_S * (zlib.crc32(key.encode()) / 2**32 - 0.5)


def _lacks_its_champion(status: RetrievalModelStatus) -> bool:
    """Something was promoted, and clients do not reach it."""
    is_ready = any(said.type is ConditionType.READY and said.status == "True" for said in status.conditions)
    return status.champion is not None and not (is_ready and status.address)


def _requeue(queue: WorkQueue, key: str, result: PassResult) -> None:
    """Put the key back as the result asks for (the table at the top of this module)."""
    match result.outcome:
        case "settled":
            queue.forget(key)
            if result.requeue_after_s is not None:
                queue.add_after(key, result.requeue_after_s)
            queue.add_after(key, settled_for_s(key))
        case "acted":
            queue.forget(key)
            queue.add(key)
        case "gone":
            queue.forget(key)
        case "stale" if queue.failures(key) == 0:
            queue.add_backed_off(key)
            queue.add(key)
        case _:
            queue.add_backed_off(key)
            if result.requeue_after_s is not None:
                queue.add_after(key, result.requeue_after_s)
