"""The state directory of local mode: its layout, atomic writes and locks.

    objects/<ns>/<name>.yaml             the object: metadata and spec in one file, so that one rename changes both
    status/<ns>/<name>.json              what the controller last wrote
    events/<ns>/<name>.jsonl             one line per (reason, message), with its count
    workloads/<ns>/<name>/<workload>/    one process directory (processes.py) per attempt
    stacks/<ns>/<name>/<stack>/          stack.json and one process directory per replica
    traffic/<ns>/<name>.json             which stack is live
    proxies/<ns>/<name>/                 the process directory of the object's proxy
    services/<service>/                  process directories that belong to no object, such as MLflow
    locks/                               lock files; never removed, so that everybody locks the same inode

Everything below the root is made with mode 0700. Names become paths only after they were checked here.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retrieval_operator.ports import PortError, Rejected, Retryable

FORMAT_VERSION = 1
_PART = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PART_MAX_CHARS = 128
# Critical sections are a few file writes; one that takes this long belongs to a stopped or hanging process.
_LOCK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.01
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Busy(Retryable):
    """Somebody else kept a lock for as long as we would wait."""


class LocalHome:
    """Paths under the root. Raises Rejected for a name that could leave its directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    def object_file(self, key: str) -> Path:
        return self._of("objects", key, ".yaml")

    def status_file(self, key: str) -> Path:
        return self._of("status", key, ".json")

    def events_file(self, key: str) -> Path:
        return self._of("events", key, ".jsonl")

    def traffic_file(self, key: str) -> Path:
        return self._of("traffic", key, ".json")

    def workloads(self, key: str) -> Path:
        return self._of("workloads", key)

    def workload(self, key: str, name: str) -> Path:
        return self.workloads(key) / checked(name)

    def stacks(self, key: str) -> Path:
        return self._of("stacks", key)

    def stack(self, key: str, stack: str) -> Path:
        return self.stacks(key) / checked(stack)

    def proxy(self, key: str) -> Path:
        return self._of("proxies", key)

    def service(self, name: str) -> Path:
        return self.root / "services" / checked(name)

    def keys(self, kind: str) -> list[str]:
        """`namespace/name` of everything under `objects`, `workloads`, `stacks`, `traffic` or `proxies`, sorted."""
        found = (self.root / kind).glob("*/*")
        return sorted(f"{path.parent.name}/{path.stem}" for path in found if not path.name.startswith("."))

    @contextmanager
    def locked(self, name: str, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the lock of this name against every other process and thread of this home. Raises Busy.

        `timeout_s` None: as long as any sound holder may take.
        """
        patience_s = _LOCK_TIMEOUT_S if timeout_s is None else timeout_s
        path = self.root / "locks" / name.replace("/", "_")
        make_directory(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not lock_within(descriptor, patience_s):
                raise Busy(
                    f"another process has held {path} for more than {patience_s:g} s; "
                    "if a retrieval-operator command is suspended, continue or end it"
                )
            yield
        finally:
            os.close(descriptor)

    def _of(self, kind: str, key: str, suffix: str = "") -> Path:
        namespace, _, name = key.partition("/")
        return self.root / kind / checked(namespace) / (checked(name) + suffix)


def checked(part: str) -> str:
    """The part, if it is safe as one component of a path. Raises Rejected."""
    if len(part) > _PART_MAX_CHARS or not _PART.fullmatch(part):
        raise Rejected(
            f"found the name {part!r}, expected lower-case letters, digits and inner hyphens, "
            f"at most {_PART_MAX_CHARS} characters"
        )
    return part


def lock_within(descriptor: int, timeout_s: float) -> bool:
    """Take the exclusive flock of an open file; False when somebody else kept it all that time."""
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOCK_POLL_S)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, each with mode 0700 (pathlib's `parents` would ignore the mode)."""
    with told_to_people(path):
        if not path.parent.is_dir():
            make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: readers see the old text or the new one. Raises Retryable when the disk is full."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with told_to_people(path):
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    document = {"formatVersion": FORMAT_VERSION, **document}
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The document, None when there is no such file. Raises Rejected for one that cannot be understood."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Rejected(f"{path}: cannot be read ({error}); restore or remove it") from error
    version = document.get("formatVersion") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise Rejected(f"{path}: found formatVersion {version!r}, expected {FORMAT_VERSION}")
    assert isinstance(document, dict)
    return document


@contextmanager
def told_to_people(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into ours."""
    try:
        yield
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> PortError:
    if error.errno in _OUT_OF_SPACE:
        return Retryable(f"{path}: cannot be written, the disk is full ({error.strerror}); nothing was changed")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return Rejected(f"{path}: cannot be written ({error.strerror}); give this user access or choose another home")
    return Retryable(f"{path}: cannot be written ({error.strerror or error})")
