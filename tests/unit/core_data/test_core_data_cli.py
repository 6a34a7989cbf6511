"""`retrieval-data`: its commands, flags, output and exit codes."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from retrieval_core.data_cli import app

runner = CliRunner()
SMALL = ["--members", "300", "--items", "800", "--interactions", "5000", "--horizon-days", "20"]


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    out = tmp_path_factory.mktemp("feed") / "data"
    result = runner.invoke(app, ["generate", str(out), *SMALL, "-o", "json"])
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_generate_then_validate_print_the_same_summary(feed):
    out, printed = feed
    result = runner.invoke(app, ["validate", str(out), "-o", "json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == printed
    assert printed["provenance"] == "synthetic"
    assert printed["interactions"] == 5000


def test_the_table_names_the_provenance_and_what_cannot_be_measured(feed):
    result = runner.invoke(app, ["validate", str(feed[0])])
    assert result.exit_code == 0
    for expected in ("synthetic", "members evaluable", "without training positive", "test part", "2024-01-01"):
        assert expected in result.stdout


def test_oracle_prints_the_ceiling_for_programs_and_people(feed):
    result = runner.invoke(app, ["oracle", str(feed[0]), "--max-positives", "50", "-o", "json"])
    document = json.loads(result.stdout)
    assert document["positives"] == 50
    assert {(row["pool"], row["ranking"]) for row in document["metrics"]} == {
        (pool, ranking) for pool in ("uniform", "matched") for ranking in ("random", "popularity", "oracle")
    }
    assert "synthetic" in runner.invoke(app, ["oracle", str(feed[0]), "--max-positives", "50"]).stdout


def test_a_broken_dataset_exits_65_with_its_sentences(small_dataset, tmp_path):
    files = small_dataset()
    files.interactions["member_id"][0] = "zoe"
    result = runner.invoke(app, ["validate", str(files.write(tmp_path / "d"))])
    assert result.exit_code == 65
    assert "BadInput: " in result.stderr
    assert "1 of 7 rows name an id that is not in members/" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["generate", "{out}", "--days", "50"], 2, "--days is 50, expected 1 to 42"),
        (["generate", "{out}", "--interactions", "10"], 2, "--interactions"),
        (["generate", "{feed}", *SMALL], 2, "exists already"),
        (["validate", "{out}"], 65, "is not a dataset"),
        (["import", "movielens", "{feed}", "{out}"], 65, "no MovieLens folder"),
        (["validate"], 2, "URI"),
    ],
)
def test_failures_have_their_exit_code_and_say_what_to_do(arguments, code, expected, feed, tmp_path):
    places = {"out": tmp_path / "out", "feed": feed[0]}
    result = runner.invoke(app, [argument.format(**places) for argument in arguments])
    assert result.exit_code == code
    assert expected in result.output
    assert not (tmp_path / "out").exists()


COMMANDS = {
    "generate": {"--members", "--items", "--interactions", "--horizon-days", "--days", "--test-days", "--seed",
                 "--shuffle-labels", "--replace", "--output"},
    "validate": {"--output"},
    "oracle": {"--max-positives", "--seed", "--output"},
    "import movielens": {"--positive-rating", "--test-fraction", "--validation-members", "--window-days", "--replace",
                         "--output"},
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_and_exactly_these_flags(command):
    group = typer.main.get_command(app)
    for name in command.split():
        group = group.commands[name]
    flags = {option for parameter in group.params for option in parameter.opts if option.startswith("--")}
    assert flags - {"--help"} == COMMANDS[command]
    assert f"retrieval-data {command}" in group.epilog
