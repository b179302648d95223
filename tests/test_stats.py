"""Tables against scipy pair by pair, and against simulated τ with known truth."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import xarray as xr
from simulated import simulate

from tdalib import stats


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
    three = stats.per_pair(simulate(values[:3]))
    assert np.isinf(three.low).all() and np.isinf(three.high).all()


@pytest.mark.parametrize(("draw", "truth"), [("normal", 0), ("exponential", 1)])
@pytest.mark.parametrize("members", [5, 10, 20])
def test_interval_covers_the_mean(draw, truth, members):
    draws = getattr(np.random.default_rng(5), draw)(size=(members, 1, 50, 80, 1))
    table = stats.per_pair(simulate(draws), level=0.9)
    covered = float(((table.low <= truth) & (truth <= table.high)).mean())
    assert 0.87 < covered < 0.94


@pytest.mark.parametrize("value", [2, 0.1])
def test_constant_pairs_have_a_point_as_interval(draws, value):
    draws = np.concatenate([draws, draws[:1]])  # seven members, whose mean rounds
    draws[..., 0] = value
    table = stats.per_pair(simulate(draws)).isel(method=0)
    for end in (table.low, table.high, table["mean"]):
        np.testing.assert_allclose(end, np.float32(value))
    assert (table.same_sign == 1).all()


def test_level_must_be_possible(draws):
    with pytest.raises(ValueError, match="level: 95 is not possible; it must be between 0 and 1"):
        stats.per_pair(simulate(draws), level=95)


def test_many_members_are_flipped_at_random():
    values = np.random.default_rng(6).normal(0.5, 1, size=(16, 1, 3, 4, 1))
    table = stats.per_pair(simulate(values))
    for train, test in np.ndindex(3, 4):
        x = values[:, 0, train, test, 0].astype(np.float32).astype(float)
        signs = np.array(np.meshgrid(*[[-1, 1]] * 15)).reshape(15, -1)
        exact = (abs(x[0] + x[1:] @ signs) >= abs(x.sum()) * (1 - 1e-9)).mean()
        assert float(table.p_flip[train, test, 0]) == pytest.approx(exact, abs=4 * np.sqrt(exact / 2048) + 1 / 2048)


@pytest.mark.parametrize("shared", [0, 0.7], ids=["independent pairs", "pairs that share noise"])
def test_trustworthy_keeps_the_false_discovery_rate(shared):
    """Half of the pairs have no effect; of what is listed, on average no more than the asked share is false."""
    stream, false, listed = np.random.default_rng(7), [], 0
    effect = np.where(np.arange(2000) % 2, 0, 1.5)
    for _ in range(60):
        noise = shared * stream.normal(size=(8, 1)) + np.sqrt(1 - shared**2) * stream.normal(size=(8, 2000))
        pairs = stats.trustworthy(simulate((effect + noise).reshape(8, 1, 20, 100, 1)), fdr=0.1)
        wrong = effect.reshape(20, 100)[pairs.train, pairs.test] == 0
        false.append(wrong.mean() if len(pairs) else 0)
        listed += len(pairs)
    assert np.mean(false) < 0.1 + 2 * np.std(false) / np.sqrt(60)
    assert listed > 60 * 500


def test_trustworthy_names_the_images(draws):
    draws[:, :, 2, 3, 1] = 5 + 0.01 * draws[:, :, 2, 3, 1]
    draws[:, :, 0, 4, 1] = -5 + 0.1 * draws[:, :, 0, 4, 1]
    tau = simulate(draws).assign_coords(train_index=("train", [10, 20, 30, 40]), test_class=("test", list("abcde")))
    pairs = stats.trustworthy(tau, fdr=1e-3)
    assert pairs[["method", "train", "test", "train_index", "test_class"]].values.tolist() == [
        ["m1", 2, 3, 30, "d"], ["m1", 0, 4, 10, "e"],
    ]  # fmt: skip
    assert pairs["snr"].is_monotonic_decreasing and not pairs["noise_dominated"].any()
    pd.testing.assert_frame_equal(pairs, stats.trustworthy(stats.per_pair(tau), fdr=1e-3))
    none = stats.trustworthy(tau, fdr=1e-30)
    assert len(none) == 0 and list(none.columns) == list(pairs.columns)
    with pytest.raises(ValueError, match="fdr: 5 is not possible; it must be between 0 and 1"):
        stats.trustworthy(tau, fdr=5)


def leave_one_out(stream, members=10, seeds=1.0, effect=0.3):
    """Losses whose noise θ and θ\\j share, but for a little."""
    shape = (members, 3, 20, 30)  # (member, checkpoint, train, test)
    loss = seeds * stream.normal(size=(members, 1, 1, shape[3])) * np.ones((1, 3, 1, 1))
    without = loss + effect + 0.1 * stream.normal(size=shape)
    flat = members * 3
    return xr.Dataset(
        {
            "loss": (("sample", "test"), loss.reshape(flat, 30)),
            "loss_without": (("sample", "train", "test"), without.reshape(flat, 20, 30)),
        },
        {"member": ("sample", np.arange(members).repeat(3)), "checkpoint": ("sample", np.tile([1, 2, 3], members))},
    )


def test_uncoupled_draws_take_losses_of_two_members():
    result = leave_one_out(np.random.default_rng(8), members=5)
    tau = stats.uncoupled(result)
    assert tau.dims == ("sample", "train", "test", "method") and tau.sizes["sample"] == 6
    assert tau.member.values.tolist() == [0, 0, 0, 2, 2, 2] and tau.checkpoint.values.tolist() == [1, 2, 3] * 2
    by_hand = result.loss_without.values[[3, 4, 5, 9, 10, 11]] - result.loss.values[[0, 1, 2, 6, 7, 8], None]
    np.testing.assert_allclose(tau.values[..., 0], by_hand)
    with pytest.raises(ValueError, match="loss_without"):
        stats.uncoupled(result[["loss"]])
    shuffled = result.isel(sample=np.random.default_rng(0).permutation(15))
    np.testing.assert_array_equal(stats.uncoupled(shuffled), tau)
    for sample in (slice(0, 3), slice(0, 5)):
        with pytest.raises(ValueError, match="at least 2 members with equal numbers of draws"):
            stats.uncoupled(result.isel(sample=sample))


def test_uncoupled_draws_are_independent_and_noisier():
    """Without an effect their p-values are uniform; with one, coupled draws see it and uncoupled ones do not."""
    null = [
        stats.per_pair(stats.uncoupled(leave_one_out(np.random.default_rng(k), effect=0))).p_t.values[0, 0, 0]
        for k in range(200)
    ]
    assert scipy.stats.kstest(null, "uniform").pvalue > 0.01
    result = leave_one_out(np.random.default_rng(9))
    coupled = (result.loss_without - result.loss).expand_dims(method=["loo"], axis=-1)
    assert stats.per_pair(stats.uncoupled(result))["std"].mean() > 5 * stats.per_pair(coupled)["std"].mean()
    assert (
        (stats.per_pair(coupled).q < 0.05).mean()
        > 0.99
        > 0.2
        > (stats.per_pair(stats.uncoupled(result)).q < 0.05).mean()
    )


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
    q = [scipy.stats.false_discovery_control(p[..., m].ravel()) for m in range(3)]
    np.testing.assert_allclose(summary["share q ≤ 0.05"], np.mean(np.array(q) <= 0.05, axis=1))
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
