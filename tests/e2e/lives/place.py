"""A namespace to live in: what a person does there with kubectl, and what they wait for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from retrieval_core.dataset import open_dataset
from retrieval_trainer.tiny import tiny_base

Object = dict[str, Any]
Kubectl = Callable[..., str]

EXAMPLES = Path(__file__).parents[3] / "examples" / "kubernetes"
STORAGE = "/srv/retrieval"  # where every pod sees the claim
DATASET = "day-28"  # that of storage.yaml
BUNDLE = f"{STORAGE}/bundles/feed"  # where `new_import` puts a finished one
USER = 10001  # of our images
# A life of two busy cores takes less than five minutes; this is for a machine that does more than this.
WAIT_S = 600
_POLL_S = 2.0
# The world of examples/kubernetes/storage.yaml; another number of days is the same world earlier or later.
_WORLD = ("--members=5000", "--items=4000", "--interactions=120000", "--horizon-days=42", "--seed=7")

# A Service of this second is not yet known to kube-proxy, or its servers are not, and what is sent to it is lost or
# refused: only the connection is tried again, the request never.
_CLIENT = """
import socket, sys, time, urllib.parse, urllib.request
address = urllib.parse.urlsplit(sys.argv[1])
for tries_left in reversed(range(5)):
    try:
        socket.create_connection((address.hostname, address.port or 80), timeout=3).close()
        break
    except OSError:
        if not tries_left:
            raise
        time.sleep(2)
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


