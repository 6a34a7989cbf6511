"""The Kubeflow training operator and KServe, from their own manifests, with their webhooks on.

Changed in them is only what a cluster without registry, cert-manager and ingress needs: images, KServe's webhook
certificate (the training operator makes its own), and the parts of KServe that nothing here uses.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from native_cluster.certificates import Authority, Pair
from native_cluster.images import Image
from native_cluster.kubectl import Kubectl
from native_cluster.layout import ClusterError, Layout
from native_cluster.node_client import until
from native_cluster.versions import BUSYBOX_IMAGE, KSERVE_IMAGE, TRAINING_OPERATOR_IMAGE

Object = dict[str, Any]

READY_TIMEOUT_S = 240
_POLL_S = 1.0  # each look starts a kubectl, a quarter of a second of processor time
_TRAINING_OPERATOR = "kubeflow"
_INIT_CONTAINER = Path(__file__).parents[3] / "examples" / "kubernetes" / "pytorchjob-init-container.yaml"
_KSERVE = "kserve"
_KSERVE_WEBHOOK = "kserve-webhook-server-service"
# LLMInferenceService and the local model cache have controllers of their own; ours needs neither.
_UNUSED_NAMES = ("localmodel", "llmisvc", "llminference", "llm-d.ai", "inference.networking")
# Those of cert-manager, and one whose custom resources the webhook validates before it runs.
_UNUSED_KINDS = ("Certificate", "Issuer", "ClusterStorageContainer")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the binaries' cache kept of both modules' sources."""

    training_operator: Path
    kserve: Path


@dataclass(frozen=True, kw_only=True)
class Controller:
    """`probe` is an object that its webhook accepts once everything of it runs."""

    name: str
    namespace: str
    deployment: str
    objects: Sequence[Object]
    probe: Object


def controller_images(binaries: Path) -> list[Image]:
    return [
        Image(
            name=TRAINING_OPERATOR_IMAGE, files={"manager": binaries / "training-operator"}, entrypoint=("/manager",)
        ),
        Image(name=KSERVE_IMAGE, files={"manager": binaries / "kserve-manager"}, entrypoint=("/manager",)),
    ]


def all_controllers(layout: Layout, sources: Sources, kubectl: Kubectl) -> list[Controller]:
    rendered = kubectl.run("kustomize", str(sources.training_operator / "overlays" / "standalone"))
    authority = Authority.load(layout.pki)
    hosts = [f"{_KSERVE_WEBHOOK}.{_KSERVE}.svc", f"{_KSERVE_WEBHOOK}.{_KSERVE}.svc.cluster.local"]
    certificate = authority.issue(_KSERVE_WEBHOOK, hosts=hosts)
    return [
        Controller(
            name="training-operator",
            namespace=_TRAINING_OPERATOR,
            deployment="training-operator",
            objects=training_operator_objects(_documents(rendered)),
            probe=_PYTORCH_JOB,
        ),
        Controller(
            name="kserve",
            namespace=_KSERVE,
            deployment="kserve-controller-manager",
            objects=kserve_objects(_documents(sources.kserve.read_text()), authority.pair.certificate, certificate),
            probe=_INFERENCE_SERVICE,
        ),
    ]


def apply(controller: Controller, kubectl: Kubectl) -> None:
    """All of it but its webhooks: before its pods run, they would refuse every object of the kinds they watch."""
    definitions = [one for one in controller.objects if one["kind"] == "CustomResourceDefinition"]
    namespaces = [one for one in controller.objects if one["kind"] == "Namespace"]
    kubectl.apply([*namespaces, *definitions])
    until(lambda: _established(definitions, kubectl), READY_TIMEOUT_S, f"{controller.name}'s CRDs", poll_s=_POLL_S)
    early = [*namespaces, *definitions]
    kubectl.apply([one for one in controller.objects if one not in early and not _is_webhook(one)])


def complete(controller: Controller, kubectl: Kubectl, log: Path) -> None:
    """Wait for it, switch its webhooks on, and wait until they accept an object. `log`: what to show when not."""
    _wait_available(controller, kubectl, log)
    kubectl.apply([one for one in controller.objects if _is_webhook(one)])
    dry_run = ("create", "--dry-run=server", "--filename=-")
    probe = json.dumps(controller.probe)
    webhook = f"{controller.name}'s webhook"
    try:
        until(lambda: kubectl.succeeds(*dry_run, document=probe), READY_TIMEOUT_S, webhook, log, _POLL_S)
    except ClusterError:
        kubectl.run(*dry_run, document=probe)  # says why
        raise


