"""What the machine must have; each thing that is missing is one sentence a person can act on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from native_cluster import host
from native_cluster.binaries import Binaries
from native_cluster.layout import ClusterError, Layout, NotRun
from native_cluster.node_client import UNSHARE
from native_cluster.versions import ALL_MODULES, CNI_DIRECTORIES, CNI_PACKAGE, CNI_PLUGINS, PACKAGES

_INSTALL_TIMEOUT_S = 600
# Binaries 0.7 GB, images and etcd of a smoke test below 1 GB; building needs Go's caches (12 GB) beside them.
RUN_FREE_GB = 3
BUILD_FREE_GB = 16
# The control plane and both controllers take about 1.2 GB; a little work beside them.
FREE_MEMORY_GB = 3


def check_machine(layout: Layout) -> None:
    """Whether a cluster can run here at all; NotRun says why not."""
    check_rights()
    if not host.cgroup_hierarchies():
        raise NotRun("no cgroup file system is mounted below /sys/fs/cgroup")
    available = _available_memory_gb(Path("/proc/meminfo").read_text())
    if available < FREE_MEMORY_GB:
        raise NotRun(f"{available:.1f} GB of memory are available; the cluster needs {FREE_MEMORY_GB}")
    check_free(layout.state, RUN_FREE_GB, "for the cluster's state")


def check_rights() -> None:
    """NotRun unless this is Linux, and a root that may what root may: in most containers it may not."""
    if sys.platform != "linux":
        raise NotRun(f"the native cluster needs Linux; this is {sys.platform}")
    if os.geteuid() != 0:
        raise NotRun("the native cluster needs root, for namespaces, network and cgroups")
    if shutil.which("unshare"):  # else it is a missing package
        tried = subprocess.run(
            [*UNSHARE, "true"], capture_output=True, text=True, timeout=host.COMMAND_TIMEOUT_S, check=False
        )
        if tried.returncode:
            raise NotRun(f"this root may not make namespaces (CAP_SYS_ADMIN): {tried.stderr.strip()}")
    if reason := host.unwritable_setting():
        raise NotRun(f"the kubelet's kernel settings cannot be written here: {reason}")


def check_routes(layout: Layout) -> None:
    if overlapping := host.overlapping_routes(layout):
        raise NotRun(
            f"the cluster's addresses {layout.range} are in use here ({', '.join(overlapping)}); "
            "choose others with --network"
        )


def check_go() -> None:
    """Go itself, as new as the newest of our modules asks for, and space for a build."""
    if not shutil.which("go"):
        raise NotRun("go is not installed; the cluster's programs are built with it")
    installed = subprocess.run(
        ["go", "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    needed = max(_go_directive((module.directory / "go.mod").read_text()) for module in ALL_MODULES)
    if _numbers(installed) < needed:
        raise NotRun(f"go is {installed.strip()}; the modules need {'.'.join(map(str, needed))} or newer")


def check_build(kept: Binaries) -> None:
    """Whether what is missing can be built here; nothing is asked for where nothing is missing."""
    if kept.missing():
        check_go()
        check_free(kept.directory, BUILD_FREE_GB, "to build the cluster's programs")


def check_prepared(kept: Binaries) -> None:
    """NotRun when something would have to be installed or built first."""
    if packages := missing_packages():
        raise NotRun(f"missing here: {', '.join(packages)} (Debian's package names); `up` installs them")
    if modules := kept.missing():
        names = ", ".join(module.name for module in modules)
        raise NotRun(f"not built yet: {names}; `python -m native_cluster binaries` builds them")


def check_free(path: Path, needed_gb: int, purpose: str) -> None:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < needed_gb:
        raise NotRun(f"{free:.1f} GB are free at {existing}; {needed_gb} are needed {purpose}")


def missing_packages() -> list[str]:
    """Debian packages whose commands are not there. Another source of the same command will do."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    packages = {package for command, package in PACKAGES.items() if not shutil.which(command, path=search)}
    if not any(all((path / plugin).exists() for plugin in CNI_PLUGINS) for path in CNI_DIRECTORIES):
        packages.add(CNI_PACKAGE)
    return sorted(packages)


def install_packages(say: Callable[[str], None]) -> None:
    """Install what is missing with apt; NotRun where there is no apt, or it fails."""
    packages = missing_packages()
    if not packages:
        return
    if not shutil.which("apt-get"):
        raise NotRun(
            f"missing here: {', '.join(packages)} (Debian's package names), and there is no apt to install them"
        )
    say(f"installing with apt: {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages],
    ):
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
        if result.returncode:
            raise NotRun(f"`{' '.join(command)}` failed: {result.stderr.strip()[-500:]}")
    if still := missing_packages():
        raise ClusterError(f"apt installed {', '.join(packages)}, but the commands of {', '.join(still)} are not found")


def _available_memory_gb(meminfo: str) -> float:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) * 1024 / 1e9 if found else 0.0


def _go_directive(go_mod: str) -> tuple[int, ...]:
    found = re.search(r"^go (\S+)", go_mod, re.MULTILINE)
    return _numbers(found.group(1)) if found else (0,)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
