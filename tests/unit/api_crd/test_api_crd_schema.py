"""What the generated definition holds: bounds and descriptions everywhere, and nothing the API server cannot read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from retrieval_operator.api.crd import CRD_FILE, crd, crd_yaml
from retrieval_operator.api.crd.__main__ import main
from retrieval_operator.api.crd.schema import LIST_MERGES, structural_schema
from retrieval_operator.api.spec import RetrievalModelSpec
from retrieval_operator.api.status import RetrievalModelStatus

COMMITTED = Path(__file__).parents[3] / "crds" / CRD_FILE
VERSION = crd()["spec"]["versions"][0]
ROOT = VERSION["schema"]["openAPIV3Schema"]
# Kubernetes fixes these three itself.
OURS = {"spec": ROOT["properties"]["spec"], "status": ROOT["properties"]["status"]}

Node = tuple[str, dict[str, Any]]


def nodes(path: str, schema: dict[str, Any]) -> Iterator[Node]:
    """Every value of a schema with its path: `a.b`, `a[]` for items, `a{}` for a map's values."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(f"{path}.{name}", inner)
    if "items" in schema:
        yield from nodes(f"{path}[]", schema["items"])
    if "additionalProperties" in schema:
        yield from nodes(f"{path}{{}}", schema["additionalProperties"])


ALL = [node for name, schema in OURS.items() for node in nodes(name, schema)]


def of_type(kind: str) -> list[Node]:
    found = [(path, schema) for path, schema in ALL if schema["type"] == kind]
    assert found
    return found


# -- the committed file ----------------------------------------------------------------------------------------------


def test_the_committed_definition_is_what_the_types_say() -> None:
    command = f"python -m retrieval_operator.api.crd > crds/{CRD_FILE}"
    assert COMMITTED.read_text() == crd_yaml(), f"if the change of the types is intended: {command}"


def test_the_text_says_what_the_document_says() -> None:
    assert yaml.safe_load(crd_yaml()) == crd()


def test_no_word_of_the_text_is_a_boolean_to_the_yaml_of_kubectl() -> None:
    """YAML 1.1, which Go's readers keep to for y and n: `n:` is the key false."""
    assert re.findall(r"^\s*(?:- )*(?:y|n|yes|no|on|off):", crd_yaml(), re.MULTILINE | re.IGNORECASE) == []
    assert '"n":' in crd_yaml()


def test_the_text_fits_into_the_annotation_of_kubectl_apply() -> None:
    assert len(crd_yaml()) < 256 * 1024 / 1.5  # as JSON it is shorter; room for a second version is not asked for


def test_the_command_prints_the_definition(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == crd_yaml()


def test_check_is_quiet_about_a_file_that_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(COMMITTED)]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("text", [None, "", "kind: Other\n"])
def test_check_tells_of_a_file_that_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    file = tmp_path / "crd.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["--check", str(file)]) == 1
    assert f"if their change is intended: python -m retrieval_operator.api.crd > {file}" in capsys.readouterr().err


# -- bounds, descriptions, and what may not occur --------------------------------------------------------------------


def test_every_string_has_a_longest_length() -> None:
    bounds = {"maxLength", "enum", "format"}  # the only format is date-time
    assert [path for path, schema in of_type("string") if not bounds & schema.keys()] == []
    assert {schema["format"] for _, schema in of_type("string") if "format" in schema} == {"date-time"}


def test_every_list_has_a_greatest_size() -> None:
    assert [path for path, schema in of_type("array") if "maxItems" not in schema] == []


def test_every_map_has_a_greatest_size() -> None:
    maps = [(path, schema) for path, schema in of_type("object") if "properties" not in schema]
    assert [path for path, schema in maps if "maxProperties" not in schema] == []


def test_every_integer_has_a_range() -> None:
    assert [path for path, schema in of_type("integer") if not {"minimum", "maximum"} <= schema.keys()] == []


def test_the_spec_has_no_floats() -> None:
    assert [path for path, schema in of_type("number") if not path.startswith("status.")] == []


def test_every_description_starts_with_the_name_of_its_field() -> None:
    named = [(path, schema.get("description", "")) for path, schema in ALL if not path.endswith(("[]", "{}"))]
    assert [path for path, text in named if not re.match(rf"{path.rpartition('.')[2]}\b", text)] == []


def test_every_description_is_a_sentence_on_one_line() -> None:
    texts = [(path, schema["description"]) for path, schema in ALL if "description" in schema]
    assert [path for path, text in texts if "\n" in text or not text.endswith((".", "..."))] == []


def test_nothing_occurs_that_a_structural_schema_may_not_have() -> None:
    allowed = {"type", "description", "enum", "format", "pattern", "minLength", "maxLength", "minimum", "maximum"}
    allowed |= {"minItems", "maxItems", "maxProperties", "required", "properties", "items", "additionalProperties"}
    found = {key for _, schema in ALL for key in schema if not key.startswith("x-kubernetes-")}
    assert found - allowed == set()
    assert found >= {"enum", "pattern", "maxLength", "maxItems", "maxProperties"}
    assert [path for path, schema in ALL if isinstance(schema.get("additionalProperties"), bool)] == []


def test_no_value_has_a_default() -> None:
    """Defaults would appear in stored objects on read, and so in hashes over what a user set."""
    assert [path for path, schema in ALL if "default" in schema] == []


def test_patterns_are_those_of_re2() -> None:
    """No look-around, no back-references (the API server compiles the rest)."""
    patterns = {schema["pattern"] for _, schema in ALL if "pattern" in schema}
    assert patterns
    assert [pattern for pattern in patterns if re.search(r"\(\?|\\[1-9AZ]", pattern)] == []


