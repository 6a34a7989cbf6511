"""Both MovieLens layouts become the dataset they describe; a malformed row is named by file and line."""
# ruff: noqa: E501 - a table of sentences reads best with one case per line

from __future__ import annotations

import pytest

from retrieval_core.dataset import open_dataset
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.sources.movielens import ML100K_GENRES, MovieLensOptions, read_movielens
from retrieval_core.sources.writing import write_dataset

OPTIONS = MovieLensOptions(
    name="movielens-tiny", positive_rating=4.0, test_fraction=0.4, validation_members=0.2, window_days=0
)
# user, movie, rating, time
RATINGS = [("7", "1", "4.0", "100"), ("7", "2", "3.5", "200"), ("7", "30", "5.0", "300"), ("9", "1", "4.5", "50"), ("9", "2", "1", "60")]  # fmt: skip


def _csv_layout(directory):
    directory.mkdir()
    (directory / "movies.csv").write_text(
        "movieId,title,genres\n"
        "1,Toy Story (1995),Adventure|Animation\n"
        '2,"American President, The (1995)",Drama\n'
        "30,Untold Café,(no genres listed)\n",
        encoding="utf-8",
    )
    rows = "".join(",".join(row) + "\n" for row in RATINGS)
    (directory / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    (directory / "tags.csv").write_text("userId,movieId,tag,timestamp\n7,1,funny,99999\n")
    return directory


def _ml100k_layout(directory):
    def flags(*genres):
        return "|".join("1" if genre in genres else "0" for genre in ML100K_GENRES)

    directory.mkdir()
    lines = [
        f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags('Adventure', 'Animation')}",
        f"2|American President, The (1995)|01-Jan-1995||http://x|{flags('Drama')}",
        f"30|Untold Café|||http://x|{flags('unknown')}",
    ]
    (directory / "u.item").write_bytes("\n".join(lines).encode("latin-1"))
    (directory / "u.user").write_text("7|24|M|technician|85711\n9|53|F|other|94043\n")
    rows = [(user, movie, str(int(float(rating))), time) for user, movie, rating, time in RATINGS]
    (directory / "u.data").write_text("".join("\t".join(row) + "\n" for row in rows))
    return directory


LAYOUTS = {"csv": _csv_layout, "100k": _ml100k_layout}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_makes_a_round_trip(layout, tmp_path):
    source = LAYOUTS[layout](tmp_path / "ml")
    dataset = write_dataset(str(tmp_path / "out"), read_movielens(source, OPTIONS))
    assert open_dataset(str(tmp_path / "out")).snapshot == dataset.snapshot
    assert dataset.spec.provenance == "real"
    assert dataset.item_ids.tolist() == ["1", "2", "30"]
    columns = {name: values.to_pylist() for name, values in dataset.item_columns.items()}
    assert columns == {
        "title": ["Toy Story", "American President, The", "Untold Café"],
        "genres": [["Adventure", "Animation"], ["Drama"], []],
        "year": [1995, 1995, None],
    }
    assert dataset.member_ids.tolist() == ["7", "9"]
    events = dataset.events
    assert events.time.tolist() == [50, 60, 100, 200, 300]
    assert events.engaged.tolist() == [True, False, True, False, True]
    assert events.is_test.tolist() == [False, False, False, False, True]  # 40 % of 3 is one, of 2 none
    assert dataset.item_created_at is None
    assert dataset.spec.counts.window_days == 0


def test_the_100k_layout_brings_member_profiles(tmp_path):
    dataset = write_dataset(str(tmp_path / "out"), read_movielens(_ml100k_layout(tmp_path / "ml"), OPTIONS))
    profiles = {name: values.to_pylist() for name, values in dataset.member_columns.items()}
    assert profiles == {"age": [24, 53], "gender": ["M", "F"], "occupation": ["technician", "other"]}
    assert dataset.spec.members.count == ("age",)