@dataclass(frozen=True)
class Place:
    """One namespace with a claim. `path` is the directory behind the claim, as this machine sees it."""

    namespace: str
    path: Path
    kubectl: Kubectl
    _began: dict[str, float] = field(default_factory=dict)

    def run(self, *arguments: str, documents: list[Object] | None = None, timeout_s: float = WAIT_S) -> str:
        """kubectl in this namespace; a failure ends the test."""
        return self.kubectl("--namespace", self.namespace, *arguments, documents=documents, timeout_s=timeout_s)

    def apply(self, *documents: Object) -> None:
        for document in documents:
            self._began[document["metadata"]["name"]] = time.monotonic()
        self.run("apply", "--filename=-", documents=list(documents))

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.run("get", kind, name, "--output=json"))
        return found

    def model(self, name: str) -> Object:
        return self.get("retrievalmodel", name)

    def list(self, kind: str, **labels: str) -> list[Object]:
        """Objects of a kind by our labels: name, step, key, stack; all of the kind when there are none."""
        selector = ",".join(f"retrieval-operator.io/{label}={value}" for label, value in labels.items())
        found: list[Object] = json.loads(self.run("get", kind, f"--selector={selector}", "--output=json"))["items"]
        return found

    def events(self, name: str, reason: str) -> list[str]:
        """What was said about an object for this reason, the newest last."""
        about = f"--field-selector=involvedObject.name={name},reason={reason}"
        found = json.loads(self.run("get", "events", about, "--sort-by=.lastTimestamp", "--output=json"))["items"]
        return [event["message"] for event in found]

    def on_disk(self, uri: str) -> Path:
        """Where this machine has what pods see at this address."""
        return self.path / Path(uri).relative_to(STORAGE)

    def count_from_now(self, name: str) -> None:
        """The time that `until` prints begins here: as if the object had been edited."""
        self._began[name] = time.monotonic()

    def annotate(self, name: str, **annotations: str) -> None:
        self.count_from_now(name)
        pairs = [f"retrieval-operator.io/{key}={value}" for key, value in annotations.items()]
        self.run("annotate", "--overwrite", "retrievalmodel", name, *pairs)

    def patch(self, name: str, spec: Object) -> None:
        """Change the spec of an object, as `kubectl edit` would."""
        self.count_from_now(name)
        self.run("patch", "retrievalmodel", name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def until(
        self,
        name: str,
        holds: Callable[[Object], bool],
        what: str,
        *,
        timeout_s: float = WAIT_S,
        stalled: bool = False,
    ) -> Object:
        """The object once `holds` is true of it. The time since it was last edited is printed.

        Ends the test when it stalls before (unless `stalled` says that it may), or after timeout_s.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.model(name)
            if holds(found):
                edited = self._began.get(name, time.monotonic())
                print(f"{self.namespace}/{name} {what}: {time.monotonic() - edited:.0f} s", flush=True)
                return found
            verdict = condition(found, "Stalled")
            is_stalled = verdict.get("status") == "True" and is_current(found, verdict)
            assert stalled or not is_stalled, f"stalled before it {what}: {verdict['reason']}: {verdict['message']}"
            status = yaml.safe_dump(found.get("status"))
            assert time.monotonic() < deadline, f"after {timeout_s:.0f} s it is not so that it {what}:\n{status}"
            time.sleep(_POLL_S)

    def until_promoted(self, name: str, **settings: Any) -> Object:
        """What the manifest asks for is champion, and serves."""
        return self.until(name, is_promoted, "is promoted", **settings)

    def stacks(self, name: str) -> list[str]:
        """Those of an object that have servers, or are on their way out."""
        found = self.list("inferenceservices", name=name)
        return sorted(one["metadata"]["labels"]["retrieval-operator.io/stack"] for one in found)

    def pods(self, name: str, stack: str) -> dict[str, str]:
        """The servers of a stack that are not on their way out: UID by name."""
        found = self.list("pods", name=name, stack=stack)
        staying = [pod["metadata"] for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return {metadata["name"]: metadata["uid"] for metadata in staying}

    def ask(self, address: str, query: Object, *, by: tuple[str, str] = ("mlflow", "deployment/mlflow")) -> Object:
        """What a client in another namespace is answered by /v1/retrieve, by the Service's name.

        `by`: the namespace and name of any pod that has Python.
        """
        pod = ("--namespace", by[0], "exec", by[1], "--", "python3", "-c", _CLIENT)
        answer: Object = json.loads(self.kubectl(*pod, f"{address}/v1/retrieve", json.dumps(query)))
        return answer

    def retrieve(self, name: str, **settings: Any) -> Object:
        """What such a client gets for a member of the dataset at the address of an object, best 10."""
        members = pq.read_table(self.path / "data" / DATASET / "members", columns=["member_id"])
        query = {"member_id": str(members["member_id"][0].as_py()), "k": 10}
        answer = self.ask(self.model(name)["status"]["address"], query, **settings)
        assert len(set(answer["ids"])) == 10, answer
        return answer


def condition(found: Object, kind: str) -> Object:
    """A condition of an object, {} when it is absent."""
    conditions: list[Object] = found.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def is_current(found: Object, one: Object) -> bool:
    """Whether a condition speaks of the object as it is now."""
    return bool(one.get("observedGeneration") == found["metadata"]["generation"])


def is_true(found: Object, kind: str) -> bool:
    one = condition(found, kind)
    return one.get("status") == "True" and is_current(found, one)


def is_promoted(found: Object) -> bool:
    return is_true(found, "Promoted") and is_true(found, "Ready")


def manifest(name: str = "feed", *, nodes: int = 1, **spec: Any) -> Object:
    """That of examples/kubernetes with a training of seconds, gates to match, and a base from the claim.

    `spec` is merged into the sections by their names in the manifest, such as data={"revision": "2"}.
    """
    found: Object = yaml.safe_load((EXAMPLES / "retrievalmodel.yaml").read_text())
    found["metadata"] = {"name": name}
    hyperparameters = {"steps": 80, "batchSize": 32, "learningRate": "0.001", "checkpointEverySteps": 20}
    changes: Object = {
        "model": {"base": f"{STORAGE}/base"},
        "training": {"nodes": nodes, "processesPerNode": 1, "hyperparameters": hyperparameters},
        "promotion": {"gates": [{"metric": "recall", "k": 10, "pool": "matched", "min": "0.02"}]},
        "rollback": {"windowSeconds": 60},
    }
    for more in (changes, spec):
        for section, values in more.items():
            found["spec"][section] = found["spec"].get(section, {}) | values if isinstance(values, dict) else values
    for section in ("training", "index", "serving", "evaluation"):
        # All of it has room beside the cluster on two cores.
        found["spec"][section]["resources"]["requests"] = {"cpu": "100m", "memory": "256Mi"}
    # A server's limit is else its request: with a tenth of a core its imports take a minute.
    found["spec"]["serving"]["resources"]["limits"]["cpu"] = "2"
    return found


def importing(name: str = "feed", **spec: Any) -> Object:
    """The same for the finished bundle of `new_import`: a life without a training, of about a minute."""
    found = manifest(name, **spec)
    found["spec"]["model"] = {"bundleUri": BUNDLE}
    return found


def provide_base(path: Path, dataset: Path) -> None:
    """The toy base of a dataset as a directory on the claim: made once on this machine instead of in every pod."""
    target = path / "base"
    if not target.exists():
        shutil.copytree(tiny_base(open_dataset(str(dataset))), target)
        own(target)


def generate(path: Path, name: str, *options: str) -> str:
    """Write another snapshot of the example's world onto the claim, such as `--days=35`; its address for pods."""
    target = path / "data" / name
    program = Path(sys.executable).parent / "retrieval-data"
    if not target.exists():
        command = [program, "generate", str(target), *_WORLD, *options]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        own(target)
    return f"{STORAGE}/data/{name}"


def own(path: Path) -> None:
    """Give a tree to the user of our images."""
    for each in (path, *path.rglob("*")):
        os.chown(each, USER, USER)
    path.chmod(0o755)


def seconds(time_of_day: str) -> int:
    """A time in a status, in seconds since 1970."""
    return int(datetime.fromisoformat(time_of_day).timestamp())


def names(objects: Iterable[Object]) -> list[str]:
    return sorted(one["metadata"]["name"] for one in objects)
