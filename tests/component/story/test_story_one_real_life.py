"""One real life: real programs, real training, a real MLflow; only the data is synthetic.

It is killed where it hurts. What is looked at is what a second doing would leave behind: MLflow runs and versions,
attempts with their logs, processes.
"""

from __future__ import annotations

import shutil
from collections import Counter

import httpx
import pytest
import yaml

from retrieval_operator.api.status import Step

pytestmark = [pytest.mark.component, pytest.mark.story, pytest.mark.timeout(1500)]

# Small, and with 167 members to judge by: enough for a gate, and one training step takes 0.2 s on two cores.
WORLD = ("--members", "800", "--items", "400", "--interactions", "15000", "--horizon-days", "35", "--seed", "3")
ONCE_EACH = {"train": 1, "idxeval": 1, "eval": 1, "index": 1, "verify": 1}
# What a control plane may do that finds a settled object with its status gone: tell people, and repair what they read.
HARMLESS = {"EmitEvent", "SetAlias", "TagRun", "DescribeVersion"}


def write_manifest(life) -> str:
    document = {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": "feed"},
        "spec": {
            "storage": {"uri": str(life.root / "storage")},
            "data": {"uri": str(life.root / "data"), "revision": "day-28"},
            "model": {"base": "preset:tiny", "dimensions": [128, 64]},
            "training": {"hyperparameters": {"steps": 60, "batchSize": 32, "checkpointEverySteps": 20}},
            "index": {"factory": "Flat", "servedK": 50},
            "evaluation": {"k": [10, 50], "segments": ["all"], "minSamples": 100},
            # One positive among 142 other items: chance is 0.07, these 60 steps reach 0.28.
            "promotion": {"gates": [{"metric": "recall", "k": 10, "pool": "matched", "min": "0.12"}]},
        },
    }
    path = life.root / "feed.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def answer(address: str) -> tuple[str, str]:
    """Ask as README does. Returns the bundle and generation that answered; body and headers must agree."""
    query = {"member": {"headline": "Data engineer", "history": []}, "k": 10}
    response = httpx.post(f"{address}/v1/retrieve", json=query, timeout=30, trust_env=False).raise_for_status()
    body = response.json()
    assert len(set(body["ids"])) == 10
    ids = body["bundle_id"], body["generation_id"]
    assert ids == (response.headers["X-Bundle-Id"], response.headers["X-Generation-Id"])
    return ids


class Record:
    """What MLflow has of the object, asked over its REST API without any code of ours."""

    def __init__(self, page: str) -> None:
        self._server, _, self._experiment = page.partition("/#/experiments/")

    def runs(self) -> Counter[str]:
        """How many runs of each step, deleted ones included."""
        query = {"experiment_ids": [self._experiment], "max_results": 1000, "run_view_type": "ALL"}
        found = httpx.post(f"{self._server}/api/2.0/mlflow/runs/search", json=query, trust_env=False).raise_for_status()
        tags = [tag for run in found.json()["runs"] for tag in run["data"]["tags"]]
        return Counter(tag["value"] for tag in tags if tag["key"] == "retrieval.step")

    def versions(self) -> list[tuple[str, tuple[str, ...]]]:
        """(verdict, aliases) of every version of the registered model."""
        model = f"{self._server}/api/2.0/mlflow/registered-models/get?name=default.feed"
        aliases = httpx.get(model, trust_env=False).raise_for_status().json()["registered_model"].get("aliases", [])
        search = f"{self._server}/api/2.0/mlflow/model-versions/search"
        found = httpx.get(search, params={"filter": "name='default.feed'"}, trust_env=False).raise_for_status()
        return [
            (
                next((tag["value"] for tag in version["tags"] if tag["key"] == "retrieval.verdict"), ""),
                tuple(sorted(alias["alias"] for alias in aliases if alias["version"] == version["version"])),
            )
            for version in found.json()["model_versions"]
        ]


