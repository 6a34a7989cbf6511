"""What every Workloads adapter does."""

from __future__ import annotations

import asyncio

import pytest


async def seen(harness, name):
    """The observed attempt, None when there is none."""
    found = [attempt for attempt in await harness.workloads.observe(harness.model) if attempt.name == name]
    assert len(found) <= 1
    return found[0] if found else None


async def ended(harness, eventually, name):
    async def attempt_when_ended():
        attempt = await seen(harness, name)
        return attempt if attempt.state != "Running" else None

    return await eventually(attempt_when_ended)


async def test_nothing_was_started_at_first(running):
    assert list(await running.workloads.observe(running.model)) == []


async def test_a_started_workload_is_seen_running_with_what_it_is(running, attempt):
    await running.workloads.start(running.model, attempt())
    found = await seen(running, attempt().name)
    assert (found.state, found.step, found.key, found.attempt) == ("Running", "train", "0123abcd", 1)
    assert found.exit_code is None
    assert found.started_at > 0


async def test_a_workload_runs_once_however_often_it_is_started(running, attempt, eventually):
    for _ in range(3):
        await running.workloads.start(running.model, attempt())
    await asyncio.gather(*(running.workloads.start(running.model, attempt()) for _ in range(5)))
    running.finish(attempt().name, 0)
    await ended(running, eventually, attempt().name)
    await running.workloads.start(running.model, attempt())
    assert running.times_run(attempt().name) == 1
    assert (await seen(running, attempt().name)).state == "Succeeded"


async def test_concurrent_starts_of_a_new_workload_run_it_once(running, attempt, eventually):
    await asyncio.gather(*(running.workloads.start(running.model, attempt()) for _ in range(8)))
    running.finish(attempt().name, 0)
    await ended(running, eventually, attempt().name)
    assert running.times_run(attempt().name) == 1


async def test_a_success_has_exit_code_zero_and_no_reason(running, attempt, eventually):
    await running.workloads.start(running.model, attempt())
    running.finish(attempt().name, 0)
    found = await ended(running, eventually, attempt().name)
    assert (found.state, found.exit_code, found.reason, found.message) == ("Succeeded", 0, "", "")
    assert found.finished_at >= found.started_at


async def test_a_failure_carries_the_exit_code_and_what_the_program_said(running, attempt, eventually):
    await running.workloads.start(running.model, attempt())
    running.finish(attempt().name, 65, reason="BadInput", message="items: column title is missing")
    found = await ended(running, eventually, attempt().name)
    assert (found.state, found.exit_code) == ("Failed", 65)
    assert (found.reason, found.message) == ("BadInput", "items: column title is missing")


async def test_attempts_are_seen_side_by_side(running, attempt, eventually):
    await running.workloads.start(running.model, attempt(1))
    running.finish(attempt(1).name, 75)
    await ended(running, eventually, attempt(1).name)
    await running.workloads.start(running.model, attempt(2))
    states = {seen.attempt: seen.state for seen in await running.workloads.observe(running.model)}
    assert states == {1: "Failed", 2: "Running"}


async def test_a_stopped_workload_has_failed_and_its_record_stays(running, attempt):
    await running.workloads.start(running.model, attempt())
    for _ in range(2):
        await running.workloads.stop(running.model, attempt().name)
    found = await seen(running, attempt().name)
    assert (found.state, found.reason) == ("Failed", "Stopped")
    await running.workloads.start(running.model, attempt())
    assert (await seen(running, attempt().name)).state == "Failed"


async def test_stopping_a_workload_that_has_ended_changes_nothing(running, attempt, eventually):
    await running.workloads.start(running.model, attempt())
    running.finish(attempt().name, 0)
    before = await ended(running, eventually, attempt().name)
    await running.workloads.stop(running.model, attempt().name)
    assert await seen(running, attempt().name) == before


async def test_a_deleted_workload_is_forgotten(running, attempt):
    await running.workloads.start(running.model, attempt())
    for _ in range(2):
        await running.workloads.delete(running.model, attempt().name)
    assert await seen(running, attempt().name) is None


@pytest.mark.parametrize("act", ["stop", "delete"])
async def test_unknown_names_are_fine(running, act):
    await getattr(running.workloads, act)(running.model, "feed-ffffffff-train-1")


async def test_the_workloads_of_another_object_of_the_same_name_are_not_ours(running, attempt, as_other_object):
    await running.workloads.start(running.model, attempt())
    other = as_other_object(running.model)
    assert list(await running.workloads.observe(other)) == []
    await running.workloads.stop(other, attempt().name)
    assert (await seen(running, attempt().name)).state == "Running"
