"""MovieLens folders as a dataset: the csv layout (latest-small, 25m, ...) and the older 100k layout.

A rating of at least `positive_rating` is an engagement, a lower one an impression without engagement. Tags are not
read: people tag a movie after they saw it, so in an item's text they would be the future at a prompt's time. There is
no creation time of items: the movies are older than the ratings.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import pyarrow as pa

from retrieval_core.dataset.spec import DatasetSpec
from retrieval_core.errors import BadInput
from retrieval_core.sources.writing import DatasetTables, strings

CSV_FILES = ("movies.csv", "ratings.csv")
ML100K_FILES = ("u.data", "u.item", "u.user")
# u.item: id, title, release date, video release date, URL, then one flag per genre in this order (its README, u.genre).
# fmt: off
ML100K_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
ML100K_GENRES_FROM = 5
NO_GENRES = {"(no genres listed)", "unknown"}
TITLE_WITH_YEAR = re.compile(r"^(?P<title>.*\S)\s*\((?P<year>\d{4})\)$")


@dataclass(frozen=True)
class MovieLensOptions:
    """What dataset.yaml will say."""

    name: str
    positive_rating: float
    test_fraction: float
    validation_members: float
    window_days: int


@dataclass(frozen=True)
class _Source:
    """A text table: knows how to read its rows, and to name its file and line when one is wrong."""

    path: Path
    delimiter: str
    columns: int
    encoding: str = "utf-8"
    header: tuple[str, ...] | None = None

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line number, cells) of each row, the header left out."""
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.delimiter == "," else csv.QUOTE_NONE
        with self.path.open(encoding=self.encoding, newline="") as stream:
            reader = csv.reader(stream, delimiter=self.delimiter, quoting=quoting, strict=True)
            try:
                for cells in reader:
                    if reader.line_num == 1 and self.header is not None:
                        self._check_header(cells)
                    elif len(cells) != self.columns:
                        self.refuse(reader.line_num, f"found {len(cells)} columns, expected {self.columns}")
                    else:
                        yield reader.line_num, cells
            except UnicodeDecodeError as error:
                self.refuse(reader.line_num + 1, f"is not {self.encoding} text: {error}")
            except csv.Error as error:
                self.refuse(reader.line_num, str(error))

    def refuse(self, line: int, reason: str) -> NoReturn:
        raise BadInput(f"{self.path.name} line {line}: {reason} (in {self.path.parent})")

    def integer(self, line: int, name: str, cell: str) -> int:
        try:
            return int(cell)
        except ValueError:
            self.refuse(line, f"{name} is {cell!r:.80}, expected an integer")

    def rating(self, line: int, cell: str) -> float:
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 5:
            self.refuse(line, f"rating is {cell!r:.80}, expected a number from 0 to 5")
        return value

    def _check_header(self, cells: list[str]) -> None:
        if tuple(cells) != self.header:
            self.refuse(1, f"found the header {','.join(cells)!r:.80}, expected {','.join(self.header or ())}")


def read_movielens(directory: Path, options: MovieLensOptions) -> DatasetTables:
    """Read either layout; BadInput names the file and the line of the first malformed row."""
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if present.issuperset(CSV_FILES):
        items = _csv_items(_Source(directory / "movies.csv", ",", 3, header=("movieId", "title", "genres")))
        header = ("userId", "movieId", "rating", "timestamp")
        ratings = _Ratings.read(_Source(directory / "ratings.csv", ",", 4, header=header), options, items, None)
        members = pa.table({"member_id": strings(ratings.member_ids)})
        return _tables(members, items, ratings, options)
    if present.issuperset(ML100K_FILES):
        item_columns = ML100K_GENRES_FROM + len(ML100K_GENRES)
        items = _ml100k_items(_Source(directory / "u.item", "|", item_columns, encoding="latin-1"))
        members = _ml100k_members(_Source(directory / "u.user", "|", 5))
        ratings = _Ratings.read(_Source(directory / "u.data", "\t", 4), options, items, members)
        return _tables(members, items, ratings, options)
    raise BadInput(
        f"{directory} is no MovieLens folder: found {', '.join(sorted(present)[:10]) or 'nothing'}, "
        f"expected {' and '.join(CSV_FILES)}, or {', '.join(ML100K_FILES)}"
    )


def _csv_items(source: _Source) -> pa.Table:
    ids, titles, genres = [], [], []
    for _, (movie, title, listed) in source.rows():
        ids.append(movie)
        titles.append(title)
        genres.append(listed.split("|"))
    return _items_table(ids, titles, genres)


