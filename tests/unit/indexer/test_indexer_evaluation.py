"""The evaluation against plain re-computation: who is asked, pools, metrics, item variants, gates, caching."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from retrieval_core.bundle import Bundle
from retrieval_core.dataset import FeatureView, open_dataset
from retrieval_core.encoding import Encoder
from retrieval_core.errors import BadArguments, BadInput, Diverged
from retrieval_core.generation import Generation
from retrieval_indexer.evaluation import answers as answers_module
from retrieval_indexer.evaluation.answers import Metric, collect_answers, collect_stack_answers
from retrieval_indexer.evaluation.evaluation_set import build_evaluation_set
from retrieval_indexer.evaluation.gates import parse_gates
from retrieval_indexer.evaluation.item_variants import ItemVariants
from retrieval_indexer.evaluation.leakage import describe_leakage
from retrieval_indexer.evaluation.pools import NEGATIVES, _draw_matched, draw_pools, read_pools, write_pools
from retrieval_indexer.evaluation.recall import pool_recall
from retrieval_indexer.evaluation.run import Evaluation, EvaluationRequest
from retrieval_indexer.evaluation.scorers import PopularityScorer, Scorer, Stack, StackScorer

GATES = '[{"metric": "recall", "k": 10, "pool": "matched", "maxRegression": "0.02"}]'


@pytest.fixture(params=["global", "perMember"])
def mode(request) -> str:
    return request.param


@pytest.fixture
def evaluation(mode, open_datasets, generations):
    return build_evaluation_set(open_datasets[mode], Generation.open(generations[mode]))


def items_of_time(evaluation, time):
    created = evaluation.dataset.item_created_at
    return set(np.flatnonzero(created <= time))


def test_members_are_asked_for_unseen_test_positives_that_exist(evaluation, mode):
    """By plain loops over the events, against what the set says."""
    dataset = evaluation.dataset
    events = dataset.events
    expected = {}
    for member in range(len(dataset.member_ids)):
        own = events.member == member
        time = dataset.split.test_from if mode == "global" else int(dataset.split.member_test_from[member])
        seen = set(events.item[own & events.engaged & (events.time < time)])
        wanted = set(events.item[own & events.engaged & events.is_test]) - seen
        wanted &= items_of_time(evaluation, time)
        if wanted and not dataset.is_validation_member[member] and (mode == "global" or seen):
            expected[member] = wanted
    found = {int(m): set(evaluation.corpus[p]) for m, p in zip(evaluation.members, evaluation.positives, strict=True)}
    assert found == expected
    assert len(expected) > 20
    assert (np.diff(evaluation.times) >= 0).all()


def test_what_a_member_engaged_with_and_what_did_not_exist_is_hidden(evaluation):
    view = FeatureView(evaluation.dataset)
    for index in (0, len(evaluation) // 2, len(evaluation) - 1):
        time = int(evaluation.times[index])
        visible = set(evaluation.corpus[~evaluation.hidden(index)])
        seen = set(view.positives_before(int(evaluation.members[index]), time))
        assert visible == (items_of_time(evaluation, time) - seen) & set(evaluation.corpus)


def test_coverage_counts_positives_on_items_younger_than_the_generation(open_datasets, generations):
    evaluation = build_evaluation_set(open_datasets["global"], Generation.open(generations["global"]))
    present = sum(len(p) for p in evaluation.positives)
    assert evaluation.absent > 0
    assert evaluation.test_positives == present + evaluation.absent


def test_a_member_who_joins_after_its_evaluation_time_is_not_asked(evaluation, mode, generations):
    """In a global split those who join during the test part: they have no prompt when it begins."""
    dataset = evaluation.dataset
    joined = dataset.member_joined_at.copy()
    late, punctual = evaluation.members[3], evaluation.members[4]
    joined[late], joined[punctual] = evaluation.times[3] + 1, evaluation.times[4]
    later = build_evaluation_set(replace(dataset, member_joined_at=joined), Generation.open(generations[mode]))
    assert (evaluation.not_joined, later.not_joined) == (0, 1)
    assert later.members.tolist() == [member for member in evaluation.members if member != late]
    assert later.test_positives < evaluation.test_positives, "whom nobody asks for is no matter of coverage"
    undated = build_evaluation_set(replace(dataset, member_joined_at=None), Generation.open(generations[mode]))
    assert len(undated) == len(evaluation)


def test_segments(evaluation):
    dataset = evaluation.dataset
    joined = dataset.member_joined_at[evaluation.members]
    assert evaluation.segment("all").all()
    assert evaluation.segment("new").tolist() == (evaluation.times - joined < 30 * 86_400).tolist()
    industry = dataset.member_columns["industry"].to_pylist()
    assert evaluation.segment("category:industry=food").tolist() == [industry[m] == "food" for m in evaluation.members]
    assert evaluation.segment("category:colour=red") is None
    assert evaluation.segment("old") is None


def test_pools_are_distinct_unseen_negatives_and_the_same_again(evaluation):
    pools = draw_pools(evaluation)
    for name in ("uniform", "matched"):
        for index, rows in enumerate(pools.rows[name]):
            assert rows.shape == (len(evaluation.positives[index]), NEGATIVES)
            forbidden = set(np.flatnonzero(evaluation.hidden(index))) | set(evaluation.positives[index])
            for row in rows:
                assert len(set(row)) == NEGATIVES
                assert not forbidden & set(row)
    assert draw_pools(evaluation).digest() == pools.digest()


def test_matched_negatives_are_the_nearest_in_popularity(evaluation):
    pools = draw_pools(evaluation)
    for index in range(0, len(evaluation), 7):
        popularity = evaluation.popularity(index)
        eligible = ~evaluation.hidden(index)
        eligible[evaluation.positives[index]] = False
        for positive, row in zip(evaluation.positives[index], pools.rows["matched"][index], strict=True):
            counts = popularity[row]
            left_out = eligible.copy()
            left_out[row] = False
            between = (popularity > counts.min()) & (popularity < counts.max())
            assert not (left_out & between).any(), "a nearer candidate was passed over"
            assert counts.min() <= max(popularity[positive], popularity[eligible].min())
            assert counts.max() >= min(popularity[positive], popularity[eligible].max())


def test_pools_survive_being_stored(evaluation, tmp_path, open_datasets, generations, mode):
    pools = draw_pools(evaluation)
    write_pools(tmp_path / "pools.parquet", pools, evaluation)
    assert read_pools(tmp_path / "pools.parquet", evaluation).digest() == pools.digest()
    other = "perMember" if mode == "global" else "global"
    foreign = build_evaluation_set(open_datasets[other], Generation.open(generations[other]))
    with pytest.raises(BadInput, match="--pools"):
        read_pools(tmp_path / "pools.parquet", foreign)


def test_a_member_with_too_few_candidates_has_no_pool(make_dataset, build, bundle_uri, tmp_path):
    dataset = make_dataset(tmp_path / "few", items=120)
    evaluation = build_evaluation_set(
        open_dataset(str(dataset)), Generation.open(build(dataset, bundle_uri, tmp_path / "g"))
    )
    pools = draw_pools(evaluation)
    assert all(len(rows) == 0 for rows in pools.rows["matched"])
    values = collect_answers(PopularityScorer(), evaluation, pools, [Metric("recall", 10, "matched")]).values
    assert np.isnan(values[Metric("recall", 10, "matched")]).all()


def test_item_variants_equal_encoding_every_item_again_for_every_member(open_datasets, generations, bundle_uri):
    """The whole point of a perMember evaluation: each member's corpus is that of its own time."""
    generation = Generation.open(generations["perMember"])
    evaluation = build_evaluation_set(open_datasets["perMember"], generation)
    encoder = Encoder(Bundle.open(bundle_uri))
    variants = ItemVariants(evaluation, generation, encoder)
    prompts_seen = set()
    for index, vectors in enumerate(variants.at_times(evaluation.times)):
        time = int(evaluation.times[index])
        features = [evaluation.view.item_features(int(item), time) for item in evaluation.corpus]
        prompts = [encoder.renderer.item(f) for f in features]
        prompts_seen |= set(prompts)
        np.testing.assert_allclose(vectors, encoder.encode_prompts(prompts), atol=1e-5)
    of_generation = {
        encoder.renderer.item(evaluation.view.item_features(int(item), generation.manifest.as_of))
        for item in evaluation.corpus
    }
    assert variants.encoded == len(prompts_seen - of_generation) > 0


