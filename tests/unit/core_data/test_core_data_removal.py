"""`retrieval-data remove` takes away what it was told to, in an order that is safe to cut, and nothing else."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from retrieval_core import files
from retrieval_core.data_cli import app
from retrieval_core.errors import BadInput
from retrieval_core.removal import remove, remove_all

CONTENT = {
    "revisions/aaaa0001/bundle/bundle.json": "bundle",
    "revisions/aaaa0001/bundle/model.safetensors": "weights",
    "revisions/aaaa0001/checkpoints/step-5/checkpoint.json": "checkpoint",
    "revisions/aaaa0002/bundle/bundle.json": "bundle",
    "indexes/bbbb0001/MANIFEST.json": "generation",
    "indexes/bbbb0001/vectors/000.safetensors": "vectors",
    "indexes/bbbb0002/MANIFEST.json": "generation",
    "evaluations/cache/cccc.parquet": "answers",
    "notes.txt": "a person's own",
}


def write(root: Path, content: dict[str, str] = CONTENT) -> Path:
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "store/default/other")
    return write(tmp_path / "store/default/feed")


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def test_exactly_what_is_named_is_removed_and_again_is_done(root: Path) -> None:
    asked = ["revisions/aaaa0001", "indexes/bbbb0001", "indexes/never-made"]
    assert remove(str(root), asked) == {asked[0]: True, asked[1]: True, asked[2]: False}
    assert names(root) == {name for name in CONTENT if "0001" not in name}
    assert not (root / "revisions/aaaa0001").exists()
    assert remove(f"file://{root}/", asked) == dict.fromkeys(asked, False)
    assert names(root.parent / "other") == set(CONTENT)


def test_all_removes_what_the_layout_has_and_leaves_what_a_person_put_there(root: Path) -> None:
    assert set(remove_all(str(root)).values()) == {True, False}
    assert names(root) == {"notes.txt"}
    assert names(root.parent / "other") == set(CONTENT)


def test_a_root_that_is_left_empty_goes_too(root: Path) -> None:
    (root / "notes.txt").unlink()
    remove_all(str(root))
    assert not root.exists()
    assert root.parent.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../other/revisions/aaaa0001",
        "revisions/../../other",
        "revisions/..",
        "revisions/",
        "revisions",
        "revisions/aaaa0001/bundle",
        "/revisions/aaaa0001",
        "notes.txt",
        "datasets/aaaa0001",
        "revisions/.hidden",
        "revisions/aaaa0001\n",
        "",
    ],
)
def test_a_name_that_is_not_the_layouts_is_refused_before_anything_goes(root: Path, name: str) -> None:
    with pytest.raises(BadInput, match="expected FOLDER/ID"):
        remove(str(root), ["revisions/aaaa0001", name])
    assert names(root) == set(CONTENT)


@pytest.mark.parametrize("bad", ["/", "/store", "s3://bucket", "s3://bucket/feed", "/store/../default/feed", "/a/./b"])
def test_a_root_that_is_nobodys_own_is_refused(bad: str) -> None:
    with pytest.raises(BadInput, match="<namespace>/<name>"):
        remove(bad, ["revisions/aaaa0001"])
    with pytest.raises(BadInput, match="<namespace>/<name>"):
        remove_all(bad)


def test_a_link_in_place_of_a_directory_is_refused_and_what_it_names_stays(root: Path) -> None:
    (root / "revisions/linked").symlink_to(root.parent / "other/revisions/aaaa0001")
    with pytest.raises(BadInput, match="symbolic link"):
        remove(str(root), ["revisions/linked"])
    (root / "verifications").symlink_to(root.parent / "other")
    with pytest.raises(BadInput, match="symbolic link"):
        remove_all(str(root))
    assert names(root.parent / "other") == set(CONTENT)
    assert set(CONTENT) <= names(root)


def test_a_link_inside_goes_and_what_it_names_stays(root: Path) -> None:
    other = root.parent / "other/revisions/aaaa0001"
    (root / "revisions/aaaa0001/elsewhere").symlink_to(other)
    (root / "revisions/aaaa0001/bundle.json").symlink_to(other / "bundle/bundle.json")
    remove(str(root), ["revisions/aaaa0001"])
    assert not (root / "revisions/aaaa0001").exists()
    assert names(root.parent / "other") == set(CONTENT)


def test_what_must_stay_is_not_removed_whether_it_is_inside_or_around(root: Path) -> None:
    bundle, dataset = root / "revisions/aaaa0001/bundle", root.parent / "feed"
    for kept in (str(bundle), f"file://{dataset}", str(root / "revisions")):
        with pytest.raises(BadInput, match="must stay"):
            remove(str(root), ["indexes/bbbb0001", "revisions/aaaa0001"], keep=[kept])
        with pytest.raises(BadInput, match="must stay"):
            remove_all(str(root), keep=[kept])
    assert names(root) == set(CONTENT)
    remove(str(root), ["revisions/aaaa0001"], keep=[str(root / "revisions/aaaa0002/bundle"), "s3://bucket/feed"])
    assert names(root) == {name for name in CONTENT if "aaaa0001" not in name}


def test_a_link_to_what_must_stay_does_not_hide_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset").symlink_to(root / "revisions/aaaa0001")
    with pytest.raises(BadInput, match="must stay"):
        remove(str(root), ["revisions/aaaa0001"], keep=[str(tmp_path / "dataset")])


def test_a_removal_that_is_cut_leaves_a_directory_that_reads_as_unfinished(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr(files.shutil, "rmtree", cut)
    with pytest.raises(OSError, match="I/O error"):
        remove(str(root), ["revisions/aaaa0001"])
    assert names(root / "revisions/aaaa0001") == {"bundle/model.safetensors"}, "the proofs of completion went first"


def test_an_object_store_loses_its_last_files_first_too() -> None:
    store = fsspec.filesystem("memory")
    for name, text in CONTENT.items():
        store.pipe(f"/bucket/default/feed/{name}", text.encode())
    removed: list[str] = []
    original = store.rm_file
    store.rm_file = lambda path: (removed.append(path), original(path))[1]
    try:
        assert remove("memory://bucket/default/feed", ["revisions/aaaa0001", "indexes/gone"]) == {
            "revisions/aaaa0001": True,
            "indexes/gone": False,
        }
    finally:
        del store.rm_file
    assert [path.rpartition("/")[2] for path in removed[:2]] == ["bundle.json", "checkpoint.json"]
    left = {path.removeprefix("/bucket/default/feed/") for path in store.find("/bucket/default/feed")}
    assert left == {name for name in CONTENT if "aaaa0001" not in name}
    store.rm("/bucket", recursive=True)


def test_the_command_says_what_it_did_and_refuses_with_65(root: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["remove", str(root), "revisions/aaaa0001", "indexes/gone"])
    assert (done.exit_code, done.stdout) == (0, "revisions/aaaa0001 removed\nindexes/gone was not there\n")
    assert runner.invoke(app, ["remove", str(root), "../other"]).exit_code == 65
    assert runner.invoke(app, ["remove", str(root)]).exit_code == 2
    assert runner.invoke(app, ["remove", str(root), "indexes/bbbb0001", "--all"]).exit_code == 2
    assert runner.invoke(app, ["remove", str(root), "--all"]).exit_code == 0
    assert names(root) == {"notes.txt"}
