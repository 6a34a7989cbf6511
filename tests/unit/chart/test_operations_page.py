"""docs/operations.md knows every condition, reason and metric, and its examples are ones the API accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from retrieval_operator.api import constants
from retrieval_operator.api.conditions import ConditionType, Reason
from retrieval_operator.api.objects import parse_manifests
from retrieval_operator.telemetry import ObjectStates

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
EXAMPLES = ROOT / "examples" / "kubernetes"


def rows(heading: str) -> list[list[str]]:
    """The cells of the table of a section, its head left out."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


def first_words(heading: str) -> list[str]:
    return [row[0].strip("|` ") for row in rows(heading)]


def test_every_condition_is_explained_once() -> None:
    assert sorted(first_words("Conditions")) == sorted(ConditionType)


def test_every_reason_has_a_meaning_and_something_to_do() -> None:
    assert sorted(first_words("Reasons")) == sorted(Reason)
    assert all(len(row) == 3 and all(row) for row in rows("Reasons"))


def test_every_metric_is_explained_once_and_alerts_name_no_other() -> None:
    metrics = [*REGISTRY.collect(), *ObjectStates(lambda: (), lambda: 0).collect()]
    names = [f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in metrics]
    ours = sorted(name for name in names if name.startswith("retrieval_operator_"))
    assert sorted(first_words("Metrics")) == ours
    assert set(re.findall(r"retrieval_operator_\w+", PAGE)) == set(ours)


def test_every_request_is_the_annotation_that_the_operator_reads() -> None:
    page = set(re.findall(r"retrieval-operator\.io/[a-z-]+", PAGE))
    ours = {value for name, value in vars(constants).items() if name.endswith("_ANNOTATION")}
    assert ours | {constants.FINALIZER} == page


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        assert (ROOT / "docs" / path).exists(), target
        if anchor:
            text = (ROOT / "docs" / path).read_text() if path else PAGE
            anchors = {
                re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in text.split("\n")
            }
            assert anchor in anchors, target


def test_the_example_object_is_one_the_operator_accepts() -> None:
    [model] = parse_manifests((EXAMPLES / "retrievalmodel.yaml").read_text(), "retrievalmodel.yaml")
    storage = yaml.safe_load_all((EXAMPLES / "storage.yaml").read_text())
    made = {(one["kind"], one["metadata"]["name"]) for one in storage}
    assert ("Namespace", model.metadata.namespace) in made
    assert ("PersistentVolumeClaim", model.spec.storage.persistent_volume_claim) in made


def examples() -> dict[str, dict[str, object]]:
    """Pod specs by name of what the examples start."""
    found = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] in ("Deployment", "Job"):
                found[document["metadata"]["name"]] = document["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("name", ["mlflow", "generate-day-28"])
def test_example_pods_satisfy_pod_security_restricted(name: str) -> None:
    pod = examples()[name]
    assert pod["securityContext"] == {  # the last of these on every container, too
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_trial_mlflow_answers_by_every_name_of_its_service() -> None:
    [container] = examples()["mlflow"]["containers"]
    [option] = [word for word in container["args"] if word.startswith("--allowed-hosts=")]
    hosts = set(option.removeprefix("--allowed-hosts=").split(","))
    for name in ("mlflow", "mlflow.mlflow", "mlflow.mlflow.svc", "mlflow.mlflow.svc.cluster.local"):
        assert {name, f"{name}:5000"} <= hosts
    assert not any("*" in host for host in hosts), "a pattern would let a web page in by a name of its own"


def test_example_images_are_those_of_this_version() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "retrieval-operator" / "Chart.yaml").read_text())
    for pod in examples().values():
        for container in pod["containers"]:
            assert container["image"].split(":")[1] == chart["appVersion"]