def test_bounded_memory_changes_nothing(open_datasets, generations, bundle_uri, monkeypatch):
    generation = Generation.open(generations["perMember"])
    evaluation = build_evaluation_set(open_datasets["perMember"], generation)
    encoder = Encoder(Bundle.open(bundle_uri))
    reference = [v.copy() for v in ItemVariants(evaluation, generation, encoder).at_times(evaluation.times)]
    monkeypatch.setattr("retrieval_indexer.evaluation.item_variants.MAX_STORED", 0)
    monkeypatch.setattr("retrieval_indexer.evaluation.item_variants.MEMBERS_PER_BLOCK", 5)
    for vectors, expected in zip(
        ItemVariants(evaluation, generation, encoder).at_times(evaluation.times), reference, strict=True
    ):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_scores_are_cosines_of_separately_encoded_members_and_items(evaluation, mode, generations, bundle_uri):
    stack = Stack.open(bundle_uri, generations[mode])
    encoder, view = Encoder(stack.bundle), FeatureView(evaluation.dataset)
    for index, scores in enumerate(StackScorer(stack).scores(evaluation)):
        if index % 9:
            continue
        time = int(evaluation.times[index])
        member = encoder.encode_members([view.member_features(int(evaluation.members[index]), time, 3)])
        items = encoder.encode_items([view.item_features(int(item), time) for item in evaluation.corpus])
        np.testing.assert_allclose(scores, (items @ member.T)[:, 0], atol=1e-5)


