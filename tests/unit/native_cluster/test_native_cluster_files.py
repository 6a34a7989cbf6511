"""What the node's programs are told: addresses of one range only, keys nobody else reads, an honest audit log."""

from __future__ import annotations

import ipaddress
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from native_cluster import configuration, prerequisites, programs
from native_cluster.certificates import LIFETIME, Authority
from native_cluster.controllers import kserve_objects, training_operator_objects
from native_cluster.images import Image, pack
from native_cluster.layout import ClusterError, Layout, NotRun
from native_cluster.prerequisites import _available_memory_gb, _go_directive, _numbers

INIT_CONTAINER = Path(__file__).parents[3] / "examples" / "kubernetes" / "pytorchjob-init-container.yaml"
SECRETS_LEVELS = ("None", "Metadata")


@pytest.fixture
def written(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state", 77)
    configuration.write_all(layout)
    return layout


def test_all_of_a_clusters_addresses_are_in_its_own_range_and_apart(tmp_path: Path) -> None:
    layout = Layout(tmp_path, 42)
    whole = ipaddress.ip_network(layout.range)
    texts = (f"{layout.node_address}/30", layout.pods, layout.services)
    parts = [ipaddress.ip_network(text, strict=False) for text in texts]
    assert all(part.subnet_of(whole) for part in parts)
    assert not any(one.overlaps(other) for one in parts for other in parts if one is not other)
    assert next(ipaddress.ip_network(layout.services).hosts()) == ipaddress.ip_address(layout.first_service)


@pytest.mark.parametrize(
    ("state", "network", "complaint"),
    [
        (Path("/run/cluster"), 99, "below /run"),
        (Path("/var/lib/cluster"), 99, "below /var/lib"),
        (Path("/x" + "y" * 90), 99, "at most 107"),
        (Path("/srv/cluster"), 256, "--network is 256"),
    ],
)
def test_a_state_directory_that_cannot_work_is_refused(state: Path, network: int, complaint: str) -> None:
    with pytest.raises(ClusterError, match=complaint):
        Layout(state, network).check()


def test_no_file_or_command_names_an_address_beyond_loopback_and_the_clusters_own(
    written: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs.shutil, "which", str)
    commands = [" ".join(program.argv) for program in programs.all_programs(written, tmp_path)]
    files = [path for path in written.configuration.rglob("*") if path.is_file() and path.suffix != ".kubeconfig"]
    assert len(commands) == 8
    assert len(files) == 6
    texts = [*commands, *(path.read_text().replace("0.0.0.0/0", "the default route") for path in files)]
    addresses = {ipaddress.ip_address(found) for text in texts for found in re.findall(r"\d+\.\d+\.\d+\.\d+", text)}
    outside = [one for one in addresses if not one.is_loopback and one not in ipaddress.ip_network(written.range)]
    assert not outside


def test_keys_are_readable_by_their_owner_only(written: Layout) -> None:
    private = [*written.pki.glob("*.key"), written.kubeconfig, *written.configuration.glob("*.kubeconfig")]
    assert len(private) >= 10
    assert {oct(path.stat().st_mode & 0o777) for path in private} == {"0o600"}


def test_certificates_live_for_days_and_name_what_they_are_for(written: Layout) -> None:
    server = x509.load_pem_x509_certificate((written.pki / "kube-apiserver.crt").read_bytes())
    assert server.not_valid_after_utc - server.not_valid_before_utc <= LIFETIME + LIFETIME / 7
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert {written.node_address, written.first_service} <= set(addresses)
    authority = x509.load_pem_x509_certificate((written.pki / "ca.crt").read_bytes())
    server.verify_directly_issued_by(authority)


def test_the_kubeconfig_is_complete_in_itself(written: Layout) -> None:
    document = yaml.safe_load(written.kubeconfig.read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://10.77.0.1:6443"
    assert not [key for key in (*document["users"][0]["user"], *document["clusters"][0]["cluster"]) if "file" in key]


def test_no_body_but_our_own_groups_is_audited(written: Layout) -> None:
    rules = yaml.safe_load((written.configuration / "audit-policy.yaml").read_text())["rules"]
    detailed = [rule for rule in rules if rule["level"] not in SECRETS_LEVELS]
    assert [rule["resources"] for rule in detailed] == [[{"group": "retrieval-operator.io"}]]
    assert rules[-1] == {"level": "Metadata"}  # whatever is not named is logged


def test_the_audit_policy_drops_no_write_but_leases(written: Layout) -> None:
    rules = yaml.safe_load((written.configuration / "audit-policy.yaml").read_text())["rules"]
    writes = [
        rule for rule in rules if rule["level"] == "None" and "verbs" not in rule and "nonResourceURLs" not in rule
    ]
    assert [rule["resources"] for rule in writes] == [[{"group": "coordination.k8s.io"}]]


def test_an_image_is_the_same_bytes_each_time_and_runs_as_nobody(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"#!")
    image = Image(name="localhost/a:1", files={"bin/a": program}, links={"bin/b": "/bin/a"}, entrypoint=("/bin/a",))
    for name in ("one.tar", "two.tar"):
        pack(image, tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        config = json.load(archive.extractfile("config.json"))  # type: ignore[arg-type]
        with tarfile.open(fileobj=archive.extractfile("layer.tar")) as layer:
            entries = {entry.name: entry for entry in layer.getmembers()}
    assert config["config"]["User"] == "65532"
    assert entries["bin/a"].mode == 0o755
    assert entries["bin/b"].linkname == "/bin/a"
    assert entries["tmp"].mode == 0o1777


def deployment(name: str, *containers: str) -> dict[str, Any]:
    template = {
        "containers": [{"name": one, "image": "far/away", "volumeMounts": []} for one in containers],
        "volumes": [],
    }
    return {"kind": "Deployment", "metadata": {"name": name}, "spec": {"template": {"spec": template}}}


def test_the_training_operator_runs_our_images_and_its_workers_wait_as_restricted_pods() -> None:
    changed, template = training_operator_objects([deployment("training-operator", "training-operator")])
    container = changed["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].startswith("localhost/")
    assert container["volumeMounts"] == [{"name": "init-container", "mountPath": "/etc/config"}]
    waiting = template["data"]["initContainer.yaml"].replace("{{.InitContainerImage}}", "image")
    security = yaml.safe_load(waiting)[0]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["allowPrivilegeEscalation"] is False


def test_an_administrator_is_told_to_mount_the_template_where_the_cluster_has_it() -> None:
    words = "".join(line.removeprefix("#") for line in INIT_CONTAINER.read_text().splitlines() if line.startswith("#"))
    [patch] = re.findall(r"--patch '([^']+)'", words)
    told = json.loads(patch)["spec"]["template"]["spec"]
    changed, template = training_operator_objects([deployment("training-operator", "training-operator")])
    pod = changed["spec"]["template"]["spec"]
    assert told["volumes"] == pod["volumes"]
    assert told["volumes"][0]["configMap"]["name"] == template["metadata"]["name"]
    [container] = told["containers"]
    assert container == {key: pod["containers"][0][key] for key in ("name", "volumeMounts")}


def test_kserve_keeps_one_controller_and_trusts_our_authority_for_its_webhooks() -> None:
    authority = Authority.create("test")
    webhook = {
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "inferenceservice.serving.kserve.io"},
        "webhooks": [{"clientConfig": {"service": {}}}],
    }
    config = {
        "kind": "ConfigMap",
        "metadata": {"name": "inferenceservice-config"},
        "data": {"deploy": "{}", "kept": "1"},
    }
    unused = [
        {"kind": kind, "metadata": {"name": name}}
        for kind, name in (
            ("Certificate", "serving-cert"),
            ("CustomResourceDefinition", "llminferenceservices.serving.kserve.io"),
            ("CustomResourceDefinition", "inferencepools.inference.networking.k8s.io"),
            ("ClusterRole", "kserve-localmodel-manager-role"),
        )
    ]
    documents = [deployment("kserve-controller-manager", "kube-rbac-proxy", "manager"), webhook, config, *unused]
    objects = kserve_objects(documents, authority.pair.certificate, authority.issue("webhook"))
    assert [one["kind"] for one in objects] == [
        *("Namespace", "Deployment", "ValidatingWebhookConfiguration", "ConfigMap", "Secret"),
    ]
    (manager,) = objects[1]["spec"]["template"]["spec"]["containers"]
    assert manager["image"].startswith("localhost/")
    assert objects[2]["webhooks"][0]["clientConfig"]["caBundle"]
    assert json.loads(objects[3]["data"]["deploy"]) == {"defaultDeploymentMode": "Standard"}
    assert json.loads(objects[3]["data"]["ingress"])["disableIngressCreation"] is True
    assert objects[3]["data"]["kept"] == "1"


def test_what_is_missing_is_said_by_the_name_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites.shutil, "which", lambda command, path: command in ("ip", "unshare") or None)
    monkeypatch.setattr(prerequisites, "CNI_DIRECTORIES", (Path("/nonexistent"),))
    missing = prerequisites.missing_packages()
    assert {"containerd", "runc", "containernetworking-plugins", "busybox-static"} <= set(missing)
    assert not {"iproute2", "util-linux"} & set(missing)


def test_without_apt_missing_packages_mean_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prerequisites, "missing_packages", lambda: ["runc"])
    monkeypatch.setattr(prerequisites.shutil, "which", lambda command: None)
    with pytest.raises(NotRun, match="runc"):
        prerequisites.install_packages(print)


def test_versions_are_compared_as_numbers() -> None:
    assert _numbers("go1.26.8") > _numbers("1.9") < _go_directive("module a\n\ngo 1.26.0\n")


def test_available_memory_is_read_from_what_the_kernel_says() -> None:
    assert _available_memory_gb("MemTotal: 9 kB\nMemAvailable:   4000000 kB\n") == pytest.approx(4.096)
