"""What `open_dataset` hands out, and what it refuses and in which words."""
# ruff: noqa: E501 - a table of sentences reads best with one case per line

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_core.dataset import open_dataset
from retrieval_core.dataset.summary import summarise
from retrieval_core.errors import BadInput


def test_a_valid_dataset_is_opened_with_events_in_time_order(small_dataset, tmp_path):
    dataset = open_dataset(str(small_dataset().write(tmp_path / "d")))
    assert dataset.member_ids.tolist() == ["ann", "bob", "cid"]
    assert dataset.item_row_groups == [(0, 2), (2, 4)]
    assert dataset.events.time.tolist() == [100, 200, 200, 300, 400, 600, 700]
    assert dataset.events.member.dtype == np.int32
    assert dataset.events.is_test.tolist() == [False] * 5 + [True] * 2
    assert dataset.item_created_at.tolist() == [0, 0, 100, 400]
    assert set(dataset.item_columns) == {"title", "topics", "words", "author"}
    assert dataset.last_event_time == 700
    assert dataset.split.document() == {"mode": "global", "testFrom": 500}


def test_files_of_a_folder_are_read_in_name_order_and_row_groups_follow(small_dataset, tmp_path):
    directory = small_dataset().write(tmp_path / "d")
    items = pq.read_table(directory / "items/part-0.parquet")
    pq.write_table(items.slice(3), directory / "items/b.parquet")
    pq.write_table(items.slice(0, 3), directory / "items/a.parquet", row_group_size=2)
    (directory / "items/part-0.parquet").unlink()
    (directory / "items/_SUCCESS.parquet").write_text("a marker, not data")
    dataset = open_dataset(str(directory))
    assert dataset.item_ids.tolist() == ["i0", "i1", "i2", "i3"]
    assert dataset.item_row_groups == [(0, 2), (2, 3), (3, 4)]


def test_integer_ids_timestamps_and_dictionaries_mean_the_same_as_strings_and_seconds(small_dataset, tmp_path):
    files = small_dataset()
    files.items["item_id"] = [0, 1, 2, 3]
    files.interactions["item_id"] = pa.array([0, 1, 1, 2, 0, 3, 1], type=pa.int16())
    seconds = files.interactions["time"]
    files.interactions["time"] = pa.array([second * 1000 + 999 for second in seconds], type=pa.timestamp("ms"))
    files.members["industry"] = pa.array(["health", "media", None]).dictionary_encode()
    dataset = open_dataset(str(files.write(tmp_path / "d")))
    assert dataset.item_ids.tolist() == ["0", "1", "2", "3"]
    assert dataset.events.time.tolist() == seconds
    assert dataset.member_columns["industry"].to_pylist() == ["health", "media", None]


def test_a_timestamp_with_a_zone_is_an_instant(small_dataset, tmp_path):
    files = small_dataset()
    instants = [datetime.fromtimestamp(second, UTC) for second in files.interactions["time"]]
    files.interactions["time"] = pa.array(instants, type=pa.timestamp("us", tz="Europe/Paris"))
    assert open_dataset(str(files.write(tmp_path / "d"))).events.time[0] == 100


def test_the_snapshot_changes_with_any_file_and_with_nothing_else(small_dataset, tmp_path):
    first = small_dataset().write(tmp_path / "a")
    second = small_dataset().write(tmp_path / "b")
    (second / "oracle").mkdir()
    (second / "oracle/members.parquet").write_text("never read")
    snapshot = open_dataset(str(first)).snapshot
    assert open_dataset(f"file://{second}").snapshot == snapshot
    assert len(snapshot) == 16
    changed = small_dataset()
    changed.document["description"] = "another"
    assert open_dataset(str(changed.write(tmp_path / "c"))).snapshot != snapshot


def test_a_summary_counts_what_a_person_needs(small_dataset, tmp_path):
    summary = summarise(open_dataset(str(small_dataset().write(tmp_path / "d"))))
    assert (summary.training, summary.training_positives) == (5, 3)
    assert (summary.test, summary.test_positives) == (2, 1)
    assert summary.members_evaluable + summary.members_for_tuning == 1
    assert summary.test_positives_on_untrained_items == 1.0
    assert summary.provenance == "synthetic"


def _set(folder, column, row, value):
    def change(files):
        getattr(files, folder)[column][row] = value

    return change


def _replace(folder, column, values):
    def change(files):
        getattr(files, folder)[column] = values

    return change


def _drop(folder, column):
    def change(files):
        del getattr(files, folder)[column]

    return change


def _document(path, value):
    def change(files):
        target = files.document
        *parents, last = path.split(".")
        for parent in parents:
            target = target[parent]
        target[last] = value

    return change


def _append_interaction(member, item, time, engaged):
    def change(files):
        for column, value in zip(files.interactions.values(), (member, item, time, engaged), strict=True):
            column.append(value)

    return change