def training_operator_objects(documents: Sequence[Object]) -> list[Object]:
    """With our image, and with the template of the init container that an administrator is told to give it."""
    for one in documents:
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            container = pod["containers"][0]
            _use_image(container, TRAINING_OPERATOR_IMAGE)
            container["args"] = [*container.get("args", []), f"--pytorch-init-container-image={BUSYBOX_IMAGE}"]
            container["volumeMounts"].append({"name": "init-container", "mountPath": "/etc/config"})
            pod["volumes"].append({"name": "init-container", "configMap": {"name": "init-container"}})
    return [*documents, *_documents(_INIT_CONTAINER.read_text())]


def kserve_objects(documents: Sequence[Object], authority: bytes, certificate: Pair) -> list[Object]:
    """The InferenceService controller alone, in Standard mode without ingress, with a webhook certificate of ours."""
    kept = [one for one in documents if _is_used(one)]
    for one in kept:
        if one["kind"] == "Deployment":
            spec = one["spec"]["template"]["spec"]
            spec["containers"] = [container for container in spec["containers"] if container["name"] == "manager"]
            _use_image(spec["containers"][0], KSERVE_IMAGE)
        if one["kind"].endswith("WebhookConfiguration"):
            for webhook in one["webhooks"]:
                webhook["clientConfig"]["caBundle"] = _base64(authority)
        if one["metadata"]["name"] == "inferenceservice-config":
            one["data"] |= {"deploy": '{"defaultDeploymentMode": "Standard"}', "ingress": json.dumps(_NO_INGRESS)}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _KSERVE}}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "kserve-webhook-server-cert", "namespace": _KSERVE},
        "type": "kubernetes.io/tls",
        "data": {"tls.crt": _base64(certificate.certificate), "tls.key": _base64(certificate.key)},
    }
    return [namespace, *kept, secret]


def _is_webhook(one: Object) -> bool:
    return bool(one["kind"].endswith("WebhookConfiguration"))


def _is_used(one: Object) -> bool:
    name = one["metadata"]["name"]
    return one["kind"] not in _UNUSED_KINDS and not any(unused in name for unused in _UNUSED_NAMES)


def _use_image(container: Object, image: str) -> None:
    container |= {"image": image, "imagePullPolicy": "Never"}


def _established(definitions: Sequence[Object], kubectl: Kubectl) -> bool:
    """`kubectl wait` cannot tell: it fails on a definition whose conditions are still null."""
    names = [one["metadata"]["name"] for one in definitions]
    found = json.loads(kubectl.run("get", "crd", *names, "--output=json"))["items"]
    conditions = [one.get("status", {}).get("conditions") or [] for one in found]
    return all(any(one["type"] == "Established" and one["status"] == "True" for one in own) for own in conditions)


def _wait_available(controller: Controller, kubectl: Kubectl, log: Path) -> None:
    deployment, namespace = f"deployment/{controller.deployment}", f"--namespace={controller.namespace}"
    try:
        kubectl.run(
            *("wait", "--for=condition=Available", deployment, namespace, f"--timeout={READY_TIMEOUT_S}s"),
            timeout_s=READY_TIMEOUT_S + 30,
        )
    except ClusterError as error:
        pods = kubectl.run("describe", "pods", namespace)
        raise ClusterError(f"{controller.name} is not available: {error}\n{pods[-3000:]}", log) from error


def _documents(text: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(text) if document]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


_NO_INGRESS = {
    "ingressGateway": "none/none",
    "ingressClassName": "none",
    "ingressDomain": "example.com",
    "urlScheme": "http",
    "disableIstioVirtualHost": True,
    "disableIngressCreation": True,
}
_PYTORCH_JOB: Object = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "probe", "namespace": "default"},
    "spec": {
        "pytorchReplicaSpecs": {
            "Master": {
                "replicas": 1,
                "template": {"spec": {"containers": [{"name": "pytorch", "image": BUSYBOX_IMAGE}]}},
            }
        }
    },
}
_INFERENCE_SERVICE: Object = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "probe", "namespace": "default"},
    "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": BUSYBOX_IMAGE}]}},
}
