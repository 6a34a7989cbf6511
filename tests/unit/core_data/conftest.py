"""A small valid dataset that each test breaks in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml


@dataclass
class DatasetFiles:
    """What a test may change before it writes the files; columns are lists or arrow arrays."""

    document: dict[str, Any]
    members: dict[str, Any]
    items: dict[str, Any]
    interactions: dict[str, Any]

    def write(self, directory: Path) -> Path:
        for folder in ("members", "items", "interactions"):
            (directory / folder).mkdir(parents=True)
            pq.write_table(pa.table(getattr(self, folder)), directory / folder / "part-0.parquet", row_group_size=2)
        (directory / "dataset.yaml").write_text(yaml.safe_dump(self.document))
        return directory


def _small_dataset() -> DatasetFiles:
    return DatasetFiles(
        document={
            "formatVersion": 1,
            "name": "small",
            "provenance": "synthetic",
            "members": {"id": "member_id", "text": ["headline"], "category": ["industry"], "createdAt": "joined_at"},
            "items": {
                "id": "item_id",
                "text": ["title"],
                "category": ["topics"],
                "count": ["words"],
                "createdAt": "created_at",
                "attributes": ["author"],
            },
            "interactions": {"member": "member_id", "item": "item_id", "time": "time", "engaged": "engaged"},
            "counts": {"windowDays": 30},
            "split": {"mode": "global", "testFrom": 500},
            "validationMembers": "0.1",
        },
        members={
            "member_id": ["ann", "bob", "cid"],
            "headline": ["a chemist", None, "a painter"],
            "industry": ["health", "media", None],
            "joined_at": [0, 0, 300],
        },
        items={
            "item_id": ["i0", "i1", "i2", "i3"],
            "title": ["zero", "one", "two", "three"],
            "topics": [["x"], ["x", "y"], [], None],
            "words": [10, 20, None, 40],
            "created_at": [0, 0, 100, 400],
            "author": ["eve", "eve", "dan", None],
        },
        interactions={
            "member_id": ["ann", "ann", "bob", "ann", "bob", "cid", "cid"],
            "item_id": ["i0", "i1", "i1", "i2", "i0", "i3", "i1"],
            "time": [100, 200, 200, 300, 400, 600, 700],
            "engaged": [True, False, True, True, False, True, False],
        },
    )


@pytest.fixture(scope="session")
def small_dataset() -> Callable[[], DatasetFiles]:
    """A factory of fresh copies; session-scoped so that property tests may use it."""
    return _small_dataset
