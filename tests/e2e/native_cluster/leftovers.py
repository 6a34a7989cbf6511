"""What a machine has of the things a cluster makes, to compare before and after."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from native_cluster import host
from native_cluster.layout import Layout

Found = dict[str, frozenset[str]]

_KEPT_FILES = frozenset({"logs", "command.lock"})
_NAMESPACES = ("pid", "net")


def snapshot(layout: Layout) -> Found:
    """Each kind of thing by name. A process is told by its namespaces, or by our state directory in its command."""
    return {
        "mounts": frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": frozenset(entry.name for entry in Path("/sys/class/net").iterdir()),
        "routes": frozenset(host.output("ip", "route").splitlines()),
        "iptables rules": _rules(),
        "named network namespaces": frozenset(host.output("ip", "netns").splitlines()),
        "cgroups": _cgroups(),
        "kernel settings": _settings(),
        "namespaces": _namespaces(),
        "processes": _processes(layout),
        "files": frozenset(path.name for path in layout.state.iterdir()) if layout.state.exists() else frozenset(),
    }


def own(found: Found, layout: Layout, namespaces: frozenset[str] = frozenset()) -> Found:
    """What of a snapshot is this cluster's by its name, its addresses, or the `namespaces` of its node.

    Before and after a long run nothing else can be compared: others start containers and services meanwhile.
    """
    state, network = str(layout.state), f"10.{layout.network}."
    return {
        "mounts": frozenset(path for path in found["mounts"] if Path(path).is_relative_to(state)),
        "links": found["links"] & {layout.link},
        "routes": frozenset(route for route in found["routes"] if network in route or layout.link in route.split()),
        "iptables rules": frozenset(rule for rule in found["iptables rules"] if network in rule),
        "cgroups": frozenset(path for path in found["cgroups"] if Path(path).name == layout.cgroup),
        "kernel settings": frozenset(line for line in found["kernel settings"] if _is_restored(line)),
        "namespaces": found["namespaces"] & namespaces,
        "processes": found["processes"],
        "files": found["files"],
    }


def namespaces_of(pid: int) -> frozenset[str]:
    """Those of a process that a snapshot tells."""
    return frozenset(str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in _NAMESPACES)


def differences(before: Found, after: Found) -> list[str]:
    """Sentences, none when all is as before. Of the files, what `down` keeps by intent is none."""
    found = []
    for kind, names in before.items():
        kept = _KEPT_FILES if kind == "files" else frozenset()
        if more := after[kind] - names - kept:
            found.append(f"{kind} left behind: {', '.join(sorted(more))}")
        if gone := names - after[kind] - kept:
            found.append(f"{kind} that are gone: {', '.join(sorted(gone))}")
    return found


def _rules() -> frozenset[str]:
    """Of both back-ends. Empty chains and tables are no rules: listing them is enough to make some."""
    programs = [program for program in ("iptables-nft-save", "iptables-legacy-save") if shutil.which(program)]
    lines = [line for program in programs for line in host.output(program).splitlines()]
    return frozenset(line for line in lines if line.startswith(("-A", ":KUBE", ":CNI")))


def _cgroups() -> frozenset[str]:
    """The top level of each hierarchy, where the node's own is, and where a kubelet would put its own by default."""
    return frozenset(str(path) for root in host.cgroup_hierarchies() for path in root.iterdir() if path.is_dir())


def _settings() -> frozenset[str]:
    paths = [Path("/proc/sys") / name for name in (*host.KERNEL_SETTINGS, "net/ipv4/ip_forward")]
    return frozenset(f"{path} = {path.read_text().strip()}" for path in paths if path.exists())


def _is_restored(line: str) -> bool:
    """Whether `down` restores this setting: a line of `_settings`."""
    return any(line.startswith(f"/proc/sys/{name} = ") for name in host.KERNEL_SETTINGS)


def _namespaces() -> frozenset[str]:
    """Of every process of the machine that can be read: a pod or a program that still runs shows here."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended in this moment
            found |= namespaces_of(int(entry.name))
    return frozenset(found)


def _processes(layout: Layout) -> frozenset[str]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "unshare" in command[0] and str(layout.state) in command:
                found.add(f"{entry.name} {' '.join(command)}")
    return frozenset(found)
