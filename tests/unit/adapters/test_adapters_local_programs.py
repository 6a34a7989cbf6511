"""What a program is started with, and what must be there for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tomllib

import psutil
import pytest

from retrieval_operator.adapters.local import loopback, surroundings, wrapper
from retrieval_operator.adapters.local.programs import (
    PROGRAMS,
    Program,
    clean_environment,
    command_line,
    threads_per_process,
)
from retrieval_operator.adapters.local.proxy import JsonFile, Proxy
from retrieval_operator.adapters.local.surroundings import LocalSurroundings
from retrieval_operator.api.pod import Pod
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.serving import server_environment
from retrieval_operator.ports import Rejected


def test_one_process_is_the_module_itself():
    assert command_line(PROGRAMS, "retrieval-index", ["build"]) == [
        sys.executable,
        "-m",
        "retrieval_indexer.cli",
        "build",
    ]


def test_several_processes_go_through_torchrun():
    assert command_line(PROGRAMS, "retrieval-train", ["--out", "x"], processes=2)[1:] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "retrieval_trainer.cli",
        "--out",
        "x",
    ]


def test_an_unknown_program_is_refused_with_the_known_ones():
    with pytest.raises(Rejected, match="'retrieval-cook', expected one of retrieval-data, "):
        command_line(PROGRAMS, "retrieval-cook", [])


def test_every_console_script_but_our_own_is_in_the_table(request):
    scripts = tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())["project"]["scripts"]
    modules = {name: target.partition(":")[0] for name, target in scripts.items()}
    ours = {name for name, module in modules.items() if module.startswith("retrieval_operator.")}
    assert ours == {"retrieval-operator", "kubectl-retrieval"}
    expected = {name: module for name, module in modules.items() if name not in ours}
    assert {name: program.target[1] for name, program in PROGRAMS.items()} == expected


def test_only_listed_variables_are_inherited_and_literal_ones_of_the_pod_are_added(monkeypatch):
    for name in ("PATH", "LC_ALL", "HF_HOME"):
        monkeypatch.setenv(name, "kept")
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RETRIEVAL_OPERATOR_HOME"):
        monkeypatch.setenv(name, "dropped")
    pod = Pod.model_validate({"env": [{"name": "A", "value": "1"}, {"name": "B", "secret": {"name": "s", "key": "k"}}]})
    environment = clean_environment(pod, threads=3)
    assert {"PATH": "kept", "LC_ALL": "kept", "HF_HOME": "kept", "OMP_NUM_THREADS": "3", "A": "1"}.items() <= (
        environment.items()
    )
    assert "dropped" not in environment.values()
    assert "B" not in environment


@pytest.mark.parametrize(
    ("inherited", "given"),
    [(None, "127.0.0.1,localhost,::1"), (".corp.example", ".corp.example,127.0.0.1,localhost,::1")],
)
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch, inherited, given):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.corp.example:3128")
    for name in ("NO_PROXY", "no_proxy"):
        if inherited is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, inherited)
    environment = clean_environment(Pod())
    assert (environment["NO_PROXY"], environment["no_proxy"]) == (given, given)
    assert environment["HTTP_PROXY"] == "http://proxy.corp.example:3128"


@pytest.mark.parametrize(("processors", "processes", "threads"), [(8, 1, 8), (8, 3, 2), (2, 4, 1), (None, 1, 1)])
def test_processes_share_the_processors(monkeypatch, processors, processes, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert threads_per_process(processes) == threads


def stack(**fields):
    return StackRecord(
        **{
            "stack": "0a1b2c3d",
            "bundle_id": "b-1",
            "bundle_uri": "/bundle",
            "generation_id": "g-1",
            "generation_uri": "/generation",
            "generation_key": "k",
            "serving_hash": "h",
            "revision": "r",
            **fields,
        }
    )


def test_a_servers_environment_names_exactly_its_record():
    assert server_environment("feed", stack()) == {
        "BUNDLE_URI": "/bundle",
        "GENERATION_URI": "/generation",
        "EXPECTED_BUNDLE_ID": "b-1",
        "EXPECTED_GENERATION_ID": "g-1",
        "MODEL_NAME": "feed",
    }
    chosen = server_environment("feed", stack(serving={"connectionAgeSeconds": 5}))
    assert chosen == server_environment("feed", stack()) | {"CONNECTION_AGE_SECONDS": "5"}


async def test_missing_packages_are_named_with_what_to_install(home, make):
    programs = {**PROGRAMS, "retrieval-train": Program(target=("-m", "x"), requires=("no_such_x",), extra="trainer")}
    found = await LocalSurroundings(home, programs=programs).problems(make())
    (message,) = [problem.message for problem in found if "retrieval-train" in problem.message]
    assert "no_such_x not installed" in message
    assert "retrieval-operator[trainer]" in message
    imported = make(model={"bundleUri": "/bundle"})
    remaining = await LocalSurroundings(home, programs=programs).problems(imported)
    assert not [problem for problem in remaining if "retrieval-train" in problem.message]


PRESENT = {name: Program(target=("-m", "json")) for name in PROGRAMS}


async def test_a_machine_with_everything_has_no_problems(home, make, tmp_path):
    healthy = make(storage={"uri": str(tmp_path / "not" / "yet" / "made")})
    assert list(await LocalSurroundings(home, programs=PRESENT, min_free_bytes=1).problems(healthy)) == []
    assert not (tmp_path / "not").exists()


async def test_a_full_disk_and_a_place_without_access_are_told(home, make, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    model = make(storage={"uri": f"file://{blocked}/deeper"})
    problems = await LocalSurroundings(home, programs=PRESENT, min_free_bytes=1 << 60).problems(model)
    assert [problem.dependency for problem in problems] == ["storage"] * 3
    assert any("cannot write" in problem.message for problem in problems)
    assert any("MiB free" in problem.message for problem in problems)


async def test_a_directory_that_cannot_be_entered_is_told(home, make, tmp_path, monkeypatch):
    """The system's answers are played: root, which may run the tests, can enter everything."""
    locked = tmp_path / "locked"
    locked.mkdir()
    look, may = os.stat, os.access

    def refusing_stat(path, *arguments, **options):
        if str(path).startswith(f"{locked}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, *arguments, **options)

    def refusing_access(path, mode):
        is_refused = str(path).startswith(f"{locked}/") or (path == locked and mode != os.F_OK)
        return may(path, mode) and not is_refused

    model = make(storage={"uri": str(locked / "storage")})
    with monkeypatch.context() as played:
        played.setattr(os, "stat", refusing_stat)
        played.setattr(os, "access", refusing_access)
        (problem,) = await LocalSurroundings(home, programs=PRESENT, min_free_bytes=1).problems(model)
    assert problem.message == (
        f"spec.storage.uri: found {locked}/storage, where this user cannot write ({locked}); "
        "give access or choose another directory"
    )


async def test_remote_storage_is_not_looked_at(home, make):
    model = make(storage={"uri": "s3://bucket/prefix"})
    assert list(await LocalSurroundings(home, programs=PRESENT, min_free_bytes=1).problems(model)) == []
    assert surroundings.local_directory("file:///a%20b").as_posix() == "/a b"


async def test_references_to_a_clusters_secrets_are_told(home, make):
    pod = {"env": [{"name": "TOKEN", "secret": {"name": "s", "key": "k"}}]}
    problems = await LocalSurroundings(home, programs=PRESENT, min_free_bytes=1).problems(make(training={"pod": pod}))
    assert [(problem.dependency, "spec.training.pod.env: TOKEN" in problem.message) for problem in problems] == [
        ("secret", True)
    ]


def test_a_chosen_port_is_free_not_taken_and_outside_the_systems_own_range():
    first = loopback.choose("feed", set())
    assert loopback.choose("feed", set()) == first
    assert loopback.choose("feed", {first}) not in {first}
    assert 21_000 <= first <= 29_999
    with socket.create_server(("127.0.0.1", first)):
        assert not loopback.is_free(first)
        assert loopback.choose("feed", set()) != first
        assert loopback.owner(first) == f"process {os.getpid()} ({psutil.Process().name()})"


def test_last_lines_show_the_last_state_of_a_progress_bar_and_not_the_rest(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 20_000 + b"\n\nfirst\r50%\r100%\n\xff\nlast\n")
    assert wrapper.last_lines(str(log)).splitlines()[-3:] == ["100%", "\ufffd", "last"]
    log.write_text("".join(f"{number}\n" for number in range(100)))
    assert wrapper.last_lines(str(log)).splitlines() == [str(number) for number in range(80, 100)]
    assert wrapper.last_lines(str(tmp_path / "missing")) == ""


def test_a_start_time_tells_processes_apart_and_a_zombie_is_no_process():
    assert wrapper.start_time(os.getpid()) == wrapper.start_time(os.getpid()) != ""
    ended = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert wrapper.start_time(ended.pid) == ""
    ended.wait()
    assert wrapper.start_time(ended.pid) == ""


def test_the_proxy_reads_a_replaced_file_again_even_within_one_clock_tick(tmp_path):
    path = tmp_path / "traffic.json"
    file = JsonFile(str(path))
    assert file.read() is None
    for number in range(50):
        fresh = tmp_path / "fresh"
        fresh.write_text(json.dumps({"n": number}))
        os.utime(fresh, ns=(1, 1))
        fresh.replace(path)
        assert file.read() == {"n": number}
    path.write_text("{half")
    assert file.read() is None


def test_live_ports_follow_the_traffic_file_and_take_turns(tmp_path):
    for name, ports in (("one", [1, 2, 3]), ("two", [4])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"ports": ports}))
    traffic = tmp_path / "traffic.json"
    proxy = Proxy(str(traffic))
    assert proxy.live_ports() == []
    traffic.write_text(json.dumps({"stack_file": str(tmp_path / "one.json")}))
    turns = [proxy.live_ports() for _ in range(3)]
    assert sorted(turns) == [[1, 2, 3], [2, 3, 1], [3, 1, 2]]
    traffic.write_text(json.dumps({"stack_file": str(tmp_path / "two.json")}))
    assert proxy.live_ports() == [4]
    traffic.unlink()
    assert proxy.live_ports() == []


def test_the_control_planes_adapters_import_nothing_heavy():
    script = (
        "import sys, retrieval_operator.adapters.local.machine, retrieval_operator.adapters.memory;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "retrieval_operator" in loaded
    heavy = {"torch", "mlflow", "pandas", "numpy", "fastapi", "kopf", "kubernetes", "transformers", "pyarrow"}
    ours = {"retrieval_core", "retrieval_trainer", "retrieval_indexer", "retrieval_encoder_server"}
    assert not (heavy | ours) & set(loaded)