def test_a_model_lives_through_everything_that_kills_its_control_plane(life) -> None:
    # Nothing is there but a feed and a manifest.
    life.run("retrieval-data", "generate", str(life.root / "data"), *WORLD, "--days", "28")
    manifest = write_manifest(life)
    life.start_controller()
    assert "default/feed created" in life.local("apply", "-f", manifest)

    # It trains; the control plane is killed, the training is not.
    life.until("training takes its first step", lambda: "step 1 of 60" in life.log_of("train"))
    training = life.family("workloads/default/feed/feed-*-train-1")
    life.kill_controller()
    life.start_controller()
    life.until("the next control plane has looked", lambda: any(seen["step"] == "Training" for seen in life.passes()))
    assert life.family("workloads/default/feed/feed-*-train-1") == training

    # It is evaluated and indexed, and its servers are just starting when the control plane is killed once more.
    life.until("its stack is started", lambda: life.step() is Step.DEPLOYING and servers_run(life))
    server = life.family("stacks/default/feed/*/replica-0")
    life.kill_controller()
    life.start_controller()

    # It is promoted, and answers at its address are those of the stack in its status: the same processes, started once.
    assert "is live at http://127.0.0.1:" in life.local("apply", "-f", manifest, "--wait", "--timeout", "5m")
    status = life.model().status
    champion = status.champion
    assert champion is not None
    assert answer(status.address) == (champion.bundle_id, champion.generation_id)
    assert life.family("stacks/default/feed/*/replica-0") == server

    # Nothing was done twice.
    record = Record(str(yaml.safe_load(life.local("describe", "feed", "-o", "yaml"))["page"]))
    life.until("its version bears the verdict", lambda: record.versions() == [("Promoted", ("champion",))])
    assert record.runs() == ONCE_EACH
    assert Counter(path.name.rsplit("-", 2)[1] for path in life.attempts()) == ONCE_EACH
    assert {path.name.rsplit("-", 2)[2] for path in life.attempts()} == {"1"}
    assert life.log_of("train").count("step 1 of 60") == 1

    # It serves without a control plane; and one that finds the status wiped takes nothing up again.
    life.kill_controller()
    assert answer(status.address) == (champion.bundle_id, champion.generation_id)
    life.wipe_status()
    life.start_controller()
    life.until("the status is back", lambda: life.model().status.phase == "Live")
    life.until("nothing is left to do", lambda: life.passes()[-1]["event"] == "nothing to do")
    assert {action for seen in life.passes() for action in seen["actions"]} <= HARMLESS
    again = life.model().status.champion
    assert again is not None
    assert (again.stack, again.token) == (champion.stack, champion.token)
    assert record.runs() == ONCE_EACH
    assert record.versions() == [("Promoted", ("champion",))]
    assert len(life.attempts()) == len(ONCE_EACH)
    assert life.family("stacks/default/feed/*/replica-0") == server
    assert answer(status.address) == (champion.bundle_id, champion.generation_id)

    # A week later other data lie in the same place, as a schedule would find them; who asks gets a model of these.
    life.run("retrieval-data", "generate", str(life.root / "later"), *WORLD, "--days", "35")
    shutil.rmtree(life.root / "data")
    (life.root / "later").rename(life.root / "data")
    life.local("retrain", "feed")
    life.until("a model of the later data serves", lambda: life.model().status.champion.as_of > champion.as_of)
    status = life.model().status
    assert [entry.outcome for entry in status.history] == ["Promoted", "Promoted"]
    assert status.history[0].gates[0].champion_value is not None, "the champion was measured over the later data, too"
    assert answer(status.address) == (status.champion.bundle_id, status.champion.generation_id)

    # It goes, and leaves no process behind.
    life.local("delete", "feed", "--wait")
    with pytest.raises(httpx.ConnectError):
        answer(status.address)
    assert "stopped the controller" in life.local("down")
    assert life.controller_ended_with() == 0
    assert life.everything_that_runs() == []


def servers_run(life) -> bool:
    """Whether the server of the one stack has been started: its supervisor has noted it."""
    return any(life.home.root.glob("stacks/default/feed/*/replica-0/process.json"))
