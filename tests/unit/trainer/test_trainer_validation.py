"""The look at recall during training: validation members, each at its own time; known numbers for planted scores."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from retrieval_core.dataset import Dataset, FeatureView, open_dataset
from retrieval_trainer.examples import training_examples
from retrieval_trainer.validation import (
    NEGATIVES,
    ValidationSet,
    popularity_recall_at_10,
    recall_at_10,
    validation_prompts,
    validation_set,
)

Sequences = list[list[int]]


def with_everybody(dataset: Dataset) -> Dataset:
    """Every member serves for validation: the feed is small."""
    return type(dataset)(**{**vars(dataset), "is_validation_member": np.ones(len(dataset.member_ids), dtype=bool)})


def choose(dataset: Dataset) -> ValidationSet:
    return validation_set(dataset, FeatureView(dataset), training_examples(dataset))


@pytest.fixture(scope="module")
def per_member(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same feed with another split: the last fifth of each member's interactions."""
    path = tmp_path_factory.mktemp("datasets") / "per-member"
    path.mkdir()
    for folder in ("members", "items", "interactions"):
        (path / folder).symlink_to(dataset.path / folder)
    document = yaml.safe_load((dataset.path / "dataset.yaml").read_text())
    document["split"] = {"mode": "perMember", "testFraction": 0.2}
    (path / "dataset.yaml").write_text(yaml.safe_dump(document))
    return with_everybody(open_dataset(str(path)))


@pytest.fixture(params=["global", "perMember"])
def split(request: pytest.FixtureRequest, dataset: Dataset, per_member: Dataset) -> Dataset:
    return with_everybody(dataset) if request.param == "global" else per_member


@pytest.fixture
def chosen(dataset: Dataset) -> ValidationSet:
    return choose(with_everybody(dataset))


def test_only_validation_members_with_a_test_positive_are_asked(dataset: Dataset) -> None:
    events, chosen = dataset.events, choose(dataset)
    assert len(chosen) > 0
    for member, item in zip(chosen.member, chosen.pools["uniform"][:, 0], strict=True):
        assert dataset.is_validation_member[member]
        assert events.is_test[(events.member == member) & (events.item == item) & events.engaged].any()


def test_without_validation_members_there_is_nothing_to_see(dataset: Dataset) -> None:
    nobody = type(dataset)(**{**vars(dataset), "is_validation_member": np.zeros(len(dataset.member_ids), dtype=bool)})
    chosen = choose(nobody)
    prompts = validation_prompts(chosen, lambda rows, times: [], lambda rows, times: [])
    assert (len(chosen), recall_at_10(prompts, np.array), popularity_recall_at_10(chosen)) == (0, {}, {})


def test_each_member_is_asked_at_the_start_of_its_own_test_part(split: Dataset) -> None:
    events, chosen = split.events, choose(split)
    assert len(chosen) > 20
    for member, time in zip(chosen.member, chosen.time, strict=True):
        own_test = events.time[events.is_test & (events.member == member)]
        assert time == (own_test.min() if split.split.mode == "perMember" else split.split.test_from)
        if split.split.mode == "perMember":
            assert (events.engaged & ~events.is_test & (events.member == member)).any(), "a positive on both sides"
    assert len(np.unique(chosen.time)) > 20 or split.split.mode == "global"


def test_negatives_were_never_engaged_with_and_candidates_exist_at_the_members_time(split: Dataset) -> None:
    events, chosen = split.events, choose(split)
    pairs = set(zip(events.member[events.engaged].tolist(), events.item[events.engaged].tolist(), strict=True))
    assert split.item_created_at is not None
    for pool in chosen.pools.values():
        assert pool.shape == (len(chosen), 1 + NEGATIVES)
        assert (split.item_created_at[pool] <= chosen.time[:, None]).all()
        for member, row in zip(chosen.member.tolist(), pool.tolist(), strict=True):
            assert not any((member, item) in pairs for item in row[1:])
            assert row[0] not in row[1:]


