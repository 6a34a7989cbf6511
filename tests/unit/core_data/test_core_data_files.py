"""Documents appear whole or not at all; directories travel with their last file last."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_core import files
from retrieval_core.errors import BadInput, StorageFailed, TemporarilyUnavailable

json_documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(json_documents)
def test_canonical_json_depends_on_content_only(document):
    text = files.canonical_json(document)
    assert json.loads(text) == document
    assert files.canonical_json(json.loads(text)) == text


def test_canonical_json_is_sorted_without_spaces_and_refuses_nan():
    assert files.canonical_json({"b": [1, 2], "a": "é"}) == '{"a":"é","b":[1,2]}'
    with pytest.raises(ValueError, match="JSON compliant"):
        files.canonical_json({"x": float("nan")})


def test_a_document_is_read_back_and_no_temporary_file_stays(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"formatVersion": 1, "value": [1, None]})
    assert files.read_json(path) == {"formatVersion": 1, "value": [1, None]}
    assert [path.name for path in path.parent.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_document_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"formatVersion": 1, "old": True})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"formatVersion": 1, "old": False})
    assert files.read_json(path)["old"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"formatVersion": 1, "a"', "is not a JSON document"),
        ('{"formatVersion": 2}', "formatVersion is 2, this program knows 1"),
        ('{"formatVersion": true}', "formatVersion is True, this program knows 1"),
        ("{}", "formatVersion is None, this program knows 1"),
        ("[]", "holds list, expected a mapping with formatVersion"),
        (None, "does not exist"),
    ],
)
def test_a_document_that_cannot_be_trusted_is_refused(content, expected, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput, match=expected):
        files.read_json(path)


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """An empty in-memory storage, and a download cache of its own."""
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    if filesystem.exists("/bucket"):
        filesystem.rm("/bucket", recursive=True)


def _directory(path: Path, version: int) -> Path:
    files.write_json(path / "LAST.json", {"formatVersion": 1, "version": version})
    files.write_text(path / "deep" / "a.txt", f"version {version}")
    return path


def test_a_published_directory_comes_back_from_remote_storage(memory, tmp_path):
    assert not files.is_published("memory://bucket/x", "LAST.json")
    files.publish(_directory(tmp_path / "x", 1), "memory://bucket/x", "LAST.json")
    assert files.is_published("memory://bucket/x", "LAST.json")
    local = files.local_path("memory://bucket/x")
    assert (local / "deep/a.txt").read_text() == "version 1"
    assert files.local_path("memory://bucket/x") == local
    assert files.local_path("memory://bucket/x/deep/a.txt").read_text() == "version 1"
    assert [path.name for path in local.parent.iterdir() if path.name.startswith(".")] == []


def test_changed_remote_content_is_downloaded_again(memory, tmp_path):
    files.publish(_directory(tmp_path / "x", 1), "memory://bucket/x", "LAST.json")
    first = files.local_path("memory://bucket/x")
    files.publish(_directory(tmp_path / "y", 2), "memory://bucket/x", "LAST.json")
    second = files.local_path("memory://bucket/x")
    assert (first / "deep/a.txt").read_text() == "version 1"
    assert (second / "deep/a.txt").read_text() == "version 2"


@pytest.mark.parametrize(
    "listed",
    ["x/../../escape", "x/deep/../../../escape", "x/./../y", "elsewhere/a", "x//a", "x/a\\..\\..\\escape", "x/."],
)
def test_a_listing_that_leads_out_of_its_folder_is_refused(listed, memory, monkeypatch, tmp_path):
    """A web page may name anything as its file."""
    memory.pipe_file("/bucket/x/a", b"a")
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="which is not a name inside it"):
        patch.setattr(type(memory), "find", lambda *_, **__: ["/bucket/x/a", f"/bucket/{listed}"])
        files.local_path("memory://bucket/x")
    assert not (tmp_path / "cache").exists()


def test_names_that_begin_where_the_folder_is_are_inside_it(served, tmp_path):
    """As file browsers of web servers write them."""
    files.write_text(tmp_path / "served" / "x" / "deep" / "a.txt", "a")
    files.write_text(tmp_path / "served" / "x" / "index.html", '<a href="./deep/a.txt">a</a>')
    assert (files.local_path(f"{served(True)}/x") / "deep" / "a.txt").read_text() == "a"


def test_the_root_of_an_archive_is_a_folder(memory, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("deep/a.txt", "a")
    assert (files.local_path(f"zip://::{tmp_path}/x.zip") / "deep" / "a.txt").read_text() == "a"


class Handler(SimpleHTTPRequestHandler):
    """Serves files with their times, or, of a server that says nothing of the kind, without."""

    says_when = True

    def send_header(self, keyword, value):
        if self.says_when or keyword != "Last-Modified":
            super().send_header(keyword, value)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(memory, tmp_path):
    """served(says_when) is the address at which a web server has this folder."""
    with ExitStack() as servers:

        def serve(says_when):
            handler = type("Served", (Handler,), {"says_when": says_when})
            address = ("127.0.0.1", 0)
            server = servers.enter_context(
                ThreadingHTTPServer(address, partial(handler, directory=str(tmp_path / "served")))
            )
            servers.callback(server.shutdown)
            Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


@pytest.mark.parametrize("says_when", [True, False])
def test_what_a_web_server_has_replaced_is_downloaded_again(says_when, served, tmp_path):
    file = tmp_path / "served" / "x" / "a.txt"
    files.write_text(file, "version 1")
    uri = f"{served(says_when)}/x"
    first = files.local_path(uri)
    assert files.local_path(uri) == first, "the same content is kept once"
    files.write_text(file, "version 2")
    os.utime(file, (0, file.stat().st_mtime + 1))
    assert (files.local_path(uri) / "a.txt").read_text() == "version 2"
    assert (first / "a.txt").read_text() == "version 1"


@pytest.mark.parametrize("scheme", ["memory://bucket/x", "{tmp}/published"])
def test_the_last_file_goes_first_and_comes_last(scheme, memory, tmp_path, monkeypatch):
    """A reader never finds old and new files under a complete directory, even when the copy is cut."""
    uri = scheme.format(tmp=tmp_path)
    files.publish(_directory(tmp_path / "x", 1), uri, "LAST.json")

    def cut_at(copy):
        def until(*arguments):
            if str(arguments[-1]).endswith("a.txt"):  # in name order the last file would come before it
                raise OSError(errno.EIO, "cut")
            copy(*arguments)

        return until

    monkeypatch.setattr(type(memory), "put_file", cut_at(type(memory).put_file))
    monkeypatch.setattr(files, "_copy_local", cut_at(files._copy_local))
    with pytest.raises(OSError, match="cut"):
        files.publish(_directory(tmp_path / "y", 2), uri, "LAST.json")
    assert not files.is_published(uri, "LAST.json")


def test_publishing_where_it_already_is_changes_nothing(tmp_path):
    directory = _directory(tmp_path / "x", 1)
    files.publish(directory, f"file://{directory}", "LAST.json")
    assert files.read_json(directory / "LAST.json")["version"] == 1
    with pytest.raises(ValueError, match=r"has no NEVER\.json"):
        files.publish(directory, str(tmp_path / "z"), "NEVER.json")


def test_local_uris_are_paths_whether_they_exist_or_not(tmp_path):
    assert files.local_path(str(tmp_path / "nothing")) == tmp_path / "nothing"
    assert files.local_path(f"file://{tmp_path}/nothing/") == tmp_path / "nothing"
    assert files.is_local("relative/path")
    assert not files.is_local("memory://bucket")


def test_a_uri_that_leads_nowhere_says_so(memory, monkeypatch):
    with pytest.raises(BadInput, match="memory://bucket/none does not exist"):
        files.local_path("memory://bucket/none")
    with pytest.raises(BadInput, match="not a URI this program understands"):
        files.local_path("nonsense://bucket")

    def unreachable(*_arguments, **_options):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(type(memory), "find", unreachable)
    with pytest.raises(TemporarilyUnavailable, match="memory://bucket/x: connection refused"):
        files.local_path("memory://bucket/x")


@pytest.mark.parametrize("scheme", ["memory://bucket/new/x", "{tmp}/new/x"])
def test_a_place_that_can_be_written_to_is_left_as_it_was(scheme, memory, tmp_path):
    uri = scheme.format(tmp=tmp_path)
    files.require_writable(uri)
    filesystem, path = files._filesystem(uri)
    assert not filesystem.exists(path) or not filesystem.find(path)
    files.publish(_directory(tmp_path / "x", 1), uri, "LAST.json")
    files.require_writable(uri)
    assert [name.rpartition("/")[2] for name in filesystem.find(path)] == ["LAST.json", "a.txt"]


@pytest.mark.parametrize(
    ("operation", "does", "error", "expected"),
    [
        ("pipe_file", PermissionError("no right"), BadInput, "memory://bucket/x: access was denied .*credentials"),
        ("pipe_file", ConnectionError("refused"), TemporarilyUnavailable, "memory://bucket/x: refused"),
        ("rm_file", PermissionError("no right"), BadInput, "memory://bucket/x: access was denied"),
        ("cat_file", b"another", StorageFailed, "reads as something else"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_told(operation, does, error, expected, memory, monkeypatch):
    def broken(*_arguments, **_options):
        if isinstance(does, bytes):
            return does
        raise does

    with monkeypatch.context() as patch, pytest.raises(error, match=expected):
        patch.setattr(type(memory), operation, broken)
        files.require_writable("memory://bucket/x")


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
