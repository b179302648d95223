"""Power against brute force, and what a pilot predicts against what more members find."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from simulated import simulate

from tdalib import stats


@pytest.mark.parametrize(("snr", "members"), [(0, 6), (0.5, 10), (1, 5), (-1, 10), (3, 3)])
def test_power_against_brute_force(snr, members):
    draws = np.random.default_rng(0).normal(snr, 1, (100_000, members))
    found = scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert stats.t_power(snr, members) == pytest.approx(found.mean(), abs=4 * np.sqrt(0.25 / 100_000))


def test_power_is_finite_and_rises():
    power = stats.t_power(np.geomspace(0.01, 1e4, 60), np.array([2, 3, 10, 100, 1000])[:, None])
    assert (
        np.isfinite(power).all() and (np.diff(power, axis=1) > -1e-9).all() and (np.diff(power, axis=0) > -1e-9).all()
    )
    assert stats.t_power(np.inf, 2) == pytest.approx(1, abs=1e-3)


def test_smallest_snr_and_members_needed_are_each_others_inverse():
    members = np.arange(2, 40)
    snr = stats.smallest_snr(members)
    np.testing.assert_allclose(stats.t_power(snr, members), 0.8, atol=1e-6)
    np.testing.assert_array_equal(stats.members_needed(snr * (1 + 1e-6)), members)
    np.testing.assert_array_equal(stats.members_needed(-snr[1:] * (1 - 1e-3)), members[1:] + 1)
    assert stats.members_needed([0.0, 1e-3]).tolist() == [np.inf, np.inf] and np.isnan(stats.members_needed(np.nan))
    assert stats.members_needed(np.inf) == 2


PAIRS = 6000
STREAM = np.random.default_rng(1)
SNR = np.where(STREAM.random(PAIRS) < 0.5, 0, np.exp(STREAM.normal(-0.3, 0.7, PAIRS)))


def pilot(members, seed=2):
    draws = SNR + np.random.default_rng(seed).normal(size=(members, PAIRS))
    return simulate((3 * draws).reshape(members, 1, 60, 100, 1))


def test_a_pilot_predicts_what_more_members_find():
    """The true share found by the rule q ≤ 0.05, of fresh members, for counts below and above the pilot's six."""
    counts = [4, 6, 10, 20, 40]
    table = stats.power(pilot(6), counts).isel(method=0)
    assert table.found.notnull().values.tolist() == [True, True, False, False, False]
    for count in counts:
        true = float((stats.per_pair(pilot(count, seed=count + 10)).q <= 0.05).mean())
        assert float(table.predicted.sel(members=count)) == pytest.approx(true, abs=0.04)
    assert table.predicted[-1] > 0.35 > 0.1 > table.predicted[1]


def test_subsets_of_a_pilot_are_what_was_found():
    tau = pilot(6)
    table = stats.power(tau, [4, 6]).isel(method=0)
    parts = [stats.per_pair(tau.isel(sample=slice(k, k + 4)), scale="test") for k in range(3)]
    shares = [float((part.q <= 0.05).mean()) for part in parts]
    assert float(table.found[0]) == pytest.approx(np.mean(shares), abs=0.01)
    q = stats.per_pair(tau, scale="test").q
    assert float(table.found[1]) == pytest.approx(float((q <= 0.05).mean()))
    lenient = stats.power(tau, [6], fdr=0.3).isel(method=0, members=0)
    assert float(lenient.found) == pytest.approx(float((q <= 0.3).mean())) and lenient.found > 2 * table.found[1]
    assert float(lenient.predicted) == pytest.approx(float(lenient.found), abs=0.05)


def test_members_needed_of_each_pair():
    """The unbiased SNR² is near the truth; pairs without an effect mostly need infinitely many."""
    table = stats.power(pilot(40)).needed.values.ravel()
    clear = SNR > 0.7
    assert np.median(table[clear] / stats.members_needed(SNR[clear])) == pytest.approx(1, abs=0.1)
    assert np.isinf(table[SNR == 0]).mean() > 0.5


