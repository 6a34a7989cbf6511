"""The table of accepted and refused manifests, as this machine reads them; tests/e2e/crd asks a real API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from manifest_cases import CASES, manifest
from pydantic import AfterValidator, BaseModel, TypeAdapter

from retrieval_operator.api import types
from retrieval_operator.api.crd.rules import FORMAT_RULES, MODEL_RULES
from retrieval_operator.api.objects import InvalidManifest, parse_manifest
from retrieval_operator.domain.changes import EFFECTS, Effect, immutable_fields


def cases_about(kind: str) -> set[str]:
    """The rules that cases of a kind are about."""
    rules = (case.get("rule", []) for case in CASES[kind].values())
    return {rule for given in rules for rule in ([given] if isinstance(given, str) else given)}


@pytest.mark.parametrize("title", CASES["accepted"])
def test_it_is_accepted(title: str) -> None:
    parse_manifest(manifest(CASES["accepted"][title]), "feed.yaml")


@pytest.mark.parametrize("title", [title for title, case in CASES["refused"].items() if case["local"] != "accepted"])
def test_it_is_refused_with_words_a_person_understands(title: str) -> None:
    case = CASES["refused"][title]
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(manifest(case), "feed.yaml")
    assert case["local"] in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("title", [title for title, case in CASES["refused"].items() if case["local"] == "accepted"])
def test_what_only_the_api_server_refuses_is_accepted_here(title: str) -> None:
    parse_manifest(manifest(CASES["refused"][title]), "feed.yaml")


@pytest.mark.parametrize("title", CASES["edits"])
def test_an_edit_of_an_immutable_field_is_seen(title: str) -> None:
    case = CASES["edits"][title]
    old, new = (parse_manifest(manifest(case, side), "feed.yaml") for side in ("from", "to"))
    before, after = immutable_fields(old), immutable_fields(new)
    changed = [path for path in before if before[path] != after[path]]
    assert changed == ([case["field"]] if "field" in case else [])


def test_every_validator_of_the_types_has_a_rule_for_the_api_server() -> None:
    expected = {
        (model, name)
        for model in models_of(root="retrieval_operator.api")
        for name in model.__pydantic_decorators__.model_validators
    }
    stated = {(model, rule.validator) for model, rules in MODEL_RULES.items() for rule in rules if rule.validator}
    assert stated == expected


def test_every_type_with_a_validator_of_its_own_has_a_rule_for_the_api_server() -> None:
    validated = {
        name: TypeAdapter(alias).json_schema().get("format")
        for name, alias in vars(types).items()
        if any(isinstance(part, AfterValidator) for part in getattr(alias, "__metadata__", ()))
    }
    assert validated == {"Uri": "uri", "TimeZone": "time-zone", "Cron": "cron"}
    assert set(validated.values()) == set(FORMAT_RULES)


def test_every_rule_has_an_accepted_and_a_refused_case() -> None:
    rules = {f"{model.__name__}.{rule.validator}" for model, rows in MODEL_RULES.items() for rule in rows}
    rules = {rule for rule in rules if not rule.endswith(".")} | set(FORMAT_RULES) | {"metadata.name", "decimal"}
    assert rules - cases_about("accepted") == set()
    assert rules - cases_about("refused") == set()


def test_every_immutable_field_has_edits() -> None:
    refused = [path for path, effect in EFFECTS.items() if effect is Effect.REFUSED]
    assert {path for path in refused if not any(edit.startswith(path) for edit in cases_about("edits"))} == set()


def test_every_validator_says_the_words_of_its_rule() -> None:
    """One thing has one sentence: here with what was found, on the API server without."""
    messages = {rule.message for rules in MODEL_RULES.values() for rule in rules if rule.validator}
    said = "\n".join(case["local"] for case in CASES["refused"].values())
    said += "\n".join(error_of(case) for case in CASES["refused"].values() if case["local"] != "accepted")
    assert {message for message in messages if message not in said} == set()


def test_there_are_enough_refusals() -> None:
    assert len([case for case in CASES["refused"].values() if case["server"] != "accepted"]) >= 60


def error_of(case: dict[str, Any]) -> str:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(manifest(case), "feed.yaml")
    return str(caught.value)


def models_of(root: str) -> Iterator[type[BaseModel]]:
    """Every pydantic model that the package defines."""
    waiting: list[type[BaseModel]] = [BaseModel]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        yield from (model for model in subclasses if re.match(rf"{re.escape(root)}(\.|$)", model.__module__))
