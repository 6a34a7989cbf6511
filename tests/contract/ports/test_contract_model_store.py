"""What every ModelStore does."""

from __future__ import annotations

import pytest

from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import FINALIZER
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Gone, Stale

NOW = 1_700_000_000
EVENT = EmitEvent(type="Warning", reason=Reason.BACKING_OFF, message="the registry does not answer")


async def test_an_empty_store_has_no_keys_and_finds_nothing(models):
    assert list(await models.store.keys()) == []
    assert await models.store.get("default/feed") is None


async def test_a_created_object_is_found_with_its_identity(models, make_manifest):
    await models.create(make_manifest())
    assert list(await models.store.keys()) == ["default/feed"]
    found = await models.store.get("default/feed")
    assert found.metadata.uid
    assert found.metadata.generation == 1
    assert found.metadata.creation_timestamp == NOW
    assert found.spec == make_manifest().spec
    assert found.status == RetrievalModelStatus()


async def test_the_generation_counts_changes_of_the_spec_only(models, make_manifest):
    await models.create(make_manifest())
    await models.create(make_manifest())
    await models.annotate("default/feed", "note", "text")
    assert (await models.store.get("default/feed")).metadata.generation == 1
    await models.create(make_manifest(suspend=True))
    found = await models.store.get("default/feed")
    assert found.metadata.generation == 2
    assert found.spec.suspend
    assert found.metadata.annotations == {"note": "text"}


async def test_a_status_comes_back_as_written(models, make_manifest):
    model = await models.create(make_manifest())
    status = RetrievalModelStatus(observed_generation=1, phase="Training", immutable={"storage.uri": "/storage"})
    await models.store.write_status(model, status)
    assert (await models.store.get(model.key)).status == status
    assert (await models.store.get(model.key)).metadata.generation == 1


async def test_a_status_for_a_vanished_object_is_refused_as_gone(models, make_manifest):
    model = await models.create(make_manifest())
    await models.delete(model.key)
    with pytest.raises(Gone):
        await models.store.write_status(model, RetrievalModelStatus(phase="late"))
    assert await models.store.get(model.key) is None


async def test_a_status_for_the_predecessor_of_the_same_name_is_refused_as_stale(models, make_manifest):
    before = await models.create(make_manifest())
    await models.store.write_status(before, RetrievalModelStatus(phase="old"))
    await models.delete(before.key)
    after = await models.create(make_manifest())
    assert after.metadata.uid != before.metadata.uid
    with pytest.raises(Stale):
        await models.store.write_status(before, RetrievalModelStatus(phase="late"))
    assert (await models.store.get(after.key)).status == RetrievalModelStatus()


async def test_the_same_event_again_only_raises_its_count(models, make_manifest):
    model = await models.create(make_manifest())
    other = EmitEvent(type="Warning", reason=Reason.BACKING_OFF, message="something else")
    for event in (EVENT, other, EVENT, EVENT):
        await models.store.emit(model, event, NOW)
    assert sorted(await models.events(model.key)) == [
        ("BackingOff", "something else", 1),
        ("BackingOff", "the registry does not answer", 3),
    ]


async def test_an_event_about_a_vanished_object_is_refused_as_gone(models, make_manifest):
    model = await models.create(make_manifest())
    await models.delete(model.key)
    with pytest.raises(Gone):
        await models.store.emit(model, EVENT, NOW)


async def test_an_object_without_finalizer_is_gone_once_its_deletion_is_asked_for(models, make_manifest):
    model = await models.create(make_manifest())
    await models.delete(model.key)
    assert list(await models.store.keys()) == []
    assert await models.store.get(model.key) is None


async def test_a_finalizer_keeps_a_deleted_object_until_it_is_removed(models, make_manifest):
    model = await models.create(make_manifest())
    for _ in range(2):
        await models.store.set_finalizer(model, True)
    assert (await models.store.get(model.key)).metadata.finalizers == [FINALIZER]
    await models.delete(model.key)
    held = await models.store.get(model.key)
    assert held.metadata.deletion_timestamp == NOW
    await models.store.write_status(held, RetrievalModelStatus(phase="Deleting"))
    await models.store.set_finalizer(held, False)
    assert await models.store.get(model.key) is None
    with pytest.raises(Gone):
        await models.store.set_finalizer(held, False)


async def test_an_object_that_is_being_deleted_takes_no_new_finalizer(models, make_manifest):
    model = await models.create(make_manifest())
    await models.store.set_finalizer(model, True)
    await models.delete(model.key)
    with pytest.raises(Gone):
        await models.store.set_finalizer(model, True)
