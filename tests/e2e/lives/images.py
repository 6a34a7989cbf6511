"""The images of a life, built from the repository's own Dockerfiles and given to the native cluster.

Their base is a Debian like this machine's with Python, this machine's certificates and nothing else (mmdebstrap): no
image registry is asked. Their tag is the hash of what they are made from, so what is there is not built again. They go
to the node together, because three of the four share torch's layers (6 GB). `python -m lives.images` does all of this
that needs no node, so that it can be done before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from native_cluster import images as node_images
from native_cluster.cli import NOT_RUN
from native_cluster.images import IMPORT_TIMEOUT_S, containerd
from native_cluster.layout import Layout, NotRun
from native_cluster.prerequisites import check_rights

ROOT = Path(__file__).parents[3]
PREFIX = "localhost/"
# What runs in the cluster, by the folder of its Dockerfile.
COMPONENTS = {
    "operator": "retrieval-operator",
    "trainer": "retrieval-trainer",
    "indexer": "retrieval-indexer",
    "encoder_server": "retrieval-encoder-server",
}
TOOLS = ("buildah", "mmdebstrap")
_BASE = "retrieval-e2e-base"
_PREPARED = "retrieval-e2e-images-"  # and their tag: what is about to be given to a node
_HOME = Path("/var/tmp")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_BUILD_TIMEOUT_S = 3600  # seen on two busy cores: 8 minutes, 4 of them for the layer with torch
# Seen: builder 8, archive 7, the node's copy of the archive and what it unpacks 14.
FREE_SPACE_NEEDED_GB = 30


def missing() -> str:
    """Why images cannot be built and loaded here, in a sentence; "" when they can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"{' and '.join(lacking)} not found: apt-get install {' '.join(lacking)}"
    try:
        check_rights()  # buildah's builds mount, too; and no node would come that needs the images
    except NotRun as reason:
        return str(reason)
    return ""


def tag() -> str:
    """The hash of all that the images of this working tree are made from."""
    sources = [ROOT / name for name in ("pyproject.toml", "requirements.lock", ".dockerignore", "README.md")]
    for folder in ("core", *COMPONENTS):
        sources += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    sources += (ROOT / "scripts").glob("*.py")
    return _digest(sources)


def build() -> list[str]:
    """Build with `make images` what is not built yet; the images' names. NotRun without space for them."""
    wanted = tag()
    names = _names(wanted)
    if not all(_exists(name) for name in names):
        _check_space()
        settings = {"ENGINE": "buildah", "BASE_IMAGE": _base(), "IMAGE_PREFIX": PREFIX, "IMAGE_TAG": wanted}
        _run("make", "--directory", str(ROOT), "images", *(f"{name}={value}" for name, value in settings.items()))
    return names


def prepare() -> Path:
    """Build what is missing and write it in the form that `provide` gives to the node; the directory (7 GB).

    NotRun without space for it.
    """
    names, prepared = build(), _HOME / f"{_PREPARED}{tag()}"
    if not prepared.exists():
        _remove_prepared()
        begun = _HOME / f"{_PREPARED}begun"
        _write_layout(begun, names)
        begun.rename(prepared)
    return prepared


def provide(layout: Layout) -> str:
    """Build and load what is missing; the tag of the images, whose names begin with PREFIX. NotRun without space."""
    wanted = tag()
    if not set(_names(wanted)) <= set(containerd(layout, "images", "list", "--quiet").split()):
        _load(layout, prepare())
    _remove_prepared()
    return wanted


def name_again(layout: Layout, wanted: str) -> str:
    """Another tag for the node's images of this one, as of a newer release. It stays: servers may be started by it."""
    again = f"{wanted}-again"
    for name, other in zip(_names(wanted), _names(again), strict=True):
        node_images.tag(layout, name, other)
    return again


def _remove_prepared() -> None:
    for directory in _HOME.glob(f"{_PREPARED}*"):
        shutil.rmtree(directory)


