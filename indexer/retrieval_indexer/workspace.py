"""Where a program writes before its output is complete: the local directory itself, or a staging copy of a remote one.

A staging directory is named by its URI, so that a restarted program on the same machine finds its finished shards; a
program on another machine fetches those that were published.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from retrieval_core.files import is_local, is_published, local_path, publish


class Workspace:
    """A local directory whose content ends up at `uri`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.is_local = is_local(uri)
        self.directory = local_path(uri) if self.is_local else _staging_directory(uri)
        self.directory.mkdir(parents=True, exist_ok=True)

    def fetch(self, name: str, last: str) -> None:
        """Bring file `name` here if a remote directory has it and `last` says that it is finished."""
        target = self.directory / name
        if self.is_local or target.exists() or not is_published(self.uri, last):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local_path(f"{self.uri.rstrip('/')}/{name}"), target)

    def fetch_all(self) -> None:
        """Bring a finished remote directory here."""
        if not self.is_local:
            shutil.copytree(local_path(self.uri), self.directory, dirs_exist_ok=True)

    def publish(self, last: str) -> None:
        """Copy everything to the URI, `last` last; nothing to do for a local one."""
        publish(self.directory, self.uri, last)

    def publish_files(self, names: list[str], last: str) -> None:
        """Copy only these finished files and `last`: a part of a directory that others write as well."""
        if self.is_local:
            return
        with tempfile.TemporaryDirectory(dir=self.directory.parent, prefix=".part-") as part:
            for name in [*names, last]:
                (Path(part) / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self.directory / name, Path(part) / name)
            publish(Path(part), self.uri, last)


def _staging_directory(uri: str) -> Path:
    name = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    base = os.environ.get("RETRIEVAL_CACHE_DIR") or str(Path(tempfile.gettempdir()) / "retrieval-operator")
    return Path(base) / "staging" / name
