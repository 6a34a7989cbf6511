"""What the programs report (retrieval_core.reporting) is what the control plane reads: two halves of one contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieval_core.reporting import report
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion

pytestmark = pytest.mark.component


@pytest.fixture
def last_file(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps({"formatVersion": 1, "id": "b-1"}))
    return path


@pytest.fixture
async def reporting_run(registry, model, mlflow_uri, monkeypatch) -> str:
    """The id of a run that this process reports to."""
    await registry.ensure_run(model, EnsureRun(step="train", key="k", name="train"))
    run_id = (await registry.observe(model)).runs["train:k"].run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("RETRIEVAL_RUN_ID", run_id)
    return run_id


async def test_a_programs_report_is_seen_and_its_artifacts_are_the_versions_source(
    registry, model, reporting_run, last_file
):
    report(last_file, artifacts={"bundle/bundle.json": last_file}, metrics={"recall": 0.5})
    assert (await registry.observe(model)).report("train", "k") == {"formatVersion": 1, "id": "b-1"}
    await registry.register_version(model, RegisterVersion(bundle_id="b-1", run_id=reporting_run, tags={}))
    assert (await registry.observe(model)).versions["b-1"].number == "1"


async def test_a_report_that_was_changed_in_mlflow_is_mended_by_the_program_started_again(
    registry, model, program, reporting_run, last_file
):
    report(last_file)
    program.upload(reporting_run, "report.json", b'{"formatVersion": 1, "id": "b-other"}')
    assert (await registry.observe(model)).report("train", "k") is None
    report(last_file)
    assert (await registry.observe(model)).report("train", "k") == {"formatVersion": 1, "id": "b-1"}
