"""The real program, started as the control plane starts it, removes what the control plane named, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.machine import LocalMachine
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.domain import commands
from retrieval_operator.domain.workloads import WorkloadObserved, WorkloadSpec

pytestmark = pytest.mark.component

FILES = (
    "revisions/aaaa0001/bundle/bundle.json",
    "revisions/aaaa0002/bundle/bundle.json",
    "indexes/bbbb0001/MANIFEST.json",
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("feed", "other"):
        for file in FILES:
            path = tmp_path / "store/default" / name / file
            path.parent.mkdir(parents=True)
            path.write_text("{}")
    return tmp_path / "store"


def manifest(store: Path, data: str = "/data") -> RetrievalModel:
    document: dict[str, Any] = {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": "feed", "uid": "uid-1"},
        "spec": {
            "storage": {"uri": str(store)},
            "data": {"uri": data, "revision": "1"},
            "model": {"base": "preset:tiny"},
            "promotion": {"gates": [{"min": "0.1"}]},
        },
    }
    return parse_manifest(document, "test")


def run(home: Path, model: RetrievalModel, work: WorkloadSpec, until: Callable[..., Any]) -> WorkloadObserved:
    workloads = LocalMachine(LocalHome(home), repairs=False).workloads
    asyncio.run(workloads.start(model, work))

    def ended() -> WorkloadObserved | None:
        (seen,) = asyncio.run(workloads.observe(model))
        return seen if seen.state != "Running" else None

    return until(ended)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_what_is_named_goes_and_everything_else_stays(store: Path, tmp_path: Path, until: Callable[..., Any]) -> None:
    model = manifest(store)
    work = commands.collect(model, key="aaaa0001", attempt=1, names=["revisions/aaaa0001", "indexes/aaaa0001"])
    assert run(tmp_path / "home", model, work, until).state == "Succeeded"
    assert files(store / "default/feed") == set(FILES[1:])
    assert files(store / "default/other") == set(FILES)


def test_the_removal_of_everything_leaves_other_objects_alone(
    store: Path, tmp_path: Path, until: Callable[..., Any]
) -> None:
    model = manifest(store)
    assert run(tmp_path / "home", model, commands.remove_all(model, attempt=1), until).state == "Succeeded"
    assert not (store / "default/feed").exists()
    assert files(store / "default/other") == set(FILES)


def test_a_dataset_among_the_objects_files_is_not_removed_and_the_sentence_arrives(
    store: Path, tmp_path: Path, until: Callable[..., Any]
) -> None:
    model = manifest(store, data=f"{store}/default/feed/indexes/dataset")
    ended = run(tmp_path / "home", model, commands.remove_all(model, attempt=1), until)
    assert (ended.state, ended.exit_code, ended.reason) == ("Failed", 65, "BadInput")
    assert "must stay" in ended.message
    assert files(store / "default/feed") == set(FILES)
