"""A generation is what its manifest says, is refused when it is not, and never returns what a filter excludes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval_core.errors import BadInput
from retrieval_core.generation import Generation, generation_id
from retrieval_core.generation.search import FilterViolated, SearchIndex, build_index, exact_search


@pytest.fixture
def copy(generations, tmp_path) -> Path:
    """A generation that a test may damage."""
    return Path(shutil.copytree(generations["global"], tmp_path / "copy"))


@pytest.fixture(scope="module")
def generation(generations) -> Generation:
    return Generation.open(generations["global"])


def test_vectors_ids_and_members_line_up(generation):
    assert generation.count == len(generation.ids) == len(generation.vectors) == len(generation.prompt_hashes)
    assert generation.vectors.shape[1] == generation.manifest.dimension == 32
    np.testing.assert_allclose(np.linalg.norm(generation.vectors, axis=1), 1, atol=1e-5)
    assert generation.member_vector("m3").shape == (generation.dimension,)
    assert generation.member_vector("nobody") is None
    assert generation.manifest.members == len(generation.members) == 60


def test_search_finds_what_a_plain_product_finds(generation):
    queries = generation.member_vectors[:5]
    result = generation.search(queries, 7)
    expected = np.argsort(-(queries @ generation.vectors.T), axis=1)[:, :7]
    for query in range(5):
        assert result.ids[query].tolist() == generation.ids[expected[query]].tolist()


def test_excluded_items_are_gone_and_others_take_their_place(generation):
    queries = np.array(generation.member_vectors[:2])
    before = generation.search(queries, 10)
    hidden = before.ids[0][:4].tolist()
    after = generation.search(queries, 10, exclude=[[*hidden, "no such item"], []])
    assert not set(hidden) & set(after.ids[0])
    assert after.ids[0][:6].tolist() == before.ids[0][4:].tolist()
    assert len(after.ids[0]) == 10
    assert after.ids[1].tolist() == before.ids[1].tolist()


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ({"author": ["a1"]}, lambda author, tags: author == "a1"),
        ({"author": ["a1", "a2"]}, lambda author, tags: author in {"a1", "a2"}),
        ({"tags": ["food"]}, lambda author, tags: "food" in tags),
        (
            {"author": ["a3"], "tags": ["music", "data"]},
            lambda a, tags: a == "a3" and bool({"music", "data"} & set(tags)),
        ),
        ({"author": ["nobody"]}, lambda author, tags: False),
        ({"author": []}, lambda author, tags: False),
        ({}, lambda author, tags: True),
    ],
)
def test_allowed_values_decide_what_is_returned(generation, allowed, expected):
    authors, tags = generation.attributes["author"].to_pylist(), generation.attributes["tags"].to_pylist()
    wanted = {str(i) for i, a, t in zip(generation.ids, authors, tags, strict=True) if expected(a, t)}
    result = generation.search(np.array(generation.member_vectors[:3]), 10_000, allowed=allowed)
    for ids in result.ids:
        assert set(ids) == wanted


@pytest.mark.parametrize(
    "factory",
    ["Flat", "IVF8,Flat", "IVF8,PQ8x4fs,RFlat", "IVF8,SQ8,Refine(SQ8)", "PCA16,IVF8,Flat",
     "PCA16,IVF8,PQ8x4fs,Refine(Flat)", "HNSW16", "SQ8"],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_every_kind_of_index_filters_and_returns_a_full_answer(factory, share):
    """IndexRefine ignores a selector that is not inside base_index_params (faiss 1.15), so every nesting is tried."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(1000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    allowed = random.random(1000) < share
    index = SearchIndex(build_index(vectors, factory), vectors, {"nprobe": 2, "k_factor": 2})
    scores, rows = index.search(vectors[:20], 100, allowed)
    for s, r in zip(scores, rows, strict=True):
        assert allowed[r].all()
        assert len(r) == len(set(r.tolist())) == min(100, allowed.sum())
        assert (np.diff(s) <= 0).all()