@pytest.mark.parametrize("part", ["metadata", "spec", "status"])
def test_an_object_has_the_three_parts(part: str) -> None:
    assert ROOT["properties"][part]["type"] == "object"


@pytest.mark.parametrize(("name", "model"), [("spec", RetrievalModelSpec), ("status", RetrievalModelStatus)])
def test_fields_are_those_of_the_types_and_required_as_there(name: str, model: type[BaseModel]) -> None:
    assert fields_of_schema(OURS[name]) == fields_of_model(model)


def fields_of_schema(schema: dict[str, Any], path: str = "") -> dict[str, bool]:
    found = {}
    for name, inner in schema["properties"].items():
        found[f"{path}{name}"] = name in schema.get("required", [])
        deeper = inner.get("items", inner)
        if "properties" in deeper:
            found |= fields_of_schema(deeper, f"{path}{name}.")
    return found


def fields_of_model(model: type[BaseModel], path: str = "") -> dict[str, bool]:
    found = {}
    for info in model.model_fields.values():
        found[f"{path}{info.alias}"] = info.is_required()
        for inner in models_in(info.annotation):
            found |= fields_of_model(inner, f"{path}{info.alias}.")
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def test_free_documents_are_bounded_objects() -> None:
    free = {path: schema for path, schema in ALL if schema.get("x-kubernetes-preserve-unknown-fields")}
    assert set(free) == {"status.champion.serving", "status.history[].record.serving"}


def test_closed_sets_are_closed_in_the_spec_and_open_in_the_status() -> None:
    """A definition that was not upgraded with the operator must not refuse what the operator writes."""
    closed = [path for path, schema in ALL if "enum" in schema]
    assert "spec.promotion.gates[].metric" in closed
    assert [path for path in closed if path.startswith("status.")] == []


# -- rules, merging, columns -----------------------------------------------------------------------------------------


def rules() -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    return [
        (path, schema, rule)
        for path, schema in [("", ROOT), *ALL]
        for rule in schema.get("x-kubernetes-validations", [])
    ]


def test_every_path_of_a_rule_is_a_field() -> None:
    for path, schema, rule in rules():
        target = schema
        for name in rule.get("fieldPath", "").split(".")[1:]:
            assert name in target["properties"], f"{path}: {rule['fieldPath']}"
            target = target["properties"][name]


def test_every_rule_has_a_message_and_a_reason_that_shows_it() -> None:
    assert {rule["reason"] for _, _, rule in rules()} <= {
        "FieldValueInvalid",
        "FieldValueForbidden",
        "FieldValueRequired",
    }
    assert [path for path, _, rule in rules() if not rule["message"]] == []


def test_merge_keys_are_required_fields_of_the_items() -> None:
    """The API server demands it of a list-map: an item without its key could not be merged."""
    merged = [(path, schema) for path, schema in ALL if schema.get("x-kubernetes-list-type") == "map"]
    assert {path.rpartition(".")[2] for path, _ in merged} == {"env", "volumes", "conditions"}
    for path, schema in merged:
        assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"]), path


def test_every_list_says_how_it_merges() -> None:
    assert [path for path, schema in of_type("array") if "x-kubernetes-list-type" not in schema] == []
    named = {f"{field}" for _, field in LIST_MERGES}
    assert named <= {path.rpartition(".")[2] for path, _ in of_type("array")}


def test_columns_read_fields_that_exist() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        target = ROOT
        for name in re.sub(r"\[.*?\]", "[]", column["jsonPath"]).split(".")[1:]:
            if target is ROOT["properties"]["metadata"]:
                break  # Kubernetes' own
            target = target["properties"][name.removesuffix("[]")]
            target = target["items"] if name.endswith("[]") else target
        assert column["type"] in {target["type"], "date"}, column["name"]


# -- the conversion --------------------------------------------------------------------------------------------------


class Small(BaseModel):
    """A small model.

    With a second paragraph for programmers.
    """

    size: Annotated[int, Field(ge=1, le=2**40)] = Field(default=3, description="size in bytes.")
    word: Literal["one"] = "one"
    words: Annotated[list[Annotated[str, Field(max_length=3)]], Field(max_length=2)] | None = Field(
        default=None, description="words that matter."
    )


def test_a_model_becomes_an_object_without_defaults_or_nulls() -> None:
    assert structural_schema(Small) == {
        "type": "object",
        "description": "A small model.",
        "properties": {
            "size": {
                "type": "integer",
                "description": "size in bytes.",
                "format": "int64",
                "minimum": 1,
                "maximum": 2**40,
            },
            "word": {"type": "string", "enum": ["one"]},
            "words": {
                "type": "array",
                "description": "words that matter.",
                "maxItems": 2,
                "items": {"type": "string", "maxLength": 3},
                "x-kubernetes-list-type": "atomic",
            },
        },
    }


class Union(BaseModel):
    """Two types in one field."""

    either: int | str


class Anything(BaseModel):
    """No type at all."""

    what: Any


class Unbounded(BaseModel):
    """An integer without a range."""

    size: int


class LongKeys(BaseModel):
    """A map whose keys may have any length."""

    names: dict[str, Annotated[str, Field(max_length=3)]]


@pytest.mark.parametrize("model", [Union, Anything, Unbounded, LongKeys])
def test_what_a_structural_schema_cannot_say_is_refused(model: type[BaseModel]) -> None:
    with pytest.raises(ValueError, match="structural schema"):
        structural_schema(model)
