"""What `retrieval-evaluate run` takes and shows: segments with any value, names that MLflow allows, the baselines."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from retrieval_core.errors import BadArguments
from retrieval_core.generation import Generation
from retrieval_indexer import evaluate_cli
from retrieval_indexer.evaluation.evaluation_set import build_evaluation_set
from retrieval_operator.api.spec import Evaluation

SEGMENTS = [
    "all",
    "new",
    "category:industry=food",
    "category:industry=Food & Drink, fine",
    "category:industry=Gemüse",
    "category:industry=[red]",
    "category:branche=a=b",
    "category:a.b=c",
    "category:a=b.c",
    "category:a=b/c",
    "category:a=b_c",
    "category:a=b//../c",
    "category:a=" + "x" * 300,
    "category:a=" + "x" * 301,
]


def metrics(segments: list[str]) -> dict[str, float]:
    row = {"subject": "popularityTrained", "metric": "hitRate", "k": 10_000, "pool": "corpus", "value": 0.5}
    return evaluate_cli.report_metrics({"metrics": [row | {"segment": segment} for segment in segments]})


def test_mlflow_itself_refuses_what_a_segment_may_hold():
    """The premise."""
    for name in ("a,b", "a=b", "a//b", "../a"):
        with pytest.raises(MlflowException):
            _validate_metric_name(name)


def test_every_segment_has_a_name_that_mlflow_takes_and_no_other_segment_has():
    names = list(metrics(SEGMENTS))
    assert len(names) == len(SEGMENTS)
    for name in names:
        _validate_metric_name(name)
        assert len(name) <= MAX_ENTITY_KEY_LENGTH


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), min_size=2, max_size=2, unique=True))
@example(["b=c", "b.c"])
@example(["b/c", "b_c"])
def test_any_two_values_have_two_names_that_mlflow_takes(values):
    names = list(metrics([f"category:a={value}" for value in values]))
    assert len(names) == 2
    for name in names:
        _validate_metric_name(name)


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("all", "all"),
        ("category:industry=food", "category:industry.food"),
        ("category:a=Größe 1", "category:a.Größe 1"),
    ],
)
def test_an_ordinary_segment_keeps_its_name(segment, name):
    assert list(metrics([segment])) == [f"popularityTrained/hitRate_at_10000_corpus/{name}"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all,new", ["all", "new"]),
        (" all , category:industry=food ,all", ["all", "category:industry=food"]),
        ("", []),
        ('["all"]', ["all"]),
        (' ["category:industry=Food, drink", "category:industry= b "]',
         ["category:industry=Food, drink", "category:industry= b "]),
    ],
)  # fmt: skip
def test_segments_are_separated_by_commas_or_a_json_list(text, names):
    assert evaluate_cli._segments(text) == names


@pytest.mark.parametrize("text", ["[all]", '["all", 3]', '["all"'])
def test_segments_that_are_no_list_are_refused_in_words(text):
    with pytest.raises(BadArguments, match="expected names separated by commas, or a JSON list"):
        evaluate_cli._segments(text)


@pytest.mark.parametrize("segment", [segment for segment in SEGMENTS if len(segment) <= 128])
def test_what_a_manifest_may_name_arrives_as_it_is(segment):
    """The operator passes segments as one JSON argument."""
    asked = Evaluation.model_validate({"segments": [segment, "all"]}).segments
    assert evaluate_cli._segments(json.dumps(asked)) == list(dict.fromkeys([segment, "all"]))


def document(lower: float, segment: str) -> dict:
    row = {"metric": "recall", "k": 10, "pool": "matched", "segment": "all"}
    comparison = row | {"baseline": "notPersonal", "delta": 0.01, "lower": lower, "upper": 0.03}
    gate = row | {"segment": segment, "n": 3, "discordant": 1, "value": 0.2, "championValue": None, "delta": None}
    return {
        "dataset": {"provenance": "real"},
        "members": {"evaluated": 400},
        "minSamples": 300,
        "metrics": [
            row | {"subject": name, "value": 0.2, "lower": 0.1, "upper": 0.3} for name in ("candidate", "notPersonal")
        ],
        "comparisons": [comparison, comparison | {"baseline": "popularity"}, comparison | {"pool": "uniform"}],
        "gates": [gate | {"nToDecide": None, "problem": None}],
        "coverage": {"absent": 0, "testPositives": 1},
        "leakage": {"candidate": None, "champion": "the champion saw it"},
    }


@pytest.fixture
def printed(monkeypatch):
    """Prints an evaluation and returns the words."""
    monkeypatch.setattr(evaluate_cli.console, "width", 200)

    def show(evaluation: dict) -> str:
        with evaluate_cli.console.capture() as capture:
            evaluate_cli.print_evaluation(evaluation)
        return " ".join(capture.get().split())

    return show


def test_a_candidate_that_need_not_know_the_member_is_told_to_people(printed):
    said = printed(document(-0.01, "all"))
    assert said.count("candidate - notPersonal") == 1
    assert "candidate - notPersonal: +0.0100 (-0.0100 to +0.0300): it is not shown to be personal." in said
    assert "not shown" not in printed(document(0.005, "all"))
    assert "Leakage: the champion saw it" in said


def test_a_segment_in_brackets_is_shown_and_is_no_markup(printed):
    assert "category:industry=[red]" in printed(document(0.0, "category:industry=[red]"))


def test_bounds_are_shown_for_stacks_and_baselines_are_one_number(printed):
    said = printed(document(0.0, "all"))
    assert said.count("0.200 (0.100-0.300)") == 1
    assert "0.200" in said.replace("0.200 (0.100-0.300)", "")


def test_a_value_with_a_comma_is_a_segment_of_the_evaluation(open_datasets, generations):
    dataset = open_datasets["global"]
    industry = dataset.member_columns["industry"].to_pylist()
    values = ["Food, drink & [more]" if value == "food" else value for value in industry]
    columns = dataset.member_columns | {"industry": pa.chunked_array([values])}
    evaluation = build_evaluation_set(replace(dataset, member_columns=columns), Generation.open(generations["global"]))
    renamed = evaluation.segment("category:industry=Food, drink & [more]")
    before = build_evaluation_set(dataset, Generation.open(generations["global"])).segment("category:industry=food")
    assert renamed.tolist() == before.tolist()
    assert renamed.any()


def test_a_finished_verification_counts_for_the_same_question_only(tmp_path):
    asked = {"generationId": "g-1", "members": 50, "k": 2000}
    assert evaluate_cli._finished_verification(str(tmp_path), asked) is None
    found = asked | {"formatVersion": 1, "matched": 50, "url": "http://127.0.0.1:1"}
    (tmp_path / "verification.json").write_text(json.dumps(found))
    assert evaluate_cli._finished_verification(str(tmp_path), asked) == found
    for name, other in (("generationId", "g-2"), ("members", 20), ("k", 10)):
        with pytest.raises(BadArguments, match=re.escape(f"{name} {asked[name]!r} (asked for {other!r})")):
            evaluate_cli._finished_verification(str(tmp_path), asked | {name: other})
