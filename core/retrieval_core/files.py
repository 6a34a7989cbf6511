"""Files between components: hashes, JSON documents, and directories at fsspec URIs.

A directory is complete when its last file is there (docs/contracts.md section 1), so whoever copies one copies that
file last, and a JSON document appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from retrieval_core.errors import BadInput, StorageFailed, TemporarilyUnavailable

CACHE_VARIABLE = "RETRIEVAL_CACHE_DIR"
# Headers by which a web server tells contents apart (RFC 9110 section 8.8), as far as fsspec passes them on.
_HTTP_VALIDATORS = ("ETag", "Last-Modified", "Content-MD5", "Digest")


def sha256_file(path: Path) -> str:
    """Hex digest of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(document: Any) -> str:
    """The one spelling of a document that is hashed: sorted keys, no spaces. ValueError on NaN or Infinity."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_json(path: Path, document: Any) -> None:
    """Write a document for people and programs: whole or not at all, and on disk when this returns.

    Raises ValueError on NaN or Infinity: the caller writes null and says why in a `problem` field.
    """
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary name next to `path`, flush it to disk, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_sibling(path) as temporary:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    _sync_directory(path.parent)


def read_json(path: Path, known_version: int = 1) -> dict[str, Any]:
    """Read a document with a `formatVersion`. BadInput when it is missing, truncated, or of another version."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist: its directory is unfinished or is something else") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not a JSON document ({error}): it is truncated or was changed") from None
    require_known_version(document, str(path), known_version)
    return cast("dict[str, Any]", document)


def require_known_version(document: Any, source: str, known_version: int = 1) -> None:
    """Refuse (BadInput) a document that is not a mapping with exactly this integer `formatVersion`."""
    if not isinstance(document, dict):
        raise BadInput(f"{source} holds {type(document).__name__}, expected a mapping with formatVersion")
    found = document.get("formatVersion")
    if isinstance(found, bool) or found != known_version:
        raise BadInput(f"{source}: formatVersion is {found!r}, this program knows {known_version}")


def is_local(uri: str) -> bool:
    """Whether `uri` is a plain path or `file://`, so that `local_path` returns it as it is."""
    return isinstance(_filesystem(uri)[0], LocalFileSystem)


def local_path(uri: str) -> Path:
    """A local path with the content of `uri`, which may name a file or a directory.

    `file://` and plain paths are returned as they are, whether they exist or not. Anything else is kept once per
    content in RETRIEVAL_CACHE_DIR, and downloaded when the storage's own etag or time is new (each time where a web
    server gives neither). Raises BadInput when it does not exist or its storage has no driver here,
    TemporarilyUnavailable when the storage fails.
    """
    filesystem, path = _filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        return Path(path)
    with _storage_errors(uri):
        files = _remote_files(filesystem, path)
        if not files:
            raise BadInput(f"{uri} does not exist or is empty")
        versions = [(name, _version(filesystem, remote)) for name, remote in files.items()]
        if any(version is None for _, version in versions):
            cached = _download(filesystem, files, uri)
        else:
            cached = _cache_directory() / _digest([uri, versions])
            if not cached.exists():
                _download(filesystem, files, uri, cached)
    return cached / Path(path).name if "" in files else cached


def publish(directory: Path, uri: str, last: str) -> None:
    """Copy a finished local directory to `uri`, the file `last` after all others.

    No-op when `uri` is that same local directory. A `last` file of an earlier publication is removed first, so that no
    reader meets old and new files under a complete directory. Raises TemporarilyUnavailable when the storage fails.
    """
    filesystem, target = _filesystem(uri)
    local = isinstance(filesystem, LocalFileSystem)
    if local and Path(target).resolve() == directory.resolve():
        return
    names = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
    if last not in names:
        raise ValueError(f"{directory} has no {last}: only finished directories are published")
    names.remove(last)
    with _storage_errors(uri):
        if filesystem.exists(f"{target}/{last}"):
            filesystem.rm_file(f"{target}/{last}")
        for name in [*names, last]:
            if local:
                _copy_local(directory / name, Path(target) / name)
            else:
                filesystem.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(directory / name), f"{target}/{name}")


def require_writable(uri: str) -> None:
    """Write, read and remove a small file in the directory at `uri`, before work of hours whose result goes there.

    A directory that is empty afterwards is removed. Raises BadInput when access is denied, StorageFailed when the file
    reads as something else, TemporarilyUnavailable when the storage fails.
    """
    filesystem, path = _filesystem(uri)
    name, content = f"{path}/.trial-{secrets.token_hex(8)}", secrets.token_bytes(16)
    with _storage_errors(uri):
        filesystem.makedirs(path, exist_ok=True)
        filesystem.pipe_file(name, content)
        found = filesystem.cat_file(name)
        filesystem.rm_file(name)
    remove_empty_directory(uri)
    if found != content:
        raise StorageFailed(f"{uri}: a file that was just written there reads as something else; check the storage")


