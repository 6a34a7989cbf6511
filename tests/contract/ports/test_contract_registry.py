"""What every Registry adapter does. The fixture `records` gives a harness (conftest.py, RegistryHarness)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from retrieval_operator.api.constants import TAG_BUNDLE_ID, TAG_KEY, TAG_OWNER, TAG_STEP
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion
from retrieval_operator.ports import Rejected, Retryable, Stale

TRAIN = EnsureRun(step="train", key="0123abcd", name="feed 0123abcd", tags={"revision": "0123abcd"})
EVALUATE = EnsureRun(step="eval", key="89ef0123", name="evaluation", parent_key="0123abcd")


@pytest.fixture
def model(make_manifest):
    return make_manifest()


async def run_id(records, model, step="train", key="0123abcd"):
    return (await records.registry.observe(model)).runs[f"{step}:{key}"].run_id


async def registered(records, model, bundle_id="b-1", key="0123abcd", **fields):
    """A version of a bundle, with the run that made it; returns the version as observed."""
    await records.registry.ensure_run(model, replace(TRAIN, key=key))
    version = RegisterVersion(
        bundle_id=bundle_id,
        run_id=await run_id(records, model, key=key),
        tags={"revision": key},
        **fields,
    )
    await records.registry.register_version(model, version)
    return (await records.registry.observe(model)).versions[bundle_id]


async def test_an_unknown_object_has_no_records_but_a_page(records, model):
    found = await records.registry.observe(model)
    assert (dict(found.runs), dict(found.versions), dict(found.aliases)) == ({}, {}, {})
    assert found.page


async def test_a_run_is_found_again_and_not_made_twice(records, model):
    await records.registry.ensure_run(model, TRAIN)
    first = (await records.registry.observe(model)).runs
    await records.registry.ensure_run(model, TRAIN)
    assert {name: run.run_id for name, run in (await records.registry.observe(model)).runs.items()} == {
        name: run.run_id for name, run in first.items()
    }
    run = first["train:0123abcd"]
    assert (run.step, run.key, run.report) == ("train", "0123abcd", None)
    assert run.tags["revision"] == "0123abcd"
    assert (run.tags[TAG_STEP], run.tags[TAG_KEY]) == ("train", "0123abcd")
    assert run.tags[TAG_OWNER].endswith("/default/feed")


async def test_runs_of_different_steps_and_keys_are_different(records, model):
    for run in (TRAIN, EVALUATE, replace(EVALUATE, key="00000000")):
        await records.registry.ensure_run(model, run)
    runs = (await records.registry.observe(model)).runs
    assert set(runs) == {"train:0123abcd", "eval:89ef0123", "eval:00000000"}
    assert len({run.run_id for run in runs.values()}) == 3


async def test_concurrent_passes_leave_one_run(records, model):
    await asyncio.gather(*(records.registry.ensure_run(model, TRAIN) for _ in range(3)))
    assert set((await records.registry.observe(model)).runs) == {"train:0123abcd"}


async def test_a_run_says_how_its_work_ended_until_a_report_finishes_it(records, model):
    await records.registry.ensure_run(model, TRAIN)
    found = []
    for status in ("Failed", "Failed", "Running", "Killed"):
        await records.registry.set_run_status(model, await run_id(records, model), status)
        found.append((await records.registry.observe(model)).runs["train:0123abcd"].status)
    assert found == ["Failed", "Failed", "Running", "Killed"]
    await records.report(model, "train", "0123abcd", {"formatVersion": 1, "id": "b-1"})
    for _ in range(2):  # MLflow's run is set in the first look
        assert (await records.registry.observe(model)).runs["train:0123abcd"].status == "Finished"
    with pytest.raises(Stale):
        await records.registry.set_run_status(model, "no such run", "Failed")


async def test_a_report_is_seen_once_it_is_complete(records, model):
    await records.registry.ensure_run(model, TRAIN)
    await records.report(model, "train", "0123abcd", {"formatVersion": 1, "id": "b-1"})
    found = await records.registry.observe(model)
    assert found.report("train", "0123abcd") == {"formatVersion": 1, "id": "b-1"}
    assert found.report("train", "another") is None


async def test_tags_of_a_run_are_added_and_replaced(records, model):
    await records.registry.ensure_run(model, TRAIN)
    identity = await run_id(records, model)
    await records.registry.tag_run(model, identity, {"retrieval.verdict": "Failed"})
    await records.registry.tag_run(model, identity, {"retrieval.verdict": "Passed", "note": "text"})
    tags = (await records.registry.observe(model)).runs["train:0123abcd"].tags
    assert (tags["retrieval.verdict"], tags["note"], tags["revision"]) == ("Passed", "text", "0123abcd")


async def test_tagging_an_unknown_run_is_refused_as_stale(records, model):
    with pytest.raises(Stale):
        await records.registry.tag_run(model, "0" * 32, {"note": "text"})


async def test_a_version_is_found_by_its_bundle_and_not_made_twice(records, model):
    first = await registered(records, model, description="the first")
    second = await registered(records, model, description="asked again")
    assert second == first
    assert (first.bundle_id, first.description) == ("b-1", "the first")
    assert first.tags["revision"] == "0123abcd"
    assert first.tags[TAG_BUNDLE_ID] == "b-1"


async def test_every_bundle_has_a_version_of_its_own(records, model):
    one = await registered(records, model, "b-1", "key1")
    two = await registered(records, model, "b-2", "key2")
    assert one.number != two.number
    assert set((await records.registry.observe(model)).versions) == {"b-1", "b-2"}


async def test_a_version_of_an_unknown_run_is_refused_as_stale(records, model):
    with pytest.raises(Stale):
        await records.registry.register_version(
            model, RegisterVersion(bundle_id="b-1", run_id="0" * 32, tags={}, description="")
        )


async def test_describing_a_version_sets_tags_removes_empty_ones_and_keeps_the_rest(records, model):
    version = await registered(records, model, description="before")
    await records.registry.describe_version(model, version.number, {"retrieval.verdict": "Passed", "note": "x"}, None)
    await records.registry.describe_version(model, version.number, {"note": ""}, "after")
    found = (await records.registry.observe(model)).versions["b-1"]
    assert found.description == "after"
    assert found.tags["retrieval.verdict"] == "Passed"
    assert found.tags["revision"] == "0123abcd"
    assert "note" not in found.tags


async def test_a_description_of_none_keeps_the_text(records, model):
    version = await registered(records, model, description="before")
    await records.registry.describe_version(model, version.number, {}, None)
    assert (await records.registry.observe(model)).versions["b-1"].description == "before"


async def test_removing_a_tag_that_is_not_there_is_fine(records, model):
    version = await registered(records, model)
    await records.registry.describe_version(model, version.number, {"never": ""}, None)


async def test_describing_an_unknown_version_is_refused_as_stale(records, model):
    await registered(records, model)
    with pytest.raises(Stale):
        await records.registry.describe_version(model, "99", {"note": "x"}, None)


async def test_a_reviewers_tag_is_seen(records, model):
    version = await registered(records, model)
    await records.tag_version(model, version.number, "approved_by", "Ada")
    assert (await records.registry.observe(model)).versions["b-1"].tags["approved_by"] == "Ada"


async def test_aliases_are_set_moved_and_removed(records, model):
    one = await registered(records, model, "b-1", "key1")
    two = await registered(records, model, "b-2", "key2")
    await records.registry.set_alias(model, "champion", one.number)
    await records.registry.set_alias(model, "candidate", two.number)
    assert (await records.registry.observe(model)).aliases == {"champion": one.number, "candidate": two.number}
    await records.registry.set_alias(model, "champion", two.number)
    for _ in range(2):
        await records.registry.set_alias(model, "candidate", "")
    assert (await records.registry.observe(model)).aliases == {"champion": two.number}


async def test_an_alias_of_an_unknown_version_is_refused_as_stale(records, model):
    await registered(records, model)
    with pytest.raises(Stale):
        await records.registry.set_alias(model, "champion", "99")
    assert dict((await records.registry.observe(model)).aliases) == {}


async def test_objects_do_not_see_each_others_records(records, model, make_manifest):
    await registered(records, model)
    other = make_manifest("other")
    found = await records.registry.observe(other)
    assert (dict(found.runs), dict(found.versions)) == ({}, {})


async def test_the_registered_model_of_another_object_is_refused(records, model, make_manifest):
    await registered(records, model)
    thief = make_manifest("thief", registry={"name": model.registered_model_name})
    assert dict((await records.registry.observe(thief)).versions) == {}
    with pytest.raises(Rejected):
        await registered(records, thief)


async def test_an_unreachable_registry_may_be_asked_again_later(records, model):
    await records.lose_connection()
    with pytest.raises(Retryable):
        await records.registry.observe(model)
