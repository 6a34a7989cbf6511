"""Whether a model may have been trained on what it is now tested with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_leakage(
    subject: str, training: Mapping[str, Any], *, snapshot: str, split: Mapping[str, Any], test_start: int
) -> str | None:
    """A sentence when `subject` (candidate or champion) cannot be measured fairly; None when it can.

    A model trained on the same snapshot with the same split has not seen the test part, whatever the times (with a
    perMember split training and test parts overlap in time). Any other must have been trained on earlier data only.

    `training` is the bundle's training.json; `split` the evaluated dataset's, as `ResolvedSplit.document()` gives it;
    `test_start` the time of the first test event in seconds (perMember: of the earliest evaluation of a member).
    """
    if training.get("snapshot") == snapshot and training.get("split") == split:
        return None
    through = training.get("trainedThrough")
    if not isinstance(through, int):
        return (
            f"the {subject}'s training.json does not say through when it was trained (trainedThrough), so it may have "
            "seen the test part; train it on this dataset, or compare on data that are newer than it"
        )
    if through >= test_start:
        return (
            f"the {subject} was trained on events through {through} of another snapshot or split, but the test part "
            f"starts at {test_start}: it may have seen what it is tested with"
        )
    return None
