"""Tables against scipy pair by pair, and against simulated τ with known truth."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr

from tdalib import stats


def simulate(draws):
    """A labelled τ from an array (member, checkpoint, train, test, method)."""
    members, checkpoints, *rest = draws.shape
    return xr.DataArray(
        draws.reshape(members * checkpoints, *rest).astype(np.float32),
        dims=("sample", "train", "test", "method"),
        coords={
            "member": ("sample", np.repeat(np.arange(members), checkpoints)),
            "method": [f"m{k}" for k in range(rest[-1])],
        },
    )


@pytest.fixture
def draws():
    return np.random.default_rng(0).normal(0.3, 1, size=(6, 2, 4, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("chunks", [None, {"train": 2, "sample": 2}], ids=["numpy", "dask"])
def test_every_pair_against_scipy(draws, chunks):
    tau = simulate(draws) if chunks is None else simulate(draws).chunk(chunks)
    table = stats.per_pair(tau)
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
    assert stats.summary(single).pairs.eq(0).all()


def test_summary_counts_finished_pairs_only(draws):
    draws[3, :, 1] = np.nan  # one member is not there yet, for one train point
    summary = stats.summary(stats.per_pair(simulate(draws)))
    kept = np.delete(draws, 1, axis=2).astype(float).mean(1)
    p = scipy.stats.ttest_1samp(kept, 0, axis=0).pvalue  # (train, test, method)
    assert summary.pairs.tolist() == [15, 15, 15] and summary.members.tolist() == [6, 6, 6]
    np.testing.assert_allclose(summary["mean p (t)"], p.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(summary["share p (t) < 0.05"], (p < 0.05).mean((0, 1)))
    dominated = kept.std(0, ddof=1) > abs(kept.mean(0))
    np.testing.assert_allclose(summary["std > |mean|"], dominated.mean((0, 1)))


def test_extremes_are_the_ends_and_distinct(draws):
    draws[:, :, 2, 3, 1] = 5 + 0.01 * draws[:, :, 2, 3, 1]
    ends = stats.extremes(stats.per_pair(simulate(draws)), "m1", count=2)
    assert ends.trust.tolist() == ["most", "most", "least", "least"]
    assert (ends.train[0], ends.test[0]) == (2, 3)
    assert ends.snr.is_monotonic_decreasing
    assert ends.train[0] != ends.train[1] and ends.test[0] != ends.test[1]


def test_a_method_that_never_varies_is_all_signal(draws):
    draws[..., 0] = 2
    table = stats.per_pair(simulate(draws))
    assert np.isinf(table.snr.sel({"method": "m0"})).all() and (table.p_t.sel({"method": "m0"}) == 0).all()
    assert len(stats.extremes(table, "m0", count=1)) == 2


def test_one_selected_method_has_a_summary(draws):
    tau = simulate(draws)
    one = stats.summary(stats.per_pair(tau.sel({"method": "m1"})))
    pd.testing.assert_frame_equal(one, stats.summary(stats.per_pair(tau)).loc[["m1"]])


def test_proponents_are_the_highest_first(draws):
    tau = stats.by_member(simulate(draws)).sel({"method": "m2"})  # (member, train, test)
    assert stats.proponents(tau, 9).sizes["rank"] == 4
    top = stats.proponents(tau, 2)
    assert top.dims == ("member", "rank", "test") and top.shape == (6, 2, 5)
    for member, test in np.ndindex(6, 5):
        column = tau.values[member, :, test].tolist()
        best = sorted(range(4), key=lambda j: -column[j])[:2]
        assert top.values[member, :, test].tolist() == best


TRUE = {"init": 1.0, "batch": 0.5, "init × batch": 0.3, "checkpoint": 0.2}


def crossed(stream, weights, inits=5, orders=5, kept=3):
    """τ with known components; every pair has the same effects times its weight where `weights` is given, else own."""
    pairs = len(weights)
    shapes = {"init": (inits, 1, 1), "batch": (1, orders, 1), "init × batch": (inits, orders, 1)}
    shapes["checkpoint"] = inits, orders, kept
    shared = len(set(weights)) > 1
    effects = [
        np.sqrt(TRUE[name]) * stream.normal(size=(*shape, 1 if shared else pairs)) for name, shape in shapes.items()
    ]
    tau = 0.7 + sum(effects) * np.asarray(weights)
    cell = np.arange(inits * orders).repeat(kept)
    return xr.DataArray(
        tau.reshape(-1, pairs, 1, 1),
        dims=("sample", "train", "test", "method"),
        coords={
            "member": ("sample", cell),
            "init_seed": ("sample", cell // orders + 50),
            "batch_seed": ("sample", 90 - cell % orders),
            "checkpoint": ("sample", np.tile(np.arange(kept), inits * orders)),
            "method": ["m"],
        },
    )


@pytest.mark.parametrize("weights", [[1.0], [1.0] * 40, [0.5, 1.0, 2.0]], ids=["one pair", "apart", "together"])
def test_variance_components_are_unbiased_and_covered(weights):
    """200 simulations: means within 4 standard errors, and 90 % intervals that hold the truth about so often."""
    stream, true = np.random.default_rng(1), np.array(list(TRUE.values())) * np.square(weights).mean()
    tables = [stats.variance_components(crossed(stream, weights), seed=k).sel({"method": "m"}) for k in range(200)]
    assert tables[0].source.values.tolist() == list(TRUE)
    found = np.stack([table.variance.values for table in tables])
    np.testing.assert_array_less(abs(found.mean(0) - true), 4 * found.std(0) / np.sqrt(200))
    held = np.mean([(table.low.values <= true) & (true <= table.high.values) for table in tables], axis=0)
    assert (held > 0.83).all() and (held < 0.97).all()  # ± 3 standard errors


def test_variance_components_by_hand_and_in_any_order():
    """Against the sums of squares of the textbook's three-way layout, written out as loops."""
    tau = crossed(np.random.default_rng(2), [1.0, 1.0], inits=2, orders=3, kept=2)
    table = stats.variance_components(tau).sel({"method": "m"})
    x = tau.values[:, 1, 0, 0].reshape(2, 3, 2)
    m, a, b, c = x.mean(), x.mean((1, 2)), x.mean((0, 2)), x.mean((0, 1))
    ab, ac, bc = x.mean(2), x.mean(1), x.mean(0)
    ms = {
        "a": 6 * sum((a[i] - m) ** 2 for i in range(2)) / 1,
        "b": 4 * sum((b[j] - m) ** 2 for j in range(3)) / 2,
        "c": 6 * sum((c[k] - m) ** 2 for k in range(2)) / 1,
        "ab": 2 * sum((ab[i, j] - a[i] - b[j] + m) ** 2 for i, j in np.ndindex(2, 3)) / 2,
        "ac": 3 * sum((ac[i, k] - a[i] - c[k] + m) ** 2 for i, k in np.ndindex(2, 2)) / 1,
        "bc": 2 * sum((bc[j, k] - b[j] - c[k] + m) ** 2 for j, k in np.ndindex(3, 2)) / 2,
        "abc": sum(
            (x[i, j, k] - ab[i, j] - ac[i, k] - bc[j, k] + a[i] + b[j] + c[k] - m) ** 2
            for i, j, k in np.ndindex(2, 3, 2)
        ) / 2,
    }  # fmt: skip
    init = (ms["a"] - ms["ab"] - ms["ac"] + ms["abc"]) / 6
    batch = (ms["b"] - ms["ab"] - ms["bc"] + ms["abc"]) / 4
    within = sum((x[i, j, k] - ab[i, j]) ** 2 for i, j, k in np.ndindex(x.shape)) / 6
    np.testing.assert_allclose(table.by_pair[:, 1, 0], [init, batch, (ms["ab"] - ms["abc"]) / 2, within])
    np.testing.assert_allclose(table.variance, table.by_pair.mean(("train", "test")))
    assert float(table.share.sum()) == pytest.approx(1)
    alone = stats.variance_components(tau.isel(train=[1])).sel({"method": "m"})
    trend = (ms["c"] - ms["ac"] - ms["bc"] + ms["abc"]) / 6
    assert float(alone.trend * alone.variance.sum()) == pytest.approx(trend)
    shuffled = tau.isel(sample=np.random.default_rng(3).permutation(tau.sizes["sample"]))
    xr.testing.assert_allclose(table, stats.variance_components(shuffled).sel({"method": "m"}))


