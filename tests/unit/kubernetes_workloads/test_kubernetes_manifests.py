"""The manifests of every step: golden files of a manifest that sets everything, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from retrieval_operator.adapters.kubernetes.workloads import KubernetesWorkloads
from retrieval_operator.api.constants import FINAL_EXIT_CODES
from retrieval_operator.domain.identity import digest
from retrieval_operator.ports import Rejected

STEPS = ["train", "encode", "index", "evaluate", "verify", "collect"]


class PlainDumper(yaml.SafeDumper):
    """Writes what is used twice twice: a golden file is read by people."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def shown(manifest: dict[str, Any]) -> str:
    return yaml.dump(manifest, Dumper=PlainDumper, sort_keys=False, width=120)


def pod_specs(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = manifest["spec"]
    replicas = spec.get("pytorchReplicaSpecs", {"": spec})
    for each in replicas.values():
        yield each["template"]["spec"]


@pytest.mark.parametrize("step", STEPS)
def test_the_manifest_of_a_step_is_the_golden_one(golden, workloads, model, work, step):
    manifest = workloads.manifest(model, work[step])
    golden(f"kubernetes/workloads/{step}.yaml", shown(manifest))


def test_a_training_on_one_node_is_the_golden_job(golden, workloads, make, work_of):
    model = make(lambda spec: spec["training"].update(backend="Job", nodes=1))
    golden("kubernetes/workloads/train-job.yaml", shown(workloads.manifest(model, work_of(model)["train"])))


def test_a_bare_manifest_gives_the_golden_job(golden, workloads, make, work_of):
    def bare(spec):
        spec["storage"] = {"uri": "s3://bucket/models"}
        for section in ("training", "index", "evaluation"):
            del spec[section]

    model = make(bare)
    golden("kubernetes/workloads/index-bare.yaml", shown(workloads.manifest(model, work_of(model)["index"])))


@pytest.mark.parametrize("step", STEPS)
def test_pods_satisfy_the_restricted_pod_security_standard(workloads, model, work, step):
    for pod in pod_specs(workloads.manifest(model, work[step])):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        allowed = {"persistentVolumeClaim", "emptyDir", "configMap", "secret"}
        assert all(volume.keys() - {"name"} <= allowed for volume in pod["volumes"])


@pytest.mark.parametrize("step", STEPS)
def test_the_same_work_gives_the_same_bytes(workloads, make, work_of, step):
    first, second = (workloads.manifest(model, work_of(model)[step]) for model in (make(), make()))
    assert shown(first) == shown(second)


def test_every_dollar_reaches_the_program_as_it_was_typed(workloads, make, work_of):
    prompt = {"system": "costs $(PRICE) $$", "fields": [{"name": "title", "rendering": "text"}], "maxTokens": 64}
    model = make(lambda spec: spec["model"].update(prompts={"member": prompt, "item": prompt}))
    (container,) = [pod["containers"][0] for pod in pod_specs(workloads.manifest(model, work_of(model)["train"]))][:1]
    words = [*container["args"], *(entry["value"] for entry in container["env"] if "value" in entry)]
    assert any("costs $$(PRICE) $$$$" in word for word in words)
    assert any(word == "cost $$(A) $$5" for word in words)
    assert all("$" not in word.replace("$$", "") for word in words)


def test_what_must_be_wins_over_the_manifest_and_the_manifest_over_what_is_sensible(workloads, make, work_of):
    given = [{"name": name, "value": "mine"} for name in ("RETRIEVAL_RUN_ID", "OMP_NUM_THREADS")]
    model = make(lambda spec: spec["training"]["pod"].update(env=given))
    (pod, *_) = pod_specs(workloads.manifest(model, work_of(model)["train"]))
    env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert env["RETRIEVAL_RUN_ID"] == "run-1"
    assert env["OMP_NUM_THREADS"] == "mine"
    assert len(env) == len(pod["containers"][0]["env"]), "each name once"


@pytest.mark.parametrize(
    ("limit", "processes", "threads"),
    [("4", 2, "2"), ("3", 2, "1"), ("1500m", 1, "1"), ("500m", 1, "1"), ("8", 1, "8"), (None, 1, None)],
)
def test_threads_are_the_containers_processors_shared_among_its_processes(
    workloads, make, work_of, limit, processes, threads
):
    def edit(spec):
        spec["training"]["processesPerNode"] = processes
        spec["training"]["resources"] = {"limits": {"cpu": limit} if limit else {}}

    model = make(edit)
    (pod, *_) = pod_specs(workloads.manifest(model, work_of(model)["train"]))
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert env.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("size", "processes", "mounted"),
    [
        ("8Gi", 1, {"medium": "Memory", "sizeLimit": "8Gi"}),
        ("8Gi", 2, {"medium": "Memory", "sizeLimit": "8Gi"}),
        (None, 2, {"medium": "Memory"}),
        (None, 1, None),
    ],
)
def test_processes_of_one_pod_have_shared_memory_without_being_asked(
    workloads, make, work_of, size, processes, mounted
):
    def edit(spec):
        spec["training"]["processesPerNode"] = processes
        spec["training"]["pod"].pop("sharedMemory")
        spec["training"]["pod"] |= {"sharedMemory": size} if size else {}

    model = make(edit)
    for pod in pod_specs(workloads.manifest(model, work_of(model)["train"])):
        paths = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        sources = {volume["name"]: volume.get("emptyDir") for volume in pod["volumes"]}
        assert sources.get(paths.get("/dev/shm", "")) == mounted