def _names(wanted: str) -> list[str]:
    return [f"{PREFIX}{name}:{wanted}" for name in COMPONENTS.values()]


def _base() -> str:
    name = f"{PREFIX}{_BASE}:{_digest([_CERTIFICATES])}"
    if _exists(name):
        return name
    packages = "python3,python3-venv,python3-pip,ca-certificates"
    with tempfile.TemporaryDirectory(prefix="retrieval-e2e-") as home:
        context = Path(home)
        _run("mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(context / "root.tar"))
        shutil.copyfile(_CERTIFICATES, context / "certificates.crt")
        (context / "pip.conf").write_text(f"[global]\ncert = {_CERTIFICATES}\ntimeout = 180\n")
        (context / "Dockerfile").write_text(
            f"FROM scratch\nADD root.tar /\nCOPY certificates.crt {_CERTIFICATES}\nCOPY pip.conf /etc/pip.conf\n"
        )
        _run("buildah", "build", f"--tag={name}", home)
    return name


def _load(layout: Layout, home: Path) -> None:
    """By one OCI layout, in which shared layers are once, streamed to the node: no archive of it on the disk."""
    command = ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io", "images", "import", "-"]
    with subprocess.Popen(["tar", "--create", "--directory", str(home), "."], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            command, stdin=tar.stdout, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False
        )
    if done.returncode or tar.returncode:
        raise RuntimeError(f"containerd did not take {home} (tar: {tar.returncode}): {done.stderr}")


def _write_layout(home: Path, names: Sequence[str]) -> None:
    """The images as an OCI image layout (image-layout.md of the OCI image specification), uncompressed.

    buildah writes one by itself (`oci:`), but always gzips there: torch, once for each image, 3 minutes each. Into its
    flat `dir:` it does not: 75 to 90 s on two busy cores, a third of it waiting, so two at a time. The files are put in
    their places here.
    """
    blobs = home / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        manifests = list(pool.map(partial(_write_blobs, home), names))
    (home / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (home / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


def _write_blobs(home: Path, name: str) -> dict[str, object]:
    """Those of one image; its descriptor for the index."""
    flat = Path(tempfile.mkdtemp(dir=home))
    _run("buildah", "push", "--disable-compression", name, f"dir:{flat}")
    (flat / "version").unlink()
    manifest = (flat / "manifest.json").read_bytes()
    digest = hashlib.sha256(manifest).hexdigest()
    (flat / "manifest.json").rename(flat / digest)
    for blob in flat.iterdir():
        blob.replace(home / "blobs" / "sha256" / blob.name)
    flat.rmdir()
    return {
        "mediaType": json.loads(manifest)["mediaType"],
        "digest": f"sha256:{digest}",
        "size": len(manifest),
        "annotations": {"io.containerd.image.name": name},
    }


def _exists(image: str) -> bool:
    command = ["buildah", "inspect", "--type=image", image]
    return subprocess.run(command, env=_environment(), capture_output=True, timeout=60, check=False).returncode == 0


def _run(*command: str) -> None:
    """Raises RuntimeError with the last words of a command that failed."""
    done = subprocess.run(
        ["nice", "--adjustment=10", *command],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout[-4000:]}")


def _environment() -> dict[str, str]:
    """Of buildah: without layers it would install torch at every build; chroot needs no rights that containers lack."""
    return {**os.environ, "STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot", "BUILDAH_LAYERS": "true"}


def _check_space() -> None:
    free_gb = shutil.disk_usage("/var").free / 1e9
    if free_gb < FREE_SPACE_NEEDED_GB:
        raise NotRun(f"images need {FREE_SPACE_NEEDED_GB} GB below /var, found {free_gb:.0f} GB free")


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def main() -> int:
    """What `python -m lives.images` does; its exit code."""
    try:
        if lacking := missing():
            raise NotRun(lacking)
        print(prepare())
    except NotRun as reason:
        print(f"not run: {reason}", file=sys.stderr)
        return NOT_RUN
    return 0


if __name__ == "__main__":
    sys.exit(main())