def test_a_factory_whose_index_cannot_filter_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match="factory 'PQ4x4'"):
        build_index(np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32), "PQ4x4")


def test_an_index_that_ignores_its_selector_is_never_believed(monkeypatch):
    vectors = np.eye(8, dtype=np.float32)
    index = SearchIndex(build_index(vectors, "Flat"), vectors, {})
    monkeypatch.setattr("retrieval_core.generation.search._parameters", lambda *_: faiss.SearchParameters())
    with pytest.raises(FilterViolated):
        index.search(vectors, 8, np.arange(8) < 4)


def test_equal_scores_come_in_row_order():
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (6, 1))
    index = SearchIndex(build_index(vectors, "Flat"), vectors, {})
    assert index.search(vectors[:1], 6)[1][0].tolist() == [0, 1, 2, 3, 4, 5]


def test_exact_search_is_the_product_in_order():
    random = np.random.default_rng(1)
    vectors, queries = random.normal(size=(50, 8)).astype(np.float32), random.normal(size=(3, 8)).astype(np.float32)
    scores, rows = exact_search(queries, vectors, 50)
    np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors.T), axis=1), atol=1e-5)
    assert rows.shape == (3, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": np.zeros((1, 5), np.float32), "k": 1}, "shape"),
        ({"queries": np.zeros((1, 32), np.float32), "k": 0}, "at least 1"),
        ({"queries": np.full((1, 32), np.nan, np.float32), "k": 1}, "not a finite"),
        ({"queries": np.zeros((1, 32), np.float32), "k": 1, "exclude": []}, "0 lists for 1"),
        (
            {"queries": np.zeros((1, 32), np.float32), "k": 1, "allowed": {"colour": ["red"]}},
            "filterable: author, tags",
        ),
    ],
)
def test_a_wrong_question_is_refused_in_words(generation, arguments, message):
    with pytest.raises(ValueError, match=message):
        generation.search(**arguments)


FILES = ["vectors/00000.f32", "items/00001.parquet", "index.faiss", "members/vectors.f32", "MANIFEST.json"]


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_refused(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BadInput):
        Generation.open(str(copy))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_refused_even_without_hashing(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1])
    if name == "MANIFEST.json":
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput):
        Generation.open(str(copy), verify=False)
    path.unlink()
    with pytest.raises(BadInput):
        Generation.open(str(copy), verify=False)


def test_an_unknown_format_says_which_is_known(copy):
    document = json.loads((copy / "MANIFEST.json").read_text())
    (copy / "MANIFEST.json").write_text(json.dumps(document | {"formatVersion": 2}))
    with pytest.raises(BadInput, match="formatVersion is 2, this program knows 1"):
        Generation.open(str(copy))


def test_a_manifest_with_another_content_has_another_id(copy):
    document = json.loads((copy / "MANIFEST.json").read_text())
    (copy / "MANIFEST.json").write_text(json.dumps(document | {"asOf": 5}))
    with pytest.raises(BadInput, match="was changed"):
        Generation.open(str(copy))


def test_foreign_ids_are_refused_by_name(generation, generations):
    with pytest.raises(BadInput, match="was made by bundle"):
        Generation.open(generations["global"], expected_bundle_id="b-0000000000000000")
    with pytest.raises(BadInput, match="expected g-0000000000000000"):
        Generation.open(generations["global"], expected_id="g-0000000000000000")
    assert Generation.open(
        generations["global"], expected_id=generation.id, expected_bundle_id=generation.manifest.bundle_id
    )


def test_the_id_ignores_how_it_was_made_and_nothing_else(generation):
    document = generation.manifest.document()
    ignored = {"library": {"faiss": "9"}, "copied": 99, "encoded": 1, "previous": "g-1"}
    ignored["latency"] = {"targetMs": 5, "p50Ms": 1.5}
    for key, value in ignored.items():
        assert generation_id(document | {key: value}) == generation.id
    for key in set(document) - {"id"} - set(ignored):
        assert generation_id(document | {key: "changed"}) != generation.id