class GivenScores(Scorer):
    """Scores by a function of (member index, corpus size)."""

    def __init__(self, function):
        self.function = function

    def scores(self, evaluation):
        for index in range(len(evaluation)):
            yield self.function(index, evaluation)


def oracle(index, evaluation):
    scores = np.zeros(len(evaluation.corpus))
    scores[evaluation.positives[index]] = 1
    return scores


def test_an_oracle_is_perfect_and_its_opposite_finds_nothing(evaluation):
    pools = draw_pools(evaluation)
    metrics = [Metric("recall", 10, pool) for pool in ("uniform", "matched", "corpus")]
    metrics.append(Metric("hitRate", 20, "corpus"))
    best = collect_answers(GivenScores(oracle), evaluation, pools, metrics)
    worst = collect_answers(GivenScores(lambda i, e: -oracle(i, e)), evaluation, pools, metrics)
    for metric in metrics:
        assert best.values[metric].tolist() == [1.0] * len(evaluation)
        assert worst.values[metric].tolist() == [0.0] * len(evaluation)


@pytest.mark.parametrize("counts", ["distinct", "mostly equal"])
@pytest.mark.parametrize("sign", [1, -1])
def test_in_matched_pools_popularity_and_its_opposite_are_right_at_the_random_level(counts, sign):
    random = np.random.default_rng(0)
    popularity = np.arange(3000) if counts == "distinct" else random.geometric(0.3, 3000)
    positives = random.integers(500, 2500, 4000) if counts == "distinct" else random.integers(0, 3000, 4000)
    candidates = np.setdiff1d(np.arange(3000), positives[:200]).astype(np.int32)
    rows = _draw_matched(candidates, positives, popularity, random)
    hits = pool_recall(sign * popularity[positives].astype(float), sign * popularity[rows].astype(float), 10)
    assert hits.mean() == pytest.approx(10 / 143, abs=0.012)


def request(datasets, mode, bundle, generation, out, **changed) -> EvaluationRequest:
    arguments = {
        "dataset": str(datasets[mode]),
        "candidate": (bundle, generation),
        "champion": None,
        "untrained": None,
        "gates": parse_gates(GATES),
        "ks": [10, 100],
        "segments": ["all", "new"],
        "confidence": 0.95,
        "min_samples": 300,
        "pools": None,
        "out": str(out),
        "cache": None,
    }
    return EvaluationRequest(**(arguments | changed))


def test_a_first_stack_is_measured_beside_its_baselines(datasets, mode, generations, bundle_uri, tmp_path):
    document = Evaluation(request(datasets, mode, bundle_uri, generations[mode], tmp_path / "out")).run()
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == document
    baselines = ["notPersonal", "popularity", "popularityTrained", "random"]
    assert list(dict.fromkeys(row["subject"] for row in document["metrics"])) == ["candidate", *baselines]
    assert list(dict.fromkeys(row["baseline"] for row in document["comparisons"])) == baselines
    randoms = [r for r in document["metrics"] if r["subject"] == "random" and r["pool"] == "uniform"]
    assert all(row["value"] == pytest.approx(10 / 143) for row in randoms)
    assert document["champion"] is None
    assert not document["collapsed"]
    gate = document["gates"][0]
    assert gate["problem"] is None
    assert gate["n"] == document["members"]["evaluated"]
    assert gate["valueLower"] <= gate["value"] <= gate["valueUpper"]
    assert gate["championValue"] is gate["delta"] is gate["nToDecide"] is None
    table = pq.read_table(tmp_path / "out" / "members.parquet").to_pandas()
    own = table[table.subject == "candidate"]
    assert own["recall@10 matched"].mean() == pytest.approx(gate["value"])
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 10_000


