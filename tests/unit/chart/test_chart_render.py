"""What Helm makes of the chart: golden renders, and what must hold whatever the values are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from retrieval_operator.api.crd import crd
from retrieval_operator.settings import ENVIRONMENT_PREFIX, Settings

CHART = Path(__file__).parents[3] / "charts" / "retrieval-operator"
EVERY_VALUE = Path(__file__).parent / "every_value.yaml"
DEFINITION = ("CustomResourceDefinition", "", "retrievalmodels.retrieval-operator.io")
OPERATOR = ("Deployment", "ops", "retrieval-operator")
ALL_SETTINGS = pytest.mark.parametrize(
    "arguments", [(), ("--values", str(EVERY_VALUE))], ids=["defaults", "every value"]
)


def dump(objects: dict[Any, Any]) -> str:
    """The objects as YAML, by kind and name, without the definition: crds/ has that."""
    return yaml.safe_dump_all([objects[name] for name in sorted(objects) if name != DEFINITION], sort_keys=False)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in a document that is no mapping, an empty mapping included."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def pods(objects: dict[Any, Any]) -> dict[str, Any]:
    """The pod specs of whatever starts pods, by name."""
    kinds = ("Deployment", "Job")
    return {
        name: document["spec"]["template"]["spec"] for (kind, _, name), document in objects.items() if kind in kinds
    }


def test_the_defaults_render_as_reviewed(render, golden) -> None:
    golden("chart/defaults.yaml", dump(render()))


def test_every_value_renders_as_reviewed(render, golden) -> None:
    golden("chart/every_value.yaml", dump(render("--values", str(EVERY_VALUE))))


def test_every_value_is_set_by_a_test() -> None:
    defaults = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    chosen = dict(leaves(yaml.safe_load(EVERY_VALUE.read_text())))
    untouched = [path for path in defaults if not any(key == path or key.startswith(f"{path}.") for key in chosen)]
    assert untouched == []
    same = {path for path, value in defaults.items() if chosen.get(path) == value}
    # Rendered only when they are on; the switches have tests of their own.
    assert same == {"crds.install", "metrics.enabled", "uninstall.releaseFinalizers"}


@ALL_SETTINGS
def test_pods_satisfy_pod_security_restricted(render, arguments) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, and a read-only root on top."""
    found = pods(render(*arguments))
    assert len(found) == 2
    for pod in found.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001  # as in the Dockerfiles
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(pod)
        assert all({"emptyDir", "secret", "configMap"} & volume.keys() for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def environment(objects: dict[Any, Any]) -> dict[str, str]:
    """Of the operator's container: its own settings."""
    container = objects[OPERATOR]["spec"]["template"]["spec"]["containers"][0]
    return {one["name"]: one["value"] for one in container["env"] if one["name"].startswith(ENVIRONMENT_PREFIX)}


@ALL_SETTINGS
def test_the_operator_can_read_all_of_its_settings(render, arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(render(*arguments))
    fields = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(variables) <= fields, "a variable that no setting reads does nothing, and says nothing"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Settings()


def test_two_operators_never_run_at_once(render) -> None:
    spec = render()[OPERATOR]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_an_operator_that_waits_for_the_cluster_is_not_killed_before_the_kubelet_forgets_its_crashes(render) -> None:
    """After a container ran for ten minutes; until then each kill doubles the wait before the next start."""
    [container] = render()[OPERATOR]["spec"]["template"]["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > 600


def test_images_are_those_of_the_release_unless_they_are_named(render) -> None:
    named = environment(
        render("--set-string", "images.prefix=registry.example.com/,images.tag=9,images.trainer=mine/trainer:3")
    )
    assert json.loads(named["RETRIEVAL_OPERATOR_IMAGES"]) == {
        "trainer": "mine/trainer:3",
        "indexer": "registry.example.com/retrieval-indexer:9",
        "encoderServer": "registry.example.com/retrieval-encoder-server:9",
        "data": "registry.example.com/retrieval-indexer:9",
    }


def test_namespaced_mode_asks_for_no_cluster_wide_rights(render) -> None:
    objects = render("--set", "watch.namespaces={feed,jobs}")
    assert "ClusterRoleBinding" not in {kind for kind, _, _ in objects}
    namespaces = {namespace for kind, namespace, _ in objects if kind == "Role"}
    assert namespaces == {"feed", "jobs", "ops"}


@ALL_SETTINGS
def test_every_role_is_bound_to_an_account_of_the_release(render, arguments) -> None:
    objects = render(*arguments)
    for (kind, namespace, name), document in objects.items():
        if kind not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        role = document["roleRef"]
        assert (role["kind"], namespace, role["name"]) in objects, name
        for subject in document["subjects"]:
            assert (subject["kind"], subject["namespace"], subject["name"]) in objects, name


def test_people_who_may_edit_a_namespace_may_edit_the_objects_in_it(render) -> None:
    roles = {name: one for (kind, _, name), one in render().items() if kind == "ClusterRole"}
    verbs = {}
    for role in ("view", "edit"):
        one = roles[f"retrieval-operator-{role}"]
        assert one["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
        [rule] = one["rules"]
        assert rule["resources"] == ["retrievalmodels"], "the status and the children are the operator's"
        verbs[role] = set(rule["verbs"])
    assert verbs["view"] == {"get", "list", "watch"}
    assert verbs["edit"].isdisjoint(verbs["view"])


def test_nothing_lets_the_operator_read_secrets(render) -> None:
    for arguments in ((), ("--values", str(EVERY_VALUE))):
        for (kind, _, name), document in render(*arguments).items():
            if kind in ("Role", "ClusterRole"):
                for rule in document["rules"]:
                    assert "secrets" not in rule["resources"] and "*" not in {*rule["resources"], *rule["verbs"]}, name


def test_uninstalling_deletes_no_object_of_a_user(render) -> None:
    rules = render()["ClusterRole", "", "retrieval-operator-uninstall-watched"]["rules"]
    assert "delete" not in {verb for rule in rules for verb in rule["verbs"]}
    arguments = render()["Job", "ops", "retrieval-operator-uninstall"]["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    assert "--delete-objects" not in arguments
    assert "--stop=ops/retrieval-operator" in arguments, "an operator that still runs sets its finalizer again"


def test_the_hook_and_all_it_needs_are_gone_when_it_is_done(render) -> None:
    hooks = {name: one["metadata"]["annotations"] for name, one in render().items() if "uninstall" in name[2]}
    assert len(hooks) == 6
    for hook in hooks.values():
        assert hook["helm.sh/hook"] == "pre-delete"
        assert hook["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"


def test_the_hook_runs_where_and_before_whom_the_operator_does(render) -> None:
    found = pods(render("--values", str(EVERY_VALUE)))
    placed = ("priorityClassName", "nodeSelector", "tolerations", "affinity", "enableServiceLinks")
    operator, hook = ({key: pod[key] for key in placed} for pod in found.values())
    assert operator == hook


def test_the_hook_gives_up_before_helm_does(render) -> None:
    """Helm waits five minutes unless it is told otherwise; what the Job says then is better than its time-out."""
    assert render()["Job", "ops", "retrieval-operator-uninstall"]["spec"]["activeDeadlineSeconds"] < 300


def test_a_definition_that_goes_needs_a_hook_that_lets_the_objects_go(helm) -> None:
    refused = helm(
        "template", "test", str(CHART), "--kube-version", "1.30.0",
        "--set", "crds.keep=false,uninstall.releaseFinalizers=false",
    )  # fmt: skip
    assert refused.returncode != 0
    assert "expected uninstall.releaseFinalizers or uninstall.deleteObjects" in refused.stderr


def test_the_hook_can_be_left_out(render) -> None:
    assert [name for name in render("--set", "uninstall.releaseFinalizers=false") if "uninstall" in name[2]] == []


def test_metrics_can_be_left_out(render) -> None:
    objects = render("--set", "metrics.enabled=false")
    assert "Service" not in {kind for kind, _, _ in objects}
    assert environment(objects)["RETRIEVAL_OPERATOR_METRICS_PORT"] == "0"


def test_a_release_of_another_name_has_the_charts_name_in_its_objects(helm) -> None:
    done = helm("template", "prod", str(CHART), "--show-only", "templates/deployment.yaml", "--kube-version", "1.30.0")
    assert yaml.safe_load(done.stdout)["metadata"]["name"] == "prod-retrieval-operator"


def test_the_definition_stays_when_the_chart_goes(render) -> None:
    definition = render()[DEFINITION]
    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == crd()


def test_the_definition_goes_with_the_chart_when_somebody_wants_that(render) -> None:
    assert render("--set", "crds.keep=false")[DEFINITION] == crd()


def test_the_definition_can_be_left_out(render) -> None:
    assert DEFINITION not in render("--set", "crds.install=false")


REFUSED = {
    "a value that does not exist": ("crd.install=false", "additional properties 'crd' not allowed"),
    "a value that does not exist further down": ("metrics.port=1", "additional properties 'port' not allowed"),
    "a connection without an address": ("mlflow.connections.default.publicUri=http://a", "missing property 'uri'"),
    "an address with a password": ("mlflow.connections.default.uri=http://a:b@c", "does not match pattern"),
    "a connection with an impossible name": ("mlflow.connections.My_Flow.uri=http://c", "does not match pattern"),
    "a namespace with an impossible name": ("watch.namespaces={Feed}", "does not match pattern"),
    "a label that selects the operator": ("podLabels.app\\.kubernetes\\.io/component=mine", "'not' failed"),
    "a variable that is a setting": ("extraEnv[0].name=RETRIEVAL_OPERATOR_WORKERS", "'not' failed"),
    "a pull secret without a name": ("imagePullSecrets[0].secret=registry", "missing property 'name'"),
    "no worker": ("workers=0", "minimum: got 0, want 1"),
    "a log level that does not exist": ("logLevel=loud", "value must be one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_value_is_refused_before_anything_is_installed(helm, case: str) -> None:
    setting, words = REFUSED[case]
    refused = helm("template", "test", str(CHART), "--kube-version", "1.30.0", "--set", setting)
    assert refused.returncode != 0
    assert words in refused.stderr


def test_a_kubernetes_without_what_our_objects_use_is_refused(helm) -> None:
    refused = helm("template", "test", str(CHART), "--kube-version", "1.29.9")
    assert refused.returncode != 0
    assert "incompatible with Kubernetes v1.29.9" in refused.stderr


def test_helm_lint_finds_nothing(helm) -> None:
    linted = helm("lint", "--strict", str(CHART), "--values", str(EVERY_VALUE))
    assert linted.returncode == 0, linted.stdout + linted.stderr