def test_an_indexed_job_ends_at_once_with_an_exit_code_that_no_retry_helps(workloads, model, work):
    spec = workloads.manifest(model, work["encode"])["spec"]
    (codes,) = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes == sorted(FINAL_EXIT_CODES)
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "Ignore", "a drained node is no failure"
    assert (spec["completions"], spec["parallelism"]) == (4, 4)


def test_the_pods_of_a_pytorch_job_are_ended_after_its_own_deadline_and_not_before(workloads, model, work):
    """Before, the training-operator would only make new ones, with a new deadline."""
    manifest = workloads.manifest(model, work["train"])
    deadline_s = manifest["spec"]["runPolicy"]["activeDeadlineSeconds"]
    assert [pod["activeDeadlineSeconds"] - deadline_s for pod in pod_specs(manifest)] == [60, 60]


def test_an_imported_bundle_needs_no_pytorch_job(workloads, make, work_of):
    def imported(spec):
        spec["model"] = {"bundleUri": "/storage/bundle"}
        spec["training"] = {}

    model = make(imported)
    manifest = workloads.manifest(model, work_of(model)["train"])
    assert manifest["kind"] == "Job"
    assert manifest["spec"]["template"]["spec"]["containers"][0]["command"] == ["retrieval-train"]


def test_a_volume_over_tmp_takes_the_place_of_ours(workloads, make, work_of):
    big = {"name": "big", "mountPath": "/tmp/", "emptyDirSize": "100Gi", "readOnly": False}
    model = make(lambda spec: spec["index"].update(pod={"volumes": [big]}))
    (pod,) = pod_specs(workloads.manifest(model, work_of(model)["index"]))
    paths = [mount["mountPath"].rstrip("/") for mount in pod["containers"][0]["volumeMounts"]]
    assert sorted(paths) == ["/storage", "/tmp"]


def test_a_volume_over_shared_memory_takes_the_place_of_ours(workloads, make, work_of):
    """Two mounts at one path would be refused by the API server."""
    own = {"name": "shm", "mountPath": "/dev/shm", "emptyDirSize": "8Gi", "readOnly": False}

    def edit(spec):
        spec["training"]["processesPerNode"] = 2
        spec["training"]["pod"] = {"volumes": [own]}

    model = make(edit)
    for pod in pod_specs(workloads.manifest(model, work_of(model)["train"])):
        paths = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        assert paths.count("/dev/shm") == 1


def test_names_fit_what_kubernetes_makes_of_them(workloads, make, work_of):
    """63 characters: `<job>-worker-511` is the name of a pod and of its Service, `<job>-999` a host name."""
    model = make()
    long = model.model_copy(update={"metadata": model.metadata.model_copy(update={"name": "m" * 32})})
    key = digest("any", {})
    for step, work in work_of(long).items():
        name = f"{'m' * 32}-{key}-{work.step}-99"
        suffix = {"train": "-worker-511", "encode": "-999"}.get(step, "-abcde")
        assert len(name + suffix) <= 63


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda spec: spec["storage"].update(uri="s3://bucket/models"), "absolute path"),
        (lambda spec: spec.update(registry={"connection": "other"}), "registry.connection"),
    ],
)
def test_what_this_operator_cannot_run_is_refused_with_the_field(workloads, make, work_of, edit, words):
    model = make(edit)
    with pytest.raises(Rejected, match=words):
        workloads.manifest(model, work_of(model)["train"])


def test_an_image_that_is_not_configured_is_refused_unless_the_manifest_names_one(world, make, work_of):
    bare = KubernetesWorkloads(world.api, world.cache, lambda: 0, images={}, reporting={})
    model = make()
    with pytest.raises(Rejected, match="RETRIEVAL_OPERATOR_IMAGES"):
        bare.manifest(model, work_of(model)["collect"])


def test_a_removal_of_files_is_taken_by_a_namespace_with_any_quota(workloads, make, work_of):
    """Whatever the object says or does not say about resources: its finalizer waits for this Job."""
    model = make(lambda spec: spec["index"].pop("resources"))
    (pod,) = pod_specs(workloads.manifest(model, work_of(model)["collect"]))
    (container,) = pod["containers"]
    assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys() == {"cpu", "memory"}
