"""The files that the node's programs read, and the keys they identify themselves with."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from native_cluster.certificates import Authority, kubeconfig, signing_key, write, write_private
from native_cluster.layout import Layout
from native_cluster.node import HOSTNAME
from native_cluster.versions import CNI_DIRECTORIES, PAUSE_IMAGE

GROUP = "retrieval-operator.io"
# user: group. The names are those that Kubernetes' own roles are bound to; "coredns" is bound by us.
USERS = {
    "admin": ("admin", "system:masters"),
    "kubelet": (f"system:node:{HOSTNAME}", "system:nodes"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("coredns", ""),
}
# Their reads are routine, and most of what an API server hears.
_QUIET_USERS = ["system:apiserver", *(user for user, group in USERS.values() if group != "system:masters")]
_QUIET_GROUPS = [f"system:serviceaccounts:{namespace}" for namespace in ("kube-system", "kubeflow", "kserve")]


def write_all(layout: Layout) -> None:
    """Everything below pki/ and configuration/, and the kubeconfig for people."""
    _write_keys(layout)
    files = {
        "containerd.toml": containerd(layout),
        "cni/10-bridge.conflist": json.dumps(_cni(layout), indent=1),
        "kubelet.yaml": yaml.safe_dump(_kubelet(layout)),
        "kube-proxy.yaml": yaml.safe_dump(_kube_proxy(layout)),
        "audit-policy.yaml": yaml.safe_dump(audit_policy(), sort_keys=False),
        "Corefile": _corefile(layout),
    }
    for name, text in files.items():
        path = layout.configuration / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def user_kubeconfig(layout: Layout, name: str) -> Path:
    return layout.kubeconfig if name == "admin" else layout.configuration / f"{name}.kubeconfig"


def _write_keys(layout: Layout) -> None:
    layout.configuration.mkdir(parents=True, exist_ok=True)
    layout.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = Authority.create("native-cluster")
    write(layout.pki, "ca", authority.pair)
    service = "kubernetes.default"
    hosts = ["kubernetes", service, f"{service}.svc", f"{service}.svc.cluster.local", "localhost", "127.0.0.1"]
    hosts += [layout.node_address, layout.first_service]
    write(layout.pki, "kube-apiserver", authority.issue("kube-apiserver", hosts=hosts))
    write(layout.pki, "kubelet", authority.issue("kubelet", hosts=[HOSTNAME, layout.node_address]))
    write(layout.pki, "kubelet-client", authority.issue("kubelet-client", organization="system:masters"))
    write(layout.pki, "service-accounts", signing_key())
    for name, (user, group) in USERS.items():
        pair = authority.issue(user, organization=group)
        path = user_kubeconfig(layout, name)
        write_private(path, kubeconfig(layout.server, authority.pair.certificate, pair))


def containerd(layout: Layout) -> str:
    plugins = next((str(path) for path in CNI_DIRECTORIES if (path / "bridge").exists()), str(CNI_DIRECTORIES[0]))
    return f"""\
version = 2
root = "{layout.state}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{layout.state}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE a score cannot be lowered; every pod would fail with "can't get final child's PID".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{layout.configuration}/cni"
"""


def _cni(layout: Layout) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": layout.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}


def _kubelet(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.node_address,
        "tlsCertFile": f"{layout.pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{layout.pki}/kubelet.key",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{layout.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "enforceNodeAllocatable": ["pods"],
        "clusterDomain": "cluster.local",
        "clusterDNS": [layout.node_address],
        "resolvConf": "",  # the host's resolver is none of the cluster's affair
        "failSwapOn": False,
        # A test machine is full of other things, and its images cannot be pulled again: nothing is evicted for disk,
        # and no image collected (containerd 1.6 does not pin even the pause image).
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "volumePluginDir": f"{layout.state}/volume-plugins",
        "serializeImagePulls": False,
    }


def _kube_proxy(layout: Layout) -> dict[str, object]:
    """The conntrack limits are the host's: zero leaves them alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(user_kubeconfig(layout, "kube-proxy"))},
        "hostnameOverride": HOSTNAME,
        "clusterCIDR": layout.pods,
        "mode": "iptables",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _corefile(layout: Layout) -> str:
    """Only the cluster's own names: nothing is forwarded, so no test depends on an outer resolver."""
    return f"""\
.:53 {{
 bind {layout.node_address}
 ready 127.0.0.1:8181
 kubernetes cluster.local in-addr.arpa {{
  kubeconfig {user_kubeconfig(layout, "coredns")}
 }}
 cache 5
 errors
}}
"""


def audit_policy() -> dict[str, object]:
    """Who did what: every write, every read that is not the cluster's own routine, our objects with their content.

    Bodies are kept for our group only, so no secret's content is ever logged.
    """
    reads = ["get", "list", "watch"]
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/version", "/openapi/*"]},
            {"level": "None", "users": _QUIET_USERS, "verbs": reads},
            {"level": "None", "userGroups": _QUIET_GROUPS, "verbs": reads},
            {"level": "None", "users": _QUIET_USERS, "resources": [{"group": "coordination.k8s.io"}]},
            {"level": "RequestResponse", "resources": [{"group": GROUP}]},
            {"level": "Metadata"},
        ],
    }
