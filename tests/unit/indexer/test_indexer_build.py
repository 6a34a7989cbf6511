"""A build can be interrupted anywhere, refreshed, sharded differently, or run out of disk, and stays truthful."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from retrieval_core.encoding import Encoder
from retrieval_core.errors import BadArguments, BadInput, StorageFailed
from retrieval_core.generation import Generation, writer
from retrieval_indexer import checks
from retrieval_indexer.build import BuildRequest, IndexBuild
from retrieval_indexer.corpus import Shard, default_as_of
from retrieval_indexer.encode import prompt_hash
from retrieval_indexer.factory import AUTO_FLAT_COMPONENTS, resolve_factory


@pytest.fixture
def task(datasets, bundle_uri, tmp_path):
    """An index build with three shards; arguments change the request."""

    def make(**changed) -> IndexBuild:
        arguments = {"kind": "evaluation", "served_k": 50, "shards": 3, "out": str(tmp_path / "out")} | changed
        return IndexBuild(BuildRequest(bundle=bundle_uri, dataset=str(datasets["global"]), **arguments))

    return make


@pytest.fixture
def encoded_prompts(monkeypatch) -> list[str]:
    """Every prompt that reaches a model."""
    prompts: list[str] = []
    original = Encoder.encode_prompts

    def recording(self, batch, *arguments):
        prompts.extend(batch)
        return original(self, batch, *arguments)

    monkeypatch.setattr(Encoder, "encode_prompts", recording)
    return prompts


def run(task: IndexBuild) -> Generation:
    for number in range(task.request.shards):
        task.encode(Shard(number, task.request.shards))
    task.merge()
    return Generation.open(task.request.out)


def test_every_item_has_the_vector_of_its_prompt_as_of_then(task):
    build = task()
    generation = run(build)
    corpus, encoder = build.corpus, Encoder(build.corpus.bundle)
    rows = np.flatnonzero(corpus.dataset.item_created_at <= corpus.as_of)
    assert generation.ids.tolist() == corpus.dataset.item_ids[rows].tolist()
    assert len(rows) < len(corpus.dataset.item_ids)  # the premise: some items are too young
    prompts = [encoder.renderer.item(corpus.view.item_features(int(row), corpus.as_of)) for row in rows]
    assert generation.prompt_hashes.tolist() == [prompt_hash(prompt) for prompt in prompts]
    np.testing.assert_allclose(generation.vectors, encoder.encode_prompts(prompts), atol=1e-6)


def test_an_evaluation_generation_is_as_of_the_test_part_and_a_serving_one_as_of_the_last_event(open_datasets):
    feed, bursts = open_datasets["global"], open_datasets["perMember"]
    assert default_as_of(feed, "evaluation") == feed.split.test_from
    assert default_as_of(feed, "serving") == feed.last_event_time + 1
    starts = bursts.split.member_test_from
    assert default_as_of(bursts, "evaluation") == max(t for t in starts if t < 2**62)


def test_checks_of_a_sound_generation(task):
    manifest = run(task(members=True)).manifest
    assert manifest.checks.finite
    assert manifest.checks.max_norm_error < 1e-5
    assert manifest.checks.self_hit == 1.0
    assert manifest.checks.recall_at_served_k == 1.0
    assert manifest.checks.coverage == 1.0
    assert manifest.copied == 0
    assert manifest.encoded == manifest.count


def test_a_restarted_build_encodes_only_the_shards_that_are_missing(task, encoded_prompts):
    interrupted = task()
    interrupted.encode(Shard(0, 3))
    interrupted.encode(Shard(1, 3))
    before = len(encoded_prompts)
    again = task()
    generation = run(again)
    assert len(encoded_prompts) - before == len(again.corpus.rows(Shard(2, 3)))
    assert len(encoded_prompts) == generation.count


@pytest.mark.parametrize("name", ["vectors/00001.f32", "items/00001.parquet", "shards/00001.json"])
def test_a_shard_that_was_cut_off_or_changed_is_encoded_again(task, encoded_prompts, name, tmp_path):
    build = task()
    reference = run(build)
    (tmp_path / "out" / "MANIFEST.json").unlink()
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes()[:-4])
    encoded_prompts.clear()
    assert run(task()).id == reference.id
    assert len(encoded_prompts) == len(build.corpus.rows(Shard(1, 3)))


def test_a_finished_build_is_found_complete_and_other_settings_are_refused(task, encoded_prompts):
    generation = run(task())
    encoded_prompts.clear()
    assert task().found_complete().id == generation.id
    assert not encoded_prompts
    with pytest.raises(BadInput, match=r"servedDimension 32 \(asked for 16\).*choose another --out"):
        task(served_dimension=16).found_complete()
    assert task(out=generation.path.parent.as_posix() + "/empty").found_complete() is None


def test_merge_names_the_shards_that_are_missing(task):
    build = task()
    build.encode(Shard(1, 3))
    with pytest.raises(BadArguments, match="shards 0/3, 2/3 are not encoded"):
        build.merge()


def test_fewer_shards_than_before_leave_nothing_behind(task, tmp_path):
    build = task()
    build.encode(Shard(2, 3))
    (tmp_path / "out" / ".index.faiss.0.tmp").touch()  # what a process that was killed while writing leaves
    generation = run(task(shards=1))
    listed = set(generation.manifest.files)
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == listed | {"MANIFEST.json", "shards/00000.json"}


def test_sharding_changes_files_and_not_vectors(task, tmp_path):
    one, five = run(task(shards=1, out=str(tmp_path / "one"))), run(task(shards=5, out=str(tmp_path / "five")))
    assert one.ids.tolist() == five.ids.tolist()
    np.testing.assert_allclose(one.vectors, five.vectors, atol=1e-6)
    assert len(five.manifest.shards()) == 5


def test_a_refresh_copies_unchanged_vectors_and_equals_a_full_rebuild(task, tmp_path, encoded_prompts):
    earlier = run(task(out=str(tmp_path / "earlier")))
    serving = {"kind": "serving", "as_of": earlier.manifest.as_of + 2 * 86_400}
    encoded_prompts.clear()
    refreshed = run(task(out=str(tmp_path / "refreshed"), previous=str(earlier.path), **serving))
    manifest = refreshed.manifest
    assert manifest.previous == earlier.id
    assert manifest.copied == sum(key in set(earlier.prompt_hashes) for key in refreshed.prompt_hashes)
    assert 0 < manifest.copied < manifest.count  # the premise: some prompts changed in two days, some did not
    assert manifest.encoded == manifest.count - manifest.copied == len(encoded_prompts)
    full = run(task(out=str(tmp_path / "full"), **serving))
    assert full.prompt_hashes.tolist() == refreshed.prompt_hashes.tolist()
    np.testing.assert_allclose(full.vectors, refreshed.vectors, atol=1e-6)


def test_vectors_of_another_bundle_are_never_copied(task, make_bundle, tmp_path, datasets, build):
    other = make_bundle(tmp_path / "other-bundle", seed=1)
    earlier = build(datasets["global"], str(other), tmp_path / "earlier")
    manifest = run(task(previous=earlier)).manifest
    assert manifest.previous is None
    assert manifest.copied == 0


def test_another_bundle_than_expected_is_refused(task):
    with pytest.raises(BadInput, match="expected b-0000000000000000"):
        task(expected_bundle_id="b-0000000000000000")


def test_a_served_dimension_is_cut_and_of_unit_length(task):
    generation = run(task(served_dimension=16))
    cut = generation.vectors[:, :16]
    np.testing.assert_allclose(generation.served_vectors, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)
    assert generation.dimension == 16
    with pytest.raises(BadArguments, match="trained for 32, 16"):
        task(served_dimension=8)


@pytest.mark.parametrize("target", [".f32", ".parquet", "index.faiss", "MANIFEST.json"])
def test_a_full_disk_is_said_and_publishes_nothing(task, monkeypatch, tmp_path, target):
    """The write fails where a full disk makes it fail: in the operating system's call, for one kind of file."""
    real_fsync = writer.os.fsync

    def full(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if target in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device") as raised:
            run(task(members=True))
    if target != "MANIFEST.json":  # which core writes: the exit code is the same
        assert isinstance(raised.value, StorageFailed)
    with pytest.raises(BadInput, match="unfinished"):
        Generation.open(str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(task(members=True)).count  # and with space again it continues


def test_a_finished_generation_at_a_remote_uri_is_the_same_one(task, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAL_CACHE_DIR", str(tmp_path / "cache"))
    local = run(task(out=str(tmp_path / "local")))
    first = task(out="memory://indexes/g")
    first.encode(Shard(0, 3))
    monkeypatch.setenv("RETRIEVAL_CACHE_DIR", str(tmp_path / "another-machine"))
    assert run(task(out="memory://indexes/g")).id == local.id
    assert task(out="memory://indexes/g").found_complete().id == local.id


def test_vectors_that_are_not_finite_are_recorded_and_found_by_nothing(task, tmp_path):
    """Such a generation can be made (an encoder that yields them is stopped earlier), so that gates can name it."""
    build = task(shards=1)
    build.encode(Shard(0, 1))
    vectors = np.fromfile(tmp_path / "out" / "vectors" / "00000.f32", dtype="<f4").reshape(-1, 32)
    vectors[3] = np.nan
    entry = writer.write_vectors(tmp_path / "out" / "vectors" / "00000.f32", vectors)
    record = json.loads((tmp_path / "out" / "shards" / "00000.json").read_text())
    record["files"]["vectors/00000.f32"] = entry.model_dump()
    (tmp_path / "out" / "shards" / "00000.json").write_text(json.dumps(record))
    manifest = build.merge()
    assert not manifest.checks.finite
    assert manifest.checks.max_norm_error is None
    assert manifest.checks.self_hit is None
    assert manifest.checks.recall_at_served_k is None
    assert manifest.checks.coverage == pytest.approx(1 - 1 / manifest.count)


def test_a_collapsed_generation_does_not_find_itself(task, make_bundle, tmp_path, datasets, build):
    bundle = make_bundle(tmp_path / "collapsed", collapsed=True)
    generation = Generation.open(build(datasets["global"], str(bundle), tmp_path / "g"))
    assert generation.manifest.checks.self_hit < 0.1


def test_an_approximate_index_searches_harder_until_it_finds_enough(task):
    manifest = run(task(factory="IVF16,Flat", members=True)).manifest
    assert manifest.checks.recall_at_served_k >= 0.98
    assert 1 < manifest.parameters["nprobe"] <= 16


def test_a_factory_that_does_not_fit_is_refused_in_words(task):
    with pytest.raises(BadArguments, match="use Flat or auto"):
        run(task(factory="PQ7"))


def test_auto_is_flat_until_flat_is_slow():
    assert resolve_factory("auto", 100_000, 512) == "Flat"
    assert resolve_factory("auto", AUTO_FLAT_COMPONENTS // 512 + 1, 512) == "IVF2048,Flat"
    assert resolve_factory("SQ8", 10**9, 512) == "SQ8"


def test_attributes_are_stored_beside_the_ids(task):
    build = task(shards=2)
    generation = run(build)
    table = pq.read_table(build.corpus.dataset.path / "items")
    for name in ("author", "tags"):
        of = dict(zip(table["item_id"].to_pylist(), table[name].to_pylist(), strict=True))
        assert generation.attributes[name].to_pylist() == [of[item] for item in generation.ids.tolist()]


@pytest.mark.parametrize("text", ["", "1", "3/3", "a/b", "-1/3", "1/0"])
def test_a_shard_is_written_i_of_n(text):
    with pytest.raises(BadArguments, match="expected i/N"):
        Shard.parse(text)


def test_self_hit_asks_for_the_prompt_and_not_for_the_score():
    vectors = np.tile(np.eye(8, dtype=np.float32)[:1], (10, 1))
    from retrieval_core.generation.search import SearchIndex, build_index

    index = SearchIndex(build_index(vectors, "Flat"), vectors, {})
    assert checks.self_hit(index, vectors, np.asarray(["same"] * 10)) == 1.0
    assert checks.self_hit(index, vectors, np.asarray([str(i) for i in range(10)])) == pytest.approx(0.1)
