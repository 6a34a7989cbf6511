"""Baselines that know no member: what a candidate's value must be compared with before it is called personal."""

from __future__ import annotations

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import pytest

from retrieval_core.encoding import Encoder
from retrieval_core.generation import Generation
from retrieval_indexer.evaluation.answers import (
    Metric,
    cached_answers,
    collect_answers,
    collect_stack_answers,
    metrics_for,
)
from retrieval_indexer.evaluation.evaluation_set import build_evaluation_set
from retrieval_indexer.evaluation.plot import plot_evaluation
from retrieval_indexer.evaluation.pools import draw_pools
from retrieval_indexer.evaluation.run import Evaluation, EvaluationRequest
from retrieval_indexer.evaluation.scorers import (
    PopularityScorer,
    Stack,
    StackScorer,
    TrainedPopularityScorer,
    mean_direction,
)


@pytest.fixture(params=["global", "perMember"])
def mode(request) -> str:
    return request.param


@pytest.fixture
def evaluation(mode, open_datasets, generations):
    return build_evaluation_set(open_datasets[mode], Generation.open(generations[mode]))


@pytest.fixture
def stack(mode, generations, bundle_uri) -> Stack:
    return Stack.open(bundle_uri, generations[mode])


def test_not_personal_is_the_mean_member_against_the_items_of_each_members_time(evaluation, stack):
    """By encoding everything again, apart from the scorer."""
    encoder, view = Encoder(stack.bundle), evaluation.view
    pairs = zip(evaluation.members.tolist(), evaluation.times.tolist(), strict=True)
    members = encoder.encode_members([view.member_features(member, time, 3) for member, time in pairs])
    mean = members.mean(axis=0) / np.linalg.norm(members.mean(axis=0))
    for index, (_, shared) in enumerate(StackScorer(stack).paired_scores(evaluation)):
        if index % 9:
            continue
        time = int(evaluation.times[index])
        items = encoder.encode_items([view.item_features(int(item), time) for item in evaluation.corpus])
        np.testing.assert_allclose(shared, items @ mean, atol=1e-5)


def test_the_scores_with_the_member_do_not_depend_on_the_baseline_beside_them(evaluation, stack):
    for own, (paired, shared) in zip(
        StackScorer(stack).scores(evaluation), StackScorer(stack).paired_scores(evaluation), strict=True
    ):
        np.testing.assert_array_equal(own, paired)
        assert not np.allclose(own, shared, atol=1e-3)


def test_nothing_is_encoded_twice_for_it(evaluation, stack, monkeypatch):
    rendered: Counter[str] = Counter()
    original = Encoder.encode_prompts

    def counting(self, prompts, *arguments, **options):
        rendered.update(prompts)
        return original(self, prompts, *arguments, **options)

    monkeypatch.setattr(Encoder, "encode_prompts", counting)
    scorer = StackScorer(stack)
    collect_stack_answers(scorer, evaluation, draw_pools(evaluation), metrics_for([10]))
    assert sum(rendered.values()) == len(evaluation) + scorer.variants_encoded
    assert max(rendered.values()) == 1


def test_a_model_that_cannot_tell_members_apart_is_its_own_baseline(evaluation, stack, monkeypatch):
    """Every member has the same vector: whatever it is worth, nothing of it is personal."""
    original = StackScorer._encode_members
    monkeypatch.setattr(
        StackScorer,
        "_encode_members",
        lambda self, *arguments: np.repeat(original(self, *arguments)[:1], len(evaluation), axis=0),
    )
    metrics = metrics_for([10])
    answers = collect_stack_answers(StackScorer(stack), evaluation, draw_pools(evaluation), metrics)
    for metric in metrics:
        np.testing.assert_allclose(answers.own.values[metric], answers.not_personal.values[metric])


