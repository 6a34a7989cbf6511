"""What work on this machine needs: programs that are installed, a disk with room, a storage directory to write to."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.programs import PROGRAMS, ProgramTable
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.pod import Pod
from retrieval_operator.domain.observed import Problem

# Below this nothing is started, so it is what a tiny model's checkpoints, bundle and index (some 100 MB) surely need.
_MIN_FREE_BYTES = 1 << 28

_NEEDED = ("retrieval-train", "retrieval-index", "retrieval-evaluate", "retrieval-encoder-server", "retrieval-data")


class LocalSurroundings:
    """Fills the port Surroundings. Only looks: nothing is made, and no program is imported."""

    def __init__(
        self, home: LocalHome, *, programs: ProgramTable = PROGRAMS, min_free_bytes: int = _MIN_FREE_BYTES
    ) -> None:
        self._home = home
        self._programs = programs
        self._min_free_bytes = min_free_bytes

    async def storage_id(self, model: RetrievalModel) -> str:
        """A directory that was emptied cannot be told from the one that it was."""
        return ""

    async def problems(self, model: RetrievalModel) -> Sequence[Problem]:
        return [
            *self._programs_missing(model),
            *self._storage(model),
            *_references_to_clusters(model),
        ]

    def _programs_missing(self, model: RetrievalModel) -> Iterator[Problem]:
        for name in _NEEDED:
            if name == "retrieval-train" and model.spec.model.bundle_uri is not None:
                continue  # an imported bundle is not trained
            program = self._programs.get(name)
            missing = program.missing() if program else [name]
            if missing:
                extra = program.extra if program else "all"
                yield Problem(
                    dependency="program",
                    message=f"{name} cannot start: {', '.join(missing)} not installed; "
                    f"run pip install 'retrieval-operator[{extra}]' in {sys.prefix}",
                )

    def _storage(self, model: RetrievalModel) -> Iterator[Problem]:
        places = {"the state directory": self._home.root}
        storage = local_directory(model.spec.storage.uri)
        if storage is not None:
            places["spec.storage.uri"] = storage
            parent = _existing_parent(storage)
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                yield Problem(
                    dependency="storage",
                    message=f"spec.storage.uri: found {storage}, where this user cannot write ({parent}); "
                    "give access or choose another directory",
                )
        for what, path in places.items():
            free = shutil.disk_usage(_existing_parent(path)).free
            if free < self._min_free_bytes:
                yield Problem(
                    dependency="storage",
                    message=f"{what}: found {free / 2**20:.0f} MiB free at {path}, "
                    f"expected at least {self._min_free_bytes / 2**20:.0f} MiB; free some space",
                )


def local_directory(uri: str) -> Path | None:
    """The directory of a plain path or a file URI; None for anything remote."""
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _references_to_clusters(model: RetrievalModel) -> Iterator[Problem]:
    """Secrets and ConfigMaps live in a cluster: on one machine there is nothing to read them from.

    Told, but no reason to hold work back: the same manifest is for both, and here a file may hold what is needed.
    """
    pods: Mapping[str, Pod] = {
        "spec.training.pod": model.spec.training.pod,
        "spec.index.pod": model.spec.index.pod,
        "spec.evaluation.pod": model.spec.evaluation.pod,
        "spec.serving.pod": model.spec.serving.pod,
    }
    for path, pod in pods.items():
        for variable in pod.env:
            if variable.value is None:
                yield Problem(
                    dependency="secret",
                    holds_back=False,
                    message=f"{path}.env: {variable.name} refers to a Secret or ConfigMap, which one machine does not "
                    "have; give a value, or put the program's credentials into a file in your home directory",
                )


def _existing_parent(path: Path) -> Path:
    # Not Path.exists: it raises for what lies in a directory that this user cannot enter.
    while not os.access(path, os.F_OK) and path != path.parent:
        path = path.parent
    return path
