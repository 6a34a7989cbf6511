"""Whole lives: the real decisions over the adapters of serving, in a cluster in memory whose every answer may be lost.

Workloads and the registry are those of domain/simulate.py; KServe is played by `Life.let_kserve_work`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Object,
)
from retrieval_operator.adapters.kubernetes.services import read_record
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain import plan as plans
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.simulate import World
from retrieval_operator.perform import CALLS
from retrieval_operator.ports import PortError, Retryable

PASSES = 120  # the longest life here needs about 40
SERVING_ACTIONS = (plans.CreateStack, plans.ScaleStack, plans.DeleteStack, plans.SwitchTraffic, plans.StopTraffic)
WRITES = ("create", "patch", "delete")
CONTAINER = {"containers": [{"name": "kserve-container"}]}


class LosingApi:
    """The API server over a bad line: the write of this number is lost, or only its answer."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.writes = 0
        self.lost = 0  # 0: none
        self.answer_only = False

    def __getattr__(self, verb: str) -> Any:
        call: Callable[..., Awaitable[Any]] = getattr(self._api, verb)
        return self._losing(call) if verb in WRITES else call

    def _losing(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def write(*arguments: Any, **named: Any) -> Any:
            self.writes += 1
            is_lost = self.writes == self.lost
            if is_lost and not self.answer_only:
                raise Retryable("the connection was reset")
            answer = await call(*arguments, **named)
            if is_lost:
                raise Retryable("the connection was reset")
            return answer

        return write


class Life:
    """One object in the cluster. `selected` lists every stack that the stable Service ever selected, in order."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.line = LosingApi(cluster.world.api)
        cluster.world.api = self.line
        cluster.restart()
        self.rest = World(now=cluster.now)
        self.model: RetrievalModel = cluster.model
        self.selected: list[str] = []

    async def one_pass(self) -> bool:
        """Whether anything was left to do. What a port refuses ends the pass and is tried again in the next."""
        self.cluster.now = self.rest.now
        stacks = await self.cluster.stacks.observe(self.model)
        traffic = await self.cluster.traffic.observe(self.model)
        plan = decide(self.model, replace(self.rest.observe(), stacks=stacks, traffic=traffic), self.rest.now)
        try:
            for action in plan.actions:
                await self._perform(action)
        except PortError:
            self.cluster.restart()
        else:
            self.model = self.model.model_copy(update={"status": plan.status})
        self.let_kserve_work()
        self.rest.tick()
        return bool(plan.actions) or plan.status.candidate is not None

    async def live(self) -> None:
        """Passes until nothing is left to do."""
        for _ in range(PASSES):
            if not await self.one_pass():
                return
        raise AssertionError("it does not settle")

    async def _perform(self, action: Any) -> None:
        if not isinstance(action, SERVING_ACTIONS):
            self.rest.apply(action)
            return
        try:
            await CALLS[type(action)](self.cluster, self.model, action, self.rest.now)  # type: ignore[arg-type]
        finally:
            self._look_at_the_selector()

    def _look_at_the_selector(self) -> None:
        for service in self.cluster.world.objects(SERVICE):
            stack = service["spec"]["selector"]["retrieval-operator.io/stack"]
            if service["metadata"]["name"] == "feed" and self.selected[-1:] != [stack]:
                self.selected.append(stack)

    def let_kserve_work(self) -> None:
        """Every InferenceService has its pods, ready; those of the ones that are gone are gone."""
        world = self.cluster.world
        services = {one["metadata"]["name"]: one for one in world.objects(INFERENCE_SERVICE)}
        for pod in world.objects(POD):
            if pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"] not in services:
                world.remove(POD, "tenant", pod["metadata"]["name"])
        for name, service in services.items():
            world.add_predictor_pods("tenant", name, service["spec"]["predictor"]["minReplicas"])

    def edit(self, changes: Mapping[str, Any]) -> None:
        """`kubectl apply`: sections of the spec, as models."""
        metadata = self.model.metadata.model_copy(update={"generation": self.model.metadata.generation + 1})
        spec = self.model.spec.model_copy(update=changes)
        self.model = self.model.model_copy(update={"metadata": metadata, "spec": spec})

    def train_again(self, revision: str) -> None:
        self.edit({"data": self.model.spec.data.model_copy(update={"revision": revision})})

    def serving_children(self) -> list[tuple[str, str]]:
        kinds = (SERVICE, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE)
        found: list[Object] = [one for kind in kinds for one in self.cluster.world.objects(kind)]
        return sorted((one["kind"], one["metadata"]["name"]) for one in found)


def parts_of(*stacks: str) -> list[tuple[str, str]]:
    kinds = ("Service", "PodDisruptionBudget", "InferenceService")
    return sorted([("Service", "feed"), *((kind, f"feed-{stack}") for kind in kinds for stack in stacks)])


@pytest.fixture
def life(cluster: Any) -> Life:
    return Life(cluster)


async def two_revisions(life: Life) -> tuple[str, str]:
    """The second is live, and baked. The stacks, in order."""
    await life.live()
    life.train_again("2")
    await life.live()
    first, second = life.selected
    return first, second


async def test_a_second_revision_replaces_the_first_which_goes_after_the_window(life: Life) -> None:
    first, second = await two_revisions(life)
    assert life.serving_children() == parts_of(first, second)
    life.rest.now += life.model.spec.rollback.window_seconds
    await life.live()
    assert life.serving_children() == parts_of(second)
    assert life.model.status.champion is not None and life.model.status.champion.stack == second


async def test_a_candidate_has_the_champions_servers_before_the_traffic_moves(life: Life) -> None:
    serving = life.model.spec.serving
    life.edit({"serving": serving.model_copy(update={"replicas": serving.replicas.model_copy(update={"min": 3})})})
    await life.live()
    life.edit({"serving": serving})
    life.train_again("2")
    for _ in range(PASSES):
        # The champion keeps what it has: an autoscaler of somebody else, or the moment before it is scaled down.
        (champion,) = life.selected
        life.cluster.world.add_predictor_pods("tenant", f"feed-{champion}", 3)
        before = {pod["metadata"]["name"]: pod for pod in life.cluster.world.objects(POD)}
        await life.one_pass()
        if len(life.selected) > 1:
            break
    assert len(life.selected) == 2, "it was promoted"
    names = [name for name in before if name.startswith(f"feed-{life.selected[-1]}-")]
    assert len(names) == 3


async def test_the_servers_of_a_champion_that_fails_go_after_the_rollback(life: Life) -> None:
    first, second = await two_revisions(life)
    ended = {"exitCode": 65, "message": "the bundle is damaged"}
    crash = {"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended}}
    for pod in life.cluster.world.objects(POD):
        if pod["metadata"]["labels"]["retrieval-operator.io/stack"] == second:
            status = {"phase": "Running", "conditions": [], "containerStatuses": [crash]}
            life.cluster.world.change(POD, "tenant", pod["metadata"]["name"], {"status": status})
    await life.live()
    assert life.selected == [first, second, first]
    assert life.serving_children() == parts_of(first)
    pods = life.cluster.world.objects(POD)
    assert {pod["metadata"]["labels"]["retrieval-operator.io/stack"] for pod in pods} == {first}
    assert life.model.status.history[0].outcome == "RolledBack"


async def test_a_former_stack_whose_service_was_deleted_by_hand_goes_after_the_window(life: Life) -> None:
    """Its servers would run as long as the object."""
    first, second = await two_revisions(life)
    life.cluster.world.remove(SERVICE, "tenant", f"feed-{first}")
    life.rest.now += life.model.spec.rollback.window_seconds
    await life.live()
    assert life.serving_children() == parts_of(second)


async def test_a_selector_moved_by_hand_has_its_window_and_a_way_back(life: Life) -> None:
    """However long the champion was live before, and whoever looks."""
    _, second = await two_revisions(life)
    life.rest.now += life.model.spec.rollback.window_seconds
    await life.live()
    service = life.cluster.world.object(SERVICE, "tenant", f"feed-{second}")
    record = read_record(service).model_copy(update={"stack": "by-hand", "revision": "by-hand"})
    await life.cluster.stacks.create(life.model, record, 1)
    life.let_kserve_work()
    life.rest.now += 10 * life.model.spec.rollback.window_seconds
    moved = {"spec": {"selector": {"retrieval-operator.io/stack": "by-hand"}}}
    life.cluster.world.change(SERVICE, "tenant", "feed", moved)
    seen_at = life.rest.now
    await life.one_pass()
    for left in (life.model.spec.rollback.window_seconds - 10, 10):
        assert life.serving_children() == parts_of("by-hand", second)
        champion = life.model.status.champion
        assert champion is not None and (champion.stack, champion.promoted_at) == ("by-hand", seen_at)
        life.rest.now = seen_at + life.model.spec.rollback.window_seconds - left
        life.cluster.restart()
        await life.one_pass()
    life.rest.now = seen_at + life.model.spec.rollback.window_seconds
    await life.one_pass()
    assert life.serving_children() == parts_of("by-hand")


@pytest.mark.parametrize("status_is_lost", [False, True])
async def test_a_service_that_leads_nowhere_is_whole_again_and_nothing_else_happens(
    life: Life, status_is_lost: bool
) -> None:
    first, second = await two_revisions(life)
    before = life.cluster.world.object(SERVICE, "tenant", "feed")
    selected, champion = list(life.selected), life.model.status.champion
    damage = {"spec": {"selector": {"app": "typo"}, "ports": before["spec"]["ports"][:1]}}
    life.cluster.world.change(SERVICE, "tenant", "feed", damage)
    if status_is_lost:
        life.model = life.model.model_copy(update={"status": RetrievalModelStatus()})
    for _ in range(3):
        await life.one_pass()
    after = life.cluster.world.object(SERVICE, "tenant", "feed")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert (life.selected, life.serving_children()) == (selected, parts_of(first, second))
    assert life.model.status.champion is not None and champion is not None
    assert life.model.status.champion.promoted_at == champion.promoted_at


async def test_a_deleted_object_leaves_nothing(life: Life) -> None:
    await two_revisions(life)
    gone = life.model.metadata.model_copy(update={"deletion_timestamp": life.rest.now})
    life.model = life.model.model_copy(update={"metadata": gone})
    for _ in range(5):
        await life.one_pass()
    assert life.serving_children() == []
    assert life.cluster.world.objects(POD) == []


async def test_whichever_write_or_answer_is_lost_the_life_is_the_same(cluster: Any) -> None:
    undisturbed = Life(cluster)
    expected = await two_revisions(undisturbed)
    undisturbed.rest.now += undisturbed.model.spec.rollback.window_seconds
    await undisturbed.live()
    writes = undisturbed.line.writes
    assert writes >= 11, "two stacks of three, the stable Service, a switch, a removal of three"
    for lost in range(1, writes + 1):
        for answer_only in (False, True):
            life = Life(type(cluster)())
            life.line.lost, life.line.answer_only = lost, answer_only
            assert await two_revisions(life) == expected
            life.rest.now += life.model.spec.rollback.window_seconds
            await life.live()
            assert life.serving_children() == undisturbed.serving_children(), (lost, answer_only)
            created = [name for verb, kind, name in life.cluster.world.requests if verb == "create" and kind != "Event"]
            assert len(set(created)) == 3, "two stacks and the stable Service"
