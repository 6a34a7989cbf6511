"""What a cluster has on the host outside its namespaces: a veth pair, a cgroup per hierarchy, some kernel settings.

Each is recorded (or has a name of its own) before it is made, so that `down` can undo it after any crash.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from native_cluster.layout import ClusterError, Layout

COMMAND_TIMEOUT_S = 30
_CGROUP_TIMEOUT_S = 10
_CGROUPS = Path("/sys/fs/cgroup")
_SETTINGS = Path("/proc/sys")
# The kubelet sets all of these but the last, for the whole machine. The last one is too low for a node (128): every
# container's logs are followed with one.
KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "fs/inotify/max_user_instances",
)
_INOTIFY_INSTANCES = 1024


def output(*command: str) -> str:
    """What it printed; ClusterError with its complaint when it failed."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if result.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def overlapping_routes(layout: Layout) -> list[str]:
    """Routes of this machine that the cluster's addresses would hide."""
    ours = ipaddress.ip_network(layout.range)
    routes = json.loads(output("ip", "-json", "-4", "route", "show", "table", "main"))
    return [
        f"{route['dst']} on {route['dev']}"
        for route in routes
        if route["dst"] != "default" and ipaddress.ip_network(route["dst"], strict=False).overlaps(ours)
    ]


def add_link(layout: Layout, node: int) -> None:
    """Join host and node: a veth pair, and on the host one route to all of the cluster's addresses."""
    inside = ("nsenter", "--target", str(node), "--net", "ip")
    output("ip", "link", "add", layout.link, "type", "veth", "peer", "name", "host0", "netns", str(node))
    output("ip", "addr", "add", f"{layout.host_address}/30", "dev", layout.link)
    output("ip", "link", "set", layout.link, "up")
    output(*inside, "addr", "add", f"{layout.node_address}/30", "dev", "host0")
    output(*inside, "link", "set", "host0", "up")
    output("ip", "route", "replace", layout.range, "via", layout.node_address, "dev", layout.link)
    # Programs look for the machine's address and for a way out; there is none but the host.
    output(*inside, "route", "add", "default", "via", layout.host_address)


def remove_link(layout: Layout) -> None:
    """Its other end, its addresses and routes go with it."""
    if (Path("/sys/class/net") / layout.link).exists():
        with suppress(ClusterError):  # the node's end may go, with its namespace, at this very moment
            output("ip", "link", "del", layout.link)


def cgroup_hierarchies() -> list[Path]:
    """The mount points of all cgroup hierarchies: one with cgroup v2, one per controller with v1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(place) for _, place, kind, *_ in mounts if kind in ("cgroup", "cgroup2") and Path(place).is_dir()]


def add_cgroups(layout: Layout) -> None:
    """The node's own cgroup, which the kubelet wants to find (cgroupRoot)."""
    for hierarchy in cgroup_hierarchies():
        own = hierarchy / layout.cgroup
        _delegate(hierarchy)
        own.mkdir(exist_ok=True)
        # cgroup v1: a cpuset starts empty, and no process can be put into an empty one.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (own / name).exists() and not (hierarchy / "cgroup.controllers").exists():
                (own / name).write_text((hierarchy / name).read_text())


def _delegate(hierarchy: Path) -> None:
    """cgroup v2: let children use every controller there is. What an init system enabled before stays as it is."""
    with suppress(OSError):
        for controller in (hierarchy / "cgroup.controllers").read_text().split():
            with suppress(OSError):  # one that cannot be delegated; the kubelet says which it misses
                (hierarchy / "cgroup.subtree_control").write_text(f"+{controller}")


def remove_cgroups(layout: Layout) -> None:
    """Empty ones are removed from the leaves up. A killed process leaves its cgroup a moment after its end."""
    deadline = time.monotonic() + _CGROUP_TIMEOUT_S
    while left := list(_own_cgroups(layout)):
        for path in left:
            with suppress(OSError):
                path.rmdir()
        if time.monotonic() >= deadline:
            raise ClusterError(f"cgroups are still in use: {', '.join(map(str, left[:3]))}")
        time.sleep(0.05)


def _own_cgroups(layout: Layout) -> Iterator[Path]:
    for hierarchy in cgroup_hierarchies():
        for directory, _, _ in os.walk(hierarchy / layout.cgroup, topdown=False):
            yield Path(directory)


def claim(layout: Layout) -> None:
    """Record what the kubelet is going to change and whose addresses these are, then raise what a node needs."""
    settings = {name: (_SETTINGS / name).read_text().strip() for name in KERNEL_SETTINGS if (_SETTINGS / name).exists()}
    partial = layout.claim.with_suffix(".part")
    partial.write_text(json.dumps({"network": layout.network, "kernel settings": settings}))
    partial.rename(layout.claim)
    instances = _SETTINGS / "fs/inotify/max_user_instances"
    if int(instances.read_text()) < _INOTIFY_INSTANCES:
        instances.write_text(str(_INOTIFY_INSTANCES))


def unwritable_setting() -> str:
    """Why a kernel setting that a node changes cannot be written, "" when all can. Nothing is written for it."""
    for path in filter(Path.exists, (_SETTINGS / name for name in KERNEL_SETTINGS)):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            return str(error)
    return ""


def restore_kernel_settings(layout: Layout) -> None:
    """Written is only what differs: where they cannot be written, nothing was changed, and `down` must succeed."""
    for name, value in json.loads(layout.claim.read_text())["kernel settings"].items():
        path = _SETTINGS / name
        if path.read_text().strip() != value:
            path.write_text(value)


def remove_state(layout: Layout) -> None:
    """All but the logs and the lock of the command that removes it."""
    for path in layout.state.iterdir() if layout.state.exists() else ():
        if path.name in ("logs", "command.lock"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
