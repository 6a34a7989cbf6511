"""The command line as people and scripts meet it: commands, options, exit codes and what is said."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import retrieval_operator
from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.constants import (
    APPROVE_ANNOTATION,
    REJECT_ANNOTATION,
    RETRAIN_ANNOTATION,
    RETRY_ANNOTATION,
    ROLLBACK_ANNOTATION,
)
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.cli import app, cluster
from retrieval_operator.instance import sole_controller

MANIFEST = """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {name: NAME}
spec:
  storage: {uri: /storage}
  data: {uri: /data, revision: "1"}
  model: {base: preset:tiny}
  promotion: {gates: [{min: "0.1"}]}
"""

PYTHON = {"PYTHONPATH": str(Path(retrieval_operator.__file__).parent.parent)}
Local = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETRIEVAL_OPERATOR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def local(home: Path) -> Local:
    """Run `retrieval-operator local ...` in a home of its own."""
    return lambda *arguments, stdin=None: CliRunner().invoke(app, ["local", *arguments], input=stdin)


@pytest.fixture
def store(home: Path) -> LocalModelStore:
    return LocalModelStore(LocalHome(home))


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., str]:
    def write(*names: str, change: tuple[str, str] = ("", "")) -> str:
        path = tmp_path / "manifest.yaml"
        path.write_text("---".join(MANIFEST.replace("NAME", name) for name in names).replace(*change))
        return str(path)

    return write


def stored(store: LocalModelStore) -> RetrievalModel:
    model = asyncio.run(store.get("default/feed"))
    assert model is not None
    return model


def write_status(store: LocalModelStore, status: RetrievalModelStatus) -> None:
    """What a controller would have written."""
    asyncio.run(store.write_status(stored(store), status))


# -- the surface -------------------------------------------------------------------------------------------------------


def _surface(command: typer.core.TyperCommand | typer.core.TyperGroup, name: str) -> list[str]:
    """One line per command with its arguments and options."""
    if isinstance(command, typer.core.TyperGroup):
        return [line for sub, inner in command.commands.items() for line in _surface(inner, f"{name} {sub}")]  # type: ignore[arg-type]
    parameters = [
        "/".join(parameter.opts) if parameter.param_type_name == "option" else str(parameter.name).upper()
        for parameter in command.params
    ]
    return [f"{name}: {' '.join(sorted(parameters))}"]


def test_the_commands_and_options_are_frozen(golden) -> None:
    groups = ((app, "retrieval-operator"), (cluster.app, "kubectl retrieval"))
    lines = [line for group, name in groups for line in _surface(typer.main.get_command(group), name)]  # type: ignore[arg-type]
    golden("cli/surface.txt", "\n".join(lines) + "\n")


def _commands() -> list[tuple[typer.Typer, str]]:
    """Each program with a command as it is typed."""
    groups = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    ours = [
        f"retrieval-operator {group} {name}" for group in ("local", "kubernetes") for name in groups[group].commands
    ]
    plugin = typer.main.get_command(cluster.app).commands  # type: ignore[attr-defined]
    return [*((app, typed) for typed in ours), *((cluster.app, f"kubectl retrieval {name}") for name in plugin)]


@pytest.mark.parametrize(("program", "typed"), [pytest.param(*one, id=one[1]) for one in _commands()])
def test_every_command_shows_an_example_and_the_exit_codes(program: typer.Typer, typed: str) -> None:
    words = typed.removeprefix("retrieval-operator ").removeprefix("kubectl retrieval ").split()
    shown = CliRunner().invoke(program, [*words, "--help"]).output
    assert typed in shown.partition("For example:")[2]
    assert "4 timed out" in shown


def test_the_control_plane_imports_no_heavy_library() -> None:
    heavy = {"torch", "mlflow", "pandas", "numpy", "transformers", "pyarrow", "scipy", "faiss", "kopf", "kubernetes"}
    check = f"import sys, retrieval_operator.cli.cluster; print(*({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True, env=PYTHON)
    assert (done.stdout.strip(), done.stderr) == ("", "")


# -- apply -------------------------------------------------------------------------------------------------------------


def test_apply_creates_then_changes_then_leaves_alone(
    local: Local, store: LocalModelStore, write_manifest: Callable[..., str]
) -> None:
    assert local("apply", "-f", write_manifest("feed")).output.startswith("default/feed created\n")
    changed = write_manifest("feed", change=('revision: "1"', 'revision: "2"'))
    assert "default/feed configured (new revision: spec.data.revision)" in local("apply", "-f", changed).output
    assert "default/feed unchanged" in local("apply", "-f", changed).output
    assert stored(store).metadata.generation == 2


def test_apply_reads_standard_input(local: Local) -> None:
    assert local("apply", "-f", "-", stdin=MANIFEST.replace("NAME", "feed")).exit_code == 0


def test_apply_says_that_nobody_works_on_it(local: Local, write_manifest: Callable[..., str]) -> None:
    assert "start one: retrieval-operator local run" in local("apply", "-f", write_manifest("feed")).output


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        (["feed"], ('min: "0.1"', "min: 0.1"), "spec.promotion.gates[0].min: found 0.1 (a number), expected a decimal"),
        (["feed"], ("uri: /data", "url: /data"), "spec.data.uri: missing"),
        (["feed"], ("uri: /data", "uri: data"), "spec.data.uri: found 'data', expected an absolute path"),
        (["feed"], ("kind: RetrievalModel", "kind: Model"), "kind: found 'Model', expected 'RetrievalModel'"),
        (["good", "Bad"], ("", ""), "metadata.name"),
        (["good", "feed", "feed"], ("", ""), "default/feed: found more than once"),
        (["good", "feed"], ("name: feed", "name: feed, namespace: 'UPPER'"), "metadata.namespace"),
    ],
)
def test_a_manifest_that_cannot_be_used_changes_nothing(
    local: Local, store: LocalModelStore, write_manifest: Callable[..., str], names, change, words: str
) -> None:
    result = local("apply", "-f", write_manifest(*names, change=change))
    assert (result.exit_code, words in result.output) == (2, True), result.output
    assert asyncio.run(store.keys()) == []


def test_all_documents_are_applied_or_none(
    local: Local, store: LocalModelStore, write_manifest: Callable[..., str]
) -> None:
    """The second one breaks a rule that only shows beside the stored objects: storage.uri is immutable."""
    local("apply", "-f", write_manifest("feed"))
    both = write_manifest("another", "feed", change=("uri: /storage", "uri: /elsewhere"))
    result = local("apply", "-f", both)
    assert result.exit_code == 2
    assert "default/feed: spec.storage.uri: found '/elsewhere', expected '/storage' (immutable)" in result.output
    assert asyncio.run(store.keys()) == ["default/feed"]


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["apply"], 2, "--filename"),
        (["apply", "-f", "/no/such/file"], 2, "cannot be read"),
        (["apply", "-f", "-", "--timeout", "soon"], 2, "expected a duration"),
        (["get", "-o", "xml"], 2, "table"),
        (["plan", "feed", "-f", "feed.yaml"], 2, "one of them"),
        (["get"], 3, "there is no object"),
        (["get", "feed"], 3, "default/feed does not exist"),
        (["status"], 3, "there is no object"),
        (["status", "feed"], 3, "default/feed does not exist"),
        (["status", "--watch"], 2, "expected a terminal"),
        (["describe", "feed"], 3, "default/feed does not exist"),
        (["plan", "feed"], 3, "default/feed does not exist"),
        (["approve", "feed"], 3, "default/feed does not exist"),
        (["delete", "feed"], 3, "default/feed does not exist"),
        (["logs", "feed-1-train-1"], 3, "there is no log of feed-1-train-1; there are: none"),
        (["down"], 0, "is no home of local mode"),
    ],
)
def test_exit_codes_in_an_empty_home(local: Local, arguments: list[str], code: int, words: str) -> None:
    result = local(*arguments)
    assert (result.exit_code, words in result.output) == (code, True), result.output


def test_a_setting_that_cannot_be_used_is_named(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRIEVAL_OPERATOR_WORKERS", "many")
    result = local("get")
    assert result.exit_code == 2
    assert "RETRIEVAL_OPERATOR_WORKERS: found 'many'" in result.output


def test_a_purge_leaves_what_is_not_ours(local: Local, home: Path, write_manifest: Callable[..., str]) -> None:
    local("apply", "-f", write_manifest("feed"))
    (home / "thesis.tex").write_text("years of work")
    result = local("down", "--purge")
    assert "not ours and still there: thesis.tex" in result.output
    assert [path.name for path in home.iterdir()] == ["thesis.tex"]


def test_a_second_controller_is_told_who_holds_the_home(local: Local, home: Path) -> None:
    with sole_controller(LocalHome(home), "the first one"):
        result = local("run")
    assert result.exit_code == 1
    assert "the controller of" in result.output
    assert "(the first one)" in result.output


def _condition(type_: ConditionType, reason: Reason, message: str, status: str = "True") -> Condition:
    return Condition(
        type=type_,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        message=message,
        observed_generation=1,
        last_transition_time=1,
    )


REFUSED = RetrievalModelStatus(
    observed_generation=1,
    conditions=[_condition(ConditionType.STALLED, Reason.GATES_FAILED, "recall is below min")],
)
IN_FLIGHT = RetrievalModelStatus(
    observed_generation=1,
    conditions=[_condition(ConditionType.RECONCILING, Reason.TRAINING, "")],
)


@pytest.mark.parametrize(
    ("status", "options", "code", "words"),
    [
        (REFUSED, ["--wait"], 1, "GatesFailed: recall is below min"),
        (REFUSED, ["--until", "settled"], 1, "GatesFailed: recall is below min"),
        (RetrievalModelStatus(observed_generation=1), ["--until", "settled"], 0, "nothing is in flight"),
        (IN_FLIGHT, ["--wait", "--timeout", "0s"], 4, "timed out"),
        (RetrievalModelStatus(), ["--wait", "--timeout", "0s"], 4, "waiting for the controller"),
    ],
)
def test_how_waiting_ends_beside_a_running_controller(
    local: Local,
    store: LocalModelStore,
    write_manifest: Callable[..., str],
    home: Path,
    status: RetrievalModelStatus,
    options: list[str],
    code: int,
    words: str,
) -> None:
    path = write_manifest("feed")
    local("apply", "-f", path)
    write_status(store, status)
    with sole_controller(LocalHome(home), "a controller"):
        result = local("apply", "-f", path, *options)
    assert (result.exit_code, words in result.output) == (code, True), result.output


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def busy_store(
    local: Local, store: LocalModelStore, write_manifest: Callable[..., str], busy: RetrievalModel
) -> LocalModelStore:
    """An object whose status is that of the object in the middle of its life (conftest)."""
    local("apply", "-f", write_manifest("feed"))
    candidate = busy.status.candidate
    assert candidate is not None
    waiting = candidate.model_copy(update={"approval_token": "s-0003-4f5e"})
    write_status(store, busy.status.model_copy(update={"candidate": waiting}))
    return store


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("approve", APPROVE_ANNOTATION, "s-0003-4f5e"),
        ("reject", REJECT_ANNOTATION, "s-0003-4f5e"),
        ("retrain", RETRAIN_ANNOTATION, "1"),
    ],
)
def test_a_request_becomes_its_annotation(
    local: Local, busy_store: LocalModelStore, command: str, name: str, value: str
) -> None:
    result = local(command, "feed")
    assert result.exit_code == 0, result.output
    assert stored(busy_store).metadata.annotations.get(name) == value


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [("approve", "reject", REJECT_ANNOTATION), ("reject", "approve", APPROVE_ANNOTATION)],
)
def test_of_approve_and_reject_the_last_one_counts(
    local: Local, busy_store: LocalModelStore, first: str, second: str, left: str
) -> None:
    for command in (first, second):
        assert local(command, "feed").exit_code == 0
    assert stored(busy_store).metadata.annotations == {left: "s-0003-4f5e"}


def test_retrain_counts_and_retry_takes_the_time(local: Local, busy_store: LocalModelStore) -> None:
    for _ in range(2):
        local("retrain", "feed")
    assert stored(busy_store).metadata.annotations.get(RETRAIN_ANNOTATION) == "2"
    local("retry", "feed")
    assert (stored(busy_store).metadata.annotations.get(RETRY_ANNOTATION) or "").startswith("20")
    assert stored(busy_store).metadata.annotations.get(ROLLBACK_ANNOTATION) is None


def test_an_unknown_stack_to_return_to_is_answered_with_those_there_are(
    local: Local, busy_store: LocalModelStore
) -> None:
    result = local("rollback", "feed", "--to", "s-9999")
    assert result.exit_code == 3
    assert "found --to s-9999, expected a former stack: none (live: s-0002)" in result.output


def test_describe_works_without_mlflow_and_says_so(local: Local, busy_store: LocalModelStore) -> None:
    result = local("describe", "feed")
    assert result.exit_code == 0, result.output
    assert "default/feed" in result.output


def test_status_shows_the_tree_of_an_object_and_the_same_for_programs(
    local: Local, busy_store: LocalModelStore
) -> None:
    shown = local("status", "feed")
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("default/feed  AwaitingApproval\n")
    assert "Approval          for " in shown.output
    (document,) = json.loads(local("status", "-o", "json").output)
    assert document == json.loads(local("status", "feed", "-o", "json").output)
    assert (document["status"]["candidate"]["step"], document["stacks"]) == ("AwaitingApproval", [])
