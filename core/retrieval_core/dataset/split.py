"""Which interactions are test, and which members serve for tuning (docs/contracts.md section 3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval_core.dataset.arrays import BoolArray, Int32Array, Int64Array, StringArray
from retrieval_core.dataset.spec import SplitSpec

NO_TEST_PART = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ResolvedSplit:
    """Where the test part starts, in seconds.

    `test_from` is set in mode global. `member_test_from` int64 [M] is set in mode perMember: the time of the member's
    first test interaction, or NO_TEST_PART (later than any time) for a member that has none.
    """

    mode: str
    test_from: int | None
    member_test_from: Int64Array | None
    test_fraction: float | None

    def document(self) -> dict[str, Any]:
        """What training.json and evaluation.json say about the split."""
        if self.mode == "global":
            return {"mode": self.mode, "testFrom": self.test_from}
        return {"mode": self.mode, "testFraction": self.test_fraction}

    def is_test(self, member: Int32Array, time: Int64Array) -> BoolArray:
        """Whether an interaction of `member` [n] at `time` [n] belongs to the test part."""
        if self.member_test_from is not None:
            return time >= self.member_test_from[member]
        assert self.test_from is not None
        return time >= self.test_from


def resolve_split(spec: SplitSpec, member: Int32Array, time: Int64Array, member_count: int) -> ResolvedSplit:
    """Turn fractions into times, for interactions sorted by time; `member` and `time` are [E], E > 0."""
    if spec.mode == "perMember":
        assert spec.test_fraction is not None
        test_from = _member_test_from(member, time, member_count, spec.test_fraction)
        return ResolvedSplit(spec.mode, None, test_from, spec.test_fraction)
    if spec.test_from is not None:
        return ResolvedSplit(spec.mode, spec.test_from, None, None)
    assert spec.test_fraction is not None
    training = len(time) - _test_size(np.asarray([len(time)]), spec.test_fraction)[0]
    return ResolvedSplit(spec.mode, int(time[min(training, len(time) - 1)]), None, spec.test_fraction)


def _test_size(sizes: Int64Array, fraction: float) -> Int64Array:
    """Rounded down; the small number keeps 0.2 * 15 = 3 although it is 2.9999... in binary."""
    size: Int64Array = np.floor(sizes * fraction + 1e-9).astype(np.int64)
    return size


def _member_test_from(member: Int32Array, time: Int64Array, member_count: int, fraction: float) -> Int64Array:
    by_member = np.argsort(member, kind="stable")  # time order is kept within a member
    times = time[by_member]
    sizes = np.bincount(member, minlength=member_count).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    training = sizes - _test_size(sizes, fraction)
    test_from = np.full(member_count, NO_TEST_PART, dtype=np.int64)
    # Interactions at the time of the last training one stay in training: the test part starts strictly later.
    for index in np.flatnonzero(training < sizes):
        own = times[starts[index] : starts[index] + sizes[index]]
        last_training = training[index] - 1
        first_test = np.searchsorted(own, own[last_training], side="right") if last_training >= 0 else 0
        if first_test < len(own):
            test_from[index] = own[first_test]
    return test_from


def validation_members(ids: StringArray, share: float) -> BoolArray:
    """Bool [M]: a stable hash of the id decides, so a member keeps its part when others come and go."""
    return np.fromiter((_unit_hash(identifier) < share for identifier in ids), dtype=np.bool_, count=len(ids))


def _unit_hash(identifier: str) -> float:
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") / 2.0**64
