"""A million interactions open within a small machine's memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

MEMBERS, ITEMS, INTERACTIONS = 20_000, 20_000, 1_000_000
# Measured at 332 MB on x86-64 (about 100 of them are the interpreter, numpy and pyarrow); the rest is allowance.
LIMIT_MB = 600

PROGRAM = """
import sys
from pathlib import Path
from retrieval_core.dataset import FeatureView, open_dataset
dataset = open_dataset(sys.argv[1])
counts = FeatureView(dataset).item_counts(dataset.events.item, dataset.events.time)
# Not getrusage: its peak is inherited from the process that forked this one.
peak = next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(dataset.events), counts.impressions.sum(), peak)
"""


def _write_random_dataset(directory: Path) -> None:
    rng = np.random.default_rng(0)
    members = pa.array([f"member-{number:08d}" for number in range(MEMBERS)])
    items = pa.array([f"item-{number:08d}" for number in range(ITEMS)])
    tables = {
        "members": {"member_id": members},
        "items": {"item_id": items, "title": pa.array([f"an item about the number {n}" for n in range(ITEMS)])},
        "interactions": {
            "member_id": members.take(pa.array(rng.integers(0, MEMBERS, INTERACTIONS))),
            "item_id": items.take(pa.array(rng.integers(0, ITEMS, INTERACTIONS))),
            "time": rng.permutation(INTERACTIONS) * 10,  # times differ, so nothing repeats
            "engaged": rng.random(INTERACTIONS) < 0.3,
        },
    }
    for folder, columns in tables.items():
        (directory / folder).mkdir(parents=True)
        pq.write_table(pa.table(columns), directory / folder / "part-0.parquet")
    document = {
        "formatVersion": 1,
        "name": "random",
        "provenance": "synthetic",
        "members": {"id": "member_id"},
        "items": {"id": "item_id", "text": ["title"]},
        "interactions": {"member": "member_id", "item": "item_id", "time": "time", "engaged": "engaged"},
        "counts": {"windowDays": 0},
        "split": {"mode": "global", "testFraction": 0.1},
    }
    (directory / "dataset.yaml").write_text(yaml.safe_dump(document))


@pytest.mark.component
def test_a_million_interactions_open_within_reasonable_memory(tmp_path):
    _write_random_dataset(tmp_path / "d")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "d")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    rows, impressions, peak_mb = map(int, run.stdout.split())
    assert rows == INTERACTIONS
    # Of an item's n interactions the i-th has i before it.
    interactions = pq.read_table(tmp_path / "d/interactions/part-0.parquet")["item_id"].value_counts().field("counts")
    assert impressions == sum(count * (count - 1) // 2 for count in interactions.to_pylist())
    assert peak_mb < LIMIT_MB, f"peak {peak_mb} MB"
