"""What callers may send as features, and the path that an error names."""

from __future__ import annotations

import math

import pytest

from retrieval_encoder_server.features import FeatureChecks
from retrieval_encoder_server.refusals import Malformed
from retrieval_encoder_server.schemas import FeaturesInput


@pytest.fixture
def check(world):
    checks = FeatureChecks(world.prompts)
    return lambda side, features: checks.check(FeaturesInput(side, features, f"input[0].{side}"))


@pytest.mark.parametrize(
    ("side", "features"),
    [
        pytest.param("member", {}, id="nothing is known"),
        pytest.param("member", {"headline": None, "activity": None, "history": None}, id="unknown values are null"),
        pytest.param("member", {"headline": "a", "industry": ["b", "c"], "activity": 3}, id="every kind of value"),
        pytest.param("member", {"history": [{"title": "a"}, {"title": None, "words": 5}]}, id="a history of items"),
        pytest.param("member", {"history": []}, id="an empty history"),
        pytest.param("item", {"words": 1.5}, id="an item"),
    ],
)
def test_good_features_are_accepted(check, side, features):
    check(side, features)


@pytest.mark.parametrize(
    ("side", "features", "message"),
    [
        ("member", {"headlin": "a"}, r"input\[0\]\.member\.headlin: unknown field; .* activity, headline, industry"),
        ("item", {"history": []}, r"input\[0\]\.item\.history: unknown field"),
        ("member", {"headline": {"a": 1}}, r"member\.headline: found an object, expected a string"),
        ("member", {"headline": True}, r"member\.headline: found true, expected a string"),
        ("member", {"industry": ["a", 1]}, r"member\.industry: found a list, expected a string, a list of strings"),
        ("member", {"industry": ["a"] * 1001}, r"member\.industry: found 1001 strings, expected at most 1000"),
        ("member", {"activity": "3"}, r"member\.activity: found a string, expected a finite number or null"),
        ("member", {"activity": False}, r"member\.activity: found false, expected a finite number"),
        ("member", {"activity": math.inf}, r"member\.activity: found the number inf, expected a finite number"),
        ("member", {"history": {"title": "a"}}, r"member\.history: found an object, expected a list of items"),
        ("member", {"history": ["a"]}, r"member\.history\[0\]: found a string, expected an object"),
        ("member", {"history": [{}] * 4}, r"member\.history: found 4 items, this bundle takes at most 3"),
        ("member", {"history": [{}, {"tilte": "a"}]}, r"member\.history\[1\]\.tilte: unknown field"),
        ("member", {"history": [{"words": "many"}]}, r"member\.history\[0\]\.words: found a string"),
    ],
)
def test_bad_features_are_refused_by_their_path(check, side, features, message):
    with pytest.raises(Malformed, match=message):
        check(side, features)


def test_a_private_text_is_not_repeated_in_the_error(check):
    with pytest.raises(Malformed) as refused:
        check("member", {"activity": "a private remark"})
    assert "private" not in str(refused.value)