def test_the_popularity_correlation_is_spearmans_of_mean_cosine(open_datasets, generations, bundle_uri):
    stack = Stack.open(bundle_uri, generations["global"])
    evaluation = build_evaluation_set(open_datasets["global"], stack.generation)
    scorer = StackScorer(stack)
    answers = collect_stack_answers(scorer, evaluation, draw_pools(evaluation), []).own
    mean_cosine = (stack.generation.vectors @ scorer.member_vectors.T).mean(axis=1)
    expected = spearmanr(evaluation.popularity(0), mean_cosine).statistic
    assert answers.popularity_correlation == pytest.approx(expected, abs=1e-6)
    assert answers.spread > 0.01


def test_a_champion_is_compared_on_the_same_members(datasets, generations, bundle_uri, make_bundle, build, tmp_path):
    other = str(make_bundle(tmp_path / "other", seed=5))
    theirs = build(datasets["global"], other, tmp_path / "theirs")
    champion = {"champion": (other, theirs)}
    document = Evaluation(
        request(datasets, "global", bundle_uri, generations["global"], tmp_path / "out", **champion)
    ).run()
    table = pq.read_table(tmp_path / "out" / "members.parquet").to_pandas()
    column = "recall@10 matched"
    own, their = (table[table.subject == name].set_index("member_id")[column] for name in ("candidate", "champion"))
    gate = document["gates"][0]
    assert gate["delta"] == pytest.approx((own - their).mean())
    assert gate["discordant"] == int((abs(own - their) > 1e-9).sum())
    assert gate["lower"] <= gate["delta"] <= gate["upper"]
    assert gate["nToDecide"] > 0
    swapped = Evaluation(
        request(datasets, "global", other, theirs, tmp_path / "swapped", champion=(bundle_uri, generations["global"]))
    ).run()
    assert swapped["gates"][0]["delta"] == pytest.approx(-gate["delta"])


def test_a_model_compared_with_itself_never_differs(datasets, generations, bundle_uri, tmp_path):
    stack = (bundle_uri, generations["global"])
    gate = Evaluation(request(datasets, "global", *stack, tmp_path / "out", champion=stack)).run()["gates"][0]
    assert (gate["delta"], gate["discordant"], gate["method"]) == (0.0, 0, "exact")
    assert gate["lower"] == pytest.approx(-(1 - 0.05 ** (1 / gate["n"])))


def test_answers_are_cached_by_their_inputs(datasets, generations, bundle_uri, tmp_path, monkeypatch):
    stack = (bundle_uri, generations["global"])
    arguments = {"champion": stack, "cache": str(tmp_path / "cache")}
    first = Evaluation(request(datasets, "global", *stack, tmp_path / "one", **arguments)).run()

    def refuse(*_):
        raise AssertionError("encoded although it was cached")

    monkeypatch.setattr(StackScorer, "paired_scores", refuse)
    again = Evaluation(request(datasets, "global", *stack, tmp_path / "two", **arguments)).run()
    assert again == first
    with pytest.raises(AssertionError, match="although"):  # another k is another question
        Evaluation(request(datasets, "global", *stack, tmp_path / "three", **arguments, ks=[5])).run()


def test_a_collapsed_encoder_is_flagged_and_at_the_random_level(datasets, make_bundle, build, tmp_path):
    bundle = str(make_bundle(tmp_path / "bundle", collapsed=True))
    generation = build(datasets["global"], bundle, tmp_path / "g")
    document = Evaluation(request(datasets, "global", bundle, generation, tmp_path / "out")).run()
    assert document["collapsed"]
    assert document["gates"][0]["problem"] == "Collapsed"
    assert document["gates"][0]["value"] is None
    row = next(r for r in document["metrics"] if r["subject"] == "candidate" and r["pool"] == "uniform")
    assert row["value"] == pytest.approx(10 / 143, abs=1e-6)


