"""Workloads on this machine: what programs are started with, and how their ends are read."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from retrieval_operator.adapters.local import wrapper
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.processes import Supervisor
from retrieval_operator.adapters.local.programs import Program
from retrieval_operator.adapters.local.workloads import LocalWorkloads
from retrieval_operator.api.objects import parse_manifest
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep
from retrieval_operator.ports import Rejected

pytestmark = pytest.mark.component

SCRIPT = """
import json, os, signal, sys, time
wish = json.loads(sys.argv[1])
if "environment" in wish:
    with open(wish["environment"] + os.environ.get("RANK", ""), "w") as stream:
        json.dump({"environment": dict(os.environ), "nice": os.nice(0)}, stream)
if "say" in wish:
    print(wish["say"], flush=True)
if "signal" in wish:
    os.kill(os.getpid(), wish["signal"])
if "sleep" in wish:
    time.sleep(wish["sleep"])
sys.exit(wish.get("code", 0))
"""


def model(uid="uid-1"):
    return parse_manifest(
        {
            "apiVersion": "retrieval-operator.io/v1alpha1",
            "kind": "RetrievalModel",
            "metadata": {"name": "feed", "uid": uid},
            "spec": {
                "storage": {"uri": "/storage"},
                "data": {"uri": "/data", "revision": "1"},
                "model": {"base": "preset:tiny"},
                "training": {"pod": {"env": [{"name": "FOR_TRAINING", "value": "yes"}]}},
                "promotion": {"gates": [{"min": "0.1"}]},
            },
        },
        "test",
    )


def attempt(number=1, step=WorkloadStep.TRAIN, wish=None, **fields):
    return WorkloadSpec(
        **{
            "name": f"feed-0123abcd-{step}-{number}",
            "step": step,
            "key": "0123abcd",
            "attempt": number,
            "program": "retrieval-train",
            "arguments": (json.dumps(wish or {}),),
            **fields,
        }
    )


@pytest.fixture
def home(tmp_path):
    return LocalHome(tmp_path / "home")


@pytest.fixture
async def workloads(home, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    programs = {"retrieval-train": Program(target=(str(script),))}
    supervisor = Supervisor()
    yield LocalWorkloads(home, supervisor, tracking_uri="http://127.0.0.1:5000", programs=programs, grace_s=0.5)
    for directory in home.workloads("default/feed").glob("*"):
        supervisor.stop(directory)


async def observed(workloads, name, of=None):
    found = await workloads.observe(of or model())
    return next((seen for seen in found if seen.name == name), None)


async def ended(workloads, workload):
    await workloads.start(model(), workload)
    async with asyncio.timeout(60):
        while (seen := await observed(workloads, workload.name)).state == "Running":
            await asyncio.sleep(0.01)
    return seen


@pytest.mark.parametrize(
    ("wish", "exit_code", "reason"),
    [
        ({"code": 2}, 2, "BadArguments"),
        ({"code": 65}, 65, "BadInput"),
        ({"code": 69}, 69, "Diverged"),
        ({"code": 74}, 74, "StorageFailed"),
        ({"code": 75}, 75, "TemporarilyUnavailable"),
        ({"code": 1}, 1, "Crashed"),
        ({"signal": signal.SIGKILL}, 137, "Crashed"),
    ],
)
async def test_an_end_without_message_is_named_by_its_code_and_shows_the_log(workloads, wish, exit_code, reason):
    seen = await ended(workloads, attempt(wish={"say": "step 7 of 9", **wish}))
    assert (seen.state, seen.exit_code, seen.reason, seen.message) == ("Failed", exit_code, reason, "step 7 of 9")


async def test_the_deadline_is_told_as_such(workloads):
    seen = await ended(workloads, attempt(wish={"sleep": 60}, deadline_s=1))
    assert (seen.state, seen.reason) == ("Failed", "DeadlineExceeded")
    assert "deadline of 1 s" in seen.message


async def test_a_program_gets_a_clean_environment_its_variables_and_a_lower_priority(workloads, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-5f1c")
    path = tmp_path / "seen"
    workload = attempt(wish={"environment": str(path)}, run_id="run-1", environment={"EXTRA": "1"})
    await ended(workloads, workload)
    seen = json.loads(path.read_text())
    assert {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "RETRIEVAL_RUN_ID": "run-1",
        "FOR_TRAINING": "yes",
        "EXTRA": "1",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }.items() <= seen["environment"].items()
    assert Path(seen["environment"]["RETRIEVAL_TERMINATION_LOG"]).parent.name == workload.name
    assert "secret-5f1c" not in seen["environment"].values()
    assert seen["nice"] == min(19, 10 + os.nice(0))


async def test_without_a_run_a_program_is_not_told_of_the_registry(workloads, tmp_path):
    path = tmp_path / "seen"
    await ended(workloads, attempt(step=WorkloadStep.VERIFY, wish={"environment": str(path)}))
    environment = json.loads(path.read_text())["environment"]
    assert not {"MLFLOW_TRACKING_URI", "RETRIEVAL_RUN_ID", "FOR_TRAINING"} & environment.keys()


async def test_a_lost_attempt_is_failed_and_its_orphans_end_before_the_next_one_starts(workloads, home):
    await workloads.start(model(), attempt(1, wish={"sleep": 60}))
    directory = home.workload("default/feed", attempt(1).name)
    async with asyncio.timeout(20):
        while not wrapper.marked_processes(str(directory)):
            await asyncio.sleep(0.01)
    os.kill(json.loads((directory / "process.json").read_text())["pid"], signal.SIGKILL)
    async with asyncio.timeout(20):
        while (seen := await observed(workloads, attempt(1).name)).state == "Running":
            await asyncio.sleep(0.01)
    assert (seen.state, seen.exit_code, seen.reason) == ("Failed", None, "Lost")
    assert seen.finished_at >= seen.started_at > 0
    assert wrapper.marked_processes(str(directory))
    await workloads.start(model(), attempt(2))
    assert wrapper.marked_processes(str(directory)) == []
    again = await observed(workloads, attempt(1).name)
    assert (again.state, again.exit_code, again.reason) == ("Failed", None, "Lost")


async def test_a_name_left_by_a_deleted_object_makes_way_for_the_new_one(workloads):
    await workloads.start(model("uid-1"), attempt(wish={"sleep": 60}))
    await workloads.start(model("uid-2"), attempt(wish={"sleep": 60}))
    assert await observed(workloads, attempt().name, of=model("uid-1")) is None
    assert (await observed(workloads, attempt().name, of=model("uid-2"))).state == "Running"


async def test_an_unknown_program_is_refused_and_leaves_no_record(workloads):
    with pytest.raises(Rejected, match="retrieval-cook"):
        await workloads.start(model(), attempt(program="retrieval-cook"))
    assert list(await workloads.observe(model())) == []


async def test_several_processes_run_under_the_real_torchrun(workloads, tmp_path):
    path = tmp_path / "seen"
    seen = await ended(workloads, attempt(wish={"environment": str(path)}, nodes=2))
    assert seen.state == "Succeeded", seen.message
    worlds = {json.loads((tmp_path / f"seen{rank}").read_text())["environment"]["WORLD_SIZE"] for rank in (0, 1)}
    assert worlds == {"2"}