def _ml100k_items(source: _Source) -> pa.Table:
    ids, titles, genres = [], [], []
    for line, cells in source.rows():
        flags = cells[ML100K_GENRES_FROM:]
        if not {"0", "1"}.issuperset(flags):
            source.refuse(line, f"the genre flags are {'|'.join(flags)!r:.80}, expected 0 or 1 each")
        ids.append(cells[0])
        titles.append(cells[1])
        genres.append([genre for genre, flag in zip(ML100K_GENRES, flags, strict=True) if flag == "1"])
    return _items_table(ids, titles, genres)


def _items_table(ids: list[str], titles: list[str], genres: list[list[str]]) -> pa.Table:
    parted = [TITLE_WITH_YEAR.match(title.strip()) for title in titles]
    return pa.table(
        {
            "item_id": strings(ids),
            "title": strings(
                [part["title"] if part else title.strip() for part, title in zip(parted, titles, strict=True)]
            ),
            "year": pa.array([int(part["year"]) if part else None for part in parted], type=pa.int64()),
            "genres": pa.array(
                [[genre for genre in listed if genre not in NO_GENRES] for listed in genres], type=pa.list_(pa.string())
            ),
        }
    )


def _ml100k_members(source: _Source) -> pa.Table:
    """Age, gender and occupation; the postal code is left out (too rare a value to learn from, too telling to keep)."""
    ids, ages, genders, occupations = [], [], [], []
    for line, (user, age, gender, occupation, _postal_code) in source.rows():
        ids.append(user)
        ages.append(source.integer(line, "age", age))
        genders.append(gender)
        occupations.append(occupation)
    columns = {"gender": strings(genders), "occupation": strings(occupations)}
    return pa.table({"member_id": strings(ids), "age": pa.array(ages, type=pa.int64())} | columns)


@dataclass(frozen=True)
class _Ratings:
    """Rows of the ratings file: row numbers of `member_ids` and of the items, times, and whether it is a positive."""

    member_ids: list[str]
    member: array[int]
    item: array[int]
    time: array[int]
    engaged: array[int]

    @classmethod
    def read(cls, source: _Source, options: MovieLensOptions, items: pa.Table, members: pa.Table | None) -> _Ratings:
        """Without `members` (a layout that has no profiles) those who rated are the members."""
        item_rows = {identifier: row for row, identifier in enumerate(items["item_id"].to_pylist())}
        listed = members["member_id"].to_pylist() if members is not None else []
        member_rows: dict[str, int] = {identifier: row for row, identifier in enumerate(listed)}
        ratings = cls(member_ids=listed, member=array("q"), item=array("q"), time=array("q"), engaged=array("b"))
        for line, (user, movie, rating, timestamp) in source.rows():
            if movie not in item_rows:
                source.refuse(line, f"movie {movie!r:.80} is not in the list of movies")
            if user not in member_rows:
                if members is not None:
                    source.refuse(line, f"user {user!r:.80} is not in the list of users")
                member_rows[user] = len(member_rows)
                listed.append(user)
            ratings.member.append(member_rows[user])
            ratings.item.append(item_rows[movie])
            ratings.time.append(source.integer(line, "timestamp", timestamp))
            ratings.engaged.append(source.rating(line, rating) >= options.positive_rating)
        return ratings


def _tables(members: pa.Table, items: pa.Table, ratings: _Ratings, options: MovieLensOptions) -> DatasetTables:
    interactions = pa.table(
        {
            "member_id": members["member_id"].take(pa.array(np.asarray(ratings.member))),
            "item_id": items["item_id"].take(pa.array(np.asarray(ratings.item))),
            "time": np.asarray(ratings.time),
            "engaged": np.asarray(ratings.engaged, dtype=np.bool_),
        }
    )
    return DatasetTables(_spec(options, "age" in members.column_names), members, items, interactions)


def _spec(options: MovieLensOptions, has_profiles: bool) -> DatasetSpec:
    profile = {"category": ["gender", "occupation"], "count": ["age"]} if has_profiles else {}
    return DatasetSpec.model_validate(
        {
            "formatVersion": 1,
            "name": options.name,
            "description": f"MovieLens; engaged is a rating of at least {options.positive_rating:g}.",
            "provenance": "real",
            "members": {"id": "member_id"} | profile,
            "items": {"id": "item_id", "text": ["title"], "category": ["genres"], "count": ["year"]},
            "interactions": {"member": "member_id", "item": "item_id", "time": "time", "engaged": "engaged"},
            "counts": {"windowDays": options.window_days},
            "split": {"mode": "perMember", "testFraction": options.test_fraction},
            "validationMembers": options.validation_members,
        }
    )
