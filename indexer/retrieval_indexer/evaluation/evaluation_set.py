"""Who is asked and what counts as right: the same for every model, so that their answers can be compared.

A member is evaluated as of the start of its test part: prompt, history, counts and excluded items are those known then.
Whoever joins later has no prompt at that time and is left out.
Rows: "corpus row" counts items of the generation, "dataset row" items or members of the dataset.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retrieval_core.dataset import Dataset, FeatureView
from retrieval_core.errors import BadInput
from retrieval_core.generation import Generation
from retrieval_indexer.corpus import present_items

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NEW_MEMBER_S = 30 * 86_400
# Without a joining time, a member is new while its history is this short. Gut feeling: a prompt with fewer positives
# leans on the profile.
NEW_MEMBER_POSITIVES = 5


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluated members [m], in order of evaluation time and then of dataset row."""

    dataset: Dataset
    view: FeatureView
    corpus: Rows
    """Dataset rows of the corpus, int64 [n]: position = corpus row."""
    as_of: int
    """The generation's; no member is evaluated later."""
    members: Rows
    """Dataset rows, int64 [m]."""
    times: npt.NDArray[np.int64]
    """Evaluation time of each member in seconds, int64 [m], ascending."""
    positives: list[Rows]
    """Corpus rows of each member's test positives that it had not engaged with before; never empty."""
    no_positive_in_index: int
    """Members with unseen test positives of which none is in the corpus: not evaluated."""
    not_joined: int
    """Members with unseen test positives who had not joined by their evaluation time: not evaluated."""
    test_positives: int
    absent: int
    """Of the test positives, those on items not in the corpus at the member's time; left out for all models."""

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def member_ids(self) -> list[str]:
        return [str(self.dataset.member_ids[row]) for row in self.members]

    @cached_property
    def item_ids(self) -> npt.NDArray[np.object_]:
        """Ids of the corpus, [n]."""
        return self.dataset.item_ids[self.corpus]

    @cached_property
    def _row_in_corpus(self) -> Rows:
        return rows_in_corpus(self.dataset, self.corpus)

    def hidden(self, index: int) -> Mask:
        """Corpus rows that member `index` cannot be shown: engaged with before, or created later. bool [n]."""
        member, time = int(self.members[index]), int(self.times[index])
        hidden = ~present_items(self.dataset, time)[self.corpus]
        seen = self._row_in_corpus[self.view.positives_before(member, time)]
        hidden[seen[seen >= 0]] = True
        return hidden

    def popularity(self, index: int) -> npt.NDArray[np.int64]:
        """Windowed engagements of each corpus item as of the member's time, int64 [n]."""
        return item_popularity(self.view, self.corpus, int(self.times[index]))

    def digest(self) -> str:
        """Identifies who is asked what: part of the key under which a model's answers are cached."""
        digest = hashlib.sha256(f"{self.dataset.snapshot}/{self.as_of}".encode())
        for array in (self.members, self.times, self.corpus, *self.positives):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def segment(self, name: str) -> Mask | None:
        """Members of a segment, bool [m]; None when there is no such segment.

        `all`; `new`: joined less than 30 days before their evaluation, or, in a dataset without joining times, fewer
        than 5 positives before it; `category:FIELD=VALUE`: the member's category has this value.
        """
        if name == "all":
            return np.ones(len(self), dtype=np.bool_)
        if name == "new":
            return self._new_members()
        field, separator, value = name.removeprefix("category:").partition("=")
        if not name.startswith("category:") or not separator or field not in self.dataset.spec.members.category:
            return None
        return self._having(field, value)

    def _new_members(self) -> Mask:
        joined = self.dataset.member_joined_at
        if joined is not None:
            return np.asarray(self.times - joined[self.members] < NEW_MEMBER_S)
        pairs = zip(self.members, self.times, strict=True)
        positives = [len(self.view.positives_before(int(member), int(time))) for member, time in pairs]
        return np.asarray(positives) < NEW_MEMBER_POSITIVES

    def _having(self, field: str, value: str) -> Mask:
        column = self.dataset.member_columns[field].take(pa.array(self.members))
        if not pa.types.is_list(column.type):
            return np.asarray(pc.fill_null(pc.equal(column, value), False))
        return np.asarray([value in (values or ()) for values in column.to_pylist()], dtype=np.bool_)