@pytest.mark.parametrize("where", ["members", "one member", "items"])
def test_scores_that_are_not_finite_are_a_finding_and_never_a_value(
    where, datasets, generations, bundle_uri, tmp_path, monkeypatch
):
    original = StackScorer._encode_members

    def broken(self, evaluation, encoder):
        vectors = original(self, evaluation, encoder).copy()
        if where == "members":
            raise Diverged("the model yields numbers that are not finite")
        if where == "one member":
            vectors[3, 2] = np.nan
        else:
            self.stack.generation.__dict__["served_vectors"] = np.full_like(self.stack.generation.vectors, np.inf)
        return vectors

    monkeypatch.setattr(StackScorer, "_encode_members", broken)
    with np.errstate(invalid="ignore"):
        document = Evaluation(request(datasets, "global", bundle_uri, generations["global"], tmp_path / "out")).run()
    assert document["gates"][0]["problem"] == "NonFinite"
    assert document["gates"][0]["value"] is None
    rows = [row for row in document["metrics"] if row["subject"] in ("candidate", "notPersonal")]
    assert {row["subject"] for row in rows} == {"candidate", "notPersonal"}
    assert all(row["value"] is None and row["problem"] == "NonFinite" for row in rows)
    assert any(row["subject"] == "popularity" and row["value"] is not None for row in document["metrics"])


def test_gates_that_cannot_be_measured_say_why_in_the_requested_order(datasets, generations, bundle_uri, tmp_path):
    gates = parse_gates(
        json.dumps(
            [
                {"metric": "recall", "k": 200, "pool": "corpus", "min": "0.1"},
                {"metric": "recall", "k": 10, "pool": "matched", "segment": "category:industry=none"},
                {"metric": "recall", "k": 20, "pool": "uniform", "dryRun": True},
                {"metric": "hitRate", "k": 10, "pool": "corpus", "segment": "category:industry=food"},
            ]
        )
    )
    document = Evaluation(
        request(datasets, "global", bundle_uri, generations["global"], tmp_path / "out", gates=gates)
    ).run()
    assert [gate["problem"] for gate in document["gates"]] == ["TooFewItems", "NoSuchSegment", None, None]
    assert [gate["k"] for gate in document["gates"]] == [200, 10, 20, 10]


def test_a_finished_evaluation_is_found_and_another_is_refused(datasets, generations, bundle_uri, tmp_path):
    asked = request(datasets, "global", bundle_uri, generations["global"], tmp_path / "out")
    document = Evaluation(asked).run()
    assert Evaluation(asked).found_complete() == document
    assert Evaluation(replace(asked, cache=None, device="meta")).found_complete() == document


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gates", {"gates": []}),
        ("gates", {"gates": parse_gates('[{"maxRegression": "0.5"}]')}),
        ("k", {"ks": [3]}),
        ("segments", {"segments": ["new"]}),
        ("confidence", {"confidence": 0.8}),
        ("minSamples", {"min_samples": 7}),
    ],
)
def test_a_finished_evaluation_of_other_settings_is_refused(datasets, generations, bundle_uri, tmp_path, name, changes):
    """Else a person who changes --k, or --confidence, is shown the old numbers."""
    asked = request(datasets, "global", bundle_uri, generations["global"], tmp_path / "out")
    Evaluation(asked).run()
    with pytest.raises(BadInput, match=rf"{name} .* \(asked for .*\).*choose another --out"):
        Evaluation(replace(asked, **changes)).found_complete()


def test_a_finished_evaluation_with_other_pools_is_refused(datasets, generations, bundle_uri, tmp_path):
    asked = request(datasets, "global", bundle_uri, generations["global"], tmp_path / "out")
    Evaluation(asked).run()
    with pytest.raises(BadInput, match=r"pools None \(asked for"):
        Evaluation(replace(asked, pools=str(tmp_path / "out" / "pools.parquet"))).found_complete()


def test_a_serving_generation_or_another_snapshot_is_refused(
    datasets, bundle_uri, build, tmp_path, generations, make_dataset
):
    serving = build(datasets["global"], bundle_uri, tmp_path / "serving", kind="serving")
    with pytest.raises(BadInput, match="expected an evaluation generation"):
        Evaluation(request(datasets, "global", bundle_uri, serving, tmp_path / "out")).run()
    newer = {"global": make_dataset(tmp_path / "newer", seed=9)}
    with pytest.raises(BadInput, match="build an evaluation generation from this dataset"):
        Evaluation(request(newer, "global", bundle_uri, generations["global"], tmp_path / "out")).run()


