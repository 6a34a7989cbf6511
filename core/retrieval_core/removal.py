"""Removing what an object made: directories of its storage layout (docs/contracts.md section 1), and nothing else.

The caller names what to remove, and never what to keep. With a list of what to keep, a caller that looked too early
would take whatever was made since; with names it can only take what it once knew, and knew to be over. What it does
not name stays, which costs space and loses nothing.

A name is a path below ROOT and has the layout's shape, so that no spelling of it leaves ROOT. A directory loses its
last files first: half removed, it reads as unfinished, and its maker makes it anew. Missing is done.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from retrieval_core.errors import BadInput
from retrieval_core.files import is_local, local_path, remove_directory, remove_empty_directory

FOLDERS = ("revisions", "indexes", "evaluations", "verifications")
# The last files of everything below FOLDERS, checkpoints included.
LAST_FILES = frozenset({"bundle.json", "MANIFEST.json", "evaluation.json", "verification.json", "checkpoint.json"})
_NAME = re.compile(rf"({'|'.join(FOLDERS)})/[a-z0-9][a-z0-9-]*")
# <namespace>/<name>: a shorter root is nobody's own.
_ROOT_PARTS = 2


def remove(root: str, names: Sequence[str], keep: Sequence[str] = ()) -> dict[str, bool]:
    """Remove directories below an object's root; for each name whether something was there.

    `keep` are URIs (a dataset, an imported bundle) that no removed directory may hold, or lie in. All names are checked
    before the first is removed. Raises BadInput for a name, root or symbolic link that could lead elsewhere, and for a
    name that touches `keep`; StorageFailed or TemporarilyUnavailable when the storage fails: what is left can be
    removed by the same call.
    """
    _require_own_root(root)
    for name in names:
        if not _NAME.fullmatch(name):
            raise BadInput(f"found {name!r}, expected FOLDER/ID below ROOT with FOLDER one of {', '.join(FOLDERS)}")
        _require_free(root, name, keep)
    return {name: remove_directory(f"{_bare(root)}/{name}", LAST_FILES) for name in names}


def remove_all(root: str, keep: Sequence[str] = ()) -> dict[str, bool]:
    """Remove everything that the layout has below an object's root, then the root itself when that leaves it empty.

    What else a person put there stays. Raises as `remove`.
    """
    _require_own_root(root)
    for folder in FOLDERS:
        _require_free(root, folder, keep)
    removed = {folder: remove_directory(f"{_bare(root)}/{folder}", LAST_FILES) for folder in FOLDERS}
    remove_empty_directory(_bare(root))
    return removed


def _bare(root: str) -> str:
    return root.rstrip("/")


def _require_own_root(root: str) -> None:
    """A root that ends in <namespace>/<name>, with no part that means another place."""
    path = root.partition("://")[2] if "://" in root else root
    parts = [part for part in path.rstrip("/").split("/")[1:] if part]
    if len(parts) < _ROOT_PARTS or {".", ".."} & set(path.split("/")):
        raise BadInput(f"ROOT: found {root!r}, expected <storage.uri>/<namespace>/<name> without . and ..")


def _require_free(root: str, name: str, keep: Sequence[str]) -> None:
    """No symbolic link on the way from the root, and nothing to keep at, in or above the directory."""
    target = f"{_bare(root)}/{name}"
    if is_local(target):
        path = local_path(target)
        for link in [path, *path.parents][: len(PurePosixPath(name).parts)]:
            if link.is_symlink():
                raise BadInput(f"{link} is a symbolic link, which no program of ours makes; remove it by hand")
    for kept in keep:
        if _is_within(kept, target) or _is_within(target, kept):
            raise BadInput(f"{target} is not removed: {kept}, which must stay, shares its place; move that elsewhere")


def _is_within(inner: str, outer: str) -> bool:
    if _scheme(inner) != _scheme(outer):
        return False  # also where another storage's driver is not installed here
    if is_local(outer):
        return local_path(inner).resolve().is_relative_to(local_path(outer).resolve())
    return PurePosixPath(inner.rstrip("/")).is_relative_to(PurePosixPath(_bare(outer)))


def _scheme(uri: str) -> str:
    return uri.partition("://")[0] if "://" in uri else "file"
