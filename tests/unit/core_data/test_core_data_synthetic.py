"""The synthetic world: the same seed gives the same data, more days extend it, and it is a fair retrieval problem."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest

from retrieval_core.dataset import open_dataset
from retrieval_core.errors import BadArguments, BadInput
from retrieval_core.sources.oracle import measure_ceiling
from retrieval_core.sources.synthetic import Snapshot, generate
from retrieval_core.sources.vocabulary import FIRST_TOPICS, TOPICS
from retrieval_core.sources.world import EPOCH, WORDS, WorldSize
from retrieval_core.sources.writing import write_dataset

SMALL = WorldSize(members=300, items=800, interactions=6000, horizon_days=20, seed=3)


def _generate(days=20, test_days=3, size=SMALL, **options):
    return generate(size, Snapshot(days, test_days, **options), range(days))


@pytest.fixture(scope="module")
def whole():
    return _generate()


def test_the_same_seed_gives_the_same_data_and_another_seed_does_not(whole):
    again = _generate()
    other = _generate(size=WorldSize(members=300, items=800, interactions=6000, horizon_days=20, seed=4))
    for name in ("members", "items", "interactions"):
        assert getattr(again, name).equals(getattr(whole, name))
        assert not getattr(other, name).equals(getattr(whole, name))
    assert again.extra.keys() == whole.extra.keys()
    assert all(again.extra[name].equals(table) for name, table in whole.extra.items())


@pytest.mark.parametrize("days", [5, 14, 19])
def test_more_days_extend_the_data_and_change_nothing(whole, days):
    part = _generate(days=days)
    for name in ("members", "items", "interactions"):
        rows = getattr(part, name).num_rows
        assert 0 < rows < getattr(whole, name).num_rows
        assert getattr(part, name).equals(getattr(whole, name).slice(0, rows))
    later = whole.interactions.slice(part.interactions.num_rows)
    first_later_day = (pc.min(later["time"]).as_py() - EPOCH) // 86_400
    assert first_later_day == days


def test_the_whole_world_has_the_interactions_that_were_asked_for(whole):
    assert whole.interactions.num_rows == 6000
    engaged = pc.mean(whole.interactions["engaged"].cast("double")).as_py()
    assert 0.1 < engaged < 0.4


def test_nobody_is_shown_an_item_twice_or_before_it_or_they_exist(whole, tmp_path):
    dataset = write_dataset(str(tmp_path / "d"), whole)
    events = dataset.events
    pairs = events.member.astype(np.int64) * len(dataset.item_ids) + events.item
    assert len(np.unique(pairs)) == len(pairs)
    assert (events.time >= dataset.item_created_at[events.item]).all()
    assert (events.time >= dataset.member_joined_at[events.member]).all()


def test_new_topics_words_and_members_appear_over_time(whole):
    items = whole.items.to_pydict()
    topics = list(TOPICS)
    early, late = set(items["topic"][:300]), set(items["topic"][-300:])
    assert early < set(topics[:FIRST_TOPICS]) | {topics[FIRST_TOPICS]}
    assert len(late - early) >= 5
    assert (
        len(
            {word for title in items["title"][-300:] for word in title.split()}
            - set(" ".join(items["title"][:300]).split())
        )
        > 30
    )
    joined = np.asarray(whole.members["joined_at"])
    assert 0.2 < (joined > EPOCH).mean() < 0.6


def test_titles_speak_of_their_topic(whole):
    items = whole.items.to_pydict()
    for title, topic in zip(items["title"], items["topic"], strict=True):
        assert set(title.split()) & set(TOPICS[topic][1])


def test_every_topic_has_as_many_different_words_as_the_others():
    assert WORDS.shape == (len(TOPICS), 12)
    assert all(len(set(words)) == 12 for _, words in TOPICS.values())


def test_shuffled_labels_touch_training_engagements_only_and_say_so(whole, tmp_path):
    sabotaged = _generate(shuffle_labels=True)
    honest, bad = whole.interactions.to_pandas(), sabotaged.interactions.to_pandas()
    test_from = whole.spec.split.test_from
    assert bad[bad.time >= test_from].values.tolist() == honest[honest.time >= test_from].values.tolist()
    ignored = [frame[(frame.time < test_from) & ~frame.engaged].values.tolist() for frame in (honest, bad)]
    assert ignored[0] == ignored[1]
    positives = [frame[(frame.time < test_from) & frame.engaged] for frame in (honest, bad)]
    assert len(positives[1]) >= 0.99 * len(positives[0])  # a shuffle may repeat an interaction, which is dropped
    pairs = [set(zip(frame.member_id, frame.item_id, strict=True)) for frame in positives]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])
    assert "SABOTAGED" in sabotaged.spec.description
    assert sabotaged.spec.name == "synthetic-feed-shuffled-labels"
    write_dataset(str(tmp_path / "bad"), sabotaged)  # and it is a valid dataset


def test_the_oracle_beats_popularity_and_popularity_beats_chance(tmp_path):
    size = WorldSize(members=800, items=2000, interactions=30_000, horizon_days=42, seed=0)
    dataset = write_dataset(str(tmp_path / "d"), _generate(days=42, test_days=5, size=size))
    ceiling = measure_ceiling(dataset, max_positives=600, seed=0)
    assert ceiling.positives == 600
    assert ceiling.recall["uniform", "random"] == pytest.approx(10 / 143)
    assert ceiling.recall["uniform", "oracle"] > 0.75
    assert 0.15 < ceiling.recall["uniform", "popularity"] < 0.4
    assert ceiling.recall["matched", "oracle"] > 0.7
    assert ceiling.recall["matched", "popularity"] < 0.15  # matched: popularity is near chance


def test_a_dataset_is_the_same_with_or_without_its_oracle(whole, tmp_path):
    """Nothing that opens a dataset can see the oracle; only the ceiling needs it."""
    directory = tmp_path / "d"
    snapshot = write_dataset(str(directory), whole).snapshot
    for path in (directory / "oracle").iterdir():
        path.unlink()
    dataset = open_dataset(str(directory))
    assert dataset.snapshot == snapshot
    with pytest.raises(BadInput, match="has no oracle/"):
        measure_ceiling(dataset, max_positives=10, seed=0)


@pytest.mark.parametrize(
    ("size", "days", "test_days", "expected"),
    [
        (SMALL, 21, 3, "--days is 21, expected 1 to 20"),
        (SMALL, 0, 3, "--days is 0"),
        (SMALL, 10, 10, "--test-days is 10, expected 1 to 9"),
        (WorldSize(20, 100, 1000, 20, 0), 10, 3, "--interactions is 1,000, but a member is shown an item once"),
    ],
)
def test_an_impossible_world_is_refused_by_flag(size, days, test_days, expected):
    with pytest.raises(BadArguments, match=expected):
        _generate(days=days, test_days=test_days, size=size)
