"""Names, permissions, atomic writes and locks of the state directory."""

from __future__ import annotations

import errno
import os
import stat
import threading

import pytest

from retrieval_operator.adapters.local import home as home_module
from retrieval_operator.adapters.local.home import LocalHome, read_json, write_json, write_text
from retrieval_operator.ports import Rejected, Retryable


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".hidden", "Upper", "a_b", "a\n", "-a", "a" * 129, "a\0"])
def test_a_name_that_could_leave_its_directory_is_refused(home, name):
    with pytest.raises(Rejected, match="expected lower-case letters"):
        home.workload("default/feed", name)
    with pytest.raises(Rejected):
        home.object_file(f"default/{name}" if name else "default")


def test_paths_lie_under_the_root(home):
    assert home.workload("default/feed", "feed-1-train-1") == home.root / "workloads/default/feed/feed-1-train-1"
    assert home.traffic_file("default/feed") == home.root / "traffic/default/feed.json"


def test_everything_below_the_root_is_private(home):
    previous = os.umask(0)
    try:
        write_text(home.status_file("default/feed"), "{}")
    finally:
        os.umask(previous)
    path = home.status_file("default/feed")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (path.parent, path.parent.parent, home.root):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("number", "refusal", "words"),
    [
        (errno.ENOSPC, Retryable, "the disk is full"),
        (errno.EDQUOT, Retryable, "the disk is full"),
        (errno.EACCES, Rejected, "give this user access"),
        (errno.EROFS, Rejected, "give this user access"),
        (errno.EIO, Retryable, "cannot be written"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number, refusal, words):
    path = tmp_path / "state.json"
    write_json(path, {"value": 1})

    def refuse(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(home_module.os, "fsync", refuse)
    with pytest.raises(refusal, match=words):
        write_json(path, {"value": 2})
    assert read_json(path)["value"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_missing_document_is_none_and_a_damaged_one_is_refused_by_its_path(tmp_path):
    path = tmp_path / "state.json"
    assert read_json(path) is None
    for text in ("", "{", "[]", '{"formatVersion": 2}', "\udcff".encode("utf-8", "surrogateescape")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(Rejected, match=str(path)):
            read_json(path)


def test_a_lock_is_exclusive_and_says_who_to_ask_when_it_stays_taken(home, monkeypatch):
    monkeypatch.setattr(home_module, "_LOCK_TIMEOUT_S", 0.02)
    with (
        home.locked("objects"),
        pytest.raises(Retryable, match=r"another process has held .*/locks/objects"),
        LocalHome(home.root).locked("objects"),
    ):
        pytest.fail("the lock was taken twice")
    with home.locked("objects"):
        pass


def test_locked_changes_of_many_threads_all_count(home, tmp_path):
    path = tmp_path / "counter.json"
    write_json(path, {"value": 0})

    def count():
        for _ in range(20):
            with home.locked("counter"):
                write_json(path, {"value": read_json(path)["value"] + 1})

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_json(path)["value"] == 80


def test_keys_leave_out_files_that_are_being_written(home):
    write_text(home.object_file("default/feed"), "x")
    (home.root / "objects/default/.other.yaml.1.abc").write_text("half")
    assert home.keys("objects") == ["default/feed"]
