"""Images of static programs, packed without a builder: one layer, in the archive format of `docker save`."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from native_cluster.layout import ClusterError, Layout

IMPORT_TIMEOUT_S = 900  # an image with torch is 7 GB: seen 110 s
# Where an image has no reason to be root; KServe's Deployment insists on a number.
NOBODY = 65532
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, kw_only=True)
class Image:
    """`files` maps a path in the image to one of this machine, `links` to where a symbolic link points."""

    name: str
    files: Mapping[str, Path]
    links: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    user: int = NOBODY


def busybox(name: str, program: Path) -> Image:
    """A shell and its tools: the applets are links to the one program."""
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=30, check=True).stdout.split()
    links = {f"bin/{applet}": "/bin/busybox" for applet in applets if applet != "busybox"}
    return Image(name=name, files={"bin/busybox": program}, links=links)


def pack(image: Image, archive: Path) -> None:
    """Write it; the same content gives the same bytes."""
    layer = _layer(image)
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint) or None,
            "User": str(image.user),
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [image.name], "Layers": ["layer.tar"]}]
    partial = archive.with_name(f".{archive.name}.part")
    with tarfile.open(partial, "w") as tar:
        for name, content in (
            ("manifest.json", json.dumps(manifest).encode()),
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer),
        ):
            tar.addfile(_entry(name, len(content)), io.BytesIO(content))
    partial.rename(archive)


def load(layout: Layout, archive: Path) -> None:
    """Give the node an image; the archive may be of the `docker save` or of the OCI format."""
    if not archive.is_file():
        raise ClusterError(f"{archive} is not a file; an image archive is made by `buildah push` or `docker save`")
    containerd(layout, "images", "import", str(archive), timeout_s=IMPORT_TIMEOUT_S)


def tag(layout: Layout, name: str, other: str) -> None:
    """Give an image of the node another name as well."""
    containerd(layout, "images", "tag", "--force", name, other)


def containerd(layout: Layout, *arguments: str, timeout_s: float = 30) -> str:
    """Ask the cluster's containerd; what it answered."""
    command = ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io", *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"`ctr {' '.join(arguments)}` took more than {timeout_s:.0f} s", layout.log("containerd")
        ) from error
    if result.returncode:
        raise ClusterError(f"`ctr {' '.join(arguments)}` failed: {result.stderr.strip()}", layout.log("containerd"))
    return result.stdout


def _layer(image: Image) -> bytes:
    """Held in memory: a static program is below 100 MB."""
    buffer = io.BytesIO()
    paths = [*image.files, *image.links]
    directories = {str(parent) for path in paths for parent in Path(path).parents} - {"."} | {"tmp"}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in sorted(directories):
            entry = _entry(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        for path, source in sorted(image.files.items()):
            content = source.read_bytes()
            entry = _entry(path, len(content))
            entry.mode = 0o755
            tar.addfile(entry, io.BytesIO(content))
        for path, target in sorted(image.links.items()):
            entry = _entry(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


def _entry(name: str, size: int = 0) -> tarfile.TarInfo:
    """No times and owners of this machine."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry
