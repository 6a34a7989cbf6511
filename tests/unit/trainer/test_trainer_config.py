"""The --config document: what it takes, what it refuses and in which words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from retrieval_core.errors import BadInput
from retrieval_trainer.config import Hyperparameters, Lora, TrainConfig, load_config

MINIMAL: dict[str, Any] = {
    "formatVersion": 1,
    "revision": "1a2b3c4d",
    "dataset": "data/feed",
    "base": {"preset": "tiny"},
    "dimensions": [128, 64],
    "hyperparameters": {"steps": 10},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(MINIMAL))
    place = document
    *parents, last = path.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return document


def test_inline_json_and_files_are_read_alike(tmp_path: Path) -> None:
    as_json, as_yaml = tmp_path / "c.json", tmp_path / "c.yaml"
    as_json.write_text(json.dumps(MINIMAL))
    as_yaml.write_text(
        "formatVersion: 1\nrevision: 1a2b3c4d\ndataset: data/feed\nbase: {preset: tiny}\n"
        "dimensions: [128, 64]\nhyperparameters: {steps: 10}\n"
    )
    inline = load_config("  " + json.dumps(MINIMAL))
    assert inline == load_config(str(as_json)) == load_config(str(as_yaml))


def test_defaults(golden: Any) -> None:
    golden("trainer_config.json", json.dumps(load_config(json.dumps(MINIMAL)).document(), indent=2) + "\n")


@pytest.mark.parametrize("model", [Hyperparameters, Lora])
def test_every_number_says_where_it_comes_from(model: Any) -> None:
    explain_themselves = {"method", "lora", "seed"}
    silent = {name for name, field in model.model_fields.items() if not field.description}
    assert silent <= explain_themselves


@pytest.mark.parametrize("name", ["tiny.yaml", "lora.yaml"])
def test_the_examples_are_valid(name: str) -> None:
    load_config(str(Path(__file__).parents[3] / "examples" / "training" / name))


@pytest.mark.parametrize(
    ("base", "method", "expected"),
    [
        ({"preset": "tiny"}, "full", 1e-3),
        ({"preset": "tiny"}, "lora", 1e-3),
        ({"uri": "models/llama"}, "lora", 1e-4),
        ({"uri": "models/llama"}, "full", 1e-5),
    ],
)
def test_the_default_learning_rate_suits_base_and_method(base: Any, method: str, expected: float) -> None:
    document = changed("hyperparameters.method", method) | {"base": base}
    assert load_config(json.dumps(document)).learning_rate == expected


def test_numbers_may_be_decimal_strings_as_in_manifests() -> None:
    config = load_config(json.dumps(changed("hyperparameters.learningRate", "3e-4")))
    assert config.hyperparameters.learning_rate == 3e-4


def test_yaml_without_a_dot_in_the_exponent_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        json.dumps(changed("hyperparameters.learningRate", 0)).replace('"learningRate": 0', '"learningRate": 3e-4')
    )
    assert load_config(str(path)).learning_rate == 3e-4


REFUSED = {
    "unknown field": (changed("hyperparameters.batchsize", 3), "hyperparameters.batchsize: unknown field"),
    "both lengths": (changed("hyperparameters.epochs", 1), "exactly one of steps and epochs"),
    "no length": (changed("hyperparameters", {}), "exactly one of steps and epochs"),
    "both bases": (changed("base.uri", "x"), "exactly one of preset and uri"),
    "unknown preset": (changed("base", {"preset": "huge"}), "base.preset: found 'huge', expected 'tiny'"),
    "rising dimensions": (changed("dimensions", [64, 128]), "falling sizes, full width first"),
    "no dimensions": (changed("dimensions", []), "dimensions: found"),
    "temperature zero": (changed("hyperparameters.temperature", 0), "hyperparameters.temperature: found 0"),
    "NaN": (changed("hyperparameters.learningRate", float("nan")), "hyperparameters.learningRate: found"),
    "a batch of one": (changed("hyperparameters.batchSize", 1), "hyperparameters.batchSize: found 1"),
    "pooling": (changed("pooling", "last"), "pooling: found 'last', expected 'mean'"),
    "LoRA rank": (changed("hyperparameters.lora.rank", 0), "hyperparameters.lora.rank: found 0"),
    "version": (changed("formatVersion", 2), "formatVersion is 2, this program knows 1"),
    "no revision": ({k: v for k, v in MINIMAL.items() if k != "revision"}, "revision: missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_field_as_it_is_spelled(case: str) -> None:
    document, sentence = REFUSED[case]
    with pytest.raises(BadInput) as refusal:
        load_config(json.dumps(document))
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("text", ["- a list", "key: [unclosed", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"c\.yaml"):
        load_config(str(path))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.yaml cannot be read"):
        load_config(str(tmp_path / "none.yaml"))


def test_the_configuration_cannot_be_changed() -> None:
    config = load_config(json.dumps(MINIMAL))
    assert isinstance(config, TrainConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.revision = "other"  # type: ignore[misc]


def test_the_contract_names_every_hyperparameter_with_its_default() -> None:
    """`kubectl explain` sends people there."""
    page = (Path(__file__).parents[3] / "docs" / "contracts.md").read_text()
    table = page.partition("| hyperparameter |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    told: dict[str, str] = {}
    for names, defaults in rows:
        found = re.findall(r"`([^`]+)`", names)
        values = defaults.split(", ") if len(found) > 1 and ", " in defaults else [defaults] * len(found)
        told |= dict(zip(found, (value.strip("`") for value in values), strict=True))
    said = Hyperparameters(steps=1).model_dump(mode="json", by_alias=True)
    lora = {f"lora.{name}": value for name, value in said.pop("lora").items()}
    assert told.keys() == said.keys() | lora.keys()
    for name, value in (said | lora).items():
        if name not in ("steps", "epochs", "learningRate"):  # which have no one default
            assert told[name] == (f"{value:g}" if isinstance(value, float) else str(value).lower()), name
