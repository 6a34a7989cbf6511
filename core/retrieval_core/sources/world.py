"""The synthetic world: who its members are, what its items are about, and how that changes with time.

Everything here is drawn once for the whole horizon, so that data for 28 days and for 35 days of one world agree on
their first 28 days. Three things drift, so that newer data are worth having: members' interests move from one mixture
of topics to another, topics and words appear, and members join.

Times in this module are days since the world began (floats, negative before it); K is the number of topics.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from retrieval_core.dataset.arrays import BoolArray, Int64Array, StringArray
from retrieval_core.dataset.spec import SECONDS_PER_DAY
from retrieval_core.sources.affinity import Appeal, Floats, Indices, Interests, unit
from retrieval_core.sources.vocabulary import FILLERS, FIRST_TOPICS, ROLES, SENIORITIES, TOPICS

EPOCH = 1_704_067_200  # the world begins on 2024-01-01 UTC

TOPIC_NAMES = np.asarray(list(TOPICS), dtype=np.object_)
INDUSTRIES = np.asarray([industry for industry, _ in TOPICS.values()], dtype=np.object_)
WORDS = np.asarray([words for _, words in TOPICS.values()], dtype=np.object_)  # [K, 12]
FIRST_WORDS = 7  # words of a topic that exist from the beginning

# The shape of the world: gut feeling, then adjusted until `retrieval-data oracle` showed a sensible problem.
# Nothing here is a fact about a real feed.
LEAD_DAYS = 14  # items exist before the first interaction
ZIPF_EXPONENT = 0.8
INTEREST_WEIGHTS = np.asarray([0.8, 0.5, 0.33])
ITEM_WEIGHTS = np.asarray([0.9, 0.44])
JOINED_BEFORE = 0.6  # share of members that joined before the world began
AUTHORS_PER_TOPIC = 6
FASHION_DAYS = 12.0  # a topic younger than this is chosen exp(FASHION) times as often
FASHION = 1.5


@dataclass(frozen=True)
class WorldSize:
    """All that the world depends on: totals over the whole horizon, and the seed."""

    members: int
    items: int
    interactions: int
    horizon_days: int
    seed: int


@dataclass(frozen=True)
class Members:
    """Members in the order in which they joined; arrays are [M]."""

    joined: Floats
    interests: Interests
    activity: Floats  # relative number of visits
    headline: StringArray
    industry: StringArray
    seniority: StringArray


@dataclass(frozen=True)
class Items:
    """Items in the order in which they were created; arrays are [I]."""

    appeal: Appeal
    primary: Indices  # the main topic
    title: StringArray
    author: StringArray
    words: Indices


@dataclass(frozen=True)
class World:
    """Everything but what happens in it."""

    size: WorldSize
    members: Members
    items: Items


def make_world(size: WorldSize) -> World:
    """The same size and seed give the same world."""
    births = _topic_births(size.horizon_days)
    return World(
        size=size,
        members=_make_members(size, births, np.random.default_rng([size.seed, 1])),
        items=_make_items(size, births, np.random.default_rng([size.seed, 2])),
    )


def _topic_births(horizon_days: int) -> Floats:
    later = len(TOPICS) - FIRST_TOPICS
    births = np.full(len(TOPICS), -np.inf)
    births[FIRST_TOPICS:] = np.linspace(0.05, 0.9, later) * horizon_days
    return births


def _make_members(size: WorldSize, births: Floats, rng: np.random.Generator) -> Members:
    count, horizon = size.members, size.horizon_days
    before = rng.uniform(-365, 0, count)
    joined = np.sort(np.where(rng.random(count) < JOINED_BEFORE, before, rng.uniform(0, horizon, count)))
    drift_from = np.maximum(joined, 0) + rng.uniform(0, 0.5 * horizon, count)
    drift_days = rng.uniform(0.3, 1.0, count) * horizon
    first = _draw_topics(rng, births, np.maximum(joined, 0), 3)
    later = _draw_topics(rng, births, drift_from + drift_days, 3)
    later[:, 1] = first[:, 0]  # one interest stays
    seniority = np.asarray(SENIORITIES, dtype=np.object_)[rng.integers(0, len(SENIORITIES), count)]
    role = np.asarray(ROLES, dtype=np.object_)[rng.integers(0, len(ROLES), count)]
    spoken = _draw_words(rng, first[:, [0, 0, 1]], np.maximum(joined, 0), horizon)
    return Members(
        joined=joined,
        interests=Interests(
            before=_mixture(first, INTEREST_WEIGHTS),
            after=_mixture(later, INTEREST_WEIGHTS),
            drift_from=drift_from,
            drift_days=drift_days,
        ),
        activity=rng.lognormal(0, 0.7, count),
        headline=_join(zip(seniority, role, *spoken.T, strict=True)),
        industry=INDUSTRIES[first[:, 0]],
        seniority=seniority,
    )


def _make_items(size: WorldSize, births: Floats, rng: np.random.Generator) -> Items:
    count, horizon = size.items, size.horizon_days
    created = np.sort(rng.uniform(-LEAD_DAYS, horizon, count))
    topics = _draw_topics(rng, births, created, 2)
    quality = rng.standard_normal(count)
    # Better items tend to be more popular: the rank is that of the quality with as much noise.
    rank = np.argsort(np.argsort(-(quality + rng.standard_normal(count))))
    spoken = _draw_words(rng, topics[:, [0, 0, 0, 1, 1]], created, horizon)
    fillers = np.asarray(FILLERS, dtype=np.object_)[rng.integers(0, len(FILLERS), count)]
    author = topics[:, 0] * AUTHORS_PER_TOPIC + rng.integers(0, AUTHORS_PER_TOPIC, count)
    return Items(
        appeal=Appeal(
            created=created,
            topics=_mixture(topics, ITEM_WEIGHTS),
            quality=quality,
            zipf=-ZIPF_EXPONENT * np.log1p(rank),
        ),
        primary=topics[:, 0],
        title=_join(zip(fillers, *spoken.T, strict=True)),
        author=np.asarray([f"author-{number:03d}" for number in author], dtype=np.object_),
        words=rng.lognormal(6, 0.6, count).astype(np.int64) + 50,
    )


def _draw_topics(rng: np.random.Generator, births: Floats, day: Floats, count: int) -> Indices:
    """Different topics [n, count] among those born by `day` [n]; a topic is in fashion while it is young."""
    age = day[:, None] - births
    fashion = np.where(age < FASHION_DAYS, FASHION, 0.0)
    keys = np.where(age >= 0, fashion + rng.gumbel(size=age.shape), -np.inf)  # Gumbel top-k: without replacement
    return np.argsort(-keys, axis=1)[:, :count]


def _draw_words(rng: np.random.Generator, topics: Indices, day: Floats, horizon: int) -> StringArray:
    """A word for each of `topics` [n, w]; a third are words that appeared while the world ran, once there are any."""
    later = WORDS.shape[1] - FIRST_WORDS
    progress = np.clip(day / horizon, 0, 1)[:, None]
    appeared = np.minimum(np.floor(progress * (later + 1)).astype(np.int64), later)
    old = rng.integers(0, FIRST_WORDS, topics.shape)
    new = FIRST_WORDS + np.floor(rng.random(topics.shape) * appeared).astype(np.int64)
    use_new: BoolArray = (rng.random(topics.shape) < 1 / 3) & (appeared > 0)
    return np.asarray(WORDS[topics, np.where(use_new, new, old)], dtype=np.object_)


def _mixture(topics: Indices, weights: Floats) -> Floats:
    vectors = np.zeros((len(topics), len(TOPICS)))
    np.put_along_axis(vectors, topics, weights[None, :], axis=1)
    # `later` can name a topic twice; the last weight counts, and rows are unit again.
    return unit(vectors)


def _join(rows: Iterable[tuple[str, ...]]) -> StringArray:
    """Words of each row, each once, with spaces."""
    return np.asarray([" ".join(dict.fromkeys(row)) for row in rows], dtype=np.object_)


def seconds(days: Floats) -> Int64Array:
    """Days since the world began as seconds since 1970, rounded down."""
    return EPOCH + np.floor(days * SECONDS_PER_DAY).astype(np.int64)
