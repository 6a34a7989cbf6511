"""The power calculation agrees with the number the design quotes and with simulation."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_operator.domain.power import gate_power


def test_equal_models_with_600_members_and_a_margin_of_one_point_rarely_pass() -> None:
    power = gate_power(members=600, margin=0.01, confidence=0.95, discordant_share=0.18)
    assert 0.1 < power.pass_if_equal < 0.2  # "only one time in seven"


@pytest.mark.parametrize(("members", "margin", "discordant"), [(600, 0.02, 0.2), (3000, 0.02, 0.3), (6000, 0.01, 0.1)])
def test_the_formula_agrees_with_simulated_members(members: int, margin: float, discordant: float) -> None:
    rng = np.random.default_rng(7)
    draws = rng.choice([-1, 0, 1], p=[discordant / 2, 1 - discordant, discordant / 2], size=(2000, members))
    lower = draws.mean(axis=1) - 1.6449 * draws.std(axis=1) / np.sqrt(members)
    expected = gate_power(members=members, margin=margin, confidence=0.95, discordant_share=discordant)
    assert expected.pass_if_equal == pytest.approx((lower >= -margin).mean(), abs=0.04)


def test_the_members_needed_give_the_usual_power() -> None:
    needed = gate_power(members=1, margin=0.02, confidence=0.95, discordant_share=0.2).members_needed
    reached = gate_power(members=needed, margin=0.02, confidence=0.95, discordant_share=0.2)
    assert reached.pass_if_equal == pytest.approx(0.8, abs=0.001)
