"""What MLflow has about a life, asked over its REST API from inside the cluster."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lives.place import Kubectl, Object

_PROGRAM = (
    "import sys, urllib.request as u; "
    "body = sys.argv[2].encode() or None; "
    "r = u.Request('http://localhost:5000/api/2.0/mlflow/' + sys.argv[1], body, {'Content-Type': 'application/json'}); "
    "print(u.urlopen(r, timeout=60).read().decode())"
)


@dataclass(frozen=True)
class Tracking:
    """The tracking server of examples/kubernetes/mlflow.yaml."""

    kubectl: Kubectl

    def get(self, path: str, **query: str) -> Object:
        return self._ask(f"{path}?{urllib.parse.urlencode(query)}")

    def post(self, path: str, **body: Any) -> Object:
        return self._ask(path, json.dumps(body))

    def runs(self, experiment: str) -> Sequence[Object]:
        """Of an experiment by its name, such as retrieval/<namespace>/<name>."""
        found = self.get("experiments/get-by-name", experiment_name=experiment)["experiment"]
        runs: list[Object] = self.post("runs/search", experiment_ids=[found["experiment_id"]], max_results=1000)["runs"]
        return runs

    def run(self, experiment: str, step: str) -> Object:
        """The only run of this step."""
        found = [run for run in self.runs(experiment) if tags(run["data"])["retrieval.step"] == step]
        assert len(found) == 1, f"{experiment} has {len(found)} runs of step {step}"
        return found[0]

    def versions(self, model: str) -> Sequence[Object]:
        found: list[Object] = self.get("model-versions/search", filter=f"name='{model}'").get("model_versions", [])
        return found

    def version(self, model: str, bundle_id: str) -> Object:
        """The one version of a bundle."""
        found = [version for version in self.versions(model) if tags(version)["bundle_id"] == bundle_id]
        assert len(found) == 1, f"{model} has {len(found)} versions of {bundle_id}"
        return found[0]

    def alias(self, model: str, alias: str) -> str:
        """The number of the version that it points to."""
        return str(self.get("registered-models/alias", name=model, alias=alias)["model_version"]["version"])

    def tag_version(self, version: Object, key: str, value: str) -> None:
        self.post("model-versions/set-tag", name=version["name"], version=version["version"], key=key, value=value)

    def history(self, run: Object, metric: str) -> list[int]:
        """The steps at which a metric was reported, in the order of reporting."""
        run_id = run["info"]["run_id"]
        found = self.get("metrics/get-history", run_id=run_id, metric_key=metric).get("metrics", [])
        return [int(point["step"]) for point in found]

    def _ask(self, path: str, body: str = "") -> Object:
        pod = ("--namespace", "mlflow", "exec", "deployment/mlflow", "--", "python3", "-c", _PROGRAM)
        found: Object = json.loads(self.kubectl(*pod, path, body))
        return found


def tags(entity: Object) -> dict[str, str]:
    """Of a run's data, a model version or a registered model."""
    return {tag["key"]: tag["value"] for tag in entity.get("tags", [])}