BROKEN = {
    "a column is missing": (
        _drop("items", "title"),
        "items/part-0.parquet: column title is missing; the file has item_id",
    ),
    "a text column holds numbers": (
        _replace("members", "headline", [1.5, 2.5, 3.5]),
        "members/part-0.parquet, column headline: found type double, expected string",
    ),
    "an id column holds floats": (
        _replace("items", "item_id", [0.0, 1.0, 2.0, 3.0]),
        "column item_id: found type double, expected string or integer",
    ),
    "engaged is not a bool": (
        _replace("interactions", "engaged", [1, 0, 1, 1, 0, 1, 0]),
        "interactions/part-0.parquet, column engaged: found type int64, expected bool",
    ),
    "a category is a list of numbers": (
        _replace("items", "topics", [[1], [2], [], None]),
        "expected string or list<string>",
    ),
    "a count is text": (_replace("items", "words", ["1", "2", "3", "4"]), "column words: found type string, expected a number"),
    "a count is NaN": (
        _replace("items", "words", pa.array([1.0, float("nan"), None, 4.0])),
        "items/, column words: 1 of 4 rows are NaN or infinite; write null for unknown (first: items/part-0.parquet row 1",
    ),
    "a list holds null": (_set("items", "topics", 1, ["x", None]), "column topics: 1 of 4 rows have a null inside their list"),
    "a member id repeats": (
        _set("members", "member_id", 2, "ann"),
        "members/, column member_id: 1 of 3 rows repeat an id of an earlier row (first: members/part-0.parquet row 2, value 'ann')",
    ),
    "an id is null": (_set("items", "item_id", 3, None), "items/, column item_id: 1 of 4 rows are null"),
    "an id is empty": (_set("items", "item_id", 3, ""), "items/, column item_id: 1 of 4 rows are empty strings"),
    "an id is longer than a client may name it": (_set("items", "item_id", 3, "x" * 513), "1 of 4 rows are longer than 512 characters"),
    "an id holds what cannot be told apart": (_set("items", "item_id", 3, "i2\0"), "1 of 4 rows hold control characters"),
    "an interaction names an unknown member": (
        _set("interactions", "member_id", 4, "zoe"),
        "interactions/, column member_id: 1 of 7 rows name an id that is not in members/, column member_id "
        "(first: interactions/part-0.parquet row 4, value 'zoe')",
    ),
    "an interaction names an unknown item": (_set("interactions", "item_id", 0, "i9"), "not in items/, column item_id"),
    "a key is null": (_set("interactions", "member_id", 1, None), "interactions/, column member_id: 1 of 7 rows are null"),
    "engaged is null": (_set("interactions", "engaged", 1, None), "interactions/, column engaged: 1 of 7 rows are null"),
    "a time is null": (_set("interactions", "time", 1, None), "interactions/, column time: 1 of 7 rows are null"),
    "a time is negative": (_set("interactions", "time", 0, -5), "are before 1970 (negative) (first: interactions/part-0.parquet row 0, value -5)"),
    "times are milliseconds": (_set("interactions", "time", 6, 1_700_000_000_000), "milliseconds? expected seconds"),
    "an item is created in milliseconds": (_set("items", "created_at", 0, 1_700_000_000_000), "items/, column created_at"),
    "an engagement comes before its item": (
        _set("items", "created_at", 2, 301),
        "interactions/, column time: 1 of 7 rows are engagements before the item's creation (created_at) "
        "(first: interactions/part-0.parquet row 3, value 300)",
    ),
    "an interaction repeats": (
        _append_interaction("cid", "i3", 600, False),
        "1 of 8 rows repeat an interaction of the same member and item at the same time (first: interactions/part-0.parquet row 7",
    ),
    "no test positive": (
        _document("split.testFrom", 650),
        "split: no positive (engaged) interaction in the test part, which has 1 of 7 interactions",
    ),
    "no training positive": (_document("split.testFrom", 0), "no positive (engaged) interaction in the training part"),
    "a column has a derived field's name": (
        _document("items.count", ["engagements"]),
        "items: a column may not be named 'engagements': that is a derived field; rename the column",
    ),
    "a member column is called history": (_document("members.text", ["history"]), "may not be named 'history'"),
    "a column is declared twice": (_document("items.category", ["title"]), "items: 'title' is declared as more than one of"),
    "a column is listed twice": (_document("items.text", ["title", "title"]), "items.text: 'title' is listed twice"),
    "the fraction is too large": (
        _document("split", {"mode": "global", "testFraction": "1.5"}),
        "split.testFraction: found '1.5', expected less than 1",
    ),
    "the fraction is zero": (
        _document("split", {"mode": "perMember", "testFraction": 0}),
        "split.testFraction: found 0, expected greater than 0",
    ),
    "the split says nothing": (_document("split", {"mode": "global"}), "split: mode global needs exactly one of testFraction"),
    "the split says both": (
        _document("split", {"mode": "global", "testFraction": 0.1, "testFrom": 5}),
        "needs exactly one of testFraction and testFrom",
    ),
    "perMember with testFrom": (_document("split", {"mode": "perMember", "testFrom": 5}), "split: mode perMember needs testFraction"),
    "the mode is unknown": (_document("split.mode", "random"), "split.mode: found 'random', expected 'global' or 'perMember'"),
    "an unknown field": (_document("items.titel", "title"), "items.titel: unknown field"),
    "all members are for tuning": (_document("validationMembers", 1), "validationMembers: found 1, expected less than 1"),
    "the provenance is unknown": (_document("provenance", "invented"), "provenance: found 'invented', expected"),
    "another format version": (_document("formatVersion", 2), "formatVersion is 2, this program knows 1"),
    "a field has the wrong type": (_document("items.count", [["words"]]), "items.count[0]: found ['words'], expected a valid string"),
    "the table is empty": (_replace("members", "member_id", pa.array([], pa.string())), "members/ has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=lambda name: name.replace(" ", "-"))
def test_a_broken_dataset_is_refused_with_words_that_say_where(case, small_dataset, tmp_path):
    change, expected = BROKEN[case]
    files = small_dataset()
    change(files)
    if case == "the table is empty":
        files.members = {name: pa.array([], pa.string()) for name in files.members} | {
            "joined_at": pa.array([], pa.int64())
        }
    with pytest.raises(BadInput) as caught:
        open_dataset(str(files.write(tmp_path / "d")))
    assert expected in str(caught.value)


def _truncate(directory: Path) -> None:
    path = directory / "items/part-0.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def _corrupt_a_page(directory: Path) -> None:
    path = directory / "items/part-0.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)


def _duplicate_column(directory: Path) -> None:
    table = pq.read_table(directory / "items/part-0.parquet")
    pq.write_table(table.append_column("title", table["title"]), directory / "items/part-0.parquet")


def _other_types_in_second_file(directory: Path) -> None:
    table = pq.read_table(directory / "items/part-0.parquet")
    ids, topics = pa.array(["i4", "i5", "i6", "i7"]), pa.array(["x"] * 4)
    table = table.set_column(0, "item_id", ids).set_column(2, "topics", topics)
    pq.write_table(table, directory / "items/part-1.parquet")


BROKEN_FILES = {
    "truncated parquet": (_truncate, "items/part-0.parquet cannot be read as parquet, it is truncated or corrupt"),
    "corrupt page": (_corrupt_a_page, "items/part-0.parquet cannot be read as parquet"),
    "a column twice": (_duplicate_column, "items/part-0.parquet: column title is there more than once"),
    "files disagree": (_other_types_in_second_file, "items/part-1.parquet, column topics: found type string, but items/part-0.parquet has list<"),
    "no file": (lambda d: (d / "items/part-0.parquet").unlink(), "items/ has no parquet file"),
    "no dataset.yaml": (lambda d: (d / "dataset.yaml").unlink(), "dataset.yaml does not exist"),
    "not YAML": (lambda d: (d / "dataset.yaml").write_text("a: [1"), "dataset.yaml is not YAML"),
    "a list in YAML": (lambda d: (d / "dataset.yaml").write_text("- 1"), "holds list, expected a mapping with formatVersion"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_FILES, ids=lambda name: name.replace(" ", "-"))
def test_broken_files_are_refused_by_name(case, small_dataset, tmp_path):
    directory = small_dataset().write(tmp_path / "d")
    damage, expected = BROKEN_FILES[case]
    damage(directory)
    with pytest.raises(BadInput) as caught:
        open_dataset(str(directory))
    assert expected in str(caught.value)


def test_all_problems_are_told_at_once(small_dataset, tmp_path, monkeypatch, golden):
    files = small_dataset()
    files.members["member_id"] = ["ann", "ann", "cid"]
    files.items["title"] = [1, 2, 3, 4]
    files.interactions["time"] = [100, -1, None, 300, 400, 600, 10**13]
    del files.items["author"]
    files.write(tmp_path / "broken")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        open_dataset("broken")
    golden("core_data/broken_dataset.txt", str(caught.value) + "\n")


def test_at_most_twenty_problems_are_shown_and_the_rest_counted(small_dataset, tmp_path):
    files = small_dataset()
    files.document["items"]["count"] = [f"count{number}" for number in range(25)]
    with pytest.raises(BadInput, match=r"25 problems[\s\S]*- and 5 more$") as caught:
        open_dataset(str(files.write(tmp_path / "d")))
    assert len(str(caught.value).splitlines()) == 22


def test_interactions_in_the_future_are_nobodys_error(small_dataset, tmp_path):
    files = small_dataset()
    files.interactions["time"][6] = 4_000_000_000  # the year 2096
    assert open_dataset(str(files.write(tmp_path / "d"))).last_event_time == 4_000_000_000


def test_an_impression_before_the_items_creation_is_no_error_an_engagement_is(small_dataset, tmp_path):
    files = small_dataset()
    files.items["created_at"][1] = 200
    files.interactions["time"][1] = 150  # ann was shown i1 and did not engage
    assert len(open_dataset(str(files.write(tmp_path / "d"))).events) == 7


def test_the_same_pair_may_meet_again_at_another_time(small_dataset, tmp_path):
    files = small_dataset()
    _append_interaction("cid", "i3", 601, True)(files)
    assert len(open_dataset(str(files.write(tmp_path / "d"))).events) == 8
