"""Writes a whole dataset or nothing: to a temporary directory, checked there, then moved into place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_core.dataset import Dataset, open_dataset
from retrieval_core.dataset.spec import SPEC_FILE, DatasetSpec, dump_spec
from retrieval_core.errors import BadArguments
from retrieval_core.files import is_local, is_published, local_path, publish, write_text

# Items are encoded by row group; this many keep a shard of a small dataset restartable without many tiny files.
ROWS_PER_GROUP = {"members": 16_384, "items": 1_024, "interactions": 131_072}


@dataclass(frozen=True)
class DatasetTables:
    """What a source produced. `extra` holds files beside the dataset that `open_dataset` never reads."""

    spec: DatasetSpec
    members: pa.Table
    items: pa.Table
    interactions: pa.Table
    extra: Mapping[str, pa.Table] = field(default_factory=dict)


def require_free(uri: str, replace: bool) -> None:
    """BadArguments when something is at `uri` already; with `replace`, a local dataset may be there."""
    if is_local(uri):
        path = local_path(uri)
        replaceable = replace and (path / SPEC_FILE).is_file()
        if path.exists() and not replaceable and (not path.is_dir() or any(path.iterdir())):
            hint = "it is no dataset" if replace else "choose another place, or say --replace"
            raise BadArguments(f"{uri} exists already: {hint}")
    elif is_published(uri, SPEC_FILE):
        raise BadArguments(f"{uri} holds a dataset already: choose another place or remove it first")


def write_dataset(uri: str, tables: DatasetTables, *, replace: bool = False) -> Dataset:
    """Write, validate, and only then put at `uri`, dataset.yaml last. Returns the opened dataset.

    Raises BadInput (and leaves `uri` as it was) when the tables are not a valid dataset, BadArguments when `uri` is
    taken.
    """
    require_free(uri, replace)
    target = local_path(uri) if is_local(uri) else None
    parent = target.parent if target is not None else None
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".dataset-", dir=parent))
    try:
        _write_files(temporary, tables)
        dataset = open_dataset(str(temporary))
        if target is None:
            publish(temporary, uri, SPEC_FILE)
            return open_dataset(uri)
        _move_into_place(temporary, target)
        return replace_fields(dataset, path=target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(directory: Path, tables: DatasetTables) -> None:
    directory.chmod(0o755)  # mkdtemp's 0700 would stay after the rename
    folders = {"members": tables.members, "items": tables.items, "interactions": tables.interactions}
    for folder, table in folders.items():
        path = directory / folder / "part-00000.parquet"
        path.parent.mkdir()
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP[folder])
    for name, table in tables.extra.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
    write_text(directory / SPEC_FILE, dump_spec(tables.spec))


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename is atomic onto nothing or an empty directory; an older dataset steps aside first."""
    aside = temporary.with_name(temporary.name + ".old")
    if target.exists() and any(target.iterdir()):
        target.rename(aside)
    temporary.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def strings(values: Any) -> pa.Array:
    """Arrow strings of any sequence of str or None."""
    return pa.array(values, type=pa.string())
