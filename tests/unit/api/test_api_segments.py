"""Segments of a manifest: real category values can be named, and everything is one bounded line."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from retrieval_operator.api.spec import Evaluation, Gate


@pytest.mark.parametrize(
    "segment",
    [
        "all",
        "new",
        "category:industry=food",
        "category:industry=Food & Drink, fine",
        "category:Branche=Gemüse",
        "category:genre=a=b",
        "category:price=$5 | \"cheap\" 'n' [red]",
        "category:日本=語",
    ],
)
def test_a_segment_that_the_evaluation_knows(segment: str) -> None:
    assert Gate.model_validate({"min": "0.1", "segment": segment}).segment == segment
    assert Evaluation.model_validate({"segments": [segment]}).segments == [segment]


@pytest.mark.parametrize(
    "segment",
    [
        "",
        "old",
        "All",
        "new ",
        "all\n",
        "--help",
        "category:industry",
        "category:=food",
        "category:industry=",
        "category:industry=a\nb",
        "category:industry=a\x00",
        "category:industry=a\x1b[31m",
        "category:industry=\x85",
        "category:industry=" + "x" * 128,
    ],
)
def test_a_segment_that_means_nothing_is_refused_before_any_training(segment: str) -> None:
    with pytest.raises(ValidationError):
        Gate.model_validate({"min": "0.1", "segment": segment})