def is_published(uri: str, last: str) -> bool:
    """Whether the directory at `uri` has its last file, without downloading anything."""
    filesystem, path = _filesystem(uri)
    with _storage_errors(uri):
        return bool(filesystem.exists(f"{path}/{last}"))


def remove_directory(uri: str, last_files: Container[str]) -> bool:
    """Remove a directory with all its files, those named in `last_files` (at any depth) first; False when missing.

    Half removed, it so reads as unfinished. Symbolic links in it are removed, never followed. Raises BadInput when
    access is denied, TemporarilyUnavailable when the storage fails.
    """
    filesystem, path = _filesystem(uri)
    with _storage_errors(uri):
        if isinstance(filesystem, LocalFileSystem):
            return _remove_local(Path(path), last_files)
        files = [str(name) for name in filesystem.find(path)]
        for name in files:
            if name.rpartition("/")[2] in last_files:
                filesystem.rm_file(name)
        if files:
            filesystem.rm(path, recursive=True)
        return bool(files)


def remove_empty_directory(uri: str) -> None:
    """Remove a local directory if nothing is in it. Object stores have no empty directories."""
    filesystem, path = _filesystem(uri)
    if isinstance(filesystem, LocalFileSystem):
        with suppress(OSError):  # not empty, or not there
            Path(path).rmdir()


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise BadInput(f"{uri} needs a storage driver that is not installed here: {error}") from None
    except ValueError as error:
        raise BadInput(f"{uri} is not a URI this program understands: {error}") from None
    return filesystem, str(path).rstrip("/")


@contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    """Drivers raise what their vendor's library raises; a person needs the URI and whether waiting helps."""
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"{uri}: {error} does not exist") from error
    except PermissionError as error:
        raise BadInput(f"{uri}: access was denied ({error}); check the credentials") from error
    except (BadInput, OSError) as error:
        if isinstance(error, BadInput) or error.errno is not None:  # a local disk error keeps its own meaning
            raise
        raise TemporarilyUnavailable(f"{uri}: {error}") from error
    except Exception as error:
        raise TemporarilyUnavailable(f"{uri}: {type(error).__name__}: {error}") from error


def _remote_files(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, str]:
    """Relative name -> remote path, sorted; a single file has the empty relative name.

    A listing is somebody else's text: BadInput for a name that leads out of `path`.
    """
    files = {}
    for remote in sorted(map(str, filesystem.find(path))):
        name = _name_inside(path, remote)
        if name is None:
            raise BadInput(f"{path} lists {remote!r:.200}, which is not a name inside it")
        files[name] = remote
    return files


def _name_inside(path: str, remote: str) -> str | None:
    """The name of `remote` below `path`, "" for `path` itself; None when it leads elsewhere."""
    if remote == path:
        return ""
    if path and not remote.startswith(f"{path}/"):
        return None
    parts = [part for part in remote.removeprefix(path).removeprefix("/").split("/") if part != "."]
    name = "/".join(parts)
    is_inside = bool(parts) and not {"", ".."} & set(parts) and "\\" not in name and "\0" not in name
    return name if is_inside else None


def _version(filesystem: fsspec.AbstractFileSystem, remote: str) -> Any:
    """What tells this content from others that had, or will have, the same name; None when its storage does not."""
    if "http" not in filesystem.protocol:
        return filesystem.ukey(remote)
    # fsspec takes whatever comes over HTTP for unchanging (HTTPFileSystem.ukey), so its server is asked.
    info = filesystem.info(remote)
    said = [info[name] for name in _HTTP_VALIDATORS if name in info]
    return [info["size"], *said] if said else None


def _digest(document: Any) -> str:
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()[:32]


def _download(
    filesystem: fsspec.AbstractFileSystem, files: dict[str, str], uri: str, cached: Path | None = None
) -> Path:
    """Download to `cached`, None for the place in the cache that the bytes themselves name. Returns the place."""
    parent = _cache_directory()
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".download-", dir=parent))
    try:
        for name, remote in files.items():
            target = temporary / (name or Path(remote).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(remote, str(target))
        if cached is None:
            hashes = {name: sha256_file(temporary / (name or Path(remote).name)) for name, remote in files.items()}
            cached = parent / _digest([uri, hashes])
        with suppress(OSError):  # the same download was finished before: that copy is as good
            temporary.rename(cached)
        return cached
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cache_directory() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "retrieval-operator" / "storage"


@contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    """A name in the same directory (so that a rename is atomic), removed if it is still there at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _copy_local(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_sibling(target) as temporary:
        shutil.copyfile(source, temporary)
        temporary.replace(target)


def _remove_local(directory: Path, last_files: Container[str]) -> bool:
    if not directory.exists():
        return False
    for parent, _, names in os.walk(directory, followlinks=False):
        lasts = [name for name in names if name in last_files]
        for name in lasts:
            (Path(parent) / name).unlink()
        if lasts:
            _sync_directory(Path(parent))
    shutil.rmtree(directory)
    return True


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut (POSIX: the directory entry is data of the directory)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
