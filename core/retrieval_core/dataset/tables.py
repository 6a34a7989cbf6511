"""Reads the parquet files of one folder into one table with canonical column types.

Ids become strings, counts float64, times int64 seconds, categories string or list<string>. What cannot be read so is a
problem that names the file, the column, what was found and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval_core.dataset.arrays import BoolArray
from retrieval_core.dataset.problems import Problems


class Role(Enum):
    """What a column is for, and in words which types it may have."""

    ID = "string or integer"
    TEXT = "string"
    CATEGORY = "string or list<string>"
    COUNT = "a number (integer, float or decimal)"
    TIME = "int64 seconds since 1970 or timestamp"
    ENGAGED = "bool"


@dataclass(frozen=True)
class FolderTable:
    """All rows of a folder's files, in file-name order, and where each row came from."""

    folder: str
    table: pa.Table
    files: tuple[tuple[str, int], ...]  # (name, rows)
    row_groups: list[tuple[int, int]]

    def place(self, row: int) -> str:
        """`items/part-1.parquet row 17` (rows count from 0 within their file)."""
        for name, rows in self.files:
            if row < rows:
                return f"{self.folder}/{name} row {row}"
            row -= rows
        raise IndexError(row)

    def report_rows(self, problems: Problems, column: str, wrong: BoolArray, what: str) -> None:
        """Add a problem when any row of `wrong` [rows] is set; `what` completes "N of M rows ..."."""
        count = int(wrong.sum())
        if count:
            row = int(wrong.argmax())
            value = self.table.column(column)[row].as_py()
            problems.add(
                f"{self.folder}/, column {column}: {count:,} of {len(wrong):,} rows {what} "
                f"(first: {self.place(row)}, value {value!r:.80})"
            )


@dataclass(frozen=True)
class Tables:
    """The three folders of a dataset."""

    members: FolderTable
    items: FolderTable
    interactions: FolderTable


def dataset_files(directory: Path, folder: str) -> list[Path]:
    """The folder's parquet files by name; hidden ones and `_`-prefixed ones (markers of writers) are not data."""
    found = (directory / folder).glob("*.parquet")
    return sorted(path for path in found if not path.name.startswith((".", "_")))


def read_folder(directory: Path, folder: str, columns: Mapping[str, Role], problems: Problems) -> FolderTable | None:
    """Read the declared columns of all files. None, with problems added, when that is not possible."""
    paths = dataset_files(directory, folder)
    if not paths:
        problems.add(f"{folder}/ has no parquet file, expected at least one {folder}/*.parquet")
        return None
    tables: list[pa.Table] = []
    row_groups: list[tuple[int, int]] = []
    start = 0
    for path in paths:
        loaded = _read_file(path, f"{folder}/{path.name}", columns, problems)
        if loaded is None:
            continue
        table, group_sizes = loaded
        tables.append(table)
        for size in group_sizes:
            row_groups.append((start, start + size))
            start += size
    if len(tables) < len(paths) or not _same_types(folder, paths, tables, problems):
        return None
    whole = pa.concat_tables(tables)
    if whole.num_rows == 0:
        problems.add(f"{folder}/ has no rows")
        return None
    files = tuple((path.name, table.num_rows) for path, table in zip(paths, tables, strict=True))
    return FolderTable(folder, whole, files, row_groups)


def _read_file(
    path: Path, name: str, columns: Mapping[str, Role], problems: Problems
) -> tuple[pa.Table, list[int]] | None:
    """The file's declared columns in canonical types, and its row group sizes."""
    try:
        with pq.ParquetFile(path) as parquet:
            present = parquet.schema_arrow.names
            unusable = [column for column in columns if present.count(column) != 1]
            for column in unusable:
                found = "there more than once" if column in present else "missing"
                problems.add(f"{name}: column {column} is {found}; the file has {', '.join(present)}")
            usable = [column for column in columns if column not in unusable]
            raw = parquet.read(columns=usable)
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        # An OSError with an errno is the disk's trouble, not the file's content.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problems.add(f"{name} cannot be read as parquet, it is truncated or corrupt: {_first_line(error)}")
        return None
    arrays = {
        column: _canonical(raw.column(column), columns[column], f"{name}, column {column}", problems)
        for column in usable
    }
    if unusable or any(array is None for array in arrays.values()):
        return None
    return pa.table(arrays), sizes


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def _canonical(array: pa.ChunkedArray, role: Role, place: str, problems: Problems) -> pa.ChunkedArray | None:
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    target = _target_type(array.type, role)
    if target is None:
        problems.add(f"{place}: found type {array.type}, expected {role.value}")
        return None
    try:
        if pa.types.is_timestamp(array.type):
            array = _whole_seconds(array)
        return array.cast(target)
    except pa.ArrowException as error:
        problems.add(f"{place}: some value cannot be read as {role.value}: {_first_line(error)}")
        return None


def _whole_seconds(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps of any unit, rounded down to seconds; one without a zone is UTC."""
    return pc.floor_temporal(array, unit="second").cast(pa.timestamp("s", tz=array.type.tz))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _category_type(kind: pa.DataType) -> pa.DataType | None:
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_string(kind.value_type):
        return pa.list_(pa.string())
    return pa.string() if _is_string(kind) else None


_TARGETS: dict[Role, Callable[[pa.DataType], pa.DataType | None]] = {
    Role.ID: lambda kind: pa.string() if _is_string(kind) or pa.types.is_integer(kind) else None,
    Role.TEXT: lambda kind: pa.string() if _is_string(kind) else None,
    Role.CATEGORY: _category_type,
    Role.COUNT: lambda kind: pa.float64() if _is_number(kind) else None,
    Role.TIME: lambda kind: pa.int64() if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) else None,
    Role.ENGAGED: lambda kind: pa.bool_() if pa.types.is_boolean(kind) else None,
}
_WHEN_ALL_NULL = {Role.TEXT: pa.string(), Role.CATEGORY: pa.string(), Role.COUNT: pa.float64()}


def _target_type(kind: pa.DataType, role: Role) -> pa.DataType | None:
    """The canonical type, or None when a column of type `kind` cannot have this role."""
    if pa.types.is_null(kind):  # what writers make of a column in which nothing is known
        return _WHEN_ALL_NULL.get(role)
    return _TARGETS[role](kind)


def _same_types(folder: str, paths: list[Path], tables: list[pa.Table], problems: Problems) -> bool:
    """Files of one folder agree; only a category can differ after casting (string here, list<string> there)."""
    first = tables[0].schema
    agree = True
    for path, table in zip(paths[1:], tables[1:], strict=True):
        for field in table.schema:
            expected = first.field(field.name).type
            if field.type != expected:
                agree = False
                problems.add(
                    f"{folder}/{path.name}, column {field.name}: found type {field.type}, "
                    f"but {folder}/{paths[0].name} has {expected}"
                )
    return agree