@pytest.mark.parametrize(
    ("layout", "file", "old", "new", "expected"),
    [
        ("csv", "ratings.csv", "7,2,3.5,200", "7,2,3.5", "ratings.csv line 3: found 3 columns, expected 4"),
        ("csv", "ratings.csv", "7,2,3.5,200", "7,2,good,200", "ratings.csv line 3: rating is 'good', expected a number from 0 to 5"),
        ("csv", "ratings.csv", "7,2,3.5,200", "7,2,nan,200", "ratings.csv line 3: rating is 'nan'"),
        ("csv", "ratings.csv", "7,2,3.5,200", "7,2,3.5,noon", "ratings.csv line 3: timestamp is 'noon', expected an integer"),
        ("csv", "ratings.csv", "7,2,3.5,200", "7,99,3.5,200", "ratings.csv line 3: movie '99' is not in the list of movies"),
        ("csv", "ratings.csv", "userId", "user", "ratings.csv line 1: found the header 'user,movieId,rating,timestamp'"),
        ("csv", "movies.csv", '"American', 'x"American"', "movies.csv line 3: found 4 columns, expected 3"),
        ("csv", "movies.csv", '(1995)",Drama', '(1995),Drama', "movies.csv line"),
        ("100k", "u.data", "7\t2", "8\t2", "u.data line 2: user '8' is not in the list of users"),
        ("100k", "u.user", "53", "old", "u.user line 2: age is 'old', expected an integer"),
        ("100k", "u.item", "|1|", "|2|", "u.item line 1: the genre flags are"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_and_nothing_is_written(layout, file, old, new, expected, tmp_path):
    source = LAYOUTS[layout](tmp_path / "ml")
    path = source / file
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))
    with pytest.raises(BadInput) as caught:
        write_dataset(str(tmp_path / "out"), read_movielens(source, OPTIONS))
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ml"]


def test_text_in_another_encoding_is_refused_by_line(tmp_path):
    source = _csv_layout(tmp_path / "ml")
    (source / "movies.csv").write_bytes("movieId,title,genres\n1,Café (1995),Drama\n".encode("latin-1"))
    with pytest.raises(BadInput, match=r"movies\.csv line 1.*is not utf-8 text"):
        read_movielens(source, OPTIONS)


def test_a_folder_without_movielens_says_what_was_found(tmp_path):
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(BadInput, match=r"no MovieLens folder: found photo\.jpg, expected movies\.csv and ratings\.csv"):
        read_movielens(tmp_path, OPTIONS)
    with pytest.raises(BadInput, match="found nothing"):
        read_movielens(tmp_path / "none", OPTIONS)


def test_tables_that_are_no_valid_dataset_leave_nothing_behind(tmp_path):
    """All ratings below the threshold: no positive anywhere."""
    source = _csv_layout(tmp_path / "ml")
    options = MovieLensOptions("x", positive_rating=5.1, test_fraction=0.4, validation_members=0.2, window_days=0)
    with pytest.raises(BadInput, match="no positive"):
        write_dataset(str(tmp_path / "out"), read_movielens(source, options))
    assert [path.name for path in tmp_path.iterdir()] == ["ml"]


def test_a_dataset_is_replaced_only_when_asked_and_other_things_never(tmp_path):
    tables = read_movielens(_csv_layout(tmp_path / "ml"), OPTIONS)
    out = tmp_path / "out"
    write_dataset(str(out), tables)
    with pytest.raises(BadArguments, match="choose another place, or say --replace"):
        write_dataset(str(out), tables)
    write_dataset(str(out), tables, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml", "out"]
    with pytest.raises(BadArguments, match="it is no dataset"):
        write_dataset(str(tmp_path / "ml"), tables, replace=True)


def test_a_dataset_can_be_written_to_remote_storage(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAL_CACHE_DIR", str(tmp_path / "cache"))
    tables = read_movielens(_csv_layout(tmp_path / "ml"), OPTIONS)
    dataset = write_dataset("memory://datasets/tiny", tables)
    assert open_dataset("memory://datasets/tiny").snapshot == dataset.snapshot
    with pytest.raises(BadArguments, match="holds a dataset already"):
        write_dataset("memory://datasets/tiny", tables)
