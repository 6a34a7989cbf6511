"""The bounds keep their promise: a true mean lies outside a one-sided 95 % bound in about 5 % of evaluations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, multinomial

from retrieval_indexer.evaluation.bootstrap import FEW_DISCORDANT, RESAMPLES, mean_bounds, paired_bounds
from retrieval_indexer.evaluation.power import difference_spread, members_to_decide, pass_probability


def bounds(values, low=0.0, high=1.0, seed=0, resamples=1000):
    return mean_bounds(np.asarray(values), low=low, high=high, confidence=0.95, seed=seed, resamples=resamples)


def test_no_difference_at_all_is_the_rule_of_three():
    result = bounds(np.zeros(600), low=-1, high=1)
    assert result.method == "exact"
    assert result.discordant == 0
    assert result.lower == pytest.approx(-(1 - 0.05 ** (1 / 600)))
    assert result.upper == pytest.approx(1 - 0.05 ** (1 / 600))
    assert result.lower == pytest.approx(-3 / 600, rel=0.01)


@pytest.mark.parametrize(("hits", "n"), [(0, 300), (1, 300), (7, 600), (29, 2000), (293, 300), (300, 300)])
def test_few_hits_are_bounded_as_clopper_and_pearson_bound_them(hits, n):
    values = np.zeros(n)
    values[:hits] = 1
    result = bounds(values, resamples=RESAMPLES)
    assert result.method == "exact"
    lower = beta.ppf(0.05, hits, n - hits + 1) if hits else 0.0
    upper = beta.ppf(0.95, hits + 1, n - hits) if hits < n else 1.0
    # Drawn quantiles: 100,000 draws leave a relative error of about a percent.
    assert result.lower == pytest.approx(lower, abs=2e-4)
    assert result.upper == pytest.approx(upper, abs=2e-4)


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.004), (0.002, 0.002), (0.004, 0.012), (0.02, 0.01), (0.001, 0.03)])
def test_exact_bounds_of_gains_and_losses_cover_by_enumeration(gain, loss):
    """Not a simulation: every outcome of 300 members with a few gains and losses, weighted by its probability."""
    n, delta = 300, gain - loss
    outside_low = outside_high = total = 0.0
    for gains in range(FEW_DISCORDANT):
        for losses in range(FEW_DISCORDANT - gains):
            probability = multinomial.pmf([gains, losses, n - gains - losses], n, [gain, loss, 1 - gain - loss])
            total += probability
            if probability < 1e-5:
                continue  # together below 0.5 %, counted as covered and added to the tolerance
            result = _drawn_once(gains, losses, n)
            outside_low += probability * (result.lower > delta)
            outside_high += probability * (result.upper < delta)
    assert total > 0.99
    assert outside_low <= 0.055
    assert outside_high <= 0.055


_DRAWN: dict[tuple[int, int, int], object] = {}


def _drawn_once(gains: int, losses: int, n: int):
    """The same outcome occurs under every true rate."""
    if (gains, losses, n) not in _DRAWN:
        values = np.zeros(n)
        values[:gains], values[gains : gains + losses] = 1, -1
        _DRAWN[gains, losses, n] = bounds(values, low=-1, high=1)
    return _DRAWN[gains, losses, n]


@pytest.mark.parametrize("n", [300, 1000, 6000])
@pytest.mark.parametrize("kind", ["one positive", "average of several", "nine gains for a loss"])
def test_bootstrap_bounds_cover_at_the_nominal_rate(n, kind):
    random = np.random.default_rng(n)
    gain, loss = {"one positive": (0.1, 0.1), "average of several": (0.3, 0.25), "nine gains for a loss": (0.18, 0.02)}[
        kind
    ]
    sizes = [0.1, 0.25, 0.5, 0.75] if kind == "average of several" else [1.0]
    outside_low = outside_high = 0
    simulations = 400
    for seed in range(simulations):
        kinds = random.random(n)
        sign = np.where(kinds < gain, 1.0, np.where(kinds < gain + loss, -1.0, 0.0))
        result = bounds(sign * random.choice(sizes, n), low=-1, high=1, seed=seed, resamples=400)
        assert result.method == "bootstrap"
        outside_low += result.lower > (gain - loss) * np.mean(sizes)
        outside_high += result.upper < (gain - loss) * np.mean(sizes)
    # Asymptotic: up to 6.5 % is accepted as the method's own error; what chance adds to 400 simulations is 2.5 sigma.
    allowed = binom.ppf(0.994, simulations, 0.065)
    assert outside_low <= allowed
    assert outside_high <= allowed
    assert min(outside_low, outside_high) >= binom.ppf(0.006, simulations, 0.03)  # and it is not just wide


def verdict(result, margin: float) -> str:
    """The operator's rule, for a gate with maxRegression alone."""
    if result.lower >= -margin:
        return "Pass"
    return "Fail" if result.upper < -margin else "Inconclusive"