def build_evaluation_set(dataset: Dataset, generation: Generation) -> EvaluationSet:
    """The members outside the validation part that have something to find; BadInput when there are none.

    Raises BadInput as well when the generation is not the evaluation generation of this dataset.
    """
    _require_evaluation_generation(dataset, generation)
    view = FeatureView(dataset)
    corpus = np.flatnonzero(present_items(dataset, generation.manifest.as_of))
    if not np.array_equal(generation.ids, dataset.item_ids[corpus]):
        raise BadInput(
            f"generation {generation.id} does not hold the items of the dataset in its order; build it again"
        )
    in_corpus = rows_in_corpus(dataset, corpus)
    members, times, positives = [], [], []
    test_positives = absent = none_in_index = not_joined = 0
    for member, time, items in _members_with_test_positives(dataset, view):
        if not has_joined(dataset, member, time):
            not_joined += 1
            continue
        present = items[(in_corpus[items] >= 0) & present_items_at(dataset, items, time)]
        test_positives += len(items)
        absent += len(items) - len(present)
        if not len(present):
            none_in_index += 1
            continue
        members.append(member)
        times.append(time)
        positives.append(in_corpus[present])
    if not members:
        raise BadInput(
            f"dataset {dataset.spec.name}: no member outside the validation part has a test positive to find"
        )
    order = np.lexsort((members, times))
    return EvaluationSet(
        dataset=dataset,
        view=view,
        corpus=corpus,
        as_of=generation.manifest.as_of,
        members=np.asarray(members, dtype=np.int64)[order],
        times=np.asarray(times, dtype=np.int64)[order],
        positives=[positives[i] for i in order],
        no_positive_in_index=none_in_index,
        not_joined=not_joined,
        test_positives=test_positives,
        absent=absent,
    )


def rows_in_corpus(dataset: Dataset, corpus: Rows) -> Rows:
    """Corpus row of each dataset item, -1 for one that is absent. int64 [I]."""
    rows = np.full(len(dataset.item_ids), -1, dtype=np.int64)
    rows[corpus] = np.arange(len(corpus))
    return rows


def present_items_at(dataset: Dataset, items: Rows, time: int) -> Mask:
    created = dataset.item_created_at
    return np.ones(len(items), dtype=np.bool_) if created is None else np.asarray(created[items] <= time)


def has_joined(dataset: Dataset, member: int, time: int) -> bool:
    """Whether the member exists at `time`; everybody always does when the dataset does not say when members joined."""
    return dataset.member_joined_at is None or bool(dataset.member_joined_at[member] <= time)


def item_popularity(view: FeatureView, corpus: Rows, as_of: int) -> npt.NDArray[np.int64]:
    """Windowed engagements of the corpus as of a time, int64 [n]."""
    return view.item_counts(corpus.astype(np.int32), np.full(len(corpus), as_of, dtype=np.int64)).engagements


def _members_with_test_positives(dataset: Dataset, view: FeatureView) -> list[tuple[int, int, Rows]]:
    """(member, evaluation time, dataset rows of its unseen test positives) of everybody who can be evaluated."""
    events, split = dataset.events, dataset.split
    wanted = events.is_test & events.engaged & ~dataset.is_validation_member[events.member]
    members, items = events.member[wanted], events.item[wanted]
    order = np.argsort(members, kind="stable")
    found, starts = np.unique(members[order], return_index=True)
    result = []
    for member, own in zip(found, np.split(items[order], starts[1:]), strict=True):
        time = split.test_from if split.member_test_from is None else int(split.member_test_from[member])
        assert time is not None
        before = view.positives_before(int(member), time)
        # perMember: a member needs a positive on both sides (contract section 3).
        if split.mode == "perMember" and not len(before):
            continue
        unseen = np.setdiff1d(own, before).astype(np.int64)
        if len(unseen):
            result.append((int(member), int(time), unseen))
    return result


def _require_evaluation_generation(dataset: Dataset, generation: Generation) -> None:
    manifest = generation.manifest
    if manifest.kind != "evaluation":
        raise BadInput(f"generation {manifest.id} is a {manifest.kind} generation, expected an evaluation generation")
    if manifest.snapshot != dataset.snapshot:
        raise BadInput(
            f"generation {manifest.id} was built from snapshot {manifest.snapshot}, the dataset is {dataset.snapshot}: "
            "build an evaluation generation from this dataset"
        )
    test_from = dataset.split.test_from
    if test_from is not None and manifest.as_of != test_from:
        raise BadInput(f"generation {manifest.id} is as of {manifest.as_of}, the test part starts at {test_from}")
