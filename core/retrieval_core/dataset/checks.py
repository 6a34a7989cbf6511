"""What must hold for a dataset's rows. Each check is vectorised and says how many rows and which first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval_core.dataset.arrays import BoolArray, Int32Array, Int64Array
from retrieval_core.dataset.problems import Problems
from retrieval_core.dataset.spec import DatasetSpec, EntitySpec, InteractionsSpec
from retrieval_core.dataset.split import ResolvedSplit
from retrieval_core.dataset.tables import FolderTable, Tables

# The year 3000 in seconds. A later time is one in milliseconds: today's is the year 50000 and beyond.
LATEST_TIME = 32_503_680_000
# What is served must be nameable by clients: the encoder server takes ids up to this length. A gut feeling.
MAX_ID_CHARS = 512


@dataclass(frozen=True)
class LinkedInteractions:
    """Interactions in file order, ids replaced by row numbers; all arrays are [E]."""

    member: Int32Array
    item: Int32Array
    time: Int64Array
    engaged: BoolArray


def check_entities(source: FolderTable, spec: EntitySpec, problems: Problems) -> None:
    """Ids exist once, creation times are times, counts are finite (null means unknown)."""
    _check_keys(source, spec.id, problems)
    ids = source.table.column(spec.id)
    source.report_rows(problems, spec.id, _repeated(ids), "repeat an id of an earlier row")
    if spec.created_at is not None:
        _check_times(source, spec.created_at, problems)
    for column in spec.count:
        values = source.table.column(column)
        not_finite = _bools(pc.invert(pc.is_finite(values)).fill_null(False))
        source.report_rows(problems, column, not_finite, "are NaN or infinite; write null for unknown")
    for column in spec.declared_columns:
        if pa.types.is_list(source.table.schema.field(column).type):
            holed = _lists_with_null(source.table.column(column))
            source.report_rows(problems, column, holed, "have a null inside their list; leave it out")


def check_interaction_columns(source: FolderTable, columns: InteractionsSpec, problems: Problems) -> None:
    """No null and no impossible time, in each column by itself."""
    _check_keys(source, columns.member, problems)
    _check_keys(source, columns.item, problems)
    _check_times(source, columns.time, problems)
    _check_not_null(source, columns.engaged, problems)


def link_interactions(
    tables: Tables, spec: DatasetSpec, item_created_at: Int64Array | None, problems: Problems
) -> LinkedInteractions:
    """Replace ids by row numbers and check what needs more than one column; -1 stands for an unknown id."""
    source, columns = tables.interactions, spec.interactions
    links = LinkedInteractions(
        member=_row_numbers(source, columns.member, tables.members, spec.members.id, problems),
        item=_row_numbers(source, columns.item, tables.items, spec.items.id, problems),
        time=source.table.column(columns.time).to_numpy(),
        engaged=_bools(source.table.column(columns.engaged)),
    )
    known = (links.member >= 0) & (links.item >= 0)
    source.report_rows(
        problems,
        columns.time,
        known & _repeated_interactions(links),
        "repeat an interaction of the same member and item at the same time",
    )
    if item_created_at is not None:
        early = known & links.engaged & (links.time < item_created_at[links.item])
        source.report_rows(
            problems, columns.time, early, f"are engagements before the item's creation ({spec.items.created_at})"
        )
    return links


def check_split(engaged: BoolArray, is_test: BoolArray, split: ResolvedSplit, problems: Problems) -> None:
    """Both parts have a positive; otherwise there is nothing to learn from, or nothing to measure."""
    parts = {"training": ~is_test, "test": is_test}
    for name, part in parts.items():
        if not (part & engaged).any():
            problems.add(
                f"split: no positive (engaged) interaction in the {name} part, which has {int(part.sum()):,} of "
                f"{len(engaged):,} interactions with {split.document()}; change split in dataset.yaml or add data"
            )


def _check_not_null(source: FolderTable, column: str, problems: Problems) -> None:
    source.report_rows(problems, column, _bools(source.table.column(column).is_null()), "are null")


def _check_keys(source: FolderTable, column: str, problems: Problems) -> None:
    _check_not_null(source, column, problems)
    empty = _bools(pc.equal(source.table.column(column), "").fill_null(False))
    source.report_rows(problems, column, empty, "are empty strings, expected an id")
    long = _bools(pc.greater(pc.utf8_length(source.table.column(column)), MAX_ID_CHARS).fill_null(False))
    source.report_rows(problems, column, long, f"are longer than {MAX_ID_CHARS} characters, expected an id")
    control = _bools(pc.match_substring_regex(source.table.column(column), r"[\x00-\x1f\x7f]").fill_null(False))
    source.report_rows(problems, column, control, "hold control characters, expected an id")


def _check_times(source: FolderTable, column: str, problems: Problems) -> None:
    _check_not_null(source, column, problems)
    times = source.table.column(column).fill_null(0).to_numpy()
    source.report_rows(problems, column, times < 0, "are before 1970 (negative)")
    source.report_rows(problems, column, times > LATEST_TIME, "are after the year 3000: milliseconds? expected seconds")


def _repeated(ids: pa.ChunkedArray) -> BoolArray:
    """Bool [rows]: the id stands in an earlier row; nulls have their own problem."""
    codes = np.asarray(ids.combine_chunks().dictionary_encode().indices.fill_null(-1), dtype=np.int64)
    _, first = np.unique(codes, return_index=True)
    repeated = np.ones(len(codes), dtype=np.bool_)
    repeated[first] = False
    return repeated & (codes >= 0)


def _lists_with_null(lists: pa.ChunkedArray) -> BoolArray:
    """Bool [rows]: some element is null. A list that is null itself is fine: unknown."""
    whole = lists.combine_chunks()
    holed = np.zeros(len(whole), dtype=np.bool_)
    holed[np.asarray(pc.list_parent_indices(whole))[np.asarray(whole.flatten().is_null())]] = True
    return holed


def _row_numbers(
    source: FolderTable, column: str, entities: FolderTable, id_column: str, problems: Problems
) -> Int32Array:
    """Int32 [E]: each id's row in `entities`, -1 and a problem when it has none."""
    ids = entities.table.column(id_column).combine_chunks()
    rows = np.asarray(pc.index_in(source.table.column(column), value_set=ids).fill_null(-1), dtype=np.int32)
    source.report_rows(problems, column, rows < 0, f"name an id that is not in {entities.folder}/, column {id_column}")
    return rows


def _repeated_interactions(links: LinkedInteractions) -> BoolArray:
    """Bool [E]: an earlier row holds the same (member, item, time)."""
    order = np.lexsort((links.item, links.member, links.time))  # stable: file order among equals
    same = np.ones(len(order) - 1, dtype=np.bool_)
    for key in (links.item, links.member, links.time):
        same &= key[order][1:] == key[order][:-1]
    repeated = np.zeros(len(order), dtype=np.bool_)
    repeated[order[1:][same]] = True
    return repeated


def _bools(array: pa.ChunkedArray) -> BoolArray:
    return np.asarray(array, dtype=np.bool_)
