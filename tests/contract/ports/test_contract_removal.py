"""What removing files needs of every adapter: a removal is a workload, a withdrawn report is none, a name is freed."""

from __future__ import annotations

import uuid

from retrieval_operator.api.constants import TAG_COLLECTED, TAG_REPORT
from retrieval_operator.domain import commands
from retrieval_operator.domain.plan import EnsureRun
from retrieval_operator.domain.workloads import WorkloadStep


async def test_a_removal_is_seen_as_what_it_is_and_deleting_it_frees_its_name(running, attempt):
    asked = commands.collect(running.model, key="0123abcd", attempt=1, names=["revisions/0123abcd"])
    work = attempt(name=asked.name, step=asked.step)
    for _ in range(2):
        await running.workloads.start(running.model, work)
        (found,) = await running.workloads.observe(running.model)
        assert (found.name, found.state, found.step) == ("feed-0123abcd-collect-1", "Running", WorkloadStep.COLLECT)
        await running.workloads.stop(running.model, work.name)
        (found,) = await running.workloads.observe(running.model)
        assert (found.state, found.reason) == ("Failed", "Stopped")
        await running.workloads.delete(running.model, work.name)
        assert list(await running.workloads.observe(running.model)) == []


async def test_a_withdrawn_report_is_not_seen_until_the_program_reports_again(records, make_manifest):
    model = make_manifest(f"feed-{uuid.uuid4().hex[:8]}")
    run = EnsureRun(step="train", key="0123abcd", name="revision 0123abcd")
    await records.registry.ensure_run(model, run)
    await records.report(model, "train", "0123abcd", {"formatVersion": 1, "id": "b-1"})
    found = (await records.registry.observe(model)).runs["train:0123abcd"]
    assert found.report == {"formatVersion": 1, "id": "b-1"}

    tags = {TAG_REPORT: "", TAG_COLLECTED: "feed-0123abcd-collect-1"}
    await records.registry.tag_run(model, found.run_id, tags)
    gone = (await records.registry.observe(model)).runs["train:0123abcd"]
    assert gone.report is None
    assert gone.tags[TAG_COLLECTED] == "feed-0123abcd-collect-1"

    await records.report(model, "train", "0123abcd", {"formatVersion": 1, "id": "b-2"})
    await records.registry.tag_run(model, found.run_id, {TAG_COLLECTED: ""})
    again = (await records.registry.observe(model)).runs["train:0123abcd"]
    assert again.report == {"formatVersion": 1, "id": "b-2"}
    assert not again.tags.get(TAG_COLLECTED)
