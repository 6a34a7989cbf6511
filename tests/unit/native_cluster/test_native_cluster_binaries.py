"""The cache of built programs: what a cut build leaves, what a change of one module costs, who may build at once."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from native_cluster import binaries, versions
from native_cluster.binaries import CHOSEN_DIRECTORY, Binaries, module_key, ready_programs
from native_cluster.layout import ClusterError, NotRun, default_cache
from native_cluster.versions import Module

PROGRAM = "package main\n\nfunc main() {}\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Module, ...]:
    """Two modules of one small program each, without requirements."""
    monkeypatch.setattr(versions, "MODULES", tmp_path / "modules")
    for name in ("first", "second"):
        folder = tmp_path / "modules" / name
        folder.mkdir(parents=True)
        (folder / "go.mod").write_text(f"module {name}\n\ngo 1.21\n")
        (folder / "main.go").write_text(PROGRAM)
    return tuple(Module(name=name, path="", version="v1", programs={name: "."}) for name in ("first", "second"))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of go: writes the output file, and says what was built."""
    built: list[str] = []

    def go(arguments: list[str], directory: Path, environment: object) -> str:
        built.append(directory.name)
        if directory.name in FAILING:
            raise ClusterError("does not compile")
        Path(arguments[arguments.index("-o") + 1]).write_text("binary")
        return ""

    monkeypatch.setattr(binaries, "_go", go)
    FAILING.clear()
    return built


FAILING: set[str] = set()


def quiet(line: str) -> None:
    """Nobody waits for progress here."""


def test_a_second_build_has_nothing_to_do(tmp_path: Path, modules: tuple[Module, ...], compiler: list[str]) -> None:
    first = Binaries(tmp_path / "cache", modules).build(say=quiet)
    assert sorted(path.name for path in first.iterdir()) == ["first", "second"]
    assert Binaries(tmp_path / "cache", modules).build(say=quiet) == first
    assert compiler == ["first", "second"]


def test_a_build_that_was_cut_leaves_nothing_that_looks_finished_and_is_continued(
    tmp_path: Path, modules: tuple[Module, ...], compiler: list[str]
) -> None:
    FAILING.add("second")
    cache = Binaries(tmp_path / "cache", modules)
    with pytest.raises(ClusterError):
        cache.build(say=quiet)
    assert not cache.directory.exists()
    assert [module.name for module in cache.missing()] == ["second"]
    FAILING.clear()
    cache.build(say=quiet)
    assert compiler == ["first", "second", "second"]


def test_whether_it_can_be_built_here_is_asked_when_no_other_build_takes_space(
    tmp_path: Path, modules: tuple[Module, ...], compiler: list[str]
) -> None:
    cache = Binaries(tmp_path / "cache", modules)

    def no_space(kept: Binaries) -> None:
        with (tmp_path / "cache" / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if kept.missing():
            raise NotRun("no space")

    with pytest.raises(NotRun):
        cache.build(say=quiet, check=no_space)
    assert compiler == []
    cache.build(say=quiet)
    cache.build(say=quiet, check=no_space)


def test_a_module_that_changes_does_not_rebuild_the_others(
    tmp_path: Path, modules: tuple[Module, ...], compiler: list[str]
) -> None:
    before = Binaries(tmp_path / "cache", modules).build(say=quiet)
    (modules[1].directory / "main.go").write_text(PROGRAM + "// changed\n")
    after = Binaries(tmp_path / "cache", modules).build(say=quiet)
    assert before != after
    assert compiler == ["first", "second", "second"]
    assert (before / "second").exists()  # an older checkout still finds its own


@pytest.mark.parametrize("change", [{"tags": "other"}, {"ldflags": "-X a=b"}, {"programs": {"else": "."}}])
def test_what_decides_the_bytes_decides_the_key(modules: tuple[Module, ...], change: dict[str, object]) -> None:
    module = modules[0]
    assert module_key(module) != module_key(Module(**{**vars(module), **change}))


def test_programs_are_found_where_the_variable_says_else_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delenv(CHOSEN_DIRECTORY, raising=False)
    with pytest.raises(NotRun, match=r"has no etcd and no helm \(`make cluster-up` builds them; or set RETRIEVAL_CLUS"):
        ready_programs("etcd", "helm")
    cached, chosen = Binaries(default_cache()).directory, tmp_path / "chosen"
    for directory in (cached, chosen):
        directory.mkdir(parents=True)
        (directory / "etcd").touch()
    assert ready_programs("etcd") == cached
    monkeypatch.setenv(CHOSEN_DIRECTORY, str(chosen))
    assert ready_programs("etcd") == chosen
    with pytest.raises(NotRun, match=r"chosen has no helm \(RETRIEVAL_CLUSTER_BIN names it\)"):
        ready_programs("etcd", "helm")


def test_own_go_caches_go_once_all_is_built_and_others_stay(
    tmp_path: Path, modules: tuple[Module, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "go"
    theirs.mkdir()
    monkeypatch.setenv("GOMODCACHE", str(theirs))
    used: list[tuple[str, str]] = []

    def go(arguments: list[str], directory: Path, environment: Mapping[str, str]) -> str:
        used.append((arguments[0], environment["GOMODCACHE"]))
        assert Path(environment["GOCACHE"]).is_dir()
        if arguments[0] == "build":
            Path(arguments[arguments.index("-o") + 1]).write_text("binary")
        return ""

    monkeypatch.setattr(binaries, "_go", go)
    cache = Binaries(tmp_path / "cache", modules)
    for _ in range(2):
        cache.build(say=quiet, drop_go_caches=True)
        assert not (tmp_path / "cache" / "go").exists()
    own = str(tmp_path / "cache" / "go" / "modules")
    assert used == [("build", own), ("build", own), ("clean", own)]
    assert theirs.exists()


@pytest.mark.component
def test_the_pause_program_is_really_built(tmp_path: Path) -> None:
    if not shutil.which("go"):
        pytest.skip("not run: go is not installed")
    pause = next(module for module in versions.ALL_MODULES if module.name == "pause")
    said: list[str] = []
    built = Binaries(tmp_path, (pause,)).build(say=said.append) / "pause"
    assert built.read_bytes()[:4] == b"\x7fELF"
    assert "building pause" in " ".join(said)
