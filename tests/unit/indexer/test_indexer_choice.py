"""An index is tuned and judged with what will be asked of it, and is Flat while Flat is fast enough."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval_core.dataset import open_dataset
from retrieval_core.encoding import Encoder, truncate
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.generation import Generation
from retrieval_core.generation.search import SearchIndex, exact_search
from retrieval_indexer import factory
from retrieval_indexer.build import BuildRequest, IndexBuild
from retrieval_indexer.corpus import Shard
from retrieval_indexer.factory import IndexChooser, approximate_factory, derive_index
from retrieval_indexer.members import joined_members, sample_members
from retrieval_indexer.workspace import Workspace

K = 30


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    """32 tight clusters of K items: the best K of an item are its own cluster, which any index finds."""
    random = np.random.default_rng(0)
    return unit(np.repeat(unit(random.normal(size=(32, 16))), K, axis=0) + 0.1 * random.normal(size=(32 * K, 16)))


@pytest.fixture(scope="module")
def members() -> np.ndarray:
    """Between the clusters, as members with several interests are."""
    return unit(np.random.default_rng(1).normal(size=(200, 16)))


def reference_recall(items: np.ndarray, built: factory.BuiltIndex, queries: np.ndarray) -> float:
    scores = queries @ items.T
    _, found = SearchIndex(built.index, items, built.parameters).search(queries, K, repair=False)
    best = np.argsort(-scores, axis=1)[:, :K]
    return float(np.mean([len(set(b) & set(f)) / K for b, f in zip(best.tolist(), found, strict=True)]))


@pytest.mark.parametrize(("name", "reachable"), [("IVF32,Flat", 0.98), ("HNSW8", 0.98), ("SQ4", 0.85)])
def test_items_as_queries_would_hide_what_members_lose(items, members, name, reachable):
    by_items = derive_index(items, name, items, K)
    lost = reference_recall(items, by_items, members)
    assert by_items.recall > 0.95  # the premise: with items as queries all looks well,
    assert lost < 0.93  # and members would not have got what was promised
    chosen = IndexChooser(items, K, lambda: members).choose(name, None)
    assert chosen.recall == pytest.approx(reference_recall(items, chosen, members), abs=1e-3)
    assert chosen.recall >= reachable  # SQ4 cannot search harder: it says what it loses


def test_more_effort_that_finds_less_is_not_kept(items, members):
    """4-bit codes give the refinement worse candidates the more lists are probed."""
    name = "IVF32,PQ4x4fs,RFlat"
    chosen = derive_index(items, name, members, K)
    efforts = list(factory._efforts(name, K))
    recalls = [
        reference_recall(items, factory.BuiltIndex(name, chosen.index, effort, None), members) for effort in efforts
    ]
    assert recalls[-1] < max(recalls) < 0.98  # the premise
    assert chosen.recall == pytest.approx(max(recalls), abs=1e-3)
    assert chosen.parameters == efforts[int(np.argmax(recalls))]


def test_flat_asks_no_member_and_nobody_to_ask_is_not_a_good_answer(items):
    def nobody() -> np.ndarray:
        return np.empty((0, 16), np.float32)

    def refuse() -> np.ndarray:
        raise AssertionError("members were encoded for an exact index")

    assert IndexChooser(items, K, refuse).choose("Flat", None).recall == 1.0
    assert IndexChooser(items, K, refuse).choose("auto", None).factory == "Flat"
    assert IndexChooser(items, K, nobody).choose("IVF32,Flat", None).recall is None


def scripted_clock(*medians_ms: float):
    """A clock by which every query of the first index takes the first time, of the second index the second."""
    now = 0.0
    times = [now]
    for median_ms in medians_ms:
        for _ in range(factory.TIMED_QUERIES):
            times += [now, now := now + median_ms / 1000]
    return itertools.chain(times[1:]).__next__


@pytest.mark.parametrize(
    ("flat_ms", "approximate_ms", "target_ms", "expected"),
    [
        (4.0, None, 5, ("Flat", 4.0)),
        (5.0, None, 5, ("Flat", 5.0)),
        (9.0, 2.0, 5, ("IVF128,Flat", 2.0)),
        (9.0, 7.0, 5, ("IVF128,Flat", 7.0)),
        (9.0, 9.5, 5, ("Flat", 9.0)),
    ],
    ids=["faster than the target", "just as fast", "too slow", "both too slow", "an approximation that is slower"],
)
def test_auto_is_flat_while_its_median_meets_the_target(
    items, members, flat_ms, approximate_ms, target_ms, expected
):  # fmt: skip
    clock = scripted_clock(flat_ms, *([] if approximate_ms is None else [approximate_ms]))
    chosen = IndexChooser(items, K, lambda: members, clock).choose("auto", target_ms)
    assert (chosen.factory, chosen.p50_ms) == (expected[0], pytest.approx(expected[1], abs=1e-3))


def test_nothing_is_timed_without_a_target_and_a_named_factory_is_timed_but_kept(items, members):
    untouched = IndexChooser(items, K, lambda: members, scripted_clock()).choose("IVF32,Flat", None)
    assert untouched.p50_ms is None
    slow = IndexChooser(items, K, lambda: members, scripted_clock(80)).choose("IVF32,Flat", 5)
    assert (slow.factory, slow.p50_ms) == ("IVF32,Flat", pytest.approx(80, abs=1e-3))


def test_a_slow_flat_index_with_no_member_to_judge_another_by_stays_flat(items):
    nobody = IndexChooser(items, K, lambda: np.empty((0, 16), np.float32), scripted_clock(80))
    assert nobody.choose("auto", 5).factory == "Flat"


@pytest.mark.parametrize("count", [1, 2, 5, 15, 16, 100])
def test_what_auto_may_choose_can_be_built_over_any_corpus(count):
    vectors = unit(np.random.default_rng(count).normal(size=(count, 8)))
    k = min(K, count)
    built = derive_index(vectors, approximate_factory(count), vectors, k)
    assert built.recall >= 0.98
    assert exact_search(vectors, vectors, k)[1].shape == (count, k)


@pytest.fixture
def task(datasets, bundle_uri, tmp_path):
    def make(**changed) -> IndexBuild:
        arguments = {
            "kind": "evaluation", "served_k": 50, "out": str(tmp_path / "out"), "dataset": str(datasets["global"]),
        }  # fmt: skip
        return IndexBuild(BuildRequest(bundle=bundle_uri, **arguments | changed))

    return make


def run(build: IndexBuild) -> Generation:
    build.encode(Shard(0, 1))
    build.merge()
    return Generation.open(build.request.out)


@pytest.fixture
def member_prompts(monkeypatch) -> list[int]:
    """How many members each call encoded."""
    calls: list[int] = []
    original = Encoder.encode_members

    def recording(self, members, *arguments):
        calls.append(len(members))
        return original(self, members, *arguments)

    monkeypatch.setattr(Encoder, "encode_members", recording)
    return calls


@pytest.mark.parametrize(
    ("settings", "encoded"),
    [
        ({"factory": "Flat"}, []),
        ({"factory": "auto"}, []),
        ({"factory": "auto", "latency_target_ms": 10_000}, []),
        ({"factory": "IVF8,Flat"}, [20]),
        ({"factory": "IVF8,Flat", "latency_target_ms": 10_000}, [20]),
        ({"factory": "IVF8,Flat", "members": True}, [60]),
    ],
    ids=str,
)
def test_a_sample_of_members_is_encoded_once_and_only_for_an_approximate_index(
    task, monkeypatch, member_prompts, settings, encoded
):  # fmt: skip
    monkeypatch.setattr("retrieval_indexer.merge.SAMPLE", 20)
    run(task(**settings))
    assert member_prompts == encoded


@pytest.mark.parametrize("members", [False, True], ids=["encoded for it", "stored ones"])
def test_the_recall_in_the_manifest_is_that_of_members_as_of_then(task, members):
    build = task(factory="SQ4", members=members, served_dimension=16)
    generation = run(build)
    corpus, encoder = build.corpus, Encoder(build.corpus.bundle)
    features = [corpus.view.member_features(member, corpus.as_of, 3) for member in range(60)]
    queries = truncate(encoder.encode_members(features), 16)
    truth = exact_search(queries, np.asarray(generation.served_vectors), 50)[1]
    _, found = generation.index.search(queries, 50, repair=False)
    recall = np.mean([len(set(t) & set(f)) / 50 for t, f in zip(truth.tolist(), found, strict=True)])
    assert generation.manifest.checks.recall_at_served_k == pytest.approx(recall, abs=1e-3)
    assert recall < 0.99  # the premise: something is lost, so that the number says which queries it is about


@pytest.fixture
def late_members(make_dataset, tmp_path):
    """A dataset whose members m5 and above join after everything has happened; (URI, time before that)."""

    def make(early: int) -> tuple[str, int]:
        directory = make_dataset(tmp_path / "late", events_per_member=4)
        opened = open_dataset(str(directory))
        path = directory / "members" / "0.parquet"
        table = pq.read_table(path)
        joined = [0] * early + [opened.last_event_time + 10] * (len(table) - early)
        column = table.column_names.index("joined_at")
        pq.write_table(table.set_column(column, "joined_at", pa.array(joined, pa.int64())), path)
        return str(directory), opened.last_event_time + 1

    return make


def test_members_who_had_not_joined_are_not_asked(task, late_members, member_prompts):
    dataset, as_of = late_members(early=5)
    generation = run(task(dataset=dataset, kind="serving", as_of=as_of, factory="IVF8,Flat"))
    assert member_prompts == [5]
    assert generation.manifest.checks.recall_at_served_k > 0.9


def test_when_nobody_had_joined_recall_is_unknown_and_flat_is_still_exact(task, late_members, tmp_path):
    dataset, as_of = late_members(early=0)
    request = {"dataset": dataset, "kind": "serving", "as_of": as_of}
    stored = request | {"factory": "IVF8,Flat", "members": True}
    assert run(task(**stored)).manifest.checks.recall_at_served_k is None
    assert task(**stored).found_complete().members == 0
    flat = run(task(factory="Flat", out=str(tmp_path / "flat"), **request))
    assert flat.manifest.checks.recall_at_served_k == 1.0


def test_a_sample_is_stable_and_of_those_who_had_joined(datasets, open_datasets):
    dataset = open_datasets["global"]
    ten = sample_members(dataset, dataset.last_event_time, 10, "index").tolist()
    assert ten == sample_members(open_dataset(str(datasets["global"])), dataset.last_event_time, 10, "index").tolist()
    twenty = sample_members(dataset, dataset.last_event_time, 20, "index").tolist()
    assert twenty[:10] == ten
    assert len(set(twenty)) == 20
    assert ten != sample_members(dataset, dataset.last_event_time, 10, "another").tolist()
    before = int(np.sort(dataset.member_joined_at)[29])
    assert len(sample_members(dataset, before, 512, "index")) == len(joined_members(dataset, before)) == 30


def test_measured_times_are_recorded_beside_the_id(task, tmp_path):
    plain = run(task(factory="auto"))
    timed = run(task(factory="auto", latency_target_ms=10_000, out=str(tmp_path / "timed")))
    assert plain.manifest.latency is None
    assert timed.manifest.latency.target_ms == 10_000
    assert timed.manifest.latency.p50_ms > 0
    assert timed.id == plain.id


def test_a_manifest_from_before_latencies_can_be_read(task, tmp_path):
    generation = run(task())
    document = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    del document["latency"]
    (tmp_path / "out" / "MANIFEST.json").write_text(json.dumps(document))
    assert Generation.open(str(tmp_path / "out")).id == generation.id


def test_a_finished_build_keeps_its_choice_however_fast_the_machine_is_now(task, monkeypatch, tmp_path):
    times_ms = iter([80.0, 3.0])
    with monkeypatch.context() as slow:
        slow.setattr("retrieval_indexer.factory._p50_ms", lambda *_: next(times_ms))
        first = run(task(latency_target_ms=50)).manifest
    assert first.factory == approximate_factory(first.count)
    assert task(latency_target_ms=50).found_complete() == first
    with pytest.raises(BadInput, match=r"a latency target of 50 ms \(asked for 5\).*choose another --out"):
        task(latency_target_ms=5).found_complete()
    with pytest.raises(BadInput, match=r"a latency target of 50 ms \(asked for None\)"):
        task().found_complete()
    with pytest.raises(BadInput, match=r"factory 'IVF64,Flat' \(asked for 'SQ8'\)"):
        task(latency_target_ms=50, factory="SQ8").found_complete()


def test_a_latency_target_below_a_millisecond_is_refused(task):
    with pytest.raises(BadArguments, match="--latency-target-ms is 0, expected at least 1"):
        task(latency_target_ms=0)


def test_a_build_cut_off_while_it_was_published_is_published_by_the_next(task, monkeypatch, tmp_path):
    monkeypatch.setenv("RETRIEVAL_CACHE_DIR", str(tmp_path / "cache"))
    remote = {"out": "memory://indexes/cut-off"}

    def die(self, last):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Workspace, "publish", die)
        run(task(**remote))
    with pytest.raises(BadInput, match=r"does not exist|unfinished"):
        Generation.open(remote["out"])
    manifest = task(**remote).found_complete()
    assert Generation.open(remote["out"]).id == manifest.id
