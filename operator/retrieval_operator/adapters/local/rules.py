"""Rules over a new manifest, the stored object and all others. On Kubernetes the API server checks the same."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from retrieval_operator.adapters.local.surroundings import local_directory
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.changes import changed_paths, immutable_fields
from retrieval_operator.ports import Rejected

# Presets of the trainer, such as `preset:tiny`, are names and no paths.
_PRESET = "preset:"


def check(manifest: RetrievalModel, current: RetrievalModel | None, others: Sequence[RetrievalModel]) -> None:
    """Raises Rejected with one sentence per broken rule."""
    problems = [*_relative_paths(manifest), *_no_autoscaler(manifest), *_shared_storage(manifest, others)]
    if current is not None:
        problems += _immutable_changes(manifest, current)
        if current.metadata.deletion_timestamp is not None and not _only_changes_policy(manifest, current):
            problems.append(
                "the object is being deleted, and only deletionPolicy may change now; apply it again when it is gone"
            )
    if problems:
        raise Rejected("\n".join(f"{manifest.key}: {problem}" for problem in problems))


def storage_prefix(model: RetrievalModel) -> str:
    """Where all files of the object live, normalised; `file:///data`, `/data` and `/x/../data` are the same place."""
    uri = model.spec.storage.uri
    directory, parts = local_directory(uri), urlsplit(uri)
    root, path = ("", directory) if directory is not None else (f"{parts.scheme}://{parts.netloc}", parts.path)
    # Two leading slashes would stay two: POSIX gives them a meaning of their own.
    return f"{root}/{posixpath.normpath(f'{path}/{model.key}').lstrip('/')}"


def _immutable_changes(manifest: RetrievalModel, current: RetrievalModel) -> Iterator[str]:
    accepted = immutable_fields(current)
    for path, found in immutable_fields(manifest).items():
        expected = accepted[path]
        if found != expected:
            yield f"{path}: found {found!r}, expected {expected!r} (immutable); delete the object to change it"


def _shared_storage(manifest: RetrievalModel, others: Sequence[RetrievalModel]) -> Iterator[str]:
    """Equal or nested prefixes: collecting one object's files would take the other's."""
    ours = storage_prefix(manifest)
    for other in others:
        theirs = storage_prefix(other)
        if f"{ours}/".startswith(f"{theirs}/") or f"{theirs}/".startswith(f"{ours}/"):
            yield (
                f"spec.storage.uri: found {manifest.spec.storage.uri!r}, which puts files under {ours}; "
                f"expected a place apart from {theirs}, which {other.key} uses"
            )


def _only_changes_policy(manifest: RetrievalModel, current: RetrievalModel) -> bool:
    """What people may still say about an object that is being deleted: whether its files stay."""
    return changed_paths(current.spec, manifest.spec) == ["deletionPolicy"]


def _no_autoscaler(manifest: RetrievalModel) -> Iterator[str]:
    """A bound that nothing would ever use must not look as if it did."""
    replicas = manifest.spec.serving.replicas
    if replicas.max is not None and replicas.max > replicas.min:
        yield (
            f"spec.serving.replicas.max: found {replicas.max}, expected min ({replicas.min}) or none: "
            "one machine has no autoscaler, so there are always min servers"
        )


def _relative_paths(manifest: RetrievalModel) -> Iterator[str]:
    """The control plane and its workloads run elsewhere, so a relative path would mean something else to each."""
    spec = manifest.spec
    uris = {
        "spec.storage.uri": spec.storage.uri,
        "spec.data.uri": spec.data.uri,
        "spec.model.base": spec.model.base,
        "spec.model.bundleUri": spec.model.bundle_uri,
    }
    for path, uri in uris.items():
        if uri and not (uri.startswith(("/", _PRESET)) or "://" in uri):
            yield f"{path}: found {uri!r}, expected an absolute path or a URI"
