"""In which words a program refuses what was made with other settings."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_core.differences import differences


@pytest.mark.parametrize(
    ("asked", "found", "phrases"),
    [
        ({"k": [10]}, {"k": [10], "more": 1}, []),
        ({"k": [10, 100]}, {"k": [10]}, ["k [10] (asked for [10, 100])"]),
        ({"new": 1}, {}, []),
        ({"champion": None}, {"champion": {"id": "b"}}, ["champion {'id': 'b'} (asked for None)"]),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3}}}, ["a.b.c 3 (asked for 1)"]),
        ({"a": 1, "b": True}, {"a": 2, "b": False}, ["a 2 (asked for 1)", "b False (asked for True)"]),
    ],
)
def test_what_is_told_and_differs_is_named_and_what_is_not_told_is_not(
    asked: dict[str, Any], found: dict[str, Any], phrases: list[str]
) -> None:
    assert differences(asked, found) == phrases