def test_members_needed_by_the_unbiased_ratio():
    """SNR² (n − 3) / (n − 1) − 1 / n has no bias, and is what the count of each pair, for any target, comes from."""

    def unbiased(x):  # (member, …)
        n = len(x)
        return (x.mean(0) / x.std(0, ddof=1)) ** 2 * (n - 3) / (n - 1) - 1 / n

    few = np.random.default_rng(3).normal(0.8, 1, (5, 200_000))
    assert unbiased(few).mean() == pytest.approx(0.8**2, rel=0.03)
    tau = simulate(few[:, :600].reshape(5, 1, 20, 30, 1))
    ratio = np.sqrt(unbiased(tau.values.astype(float)).clip(0))
    for target in (0.5, 0.8, 0.95):
        needed = stats.power(tau, [5], target=target, scale=None).needed
        np.testing.assert_array_equal(needed, stats.members_needed(ratio, target))


def test_order_of_members_and_missing_pairs():
    tau = pilot(5)
    shuffled = simulate(tau.values.reshape(5, 1, 60, 100, 1)[[3, 1, 4, 0, 2]])
    xr.testing.assert_allclose(stats.power(tau, [4, 8]), stats.power(shuffled, [4, 8]))
    holes = tau.copy()
    holes[2, 3] = np.nan
    table = stats.power(holes, [5])
    assert table.needed[3].isnull().all() and table.needed[4].notnull().all() and table.found.notnull().all()


def test_pairs_that_never_vary_are_found_never_or_always():
    draws = np.zeros((6, 1, 60, 100, 3))
    draws[..., 1] = 2.0
    draws[:, 0, 0, :3, 2] = np.random.default_rng(4).normal(size=(6, 3))  # nearly all are 0
    predicted = stats.power(simulate(draws), [6, 40], scale=None).predicted
    np.testing.assert_allclose(predicted.sel({"method": ["m0", "m1"]}), [[0, 1], [0, 1]])
    assert (predicted.sel({"method": "m2"}) < 1e-3).all()
    draws[:, 0, :3, :, 2] = np.random.default_rng(4).normal(3, 1, size=(6, 3, 100))
    tau = simulate(draws)
    found = float(stats.power(tau, [6], scale=None).found.sel({"method": "m2"}).squeeze())
    assert found == pytest.approx(float((stats.per_pair(tau).q <= 0.05).sel({"method": "m2"}).mean())) and found > 0.02


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="at least 4 members are needed, not 3"):
        stats.power(pilot(3))
    with pytest.raises(ValueError, match="counts of 2 or more"):
        stats.power(pilot(4), [1, 5])
    with pytest.raises(ValueError, match="target: 80 is not possible; it must be between 0 and 1"):
        stats.power(pilot(4), target=80)
    with pytest.raises(ValueError, match="a t test needs at least 2"):
        stats.t_power(1, [1, 5])
    with pytest.raises(ValueError, match="target: 0.01 is not possible; it must be between alpha, 0.05, and 1"):
        stats.smallest_snr(10, 0.01)


def test_a_forecast_has_an_interval_that_covers():
    """What fresh members find lies within the interval of a pilot of 5; the misfit is that at the pilot's own size."""
    counts, covered = [10, 20], []
    true = [float((stats.per_pair(pilot(count, seed=count + 10), scale="test").q <= 0.05).mean()) for count in counts]
    for seed in range(6):
        table = stats.power(pilot(5, seed=100 + seed), counts).isel(method=0)
        covered.append((table.low.values <= true) & (true <= table.high.values))
    assert np.mean(covered) >= 0.8
    own = stats.power(pilot(5), [5]).isel(method=0, members=0)
    assert float(own.misfit) == pytest.approx(float(own.predicted - own.found))
