"""A model's life as its owner tells it, through the command line alone."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.instance import holder

pytestmark = pytest.mark.component

MAX_RESIDENT_MIB = 120
PATIENCE_S = 60
STEPS = [
    *("Training", "Registering", "IndexingForEvaluation", "Evaluating"),
    *("IndexingForServing", "Deploying", "Verifying", "Promoting"),
]


def said(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout}\n{done.stderr}"


def eventually(condition: Callable[[], bool]) -> None:
    """Other processes bring it about; how long they take is no matter of this test."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def steps_told(place) -> list[str]:
    """The steps in the order of their events."""
    events = LocalModelStore(LocalHome(place.home)).events(f"default/{place.name}")
    return [event.message.partition(": ")[2] for event in events if event.message.startswith("Revision ")]


def is_held_by(place, pid: int) -> bool:
    found = holder(LocalHome(place.home))
    return found is not None and found.pid == pid


def served_bundle(address: str) -> str:
    with urllib.request.urlopen(f"{address}/v1/ids") as answer:
        return str(json.load(answer)["bundle_id"])


def test_a_whole_life_from_the_command_line(place_of_its_own, local, start_controller) -> None:
    place, local = place_of_its_own, functools.partial(local, place_of_its_own)

    # A first revision: apply --wait is the controller itself, since nobody else is.
    day_1 = place.dataset("day-1", 0.40)
    done = local("apply", "-f", place.manifest(day_1, "1"), "--wait", "--timeout", "3m")
    assert done.returncode == 0, said(done)
    shown = [position for step in STEPS if (position := done.stdout.find(f"default/feed  {step}")) >= 0]
    assert shown == sorted(shown), done.stdout  # a step shorter than a look at the object may be missing here
    assert steps_told(place) == STEPS
    assert "is live at http://127.0.0.1:" in done.stdout
    assert "0.4000 reaches min 0.3" in done.stdout

    # It serves, also now that no controller runs.
    address = place.model().status.address
    first = place.model().status.champion
    assert served_bundle(address) == first.bundle_id

    # After `down` the status still tells of a champion: `describe` says so, and waiting ends only when it serves again.
    assert local("down").returncode == 0
    assert "no controller runs in this home" in local("describe", "feed").stdout
    done = local("apply", "-f", place.manifest(day_1, "1"), "--wait", "--timeout", "3m")
    assert done.returncode == 0, said(done)
    assert place.model().status.champion == first
    assert served_bundle(address) == first.bundle_id

    # A controller in the foreground; a second one is told who holds the home.
    controller = start_controller(place)
    eventually(lambda: is_held_by(place, controller.pid))
    again = local("run")
    assert again.returncode == 1
    assert "retrieval-operator local run" in again.stderr

    # A better revision takes over; plan said what it would do.
    better = place.manifest(place.dataset("day-2", 0.45), "2")
    assert "new revision" in local("plan", "-f", better).stdout
    done = local("apply", "-f", better, "--wait", "--timeout", "3m")
    assert done.returncode == 0, said(done)
    second = place.model().status.champion
    assert second.stack != first.stack
    assert served_bundle(address) == second.bundle_id

    # A bad one is refused with its numbers, and the champion keeps serving.
    done = local("apply", "-f", place.manifest(place.dataset("day-3", 0.10), "3"), "--wait", "--timeout", "3m")
    assert done.returncode == 1, said(done)
    assert "0.1000 is below min 0.3" in done.stdout
    assert served_bundle(address) == second.bundle_id

    # One whose data is broken fails with the program's own words and the end of its log.
    broken = place.dataset("day-4", 0.5, fail="65 items/part-0.parquet: column title is missing")
    done = local("apply", "-f", place.manifest(broken, "4"), "--wait", "--timeout", "3m")
    assert done.returncode == 1, said(done)
    assert "BadInput" in done.stdout
    assert "The last lines of feed-" in done.stderr
    assert "items/part-0.parquet: column title is missing" in done.stderr

    # Mended and retried, it is promoted without another manifest.
    place.dataset("day-4", 0.5)
    assert local("retry", "feed").returncode == 0
    eventually(lambda: place.model().status.champion.stack != second.stack)
    fourth = place.model().status.champion

    # Back to the former one, which still runs.
    done = local("rollback", "feed")
    assert f"traffic goes back from {fourth.stack} to {second.stack}" in done.stdout
    eventually(lambda: place.model().status.champion.stack == second.stack)
    assert served_bundle(address) == second.bundle_id

    assert psutil.Process(controller.pid).memory_info().rss / 2**20 < MAX_RESIDENT_MIB

    # The object goes, and its servers with it.
    done = local("delete", "feed", "--wait")
    assert done.returncode == 0, said(done)
    with pytest.raises(OSError, match="refused"):
        served_bundle(address)
    done = local("down")
    assert f"stopped the controller, process {controller.pid}" in done.stdout
    assert controller.wait() == 0
    assert _processes_of(place.home) == []


def test_a_manual_promotion_waits_for_a_person(place, local, start_controller) -> None:
    local = functools.partial(local, place)
    start_controller(place)
    manifest = place.manifest(place.dataset("day-1", 0.40), "1", mode="Manual")
    assert local("apply", "-f", manifest).returncode == 0

    eventually(lambda: (found := place.model().status.candidate) is not None and found.step == "AwaitingApproval")
    assert local("apply", "-f", manifest, "--wait", "--timeout", "0s").returncode == 4
    assert local("approve", place.name).returncode == 0
    done = local("apply", "-f", manifest, "--wait", "--timeout", "2m")
    assert done.returncode == 0, said(done)
    assert local("approve", place.name).returncode == 3


def test_a_control_plane_killed_after_each_action_leaves_nothing_undone_and_nothing_twice(place, local) -> None:
    local = functools.partial(local, place)
    local("apply", "-f", place.manifest(place.dataset("day-1", 0.40), "1"))
    script = Path(__file__).with_name("killed_controller.py")
    actions: list[str] = []
    while True:
        life = subprocess.run(
            [sys.executable, str(script), str(place.home), place.name],
            check=False,
            capture_output=True,
            text=True,
            env=place.environment,
            timeout=120,
        )
        actions += life.stdout.split()
        if life.returncode != -9:
            break
        assert len(actions) < 60, "it does not get anywhere"
    assert life.returncode == 0, life.stderr

    once = ["RegisterVersion", "CreateStack", "SwitchTraffic"]
    assert [actions.count(name) for name in once] == [1, 1, 1], actions
    works = ["train", "encode", "evaluation index", "evaluation", "encode", "serving index", "verify"]
    assert actions.count("StartWorkload") == len(works), actions
    document = json.loads(local("describe", place.name, "-o", "json").stdout)
    assert [workload["attempt"] for workload in document["workloads"]] == [1] * len(works)
    assert {workload["state"] for workload in document["workloads"]} == {"Succeeded"}
    champion = document["status"]["champion"]
    assert served_bundle(document["status"]["address"]) == champion["bundleId"]
    for log in (place.home / "workloads").glob("*/*/*/log"):
        reports = 0 if "-encode-" in log.parent.name else 1  # encoded parts are proved by the index built from them
        assert log.read_text().count("written and reported") == reports, log


def _processes_of(home: Path) -> list[str]:
    """Command lines that name the home: servers, proxies, MLflow, wrappers."""
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(home) in line]
