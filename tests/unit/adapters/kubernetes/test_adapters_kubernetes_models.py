"""What is particular to objects in a cluster; what every store does is in tests/contract/ports."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.kinds import EVENT, RETRIEVAL_MODEL, Object
from retrieval_operator.adapters.kubernetes.models import KubernetesModelStore
from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.constants import FINALIZER
from retrieval_operator.api.status import Champion, RetrievalModelStatus
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Gone, Rejected, Retryable, Stale

KEY = "ml/feed"
ADDRESS = (RETRIEVAL_MODEL, "ml", "feed")
EVENT_MADE = EmitEvent(type="Normal", reason=Reason.PROMOTED, message="stack s1 is live")
SPEC = {
    "storage": {"uri": "/storage"},
    "data": {"uri": "/data", "revision": "1"},
    "model": {"base": "preset:tiny"},
    "promotion": {"gates": [{"min": "0.1"}]},
}


def document(**fields: Any) -> Object:
    type_ = {"apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind}
    return {**type_, "metadata": {"name": "feed", "namespace": "ml"}, "spec": SPEC, **fields}


class Store:
    def __init__(self, world: Any) -> None:
        self.now = 1_700_000_000
        self.world = world
        world.watch(RETRIEVAL_MODEL)
        world.put(document())
        self.store = KubernetesModelStore(world.api, world.cache, lambda: self.now, instance="pod-1")

    async def model(self) -> Any:
        return await self.store.get(KEY)

    def break_spec(self) -> None:
        """What a wider definition would let in."""
        self.world.change(*ADDRESS, {"spec": {"model": {"pooling": "max"}, "colour": "red"}})

    def stored(self) -> Object:
        return self.world.object(*ADDRESS)  # type: ignore[no-any-return]

    def conditions(self) -> dict[str, Any]:
        return {condition["type"]: condition for condition in self.stored()["status"]["conditions"]}


def serving(now: int, *, generation: int = 1) -> RetrievalModelStatus:
    """What a pass says of an object whose champion serves while something new is made."""
    champion = Champion(
        **dict.fromkeys(("bundle_id", "bundle_uri", "generation_id", "generation_uri", "generation_key"), "x"),
        stack="0407a56b",
        serving_hash="57954937",
        revision="975a2f49",
        as_of=now,
        promoted_at=now,
        baking_until=now,
    )
    said = {ConditionType.READY: Reason.CHAMPION_SERVING, ConditionType.RECONCILING: Reason.TRAINING}
    conditions = [
        Condition(type=type_, status="True", reason=reason, observed_generation=generation, last_transition_time=now)
        for type_, reason in said.items()
    ]
    return RetrievalModelStatus(
        observed_generation=generation, phase="Training", conditions=conditions, champion=champion
    )


@pytest.fixture
def store(world: Any) -> Store:
    return Store(world)


async def test_times_of_a_status_are_stored_for_people_and_read_back(store: Store) -> None:
    condition = Condition(
        type=ConditionType.READY,
        status="True",
        reason=Reason.CHAMPION_SERVING,
        observed_generation=1,
        last_transition_time=store.now,
    )
    status = RetrievalModelStatus(observed_generation=1, conditions=[condition])
    await store.store.write_status(await store.model(), status)
    assert store.conditions()["Ready"]["lastTransitionTime"] == "2023-11-14T22:13:20Z"
    assert (await store.model()).status == status


async def test_observing_asks_the_server_nothing(store: Store) -> None:
    before = len(store.world.requests)
    await store.store.keys()
    await store.model()
    assert store.world.requests[before:] == []


async def test_a_status_over_a_newer_object_is_stale_and_nothing_is_written(store: Store) -> None:
    model = await store.model()
    store.world.hold_watches()
    store.world.change(*ADDRESS, {"spec": {"suspend": True}})
    with pytest.raises(Stale):
        await store.store.write_status(model, RetrievalModelStatus(phase="old"))
    assert "status" not in store.stored()


async def test_a_status_that_cannot_be_read_counts_as_wiped(store: Store) -> None:
    store.world.change(*ADDRESS, {"status": {"conditions": "all well"}})
    assert (await store.model()).status == RetrievalModelStatus()


async def test_an_object_that_cannot_be_read_stalls_with_the_reason_and_keeps_what_runs(store: Store) -> None:
    reconciling = Condition(
        type=ConditionType.RECONCILING,
        status="True",
        reason=Reason.TRAINING,
        observed_generation=1,
        last_transition_time=store.now,
    )
    before = RetrievalModelStatus(observed_generation=1, conditions=[reconciling], address="http://feed.ml")
    await store.store.write_status(await store.model(), before)
    store.break_spec()
    store.now += 60
    with pytest.raises(Rejected, match=r"spec\.colour: unknown field"):
        await store.model()
    stalled = store.conditions()
    assert set(stalled) == {"Ready", "Stalled"}
    assert stalled["Stalled"]["reason"] == "InvalidSpec"
    assert "spec.model.pooling" in stalled["Stalled"]["message"]
    assert "spec.colour: unknown field" in stalled["Stalled"]["message"]
    assert stalled["Stalled"]["observedGeneration"] == store.stored()["status"]["observedGeneration"] == 2
    assert store.stored()["status"]["address"] == "http://feed.ml"


async def test_an_object_that_cannot_be_read_is_not_ready_any_more_and_says_what_is_not_looked_after(
    store: Store,
) -> None:
    await store.store.write_status(await store.model(), serving(store.now))
    store.break_spec()
    store.now += 60
    for _ in range(2):
        with pytest.raises(Rejected):
            await store.model()
    ready = store.conditions()["Ready"]
    assert (ready["status"], ready["reason"], ready["observedGeneration"]) == ("Unknown", "InvalidSpec", 2)
    assert ready["lastTransitionTime"] == "2023-11-14T22:14:20Z"
    for said in (ready, store.conditions()["Stalled"]):
        assert "until then nobody looks after stack 0407a56b, which serves" in said["message"]
        assert "spec.colour: unknown field" in said["message"]
    assert store.stored()["status"]["champion"]["stack"] == "0407a56b"


BROKEN_TIMES = {
    "a time zone nobody knows": ({"data": {"timeZone": "Europe/Atlantis"}}, "spec.data.timeZone: 'Europe/Atlantis' is"),
    "an area for a time zone": ({"data": {"timeZone": "Europe"}}, "spec.data.timeZone: 'Europe' is no time zone"),
    "a training schedule": ({"data": {"schedule": "61 3 * * *"}}, "spec.data.schedule: '61 3 * * *' is not"),
    "a refresh schedule": (
        {"index": {"refresh": {"schedule": "0 24 * * *"}}},
        "spec.index.refresh.schedule: '0 24 * * *' is not",
    ),
    "a schedule of an imported bundle": (
        {"model": {"base": None, "bundleUri": "/b"}, "data": {"schedule": "0 3 * * *"}},
        "data.schedule: found with model.bundleUri",
    ),
}


@pytest.mark.parametrize("title", BROKEN_TIMES)
async def test_what_serves_is_looked_after_while_only_a_schedule_cannot_be_read(store: Store, title: str) -> None:
    """The conditions tell people (tests/unit/domain/test_domain_left_out.py)."""
    patch, words = BROKEN_TIMES[title]
    edit = {"data": {"schedule": "0 3 * * *"}} if "imported" not in title else {}
    store.world.change(*ADDRESS, {"spec": edit})
    store.world.change(*ADDRESS, {"spec": patch})
    model = await store.model()
    data, refresh = model.spec.data, model.spec.index.refresh
    assert (data.schedule, data.time_zone, refresh.schedule) == (None, "UTC", None)
    [problem] = model.left_out
    assert words in problem
    assert model.spec.data.uri == store.stored()["spec"]["data"]["uri"]
    store.world.change(*ADDRESS, {"spec": {"data": {"schedule": None, "timeZone": None}, "index": {"refresh": None}}})
    assert (await store.model()).left_out == ()


async def test_a_schedule_beside_something_else_that_cannot_be_read_is_told_with_it(store: Store) -> None:
    store.world.change(*ADDRESS, {"spec": {"data": {"timeZone": "Europe/Atlantis"}, "colour": "red"}})
    with pytest.raises(Rejected):
        await store.model()
    message = store.conditions()["Stalled"]["message"]
    assert "spec.colour: unknown field" in message
    assert "spec.data.timeZone" in message


async def test_a_section_that_is_no_object_is_told_and_no_accident(store: Store) -> None:
    store.world.change(*ADDRESS, {"spec": {"data": "here", "index": {"refresh": []}}})
    with pytest.raises(Rejected, match=r"spec\.data: "):
        await store.model()


async def test_an_object_that_is_being_deleted_needs_no_schedule(store: Store) -> None:
    await store.store.set_finalizer(await store.model(), True)
    store.world.change(*ADDRESS, {"spec": {"data": {"timeZone": "Europe/Atlantis"}}})
    store.world.remove(*ADDRESS)
    assert (await store.model()).left_out == ()


async def test_a_stalled_object_is_written_once_and_is_well_again_once_it_is_corrected(store: Store) -> None:
    store.break_spec()
    for _ in range(3):
        store.now += 60
        with pytest.raises(Rejected):
            await store.model()
    writes = [request for request in store.world.requests if request[:2] == ("patch", "RetrievalModel")]
    assert len(writes) == 1
    since = store.conditions()["Stalled"]["lastTransitionTime"]
    store.world.change(*ADDRESS, {"spec": {"alsoUnknown": 1}})
    with pytest.raises(Rejected):
        await store.model()
    assert store.conditions()["Stalled"]["lastTransitionTime"] == since
    store.world.change(*ADDRESS, {"spec": {"alsoUnknown": None, "colour": None, "model": {"pooling": None}}})
    assert (await store.model()).spec.model is not None


async def test_an_object_that_is_being_deleted_and_cannot_be_read_says_how_to_let_it_go(store: Store) -> None:
    await store.store.set_finalizer(await store.model(), True)
    store.break_spec()
    store.world.remove(*ADDRESS)
    with pytest.raises(Rejected):
        await store.model()
    assert f"remove the finalizer {FINALIZER}" in store.conditions()["Stalled"]["message"]
    assert store.stored()["metadata"]["finalizers"] == [FINALIZER]


async def test_finalizers_of_others_stay(store: Store) -> None:
    store.world.change(*ADDRESS, {"metadata": {"finalizers": ["example.com/theirs"]}})
    await store.store.set_finalizer(await store.model(), True)
    assert store.stored()["metadata"]["finalizers"] == ["example.com/theirs", FINALIZER]
    await store.store.set_finalizer(await store.model(), False)
    assert store.stored()["metadata"]["finalizers"] == ["example.com/theirs"]


async def test_a_finalizer_that_somebody_else_sets_at_the_same_moment_is_not_lost(store: Store) -> None:
    model = await store.model()
    store.world.hold_watches()
    store.world.change(*ADDRESS, {"metadata": {"finalizers": ["example.com/theirs"]}})
    with pytest.raises(Stale):
        await store.store.set_finalizer(model, True)
    assert store.stored()["metadata"]["finalizers"] == ["example.com/theirs"]


async def test_nothing_ever_writes_a_spec(store: Store) -> None:
    model = await store.model()
    await store.store.set_finalizer(model, True)
    await store.store.write_status(model, RetrievalModelStatus(phase="Live"))
    await store.store.emit(model, EVENT_MADE, store.now)
    assert store.stored()["spec"] == SPEC
    assert store.stored()["metadata"]["generation"] == 1


async def test_an_event_names_its_object_and_when_it_was_first_and_last_seen(store: Store) -> None:
    model = await store.model()
    await store.store.emit(model, EVENT_MADE, 1_700_000_000)
    await store.store.emit(model, EVENT_MADE, 1_700_000_060)
    (event,) = store.world.objects(EVENT)
    assert event["involvedObject"]["uid"] == model.metadata.uid
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "Promoted", "stack s1 is live")
    assert (event["firstTimestamp"], event["lastTimestamp"], event["count"]) == (
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:14:20Z",
        2,
    )
    assert event["metadata"]["namespace"] == "ml"


async def test_an_event_that_the_cluster_has_forgotten_begins_to_count_anew(store: Store) -> None:
    model = await store.model()
    await store.store.emit(model, EVENT_MADE, store.now)
    (event,) = store.world.objects(EVENT)
    store.world.remove(EVENT, "ml", event["metadata"]["name"])
    await store.store.emit(model, EVENT_MADE, store.now)
    (event,) = store.world.objects(EVENT)
    assert event["count"] == 1


async def test_a_namespace_that_takes_no_events_does_not_end_the_pass(store: Store) -> None:
    model = await store.model()
    store.world.terminate_namespace("ml")
    await store.store.emit(model, EVENT_MADE, store.now)
    store.world.fail("create", EVENT, Rejected("events is forbidden"))
    await store.store.emit(model, EVENT_MADE, store.now)
    assert store.world.objects(EVENT) == []
    store.world.fail("create", EVENT, Retryable("busy"))
    with pytest.raises(Retryable):
        await store.store.emit(model, EVENT_MADE, store.now)


async def test_an_object_that_vanished_unheard_of_is_gone_when_it_is_written(store: Store) -> None:
    model = await store.model()
    store.world.hold_watches()
    store.world.remove(*ADDRESS)
    with pytest.raises(Gone):
        await store.store.write_status(model, RetrievalModelStatus(phase="late"))
    with pytest.raises(Gone):
        await store.store.set_finalizer(model, True)
