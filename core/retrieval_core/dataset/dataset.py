"""Opening a dataset: read, check everything, split (docs/contracts.md section 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retrieval_core.dataset import checks
from retrieval_core.dataset.arrays import BoolArray, Int32Array, Int64Array, StringArray
from retrieval_core.dataset.problems import Problems
from retrieval_core.dataset.spec import SPEC_FILE, DatasetSpec, EntitySpec, load_spec
from retrieval_core.dataset.split import ResolvedSplit, resolve_split, validation_members
from retrieval_core.dataset.tables import FolderTable, Role, Tables, dataset_files, read_folder
from retrieval_core.files import canonical_json, local_path, sha256_file

FOLDERS = ("members", "items", "interactions")


@dataclass(frozen=True)
class Events:
    """Interactions sorted by (time, member, item); members and items are row numbers, times are seconds."""

    member: Int32Array
    item: Int32Array
    time: Int64Array
    engaged: BoolArray
    is_test: BoolArray

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True)
class Dataset:
    """A validated dataset. M members and I items are in file order; a row number is their index everywhere."""

    path: Path
    spec: DatasetSpec
    snapshot: str
    member_ids: StringArray
    item_ids: StringArray
    member_joined_at: Int64Array | None
    item_created_at: Int64Array | None
    item_row_groups: list[tuple[int, int]]  # (start, stop) rows of each, in order: the unit of sharded encoding
    member_columns: Mapping[str, pa.ChunkedArray]
    item_columns: Mapping[str, pa.ChunkedArray]  # fields and attributes
    events: Events
    split: ResolvedSplit
    is_validation_member: BoolArray

    @property
    def last_event_time(self) -> int:
        return int(self.events.time[-1])


def open_dataset(uri: str) -> Dataset:
    """Open and validate the dataset at an fsspec URI or path.

    Reads everything once. Raises BadInput whose message lists up to 20 problems, each with file, column, row count and
    an example; TemporarilyUnavailable when remote storage fails.
    """
    directory = local_path(uri)
    spec = load_spec(directory / SPEC_FILE)
    problems = Problems(uri)
    members = read_folder(directory, "members", _entity_roles(spec.members), problems)
    item_roles = _entity_roles(spec.items) | _attribute_roles(spec)
    items = read_folder(directory, "items", item_roles, problems)
    interactions = read_folder(directory, "interactions", _interaction_roles(spec), problems)
    if members is not None:
        checks.check_entities(members, spec.members, problems)
    if items is not None:
        checks.check_entities(items, spec.items, problems)
    if interactions is not None:
        checks.check_interaction_columns(interactions, spec.interactions, problems)
    if problems or members is None or items is None or interactions is None:
        problems.raise_if_any()
        raise AssertionError("a folder that could not be read is a problem")
    return _assemble(directory, spec, Tables(members, items, interactions), problems)


def snapshot_id(directory: Path) -> str:
    """First 16 hex of sha256 over the sorted (relative path, sha256) of the dataset's files."""
    paths = [directory / SPEC_FILE, *(path for folder in FOLDERS for path in dataset_files(directory, folder))]
    listing = sorted((path.relative_to(directory).as_posix(), sha256_file(path)) for path in paths)
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()[:16]


def _entity_roles(spec: EntitySpec) -> dict[str, Role]:
    roles = {spec.id: Role.ID}
    roles |= dict.fromkeys(spec.text, Role.TEXT)
    roles |= dict.fromkeys(spec.category, Role.CATEGORY)
    roles |= dict.fromkeys(spec.count, Role.COUNT)
    return roles | ({spec.created_at: Role.TIME} if spec.created_at else {})


def _attribute_roles(spec: DatasetSpec) -> dict[str, Role]:
    """An attribute that is a field as well keeps the field's type."""
    fields = set(spec.items.field_columns) | {spec.items.id}
    return {name: Role.CATEGORY for name in spec.items.attributes if name not in fields}


def _interaction_roles(spec: DatasetSpec) -> dict[str, Role]:
    columns = spec.interactions
    return {columns.member: Role.ID, columns.item: Role.ID, columns.time: Role.TIME, columns.engaged: Role.ENGAGED}


def _assemble(directory: Path, spec: DatasetSpec, tables: Tables, problems: Problems) -> Dataset:
    """Everything that needs the three tables together."""
    members, items = tables.members, tables.items
    created_at = _times(items, spec.items.created_at)
    links = checks.link_interactions(tables, spec, created_at, problems)
    problems.raise_if_any()
    order = np.lexsort((links.item, links.member, links.time))
    member, item, time = links.member[order], links.item[order], links.time[order]
    split = resolve_split(spec.split, member, time, members.table.num_rows)
    events = Events(member, item, time, links.engaged[order], split.is_test(member, time))
    checks.check_split(events.engaged, events.is_test, split, problems)
    problems.raise_if_any()
    member_ids = _ids(members, spec.members)
    return Dataset(
        path=directory,
        spec=spec,
        snapshot=snapshot_id(directory),
        member_ids=member_ids,
        item_ids=_ids(items, spec.items),
        member_joined_at=_times(members, spec.members.created_at),
        item_created_at=created_at,
        item_row_groups=items.row_groups,
        member_columns={name: members.table.column(name) for name in spec.members.field_columns},
        item_columns={name: items.table.column(name) for name in spec.items.declared_columns},
        events=events,
        split=split,
        is_validation_member=validation_members(member_ids, spec.validation_members),
    )


def _ids(table: FolderTable, spec: EntitySpec) -> StringArray:
    return np.asarray(table.table.column(spec.id).to_pylist(), dtype=np.object_)


def _times(table: FolderTable, column: str | None) -> Int64Array | None:
    return None if column is None else np.asarray(table.table.column(column), dtype=np.int64)
