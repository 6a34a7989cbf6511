"""A root that may not what root may: said as "not run" before anything is changed, and never in the way of `down`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lives import images
from native_cluster import host, prerequisites
from native_cluster import images as node_images
from native_cluster.cli import NOT_RUN
from native_cluster.layout import Layout, NotRun


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two kernel settings, instead of this machine's."""
    for name, value in {"vm/panic_on_oom": "0\n", "fs/inotify/max_user_instances": "128\n"}.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True)
        path.write_text(value)
    monkeypatch.setattr(host, "_SETTINGS", tmp_path / "sys")
    return tmp_path / "sys"


@pytest.fixture
def root(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that may all; the `unshare` that it has."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
    monkeypatch.setattr(prerequisites.os, "geteuid", lambda: 0)
    monkeypatch.setattr(prerequisites.sys, "platform", "linux")
    program = programs / "unshare"
    write(program, "exit 0")
    return program


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def forbid(setting: Path) -> None:
    """A directory cannot be written as a file: not even by a root whom no mode of a file keeps out."""
    setting.unlink()
    setting.mkdir()


def test_a_root_that_may_all_is_told_nothing(root: Path, settings: Path) -> None:
    before = (settings / "vm/panic_on_oom").read_text()
    prerequisites.check_rights()
    assert (settings / "vm/panic_on_oom").read_text() == before


def test_without_namespaces_it_is_not_run(root: Path, tmp_path: Path) -> None:
    write(root, "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1")
    with pytest.raises(NotRun, match=r"CAP_SYS_ADMIN.*Operation not permitted"):
        prerequisites.check_machine(Layout(tmp_path / "state"))
    assert not (tmp_path / "state").exists()


def test_without_kernel_settings_it_is_not_run(root: Path, settings: Path) -> None:
    forbid(settings / "vm/panic_on_oom")
    with pytest.raises(NotRun, match=r"kernel settings.*vm/panic_on_oom"):
        prerequisites.check_rights()


def test_what_was_not_changed_is_not_written_back(settings: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    layout.state.mkdir()
    host.claim(layout)
    recorded = json.loads(layout.claim.read_text())["kernel settings"]
    assert recorded == {"vm/panic_on_oom": "0", "fs/inotify/max_user_instances": "128"}
    os.utime(settings / "vm/panic_on_oom", ns=(0, 0))
    host.restore_kernel_settings(layout)
    assert (settings / "fs/inotify/max_user_instances").read_text() == "128"
    assert (settings / "vm/panic_on_oom").stat().st_mtime_ns == 0


def test_images_are_not_built_where_no_cluster_can_use_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for tool in images.TOOLS:
        write(root.with_name(tool), "exit 1")
    assert images.missing() == ""
    write(root, "exit 1")
    assert "CAP_SYS_ADMIN" in images.missing()
    monkeypatch.setattr(images, "prepare", lambda: pytest.fail("it begins to build"))
    assert images.main() == NOT_RUN
    assert capsys.readouterr().err.startswith("not run: this root may not make namespaces")


def test_too_little_space_for_images_is_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "missing", lambda: "")
    monkeypatch.setattr(images, "_exists", lambda _name: False)
    monkeypatch.setattr(images, "FREE_SPACE_NEEDED_GB", 10**9)
    assert images.main() == NOT_RUN
    assert capsys.readouterr().err.startswith("not run: images need 1000000000 GB below /var, found ")


def test_a_newer_release_has_the_same_images_by_another_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(node_images, "containerd", lambda _layout, *arguments: asked.append(arguments))
    assert images.name_again(Layout(tmp_path), "1") == "1-again"
    assert len(asked) == len(images.COMPONENTS)
    old, new = "localhost/retrieval-operator:1", "localhost/retrieval-operator:1-again"
    assert asked[0] == ("images", "tag", "--force", old, new)
