"""The command lines: exit codes, what they print, and that doing it twice only reports."""

from __future__ import annotations

import json
import re

import pytest
import structlog
from typer.testing import CliRunner

from retrieval_indexer import cli, evaluate_cli

runner = CliRunner()


def invoke(app, *arguments: str):
    return runner.invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("RETRIEVAL_TERMINATION_LOG", str(tmp_path / "termination"))
    for name in ("MLFLOW_TRACKING_URI", "RETRIEVAL_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    yield
    structlog.reset_defaults()  # a command configures logging to the runner's stderr, which is closed by now


@pytest.fixture
def index_arguments(datasets, bundle_uri, tmp_path) -> list[str]:
    return [
        "--bundle",
        bundle_uri,
        "--dataset",
        str(datasets["global"]),
        "--kind",
        "serving",
        "--out",
        str(tmp_path / "g"),
    ]


@pytest.mark.parametrize("settings", [[], ["--factory", "IVF8,Flat", "--members", "--latency-target-ms", "9999"]])
def test_encode_each_shard_then_merge_makes_what_build_makes(index_arguments, settings, tmp_path):
    for shard in ("0/2", "1/2"):
        assert invoke(cli.app, "encode", "--shard", shard, *index_arguments).exit_code == 0
    merged = invoke(cli.app, "merge", "--shards", "2", *settings, *index_arguments)
    assert merged.exit_code == 0
    manifest = json.loads((tmp_path / "g" / "MANIFEST.json").read_text())
    assert "synthetic: index generation " + manifest["id"] in merged.output
    assert ("ms (9999 ms)" in merged.output) == bool(settings)
    index_arguments[-1] = str(tmp_path / "other")
    assert invoke(cli.app, "build", "--shards", "2", *settings, *index_arguments).exit_code == 0
    assert json.loads((tmp_path / "other" / "MANIFEST.json").read_text())["id"] == manifest["id"]


def shards_in(directory) -> list[str]:
    return sorted(path.name for path in (directory / "shards").glob("*.json"))


def test_without_a_completion_index_all_shards_are_encoded_and_with_one_only_that(
    index_arguments, monkeypatch, tmp_path
):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert invoke(cli.app, "encode", "--shards", "2", *index_arguments).exit_code == 0
    assert shards_in(tmp_path / "g") == ["00001.json"]
    monkeypatch.delenv("JOB_COMPLETION_INDEX")
    first = (tmp_path / "g" / "shards" / "00001.json").stat()
    assert invoke(cli.app, "encode", "--shards", "2", *index_arguments).exit_code == 0
    assert shards_in(tmp_path / "g") == ["00000.json", "00001.json"]
    assert (tmp_path / "g" / "shards" / "00001.json").stat().st_mtime_ns == first.st_mtime_ns


def test_a_build_after_encoding_encodes_nothing_and_makes_the_same_generation(index_arguments, tmp_path, monkeypatch):
    assert invoke(cli.app, "build", "--shards", "2", *index_arguments).exit_code == 0
    expected = json.loads((tmp_path / "g" / "MANIFEST.json").read_text())["id"]
    index_arguments[-1] = str(tmp_path / "other")
    assert invoke(cli.app, "encode", "--shards", "2", *index_arguments).exit_code == 0
    monkeypatch.setattr("retrieval_indexer.build.Encoder", None)  # it would be called to encode anything
    assert invoke(cli.app, "build", "--shards", "2", *index_arguments).exit_code == 0
    assert json.loads((tmp_path / "other" / "MANIFEST.json").read_text())["id"] == expected


@pytest.mark.parametrize(
    ("chosen", "index"),
    [([], None), (["--shard", "0/2", "--shards", "2"], None), (["--shards", "2"], "2"), (["--shards", "2"], "-1"),
     (["--shards", "0"], None), (["--shard", "2/2"], None)],
)  # fmt: skip
def test_a_shard_that_cannot_be_told_is_a_bad_argument(index_arguments, monkeypatch, chosen, index):
    if index is not None:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    assert invoke(cli.app, "encode", *chosen, *index_arguments).exit_code == 2


def test_a_finished_build_is_only_reported_again(index_arguments, tmp_path):
    assert invoke(cli.app, "build", *index_arguments).exit_code == 0
    before = (tmp_path / "g" / "MANIFEST.json").stat()
    assert invoke(cli.app, "build", *index_arguments).exit_code == 0
    after = (tmp_path / "g" / "MANIFEST.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("changed", "code", "reason"),
    [
        (["--expected-bundle-id", "b-0000000000000000"], 65, "BadInput"),
        (["--served-dimension", "7"], 2, "BadArguments"),
        (["--shards", "0"], 2, "BadArguments"),
        (["--factory", "Nonsense"], 2, "BadArguments"),
        (["--latency-target-ms", "0"], 2, "BadArguments"),
        (["--as-of", "5"], 65, "BadInput"),
    ],
)
def test_a_wrong_request_has_its_exit_code_and_a_reason(index_arguments, changed, code, reason, tmp_path):
    result = invoke(cli.app, "build", *index_arguments, *changed)
    assert result.exit_code == code
    assert json.loads((tmp_path / "termination").read_text())["reason"] == reason
    assert "Traceback" not in result.output


@pytest.fixture
def run_arguments(datasets, bundle_uri, generations, tmp_path) -> list[str]:
    return [
        "run", "--dataset", str(datasets["global"]), "--candidate-bundle", bundle_uri,
        "--candidate-generation", generations["global"], "--out", str(tmp_path / "e"), "--k", "5,20",
        "--gates", '[{"metric": "recall", "k": 10, "pool": "matched", "min": "0.05", "maxRegression": "0.02"}]',
    ]  # fmt: skip


def test_run_prints_tables_that_say_synthetic_and_a_second_run_changes_nothing(run_arguments, tmp_path):
    result = invoke(evaluate_cli.app, *run_arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"synthetic: \d+ held-out members", result.output)
    assert "synthetic: gates" in result.output
    assert "recall@10 matched all" in result.output
    assert "fewer than the 300" in result.output
    before = (tmp_path / "e" / "evaluation.json").stat().st_mtime_ns
    again = invoke(evaluate_cli.app, *run_arguments)
    assert again.exit_code == 0
    assert (tmp_path / "e" / "evaluation.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "changed",
    [["--champion-bundle", "somewhere"], ["--k", "ten"], ["--gates", "[{]"], ["--confidence", "1.5"], ["--k", "0"]],
)
def test_contradictory_or_malformed_arguments_exit_with_2(run_arguments, changed):
    assert invoke(evaluate_cli.app, *run_arguments, *changed).exit_code == 2


def test_metrics_for_mlflow_have_names_it_allows_and_no_missing_value():
    row = {"subject": "candidate", "metric": "recall", "k": 10, "pool": "matched", "value": 0.5}
    document = {"metrics": [{**row, "segment": "category:topic=a"}, {**row, "segment": "all", "value": None}]}
    metrics = evaluate_cli.report_metrics(document)
    assert list(metrics.values()) == [0.5]
    assert all(re.fullmatch(r"[\w./: -]+", name) for name in metrics)


def test_power_says_the_number_of_members():
    result = invoke(evaluate_cli.app, "power", "--members", "600", "--margin", "0.01", "--baseline", "0.5",
                    "--correlation", "0.65")  # fmt: skip
    assert result.exit_code == 0
    assert "probability 0.14 at 600 members" in " ".join(result.output.split())


@pytest.mark.parametrize(("app", "command"), [(cli.app, "build"), (cli.app, "encode"), (cli.app, "merge"),
                                              (evaluate_cli.app, "run"), (evaluate_cli.app, "verify"),
                                              (evaluate_cli.app, "power")])  # fmt: skip
def test_help_has_an_example(app, command):
    result = invoke(app, command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
