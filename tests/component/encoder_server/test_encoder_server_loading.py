"""What a server refuses to load, and that a sound bundle passes the self-test."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from retrieval_core.bundle.manifest import BundleFile, BundleManifest
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.files import write_json
from retrieval_encoder_server.loading import open_engine
from retrieval_encoder_server.settings import Settings

pytestmark = pytest.mark.component


@pytest.fixture
def settings(stack):
    def make(**changes) -> Settings:
        whole = {"bundle_uri": str(stack.bundle_path), "generation_uri": str(stack.generation_path), **changes}
        return Settings(**whole)

    return make


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param(
            {"expected_bundle_id": "b-ffffffffffffffff"},
            BadInput,
            "expected b-ffffffffffffffff",
            id="another bundle id",
        ),
        pytest.param(
            {"expected_generation_id": "g-ffffffffffffffff"}, BadInput, "expected g-ffff", id="another generation id"
        ),
        pytest.param({"served_dimension": 32}, BadArguments, "was built to serve 16; leave it out", id="another width"),
        pytest.param(
            {"generation_uri": None, "served_dimension": 20}, BadArguments, "has 16, 32", id="a width nobody trained"
        ),
        pytest.param(
            {"generation_uri": None, "expected_generation_id": "g-ffffffffffffffff"},
            BadArguments,
            "GENERATION_URI is not set",
            id="an expected generation but none",
        ),
        pytest.param({"bundle_uri": "nowhere"}, BadInput, "nowhere", id="no bundle there"),
        pytest.param({"generation_uri": "nowhere"}, BadInput, "nowhere", id="no generation there"),
    ],
)
def test_what_does_not_fit_is_refused(settings, changes, error, message):
    with pytest.raises(error, match=message):
        open_engine(settings(**changes))


def test_expected_ids_that_match_are_served(settings, stack):
    engine = open_engine(
        settings(expected_bundle_id=stack.bundle.id, expected_generation_id=stack.generation.id, served_dimension=16)
    )
    assert (engine.ids.bundle_id, engine.ids.generation_id) == (stack.bundle.id, stack.generation.id)
    assert (engine.ids.dimension, engine.ids.count) == (16, stack.generation.count)


@pytest.mark.parametrize(("asked", "served"), [(None, 32), (16, 16), (32, 32)])
def test_without_a_generation_the_served_width_is_the_bundles_or_the_asked_one(settings, asked, served):
    engine = open_engine(settings(generation_uri=None, served_dimension=asked))
    assert (engine.ids.generation_id, engine.ids.dimension, engine.ids.count) == (None, served, 0)


def test_a_generation_of_another_bundle_is_refused(settings, other_bundle, stack):
    with pytest.raises(BadInput, match=f"was made by bundle {stack.bundle.id}"):
        open_engine(settings(bundle_uri=str(other_bundle)))


@pytest.mark.parametrize("file", ["model.safetensors", "prompts.json", "tokenizer.json"])
def test_a_changed_byte_is_refused(settings, stack, tmp_path, file):
    damaged = shutil.copytree(stack.bundle_path, tmp_path / "damaged")
    content = bytearray((damaged / file).read_bytes())
    content[-2] ^= 1
    (damaged / file).write_bytes(content)
    with pytest.raises(BadInput, match=file):
        open_engine(settings(bundle_uri=str(damaged)))


def test_weights_that_give_nan_fail_the_self_test(settings, stack, tmp_path):
    """A bundle that is intact by its hashes and still cannot encode."""
    broken = shutil.copytree(stack.bundle_path, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    manifest = BundleManifest.model_validate(json.loads((broken / "bundle.json").read_text()))
    files = {file: BundleFile.of(broken, file) for file in manifest.files}
    write_json(broken / "bundle.json", BundleManifest.describe(manifest.embedding, files).document())
    with pytest.raises(BadInput, match="self-test failed: the model yields numbers that are not finite"):
        open_engine(settings(bundle_uri=str(broken), generation_uri=None))
