"""Prompts of examples: as of their time, with the budgets and percentiles of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from retrieval_core.dataset import Dataset, FeatureView
from retrieval_core.errors import BadInput
from retrieval_core.prompts import PromptSpec
from retrieval_trainer.assembly import Training
from retrieval_trainer.config import MaxTokens
from retrieval_trainer.examples import training_examples
from retrieval_trainer.prompting import training_numbers, with_budgets


def test_only_training_events_are_examples(dataset: Dataset) -> None:
    examples = training_examples(dataset)
    assert dataset.split.test_from is not None
    assert len(examples) > 100
    assert examples.time.max() < dataset.split.test_from
    assert examples.impressed_time.max() < dataset.split.test_from
    assert dataset.events.time.max() >= dataset.split.test_from, "the premise: there is a test part"


def test_the_examples_are_the_positives_and_what_is_left_is_shown(dataset: Dataset) -> None:
    examples, events = training_examples(dataset), dataset.events
    train = ~events.is_test
    assert len(examples) == (train & events.engaged).sum()
    for member in range(len(dataset.member_ids)):
        own = train & (events.member == member)
        engaged = set(events.item[own & events.engaged].tolist())
        shown = [item for item in events.item[own & ~events.engaged].tolist() if item not in engaged]
        rows = slice(examples.impressed_from[member], examples.impressed_from[member + 1])
        assert examples.impressed_item[rows].tolist() == shown
        assert (np.diff(examples.impressed_time[rows]) >= 0).all()


def test_a_prompt_of_an_example_shows_nothing_of_its_own_time_or_later(training_of: Callable[..., Training]) -> None:
    """Removing everything from the example's time on changes no token."""
    training = training_of()
    events = training.dataset.events
    example = int(len(training.examples) * 0.6)
    time = int(training.examples.time[example])
    past = events.time < time
    assert past.any() and (~past).any()
    cut = replace(
        training.dataset,
        events=type(events)(
            *(getattr(events, name)[past] for name in ("member", "item", "time", "engaged", "is_test"))
        ),
    )
    rows = np.array([example])
    whole, earlier = training.prompt_tokens, replace_view(training, FeatureView(cut))
    member, item = training.examples.member[rows], training.examples.item[rows]
    times = np.array([time])
    assert whole.members(member, times) == earlier.members(member, times)
    assert whole.items(item, times) == earlier.items(item, times)
    later = np.array([int(events.time.max()) + 1])
    assert whole.members(member, times) != whole.members(member, later), "the premise: later prompts differ"


def replace_view(training: Training, view: FeatureView) -> object:
    from retrieval_core.prompts import PromptRenderer
    from retrieval_trainer.prompting import PromptTokens

    renderer = PromptRenderer(training.prompts, training.percentiles, training.tokenizer)
    return PromptTokens(view, training.prompts, renderer, training.tokenizer)


def test_a_batch_is_members_then_positives_then_hard_negatives(training_of: Callable[..., Training]) -> None:
    training = training_of()
    batch = training.sampler.batch(0, 5)
    batch.hard[1, 0] = -1  # missing: encoded as the row's positive, which is encoded anyway
    tokens = training.prompt_tokens.batch(batch, 64)
    rows = [
        ids[mask.bool()].tolist()
        for part in zip(tokens.input_ids, tokens.attention_mask, strict=True)
        for ids, mask in zip(*part, strict=True)
    ]
    found = [rows[place] for place in tokens.place.tolist()]
    times = np.repeat(batch.time, 2)
    hard = batch.hard.ravel().copy()
    hard[2] = batch.item[1]
    expected = [
        *training.prompt_tokens.members(batch.member, batch.time),
        *training.prompt_tokens.items(batch.item, batch.time),
        *training.prompt_tokens.items(hard, times),
    ]
    assert found == expected


def test_percentiles_are_fitted_to_what_training_prompts_show(training_of: Callable[..., Training]) -> None:
    training = training_of()
    batch = training.sampler.batch(0, 200)
    numbers = training_numbers(training.dataset, training.view, batch)
    assert set(training.prompts.percentile_names()) <= numbers.keys()
    assert len(numbers["member.activity"]) == 200
    assert len(numbers["item.engagements"]) == len(numbers["item.words"]) == 200 + (batch.hard >= 0).sum()
    assert np.nanmin(numbers["item.ageDays"]) >= 0, "no item is rendered before it existed"


def test_token_budgets_of_the_configuration_win(dataset: Dataset) -> None:
    spec = PromptSpec.default_for(dataset.spec)
    assert with_budgets(spec, None) is spec
    assert with_budgets(spec, MaxTokens(member=150, item=70)).max_tokens == {"member": 150, "item": 70}
    with pytest.raises(BadInput, match=r"prompts .with maxTokens. is not valid"):
        with_budgets(spec, MaxTokens(member=150, item=8))
