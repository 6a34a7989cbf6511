"""What Helm tells after an installation: it holds for the values that were chosen, and its commands work as printed."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
Notes = Callable[..., str]


def commands(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ("images.prefix=registry.example.com/ml/,images.tag=9", "registry.example.com/ml/retrieval-indexer:9"),
        ("images.indexer=mine/indexer@sha256:aa", "mine/indexer@sha256:aa"),
    ],
    ids=["a prefix and a tag", "a whole reference"],
)
def test_the_storage_of_the_first_object_is_made_before_it_with_the_releases_image(
    notes: Notes, values: str, image: str
) -> None:
    told = commands(notes("--set-string", values))
    [storage] = [command for command in told if "storage.yaml" in command]
    [model] = [command for command in told if "retrievalmodel.yaml" in command]
    assert told.index(storage) < told.index(model)
    edit, _, apply = storage.partition(" | ")
    assert apply == "kubectl apply -f -"
    edited = subprocess.run(shlex.split(edit), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    [job] = [one for one in yaml.safe_load_all(edited) if one["kind"] == "Job"]
    assert [container["image"] for container in job["spec"]["template"]["spec"]["containers"]] == [image]


def test_the_first_object_is_left_out_where_its_namespace_is_not_watched(notes: Notes) -> None:
    assert "retrievalmodel.yaml" in notes("--set", "watch.namespaces={jobs,feed}")
    assert "retrievalmodel.yaml" not in notes("--set", "watch.namespaces={jobs}")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("clusterName=local", 'clusterName is "local"'),
        ("crds.keep=false", "DELETES EVERY RetrievalModel"),
        ("uninstall.releaseFinalizers=false", "uninstall.releaseFinalizers is off"),
    ],
)
def test_what_somebody_would_regret_later_is_told(notes: Notes, values: str, words: str) -> None:
    assert words in notes("--set", values)
    assert words not in notes("--set", "clusterName=east")