@pytest.mark.parametrize(
    ("n", "share"), [(300, 0.01), (300, 0.2), (1000, 0.03), (1000, 0.2), (6000, 0.002), (6000, 0.2)]
)
def test_a_candidate_at_the_margin_passes_or_fails_only_by_the_nominal_error(n, share):
    """True regression = margin: a Pass is an error, a Fail is an error, each in at most about 5 %."""
    random = np.random.default_rng(7)
    margin = min(0.02, share / 2)
    gain, loss = (share - margin) / 2, (share + margin) / 2
    verdicts = []
    for seed in range(300):
        kinds = random.random(n)
        difference = np.where(kinds < gain, 1.0, np.where(kinds < gain + loss, -1.0, 0.0))
        champion = np.where(difference > 0, 0.0, np.where(difference < 0, 1.0, 0.5))
        result = paired_bounds(champion + difference, champion, confidence=0.95, seed=seed, resamples=400)
        verdicts.append(verdict(result, margin))
    allowed = binom.ppf(0.994, 300, 0.06) / 300
    assert verdicts.count("Pass") / 300 <= allowed
    assert verdicts.count("Fail") / 300 <= allowed


def test_an_equal_candidate_with_few_differences_passes_and_one_clearly_worse_fails():
    champion = np.zeros(600)
    champion[:200] = 1
    assert verdict(paired_bounds(champion, champion, confidence=0.95, seed=0), 0.01) == "Pass"
    worse = champion.copy()
    worse[:60] = 0
    result = paired_bounds(worse, champion, confidence=0.95, seed=0)
    assert result.discordant == 60
    assert verdict(result, 0.01) == "Fail"


def test_all_members_better_by_the_same_amount_counts_them_all_as_discordant():
    result = paired_bounds(np.full(400, 0.6), np.full(400, 0.5), confidence=0.95, seed=0)
    assert result.discordant == 400
    assert result.method == "exact"  # no spread to resample
    assert result.lower > 0.09


def test_the_same_seed_gives_the_same_bounds_and_members_have_no_order():
    values = np.random.default_rng(0).random(500)
    assert bounds(values) == bounds(values)
    assert bounds(np.round(values, 1)) == bounds(np.sort(np.round(values, 1)))


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "no member"), ([0.5, np.nan], "expected"), ([1.5, 0.0], "expected"), ([-0.1], "expected")],
)
def test_values_that_mean_nothing_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bounds(values)


def test_equal_models_with_600_members_and_margin_one_percent_pass_one_time_in_seven():
    """The example of the design: spread 0.42, which correlated hits of 0.5 each have."""
    spread = difference_spread(baseline=0.5, correlation=0.65)
    assert pass_probability(members=600, spread=spread, margin=0.01) == pytest.approx(1 / 7, abs=0.01)
    needed = members_to_decide(delta=0.0, spread=spread, margin=0.01, confidence=0.95)
    assert pass_probability(members=needed, spread=spread, margin=0.01) == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.05])
def test_the_members_to_decide_without_any_difference_are_those_of_the_exact_bound(margin):
    needed = members_to_decide(delta=0.0, spread=0.0, margin=margin, confidence=0.95)
    assert bounds(np.zeros(needed), low=-1, high=1).lower >= -margin
    assert bounds(np.zeros(needed - 1), low=-1, high=1).lower < -margin
    assert pass_probability(members=needed, spread=0.0, margin=margin) == 1


def test_a_difference_of_exactly_the_margin_is_never_decided():
    assert members_to_decide(delta=-0.01, spread=0.3, margin=0.01, confidence=0.95) is None