def test_a_champion_that_may_have_seen_the_test_part_is_leakage(datasets, generations, make_bundle, build, tmp_path):
    """Both bundles say through when they were trained; only one of them too late."""
    start = open_dataset(str(datasets["global"])).split.test_from
    honest = str(make_bundle(tmp_path / "a", training={"trainedThrough": start - 1}))
    late = str(make_bundle(tmp_path / "b", seed=2, training={"trainedThrough": start}))
    stacks = [
        (bundle, build(datasets["global"], bundle, tmp_path / f"g{i}")) for i, bundle in enumerate((honest, late))
    ]
    document = Evaluation(request(datasets, "global", *stacks[0], tmp_path / "out", champion=stacks[1])).run()
    assert document["leakage"]["champion"].startswith("the champion was trained on events through")
    assert document["leakage"]["candidate"] is None
    assert document["gates"][0]["problem"] == "Leakage"
    assert document["gates"][0]["value"] is not None
    alone = Evaluation(request(datasets, "global", *stacks[0], tmp_path / "alone")).run()
    assert alone["leakage"] == {"candidate": None, "champion": None}
    assert alone["gates"][0]["problem"] is None


def test_a_candidate_that_may_have_seen_the_test_part_marks_every_gate(datasets, make_bundle, build, tmp_path):
    """Alone, and beside a champion that is as late."""
    start = open_dataset(str(datasets["global"])).split.test_from
    late = str(make_bundle(tmp_path / "late", seed=2, training={"trainedThrough": start}))
    stack = (late, build(datasets["global"], late, tmp_path / "g"))
    gates = parse_gates('[{"min": "0.1"}, {"k": 5, "maxRegression": "0.02"}]')
    alone = Evaluation(request(datasets, "global", *stack, tmp_path / "alone", gates=gates)).run()
    both = Evaluation(request(datasets, "global", *stack, tmp_path / "both", gates=gates, champion=stack)).run()
    for document in (alone, both):
        assert document["leakage"]["candidate"].startswith("the candidate was trained on events through")
        assert [gate["problem"] for gate in document["gates"]] == ["Leakage", "Leakage"]
        assert all(gate["value"] is not None for gate in document["gates"])
    assert alone["leakage"]["champion"] is None
    assert both["leakage"]["champion"].startswith("the champion was trained on events through")


@pytest.mark.parametrize(
    ("training", "leaks"),
    [
        ({"snapshot": "s", "split": {"mode": "global", "testFrom": 9}, "trainedThrough": 99}, False),
        ({"snapshot": "s", "split": {"mode": "global", "testFrom": 8}, "trainedThrough": 8}, False),
        ({"snapshot": "s", "split": {"mode": "global", "testFrom": 20}, "trainedThrough": 9}, True),
        ({"snapshot": "other", "split": {"mode": "global", "testFrom": 9}, "trainedThrough": 9}, True),
        ({"snapshot": "other", "split": {"mode": "global", "testFrom": 5}, "trainedThrough": 4}, False),
        ({}, True),
    ],
)
def test_leakage_depends_on_snapshot_split_and_time(training, leaks):
    sentence = describe_leakage(
        "champion", training, snapshot="s", split={"mode": "global", "testFrom": 9}, test_start=9
    )
    assert (sentence is not None) == leaks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "neither a file nor JSON"),
        ("no-such-file.json", "cannot be read"),
        ('[{"k": 0}]', r"\[0\].k"),
        ('[{"metric": "hitRate", "pool": "uniform"}]', "expected 'corpus'"),
    ],
)
def test_wrong_gates_are_refused_in_words(text, message):
    with pytest.raises(BadArguments, match=message):
        parse_gates(text)


def test_the_cache_key_changes_with_the_meaning_of_stored_values(datasets, generations, bundle_uri, monkeypatch):
    stack = Stack.open(bundle_uri, generations["global"])
    evaluation = build_evaluation_set(open_dataset(str(datasets["global"])), stack.generation)
    pools, metrics = draw_pools(evaluation), [Metric("recall", 10, "uniform")]
    key = answers_module.answers_key(stack, evaluation, pools, metrics)
    monkeypatch.setattr(answers_module, "ANSWERS_VERSION", answers_module.ANSWERS_VERSION + 1)
    assert answers_module.answers_key(stack, evaluation, pools, metrics) != key