def test_popularity_is_what_was_known_at_the_members_time(split: Dataset) -> None:
    """Counted by hand; perMember hides everybody's test part, whenever it was."""
    events, chosen = split.events, choose(split)
    window = split.spec.counts.window_s
    visible = events.engaged & (~events.is_test if split.split.mode == "perMember" else True)
    for pool, counts in zip(chosen.pools.values(), chosen.popularity.values(), strict=True):
        for row in range(0, len(chosen), 10):
            time = chosen.time[row]
            before = visible & (events.time < time) & (events.time >= time - window)
            expected = np.bincount(events.item[before], minlength=len(split.item_ids))
            assert counts[row].tolist() == expected[pool[row]].tolist()


def test_each_prompt_is_of_its_members_time_and_equal_ones_are_encoded_once(split: Dataset) -> None:
    """A prompt that shows the item and its count: as many of them as there are pairs of both."""
    view, chosen = FeatureView(split), choose(split)

    def items(rows: np.ndarray, times: np.ndarray) -> Sequences:
        return np.stack([rows, view.item_counts(rows, times).engagements], axis=1).tolist()

    def members(rows: np.ndarray, times: np.ndarray) -> Sequences:
        return np.stack([rows, times], axis=1).tolist()

    prompts = validation_prompts(chosen, members, items)
    assert prompts.members == list(map(list, zip(chosen.member.tolist(), chosen.time.tolist(), strict=True)))
    assert len({tuple(ids) for ids in prompts.items}) == len(prompts.items)
    for name, pool in chosen.pools.items():
        shown = np.array(prompts.items)[prompts.place[name]]
        np.testing.assert_array_equal(shown, np.stack([pool, chosen.popularity[name]], axis=-1))
    variants = len(prompts.items) / len(np.unique(np.concatenate(list(chosen.pools.values()))))
    assert variants == 1 if split.split.mode == "global" else variants > 1.5


def one_prompt_per_item(rows: np.ndarray, times: np.ndarray) -> Sequences:
    return [[row] for row in rows.tolist()]


def planted(chosen: ValidationSet, score: float) -> dict[str, float]:
    """Recall when every member's cosine with its own positive is about `score` and with all other items 0.5."""
    positives = chosen.pools["uniform"][:, 0]
    width = len(chosen) + 1
    prompts = validation_prompts(chosen, lambda rows, times: [[-1 - n] for n in range(len(rows))], one_prompt_per_item)

    def encode(sequences: Sequences) -> np.ndarray:
        vectors = np.zeros((len(sequences), width), dtype=np.float32)
        for row, (number,) in enumerate(sequences):
            if number < 0:
                vectors[row, -1 - number], vectors[row, -1] = score, 0.5
            else:
                vectors[row, :-1], vectors[row, -1] = positives == number, 1e-6
        return vectors

    return recall_at_10(prompts, encode)


def test_a_perfect_ranking_has_recall_one(chosen: ValidationSet) -> None:
    assert planted(chosen, 1.0) == {"recall_uniform": 1.0, "recall_popular": 1.0}


def test_a_ranking_of_everything_else_before_the_positive_has_recall_zero(chosen: ValidationSet) -> None:
    assert planted(chosen, -1.0) == {"recall_uniform": 0.0, "recall_popular": 0.0}


def test_an_encoder_that_cannot_tell_items_apart_has_recall_zero_not_one(chosen: ValidationSet) -> None:
    """All cosines are equal: half the negatives count as before the positive."""
    prompts = validation_prompts(chosen, one_prompt_per_item, one_prompt_per_item)
    same = recall_at_10(prompts, lambda sequences: np.ones((len(sequences), 4), dtype=np.float32))
    assert same == {"recall_uniform": 0.0, "recall_popular": 0.0}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([9] + [10] * 9 + [0] * 133, 1.0),
        ([9] + [10] * 10 + [0] * 132, 0.0),
        ([9] + [9] * 19 + [0] * 123, 1.0),  # 9.5 before it
        ([9] + [9] * 20 + [0] * 122, 0.0),
    ],
)
def test_a_positive_is_found_when_fewer_than_ten_are_before_it(counts: list[int], expected: float) -> None:
    one = ValidationSet(np.array([0]), np.array([0]), {}, {"uniform": np.array([counts])})
    assert popularity_recall_at_10(one) == {"recall_uniform": expected}
