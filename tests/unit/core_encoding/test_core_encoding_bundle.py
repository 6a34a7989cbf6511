"""Bundles: complete or absent, one id for one embedding space, and refused when one byte differs."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retrieval_core.bundle import Bundle
from retrieval_core.encoding import Encoder
from retrieval_core.errors import BadInput
from retrieval_core.prompts import add_tokens

FILES = {
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("1_Pooling/config.json", "2_Normalize/config.json", "prompts.json", "training.json", "README.md"),
}


@pytest.fixture
def own_copy(bundle_path, tmp_path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_bundle_lists_exactly_its_files_and_says_what_it_is(bundle):
    assert bundle.manifest.files.keys() == FILES
    assert {name for name, file in bundle.manifest.files.items() if file.role == "record"} == {
        "training.json",
        "README.md",
    }
    assert bundle.manifest.document()["embedding"] == {
        "pooling": "mean",
        "normalize": True,
        "dimensions": [32, 16],
        "dimension": 32,
        "dtype": "float32",
        "maxTokens": {"member": 64, "item": 48},
    }
    assert bundle.training["revision"] == "r1"


def test_prompts_and_percentiles_come_back_as_they_were_written(bundle, spec, percentiles):
    assert bundle.prompts == spec
    assert bundle.percentiles == percentiles
    assert bundle.renderer().item({"title": "x", "engagements": 0}).endswith("<|pct.zero|>")


def test_the_same_model_gives_the_same_id_wherever_it_comes_from(bundle, write_tiny, tmp_path):
    other = write_tiny(tmp_path / "b", training={"revision": "r2", "provenance": "real"}, card="Other words.")
    assert Bundle.open(other).id == bundle.id
    assert Bundle.open(other).training["revision"] == "r2"


@pytest.mark.parametrize(
    "changed",
    [
        {"dimensions": [32]},
        {"dtype": "bfloat16"},
        {"config": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}},
    ],
    ids=["dimensions", "dtype", "rope"],
)
def test_another_embedding_gives_another_id(changed, bundle, write_tiny, tmp_path):
    assert Bundle.open(write_tiny(tmp_path / "b", **changed)).id != bundle.id


def test_how_the_tokenizer_was_used_before_does_not_change_the_id(
    bundle, write_tiny, base_tokenizers, spec, percentiles, tmp_path
):
    tokenizer = copy.deepcopy(base_tokenizers["byte-level"])
    add_tokens(tokenizer, None, spec, percentiles, seed=0)
    tokenizer("some text", truncation=True, max_length=3, padding="max_length")
    assert Bundle.open(write_tiny(tmp_path / "b", tokenizer_object=tokenizer)).id == bundle.id


def test_writing_leaves_no_scratch_and_may_be_repeated(write_tiny, tmp_path):
    path = write_tiny(tmp_path / "b")
    before = (path / "bundle.json").stat().st_mtime_ns
    assert write_tiny(path) == path
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]
    assert (path / "bundle.json").stat().st_mtime_ns == before


def test_an_unfinished_directory_is_replaced_and_another_bundle_is_not(write_tiny, tmp_path):
    path = tmp_path / "b"
    path.mkdir()
    (path / "left-over.bin").write_bytes(b"x")
    write_tiny(path)
    Bundle.open(path)
    with pytest.raises(BadInput, match=r"already holds bundle b-"):
        write_tiny(path, dimensions=[32, 8])
    Bundle.open(path)


def test_a_failed_write_leaves_nothing_behind(write_tiny, tmp_path, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrieval_core.bundle.writer.render_card", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_tiny(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_callers_model_and_tokenizer_are_not_changed(
    base_tokenizers, make_llama, spec, percentiles, write_tiny, tmp_path
):
    model = make_llama(700)
    before = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    write_tiny(tmp_path / "b", model=model, dtype="bfloat16")
    assert model.config.to_dict() == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_byte_in_any_file_is_noticed(name, own_copy):
    content = bytearray((own_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (own_copy / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{re.escape(name)} has not the content.*copy it again"):
        Bundle.open(own_copy)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(name, own_copy):
    (own_copy / name).unlink()
    with pytest.raises(BadInput, match=rf"{re.escape(name)} is missing"):
        Bundle.open(own_copy, verify=False)


def test_another_size_is_noticed_without_reading_the_files(own_copy):
    with (own_copy / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BadInput, match=r"model\.safetensors has \d+ bytes, expected \d+"):
        Bundle.open(own_copy, verify=False)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("modeling.py", "could be run as code"),
        ("pytorch_model.bin", "could be run as code"),
        ("1_Pooling/extra.pt", "could be run as code"),
        ("optimizer.ckpt", "could be run as code"),
        (".hidden.pkl", "could be run as code"),
        ("adapter_config.json", "is not listed in bundle.json; remove it"),
        ("model-00002.safetensors", "is not listed"),
        ("special_tokens_map.json", "is not listed"),
    ],
)
def test_a_file_that_was_put_beside_the_bundles_own_is_refused(name, complaint, own_copy):
    (own_copy / name).write_text("{}")
    with pytest.raises(BadInput, match=rf"{re.escape(name)} .*{complaint}"):
        Bundle.open(own_copy)


def test_a_hidden_file_of_a_desktop_is_left_alone(own_copy):
    (own_copy / ".DS_Store").write_text("x")
    Bundle.open(own_copy)


def test_a_symbolic_link_is_refused(own_copy, bundle_path):
    (own_copy / "config.json").unlink()
    (own_copy / "config.json").symlink_to(bundle_path / "config.json")
    with pytest.raises(BadInput, match=r"config\.json is a symbolic link"):
        Bundle.open(own_copy)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param(lambda d: d.update(formatVersion=2), "formatVersion is 2, this program knows 1", id="version"),
        pytest.param(lambda d: d.update(id="b-" + "0" * 16), "its content gives b-", id="id"),
        pytest.param(lambda d: d["embedding"].update(pooling="last"), "embedding.pooling: found 'last'", id="pooling"),
        pytest.param(lambda d: d["embedding"].update(dtype="float16"), "its content gives", id="dtype"),
        pytest.param(lambda d: d["files"].pop("model.safetensors"), "its content gives", id="file dropped"),
        pytest.param(lambda d: d["files"].pop("README.md"), "README.md is not listed", id="record dropped"),
        pytest.param(
            lambda d: d["files"].update({"../x": d["files"]["config.json"]}),
            "'../x' is not a relative path",
            id="outside",
        ),
        pytest.param(lambda d: d["files"]["model.safetensors"].update(role="record"), "has role record", id="role"),
        pytest.param(lambda d: d.update(owner="me"), "owner: unknown field", id="unknown field"),
    ],
)
def test_a_changed_manifest_is_refused(change, complaint, own_copy):
    edit(own_copy / "bundle.json", change)
    with pytest.raises(BadInput, match=re.escape(complaint)):
        Bundle.open(own_copy, verify=False)


def test_a_truncated_manifest_is_refused(own_copy):
    text = (own_copy / "bundle.json").read_text()
    (own_copy / "bundle.json").write_text(text[: len(text) // 2])
    with pytest.raises(BadInput, match="truncated"):
        Bundle.open(own_copy)


@pytest.mark.parametrize("present", [True, False])
def test_a_directory_without_bundle_json_is_refused(present, own_copy, tmp_path):
    (own_copy / "bundle.json").unlink()
    with pytest.raises(BadInput, match="unfinished"):
        Bundle.open(own_copy if present else tmp_path / "nothing")


def test_a_foreign_bundle_is_refused_by_the_id_that_was_expected(bundle):
    assert Bundle.open(bundle.path, expected_id=bundle.id).id == bundle.id
    with pytest.raises(BadInput, match=rf"holds bundle {bundle.id}, expected b-0000000000000000"):
        Bundle.open(bundle.path, expected_id="b-0000000000000000")


def test_a_bundle_opens_from_a_file_uri(bundle):
    assert Bundle.open(bundle.path.as_uri()).id == bundle.id


@pytest.mark.parametrize(("provenance", "warns"), [("synthetic", True), ("real", False)])
def test_the_card_shows_the_record_and_says_when_the_data_are_synthetic(provenance, warns, write_tiny, tmp_path):
    training = {
        "provenance": provenance,
        "hyperparameters": {"temperature": 0.05},
        "base": "a|b",
        "split": {"mode": "global"},
    }
    path = write_tiny(tmp_path / "b", training=training, card="Trained for a test.")
    card = (path / "README.md").read_text()
    assert ("Synthetic data" in card) is warns
    assert Bundle.open(path).id in card
    assert "Trained for a test." in card
    for row in ("| hyperparameters.temperature | 0.05 |", "| base | a\\|b |", "| split.mode | global |"):
        assert row in card


@pytest.mark.parametrize(
    "changed", [{"dimension": 16, "dimensions": [16]}, {"dimensions": [64]}, {"dimensions": [16, 16]}]
)
def test_dimensions_that_the_model_does_not_have_are_a_defect(changed, write_tiny, tmp_path):
    with pytest.raises(ValueError, match="dimension"):
        write_tiny(tmp_path / "b", **changed)


def test_a_model_with_unmerged_adapters_is_a_defect(write_tiny, tmp_path):
    with pytest.raises(TypeError, match="merge adapters"):
        write_tiny(tmp_path / "b", model=torch.nn.Linear(2, 2))


CONFIG_SPELLINGS = {
    "version 4": ("rope_parameters", "dtype"),
    "version 5": ("rope_theta", "rope_scaling", "torch_dtype"),
}


@pytest.mark.parametrize("dropped", CONFIG_SPELLINGS.values(), ids=CONFIG_SPELLINGS.keys())
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 50_000.0},
        {
            "rope_type": "llama3",
            "rope_theta": 50_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=["default", "llama3"],
)
def test_either_spelling_of_the_config_alone_gives_the_same_vectors(dropped, rope, write_tiny, tmp_path):
    """What a reader that knows only one spelling sees: the other one is taken out of config.json."""
    path = write_tiny(tmp_path / "b", config={"rope_parameters": rope})
    bundle = Bundle.open(path)
    prompts = [bundle.renderer().item({"title": "Senior data engineer", "engagements": 5})]
    expected = Encoder(bundle).encode_prompts(prompts)
    edit(path / "config.json", lambda config: [config.pop(name) for name in dropped])
    found = Encoder(bundle).encode_prompts(prompts)
    assert abs(found - expected).max() < 1e-6


def test_the_tokenizer_config_is_one_that_older_readers_understand(bundle):
    """transformers 4 knows no TokenizersBackend, and would feed token_type_ids to a causal model."""
    config = json.loads((bundle.path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["padding_side"] == "right"
    assert config["pad_token"] == "<pad>"


def test_rope_settings_do_change_the_vectors(write_tiny, tmp_path):
    """The premise of the test above."""
    vectors = []
    for theta in (10_000.0, 50_000.0):
        path = write_tiny(
            tmp_path / str(theta), config={"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        )
        encoder = Encoder(Bundle.open(path))
        vectors.append(encoder.encode_items([{"title": "Senior data engineer", "engagements": 5}]))
    assert abs(vectors[0] - vectors[1]).max() > 1e-4
