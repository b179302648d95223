"""Tables against scipy pair by pair, and against simulated τ with known truth."""

import json

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from simulated import simulate

from tdalib import stats
from tdalib.stats.pairs import _resampling


@pytest.fixture
def draws():
    return np.random.default_rng(0).normal(0.3, 1, size=(6, 2, 4, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("chunks", [None, {"train": 2, "sample": 2}], ids=["numpy", "dask"])
def test_every_pair_against_scipy(draws, chunks):
    tau = simulate(draws) if chunks is None else simulate(draws).chunk(chunks)
    table = stats.per_pair(tau, level=0.9)
    averaged = draws.astype(float).mean(1)  # checkpoints first
    for train, test, method in np.ndindex(averaged.shape[1:]):
        values = averaged[:, train, test, method]
        got = table.isel(train=train, test=test, method=method)
        mean, std = values.mean(), values.std(ddof=1)
        assert got["mean"] == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert got["std"] == pytest.approx(std, rel=1e-5)
        assert got.p_t == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue, rel=1e-4)
        assert got.p_noise == pytest.approx(2 * scipy.stats.norm.cdf(-abs(mean) / std), rel=1e-4)
        assert bool(got.noise_dominated) == (std > abs(mean))
        signs = np.sign(draws[:, :, train, test, method]) == np.sign(mean)
        assert got.same_sign == pytest.approx(signs.mean())
        flipped = scipy.stats.permutation_test(
            (values,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert got.p_flip == pytest.approx(flipped.pvalue)
    for method in range(3):
        p = table.p_t.isel(method=method).values.ravel()
        q = table.q.isel(method=method).values.ravel()
        np.testing.assert_allclose(q, scipy.stats.false_discovery_control(p))


@pytest.mark.parametrize("members", [4, 10])
def test_interval_is_the_studentised_bootstrap(members):
    """Against a plain loop over resamples of one pair, and where three members cannot bound the mean."""
    values = np.random.default_rng(3).exponential(size=(members, 1, 1, 1, 1))
    table, x = stats.per_pair(simulate(values), level=0.8), values.ravel()
    stream, t = np.random.default_rng(4), []
    while len(t) < 20_000:
        again = stream.choice(x, members)
        spread = again.std(ddof=1)
        t.append((again.mean() - x.mean()) / spread if spread else np.sign(again.mean() - x.mean()) * np.inf)
    low, high = x.mean() - np.quantile(t, [0.9, 0.1], method="nearest") * x.std(ddof=1)
    width = high - low
    assert float(table.low.squeeze()) == pytest.approx(low, abs=0.1 * width)
    assert float(table.high.squeeze()) == pytest.approx(high, abs=0.1 * width)
    three = stats.per_pair(simulate(values[:3]), level=0.95)
    assert np.isinf(three.low).all() and np.isinf(three.high).all()


@pytest.mark.parametrize(("draw", "truth"), [("normal", 0), ("exponential", 1)])
@pytest.mark.parametrize("members", [5, 10, 20])
def test_interval_covers_the_mean(draw, truth, members):
    draws = getattr(np.random.default_rng(5), draw)(size=(members, 1, 50, 80, 1))
    table = stats.per_pair(simulate(draws), level=0.9)
    covered = float(((table.low <= truth) & (truth <= table.high)).mean())
    assert 0.87 < covered < 0.94


def test_constant_pairs_have_a_point_as_interval(draws):
    tau = simulate(np.concatenate([draws, draws[:1]])).astype(float)  # seven members, whose mean rounds
    constant = np.random.default_rng(9).normal(size=(4, 5))
    tau[..., 0] = constant
    table = stats.per_pair(tau, level=0.95).isel(method=0)
    assert 0 < table["std"].max() < 1e-15
    for end in (table.low, table.high, table["mean"]):
        np.testing.assert_allclose(end, constant)
    assert (table.same_sign == 1).all()


def test_level_must_be_possible(draws):
    with pytest.raises(ValueError, match="level: 95 is not possible; it must be between 0 and 1"):
        stats.per_pair(simulate(draws), level=95)
    with pytest.raises(ValueError, match="level: 0.999 is not possible with 1000 resamples; it must be at most 0.998"):
        stats.per_pair(simulate(draws), level=0.999)
    assert (stats.per_pair(simulate(draws), level=0.998).low <= stats.per_pair(simulate(draws), level=0.99).low).all()


def test_interval_of_all_resamples():
    """Of five members all 3,125 resamples can be written out; over seeds the interval lies around theirs."""
    x = np.random.default_rng(3).exponential(size=5)
    every = x[np.array(np.meshgrid(*[range(5)] * 5)).reshape(5, -1).T]  # (resample, member)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num((every.mean(1) - x.mean()) / every.std(1, ddof=1), nan=0.0)
    tables = [stats.per_pair(simulate(x.reshape(5, 1, 1, 1, 1)), level=0.7, seed=seed) for seed in range(40)]
    low, high = (np.mean([float(table[end].squeeze()) for table in tables]) for end in ("low", "high"))
    expected = x.mean() - np.quantile(t, [0.85, 0.15]) * x.std(ddof=1)
    np.testing.assert_allclose([low, high], expected, atol=0.02 * np.ptp(expected))


def test_missing_and_zero_draws(draws):
    """One missing checkpoint makes its pair missing; a draw of 0 has no sign, so not that of the mean."""
    draws[2, 1, 0, 0, 0] = np.nan
    draws[:, :, 1, 1, 0] = [[1, 0]] * 6
    table = stats.per_pair(simulate(draws))
    assert table.isel(train=0, test=0, method=0).to_array().isnull().all()
    assert table.drop_sel(method="m0").to_array().notnull().all()
    assert float(table.same_sign[1, 1, 0]) == 0.5


def test_many_members_are_flipped_at_random():
    values = np.random.default_rng(6).normal(0.5, 1, size=(16, 1, 3, 4, 1))
    table = stats.per_pair(simulate(values), level=0.95)
    for train, test in np.ndindex(3, 4):
        x = values[:, 0, train, test, 0].astype(np.float32).astype(float)
        signs = np.array(np.meshgrid(*[[-1, 1]] * 15)).reshape(15, -1)
        exact = (abs(x[0] + x[1:] @ signs) >= abs(x.sum()) * (1 - 1e-9)).mean()
        assert float(table.p_flip[train, test, 0]) == pytest.approx(exact, abs=4 * np.sqrt(exact / 2048) + 1 / 2048)


@pytest.mark.parametrize("members", range(1, 13))
def test_flips_are_all_but_opposites(members):
    """2^(n − 1) sign vectors, the first without a flip; with their opposites they are all 2^n, each once."""
    flips = _resampling(members, np.random.default_rng(0))[0]
    assert flips.shape == (members, 2 ** (members - 1)) and (flips[:, 0] == 1).all()
    both = np.concatenate([flips, -flips], axis=1)
    assert set(np.unique(both)) == {-1, 1} and len(np.unique(both, axis=1).T) == 2**members


def test_p_t_is_uniform_under_the_null_and_p_noise_is_not():
    null = np.random.default_rng(1).normal(size=(8, 1, 100, 100, 1))
    table = stats.per_pair(simulate(null))
    assert scipy.stats.kstest(table.p_t.values.ravel(), "uniform").pvalue > 0.01
    assert scipy.stats.kstest(table.p_noise.values.ravel(), "uniform").pvalue < 1e-6


def test_correlated_checkpoints_do_not_count_as_evidence():
    """Checkpoints that repeat their member must leave every p-value as it was."""
    once = np.random.default_rng(2).normal(size=(5, 1, 20, 20, 1))
    one, five = (stats.per_pair(simulate(np.repeat(once, k, axis=1))) for k in (1, 5))
    np.testing.assert_allclose(one.p_t, five.p_t, rtol=1e-4)


def test_order_of_members_does_not_matter(draws):
    shuffled = stats.per_pair(simulate(draws[[3, 0, 5, 1, 4, 2]]))
    xr.testing.assert_allclose(stats.per_pair(simulate(draws)), shuffled)


def test_pairs_that_never_matter_and_single_members(draws):
    draws[:, :, 0, 0, 0] = 0
    never = stats.per_pair(simulate(draws)).isel(train=0, test=0, method=0)
    assert never.p_t == 1 and never.p_noise == 1 and never.snr == 0 and never.noise_dominated == 0
    single = stats.per_pair(simulate(draws[:1]))
    assert single.p_t.isnull().all() and single.noise_dominated.isnull().all()
    with pytest.raises(ValueError, match="at least 2 members are needed, not 1"):
        stats.summary(simulate(draws[:1]))


def test_extremes_are_the_ends_and_distinct(draws):
    draws[:, :, 2, 3, 1] = 5 + 0.01 * draws[:, :, 2, 3, 1]
    ends = stats.extremes(stats.per_pair(simulate(draws)), "m1", count=2)
    assert ends.trust.tolist() == ["most", "most", "least", "least"]
    assert (ends.train[0], ends.test[0]) == (2, 3)
    assert ends.snr.is_monotonic_decreasing
    assert ends.train[0] != ends.train[1] and ends.test[0] != ends.test[1]


def test_pairs_whose_tau_is_always_0_are_at_neither_end(draws):
    """A mean of 0 that scatters is the least to be trusted, and what never varies the most; no τ at all is no pair."""
    draws[:, :, :2, :3] = 0
    draws[:, :, 3, 4] = np.array([-1, 1, -1, 1, -1, 1])[:, None, None]
    draws[:, :, 2, 0] = 7
    draws[0, 0, 3, 1] = np.nan
    table = stats.per_pair(simulate(draws))
    ends = stats.extremes(table, "m1", count=9)
    most, least = (ends[ends.trust == end] for end in ("most", "least"))
    assert (most.train.iloc[0], most.test.iloc[0], most.snr.iloc[0]) == (2, 0, np.inf)
    assert (least.train.iloc[-1], least.test.iloc[-1], least.snr.iloc[-1]) == (3, 4, 0)
    assert not ((ends.train < 2) & (ends.test < 3)).any() and not ((ends.train == 3) & (ends.test == 1)).any()
    for without in (0 * np.nan_to_num(draws), draws[1:2]):  # any effect; a second member, so any ratio
        nothing = stats.extremes(stats.per_pair(simulate(without)), "m1")
        assert len(nothing) == 0 and list(nothing.columns) == list(ends.columns)


def test_a_method_that_never_varies_is_all_signal(draws):
    draws[..., 0] = 2
    table = stats.per_pair(simulate(draws))
    assert np.isinf(table.snr.sel({"method": "m0"})).all() and (table.p_t.sel({"method": "m0"}) == 0).all()
    assert len(stats.extremes(table, "m0", count=1)) == 2


def test_scale_test_takes_out_what_a_member_does_to_a_test_point(draws):
    """Divided by the root mean square over train points of the member's average, whatever a member is multiplied by."""
    tau = simulate(draws)
    average = draws.astype(float).mean(1)  # (member, train, test, method)
    relative = average / np.sqrt((average**2).mean(1, keepdims=True))
    np.testing.assert_allclose(stats.by_member(stats.scaled(tau)).transpose("member", ...), relative, rtol=1e-5)
    table = stats.per_pair(tau, scale="test")
    np.testing.assert_allclose(table["mean"], relative.mean(0), rtol=1e-5)
    louder = simulate(draws * np.exp(np.random.default_rng(1).normal(size=(6, 1, 1, 5, 1))).astype(np.float32))
    xr.testing.assert_allclose(table, stats.per_pair(louder, scale="test"), rtol=1e-4)
    tiny = simulate(draws * np.array([1, 1e-25, 1, 1e-30, 1, 1], np.float32)[:, None, None, None, None])
    xr.testing.assert_allclose(table, stats.per_pair(tiny, scale="test"), rtol=1e-4)
    lazy = stats.per_pair(tau.chunk({"train": 2, "sample": 2}), scale="test")
    xr.testing.assert_allclose(table, lazy)
    assert json.loads(stats.scaled(tau.assign_attrs(units='{"m0": "nats"}')).attrs["units"]) == {
        "m0": "root mean squares"
    }
    with pytest.raises(ValueError, match="scale: 'train' is not possible; it must be 'test' or None"):
        stats.per_pair(tau, scale="train")


def test_moderated_ratio_ranks_better_where_variances_have_something_in_common():
    """Three members; std is a product of a train point's and a test point's, and the mean 1."""
    stream = np.random.default_rng(2)
    std = np.exp(stream.normal(size=(40, 1)) + stream.normal(size=(1, 50)))
    tau = simulate((1 + std * stream.normal(size=(3, 40, 50)))[:, None, ..., None])
    moderated, plain = (r.values.ravel() for r in (stats.moderated_snr(tau), stats.per_pair(tau).snr))
    truth = (1 / std).ravel()
    by_moderated, by_plain = (scipy.stats.spearmanr(truth, r).statistic for r in (moderated, plain))
    assert by_moderated > by_plain + 0.05


def test_moderation_leaves_alone_what_many_members_know(draws):
    many = simulate(np.random.default_rng(3).normal(0.3, np.arange(1, 6)[:, None], size=(400, 1, 4, 5, 1)))
    np.testing.assert_allclose(stats.moderated_snr(many), stats.per_pair(many).snr, rtol=0.15)
    draws[:, :, 0, 0, 0] = 0
    draws[:, :, 1, 1, 0] = 2
    moderated = stats.moderated_snr(simulate(draws))
    assert moderated[0, 0, 0] == 0 and np.isinf(moderated[1, 1, 0]) and np.isfinite(moderated[2:]).all()