@pytest.mark.parametrize(
    ("vectors", "expected"), [([[2.0, 0.0], [0.0, 2.0]], [0.5**0.5, 0.5**0.5]), ([[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0])]
)
def test_the_mean_member_is_a_direction_or_none(vectors, expected):
    np.testing.assert_allclose(mean_direction(np.asarray(vectors, dtype=np.float32)), expected, atol=1e-6)


def test_trained_popularity_counts_every_training_positive_once_and_for_all(evaluation, mode):
    dataset, events = evaluation.dataset, evaluation.dataset.events
    rows = zip(events.item.tolist(), events.engaged, events.is_test, strict=True)
    expected = Counter(item for item, engaged, is_test in rows if engaged and not is_test)
    scores = [own.copy() for own in TrainedPopularityScorer().scores(evaluation)]
    assert len(scores) == len(evaluation)
    for own in scores:
        assert own.tolist() == [expected[item] for item in evaluation.corpus.tolist()]
    # The premise of the docstring: in a perMember split some of these lie after a member's own time.
    later = events.engaged & ~events.is_test & (events.time >= evaluation.times.min())
    assert later.any() == (mode == "perMember")
    assert sum(expected.values()) > sum(next(iter(PopularityScorer().scores(evaluation)))), len(dataset.item_ids)


def test_an_order_that_is_the_same_for_all_members_can_win_the_matched_pool(open_datasets, generations):
    """Why the pool alone proves nothing personal: a world where all take what is on one list."""
    evaluation = build_evaluation_set(open_datasets["global"], Generation.open(generations["global"]))
    listed = np.unique(np.concatenate(evaluation.positives))

    class Listed:
        def scores(self, evaluation):
            scores = np.zeros(len(evaluation.corpus))
            scores[listed] = 1
            yield from [scores] * len(evaluation)

    matched = Metric("recall", 10, "matched")
    pools = draw_pools(evaluation)
    shared, popular = (
        np.mean(collect_answers(scorer, evaluation, pools, [matched]).values[matched])
        for scorer in (Listed(), PopularityScorer())
    )
    assert shared > popular


def test_the_baseline_survives_the_cache(evaluation, stack, tmp_path):
    pools, metrics = draw_pools(evaluation), metrics_for([10])
    first = cached_answers(StackScorer(stack), evaluation, pools, metrics, str(tmp_path))
    again = cached_answers(StackScorer(stack), evaluation, pools, metrics, str(tmp_path))
    for part in ("own", "not_personal"):
        for metric in metrics:
            np.testing.assert_array_equal(
                getattr(first, part).values[metric], getattr(again, part).values[metric], strict=True
            )
    assert again.own.spread == first.own.spread
    assert again.not_personal.spread is None
    matched = metrics[1]
    assert (first.own.values[matched] != first.not_personal.values[matched]).any()


def test_the_candidate_is_compared_with_its_own_baseline_and_people_see_all_of_them(
    datasets, generations, bundle_uri, tmp_path, monkeypatch
):
    shown: set[str] = set()
    close = plt.close

    def look(figure):
        shown.update(figure.axes[0].get_legend_handles_labels()[1])
        close(figure)

    monkeypatch.setattr(plt, "close", look)
    request = EvaluationRequest(
        dataset=str(datasets["global"]),
        candidate=(bundle_uri, generations["global"]),
        champion=None,
        untrained=(bundle_uri, generations["global"]),
        gates=[],
        ks=[10],
        segments=["all"],
        confidence=0.95,
        min_samples=300,
        pools=None,
        out=str(tmp_path),
        cache=None,
    )
    document = Evaluation(request).run()
    assert shown == {"candidate", "notPersonal", "popularity", "popularityTrained", "untrained", "random"}
    table = pq.read_table(tmp_path / "members.parquet").to_pandas().set_index("member_id")
    own, shared = (table[table.subject == name]["recall@10 matched"] for name in ("candidate", "notPersonal"))
    row = next(r for r in document["comparisons"] if (r["baseline"], r["pool"]) == ("notPersonal", "matched"))
    assert row["delta"] == pytest.approx((own - shared).mean())


def test_a_plot_takes_any_segment(tmp_path):
    """A value with dollar signs is no formula."""
    gate = {"metric": "recall", "k": 10, "pool": "matched", "segment": r"category:price=$5 \nope{$", "n": 3}
    gate |= {"delta": 0.1, "lower": 0.0, "upper": 0.2}
    row = {"subject": "candidate", "metric": "recall", "k": 10, "pool": "matched", "segment": "all"}
    row |= {"value": 0.1, "lower": 0.0, "upper": 0.2}
    document = {
        "metrics": [row], "comparisons": [], "champion": {}, "gates": [gate], "members": {"evaluated": 3},
        "dataset": {"name": r"$\nope{$", "provenance": "real"}, "candidate": {"bundleId": "b-1"},
    }  # fmt: skip
    plot_evaluation(document, [0.05], tmp_path / "evaluation.png")
    assert (tmp_path / "evaluation.png").exists()
