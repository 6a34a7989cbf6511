"""What every pair of Stacks and Traffic adapters does."""

from __future__ import annotations

import asyncio

import pytest

from retrieval_operator.ports import Rejected, Stale

NOW = 1_700_000_000


async def test_there_are_no_stacks_and_no_traffic_at_first(serving):
    assert dict(await serving.stacks.observe(serving.model)) == {}
    traffic = await serving.traffic.observe(serving.model)
    assert (traffic.live, traffic.previous, traffic.address) == (None, "", "")


async def test_a_stack_becomes_ready_with_its_record_and_an_address(serving, record):
    await serving.stacks.create(serving.model, record("s1"), 1)
    await serving.become_ready("s1")
    found = (await serving.stacks.observe(serving.model))["s1"]
    assert found.record == record("s1")
    assert (found.is_ready, found.ready_replicas, found.replicas, found.failed) == (True, 1, 1, "")
    assert found.address
    assert found.created_at > 0


async def test_creating_a_stack_again_does_nothing(serving, record):
    await serving.stacks.create(serving.model, record("s1"), 1)
    await serving.become_ready("s1")
    before = await serving.stacks.observe(serving.model)
    await asyncio.gather(*(serving.stacks.create(serving.model, record("s1"), 1) for _ in range(4)))
    assert await serving.stacks.observe(serving.model) == before


async def test_a_stack_whose_server_ends_again_and_again_has_failed_and_says_why(serving, record):
    await serving.stacks.create(serving.model, record("s1", bundle_uri="/broken"), 1)
    await serving.break_down("s1")
    found = (await serving.stacks.observe(serving.model))["s1"]
    assert not found.is_ready
    assert found.failed


async def test_scaling_changes_the_number_of_replicas(serving, record):
    await serving.stacks.create(serving.model, record("s1"), 1)
    for replicas in (3, 3, 1):
        await serving.stacks.scale(serving.model, "s1", replicas)
        await serving.become_ready("s1")
        found = (await serving.stacks.observe(serving.model))["s1"]
        assert (found.ready_replicas, found.replicas) == (replicas, replicas)


async def test_scaling_an_unknown_stack_is_refused_as_stale(serving):
    """Not as Gone: that says that the object itself is no more."""
    with pytest.raises(Stale):
        await serving.stacks.scale(serving.model, "s1", 2)


async def test_a_deleted_stack_is_gone_and_unknown_ones_are_fine(serving, record):
    await serving.stacks.create(serving.model, record("s1"), 1)
    for _ in range(2):
        await serving.stacks.delete(serving.model, "s1")
    assert dict(await serving.stacks.observe(serving.model)) == {}


async def test_the_stacks_of_another_object_of_the_same_name_are_not_ours(serving, record, as_other_object):
    await serving.stacks.create(serving.model, record("s1"), 1)
    other = as_other_object(serving.model)
    assert dict(await serving.stacks.observe(other)) == {}
    await serving.stacks.delete(other, "s1")
    assert set(await serving.stacks.observe(serving.model)) == {"s1"}


async def two_stacks(serving, record):
    for stack in ("s1", "s2"):
        await serving.stacks.create(serving.model, record(stack), 1)


async def switch(serving, record, stack, now=NOW):
    version = (await serving.traffic.observe(serving.model)).version
    await serving.traffic.switch(serving.model, record(stack), version, now)
    return await serving.traffic.observe(serving.model)


async def test_a_switch_makes_the_stack_live_and_remembers_the_one_before(serving, record):
    await two_stacks(serving, record)
    first = await switch(serving, record, "s1")
    assert (first.live, first.previous, first.switched_at) == (record("s1"), "", NOW)
    second = await switch(serving, record, "s2", NOW + 5)
    assert (second.live, second.previous, second.switched_at) == (record("s2"), "s1", NOW + 5)
    assert second.address == first.address != ""
    assert second.version != first.version


async def test_switching_to_the_live_stack_does_nothing_whatever_version_was_seen(serving, record):
    await two_stacks(serving, record)
    before = await switch(serving, record, "s1")
    await serving.traffic.switch(serving.model, record("s1"), "an old version", NOW + 5)
    assert await serving.traffic.observe(serving.model) == before


async def test_a_switch_from_an_old_view_is_refused_as_stale(serving, record):
    await two_stacks(serving, record)
    old = (await serving.traffic.observe(serving.model)).version
    before = await switch(serving, record, "s1")
    with pytest.raises(Stale):
        await serving.traffic.switch(serving.model, record("s2"), old, NOW + 5)
    assert await serving.traffic.observe(serving.model) == before


async def test_of_two_switches_from_the_same_view_one_wins(serving, record):
    await two_stacks(serving, record)
    version = (await serving.traffic.observe(serving.model)).version
    results = await asyncio.gather(
        *(serving.traffic.switch(serving.model, record(stack), version, NOW) for stack in ("s1", "s2")),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "Stale"]


async def test_a_switch_to_a_stack_that_does_not_exist_is_refused_as_stale(serving, record):
    with pytest.raises(Stale):
        await switch(serving, record, "s9")
    assert (await serving.traffic.observe(serving.model)).live is None


async def test_the_live_stack_cannot_be_deleted_and_the_former_one_can(serving, record):
    await two_stacks(serving, record)
    await switch(serving, record, "s1")
    with pytest.raises(Rejected, match="s1"):
        await serving.stacks.delete(serving.model, "s1")
    await switch(serving, record, "s2")
    await serving.stacks.delete(serving.model, "s1")
    assert set(await serving.stacks.observe(serving.model)) == {"s2"}


async def test_closing_releases_the_address_and_the_stack(serving, record):
    await two_stacks(serving, record)
    await switch(serving, record, "s1")
    for _ in range(2):
        await serving.traffic.close(serving.model)
    assert (await serving.traffic.observe(serving.model)).live is None
    await serving.stacks.delete(serving.model, "s1")
    assert set(await serving.stacks.observe(serving.model)) == {"s2"}


async def test_the_traffic_of_another_object_of_the_same_name_is_not_ours(serving, record, as_other_object):
    await two_stacks(serving, record)
    before = await switch(serving, record, "s1")
    other = as_other_object(serving.model)
    assert (await serving.traffic.observe(other)).live is None
    await serving.traffic.close(other)
    assert await serving.traffic.observe(serving.model) == before