def test_what_checkpoints_do_stays_theirs():
    """What epochs do to all members alike adds to "checkpoint" and is named; by initialisation, it adds as well."""
    tau = crossed(np.random.default_rng(5), [1.0] * 40)
    epoch, init = tau.checkpoint.astype(float), tau.init_seed.astype(float)
    plain, rising, apart = (
        stats.variance_components(t).sel({"method": "m"}) for t in (tau, tau + 3 * epoch, tau + epoch * (init - 52))
    )
    between = {"source": ["init", "batch", "init × batch"]}
    np.testing.assert_allclose(rising.variance.sel(between), plain.variance.sel(between))
    np.testing.assert_allclose(apart.variance.sel(source="init × batch"), plain.variance.sel(source="init × batch"))
    added = [float((t - plain).variance.sel(source="checkpoint")) for t in (rising, apart)]
    assert added == pytest.approx([9.0, 2.5 / 1.25], rel=0.1)
    assert float(rising.trend) > 0.75 > 0.05 > abs(float(plain.trend)) and abs(float(apart.trend)) < 0.2


def test_variance_components_of_other_layouts():
    tau = crossed(np.random.default_rng(4), [1.0] * 30)
    ensemble = tau.isel(sample=tau.member < 5)  # one initialisation: no grid
    table = stats.variance_components(ensemble)
    assert table.source.values.tolist() == ["member", "checkpoint"]
    x = ensemble.values[:, 7, 0, 0].reshape(5, 3)
    rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    within, mean_square = x.var(1, ddof=1).mean(), 3 * x.mean(1).var(ddof=1)
    by_hand = [(mean_square - np.square(rest).sum() / 8) / 3, within]
    np.testing.assert_allclose(table.by_pair.isel(train=7, test=0, method=0), by_hand)
    last = stats.variance_components(tau.isel(sample=slice(2, None, 3)))
    assert last.source.values.tolist() == ["init", "batch", "init × batch"]
    np.testing.assert_allclose(last.variance.sum(), sum(TRUE.values()), rtol=0.5)
    with pytest.raises(ValueError, match="at least 2 members"):
        stats.variance_components(tau.isel(sample=tau.member == 0))
    with pytest.raises(ValueError, match="level: 90 is not possible; it must be between 0 and 1"):
        stats.variance_components(tau, level=90)
    with pytest.raises(ValueError, match="the same number of draws of each member"):
        stats.variance_components(tau.isel(sample=slice(1, None)))


def chains(slope, count=40):
    loss = np.random.default_rng(0).normal(size=(5, count)) + slope * np.arange(count)
    return xr.Dataset(
        {"loss": (("sample", "test"), loss.reshape(-1, 1))}, {"member": ("sample", np.arange(5).repeat(count))}
    )


def test_convergence_tells_a_drift_from_independent_draws():
    steady, drifting = stats.convergence(chains(0)), stats.convergence(chains(0.2))
    assert steady["R-hat"].median() < 1.05 and (drifting["R-hat"] > 1.3).all()
    assert steady["ESS"].median() > 30 and (drifting["ESS"] < 10).all()
    assert stats.convergence_warning(steady) is None
    line = stats.convergence_warning(drifting)
    assert "has not converged: R-hat" in line and "of 40 draws (median of 5 chains)" in line and "\n" not in line
    assert "too few to judge" in stats.convergence_warning(stats.convergence(chains(0, count=6)))
