"""What the cluster is made of, each version once. modules/<name>/go.mod says the same (a test compares them).

To change a version: change it here, then in modules/<name> run `go get <module>@<version>` (Kubernetes: also each
`replace`, as in its own go.mod), and commit go.mod and go.sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent / "modules"


@dataclass(frozen=True, kw_only=True)
class Module:
    """A folder below modules/ and what is built from it.

    `programs` maps a binary's name to its package; `files` names what is copied out of the module's own source.
    """

    name: str
    path: str
    version: str
    programs: Mapping[str, str]
    files: tuple[str, ...] = ()
    tags: str = ""
    ldflags: str = "-s -w"

    @property
    def directory(self) -> Path:
        return MODULES / self.name


KUBERNETES = "v1.35.8"
ETCD = "v3.7.3"
COREDNS = "v1.14.7"
HELM = "v3.21.4"
TRAINING_OPERATOR = "v1.9.4"
KSERVE = "v0.20.0"


def _kubernetes_stamp(version: str) -> str:
    """Without it every client sees v0.0.0. The date is fixed so that a build can be repeated."""
    major, minor, _ = version.lstrip("v").split(".")
    values = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": version,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        ["-s -w", *(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())]
    )


# In the order of the start, so that a build that was cut leaves a cluster without controllers first.
ALL_MODULES = (
    Module(
        name="etcd",
        path="go.etcd.io/etcd/server/v3",
        version=ETCD,
        programs={"etcd": "."},
    ),
    Module(
        name="kubernetes",
        path="k8s.io/kubernetes",
        version=KUBERNETES,
        programs={
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kubectl",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
            )
        },
        tags="selinux,notest,grpcnotrace",
        ldflags=_kubernetes_stamp(KUBERNETES),
    ),
    Module(
        name="coredns",
        path="github.com/coredns/coredns",
        version=COREDNS,
        programs={"coredns": "github.com/coredns/coredns"},
    ),
    Module(
        name="pause",
        path="",
        version="",
        programs={"pause": "."},
    ),
    Module(
        name="helm",
        path="helm.sh/helm/v3",
        version=HELM,
        programs={"helm": "helm.sh/helm/v3/cmd/helm"},
    ),
    Module(
        name="training-operator",
        path="github.com/kubeflow/training-operator",
        version=TRAINING_OPERATOR,
        programs={"training-operator": "github.com/kubeflow/training-operator/cmd/training-operator.v1"},
        files=("manifests",),
    ),
    Module(
        name="kserve",
        path="github.com/kserve/kserve",
        version=KSERVE,
        programs={"kserve-manager": "github.com/kserve/kserve/cmd/manager"},
        files=(f"install/{KSERVE}/kserve.yaml",),
    ),
)

# Commands the node needs, and the Debian package each comes with.
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables-save": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",  # kubectl port-forward
    "ethtool": "ethtool",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "unshare": "util-linux",
}
CNI_PACKAGE = "containernetworking-plugins"
CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")

PAUSE_IMAGE = "localhost/native-cluster/pause:1"
BUSYBOX_IMAGE = "localhost/native-cluster/busybox:1"
TRAINING_OPERATOR_IMAGE = f"localhost/native-cluster/training-operator:{TRAINING_OPERATOR}"
KSERVE_IMAGE = f"localhost/native-cluster/kserve-controller:{KSERVE}"
