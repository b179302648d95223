"""Agreement against scipy, against loops, and against simulated τ whose correlation is known."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from simulated import simulate

from tdalib import stats


def methods(stream, members=10, pairs=(30, 40), rho=0.6, noise=(1.0, 1.0), shared=0.0, checkpoints=1):
    """Two methods: expectations with correlation `rho` over pairs, noise of each, `shared` between them by member."""
    expectation = stream.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=pairs)
    shape = members, checkpoints, *pairs, 2
    common = stream.normal(size=(*shape[:-1], 1))
    own = np.sqrt(shared) * common + np.sqrt(1 - shared) * stream.normal(size=shape)
    return simulate(expectation + own * np.asarray(noise))


def test_correlations_against_scipy():
    tau = methods(np.random.default_rng(0), members=6, checkpoints=2)
    table, pairs = stats.agreement(tau, resamples=10), stats.per_pair(tau)
    for statistic in ("mean", "std", "snr", "p_t", "p_noise"):
        a, b = pairs[statistic].values.reshape(-1, 2).T
        got = table.correlation.sel(statistic=statistic).isel(method=0, other=1)
        assert float(got.sel(kind="pearson")) == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-6)
        assert float(got.sel(kind="spearman")) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-6)
    np.testing.assert_allclose(table.correlation, table.correlation.transpose("statistic", "kind", "other", "method"))
    a, b = pairs["mean"].values.reshape(-1, 2).T
    assert float(table.same_sign[0, 1]) == pytest.approx((np.sign(a) == np.sign(b)).mean())
    for test in range(40):
        tops = [set(np.argsort(-pairs["mean"].values[:, test, m])[:5]) for m in range(2)]
        assert float(table.top_k[test, 0, 1]) == pytest.approx(len(tops[0] & tops[1]) / 5)
    assert (table.top_k[:, 0, 0] == 1).all() and float(table.same_sign[1, 1]) == 1


def test_ties_and_zeros():
    """Ranks of equal values are their mean; pairs whose mean is 0 for either method have no sign to agree on."""
    draws = np.random.default_rng(14).integers(-2, 3, (4, 1, 8, 9, 2)).astype(float)
    draws[:, 0, :3, 0, 0] = 0
    tau = simulate(draws)
    a, b = tau.mean("sample").values.reshape(-1, 2).T
    table = stats.agreement(tau, resamples=2)
    got = table.correlation.sel(statistic="mean", kind="spearman")[0, 1]
    assert float(got) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    both = (a != 0) & (b != 0)
    assert both.mean() < 0.95 and float(table.same_sign[0, 1]) == pytest.approx((np.sign(a) == np.sign(b))[both].mean())


def test_interval_against_a_loop():
    """Fisher's z of the resampled tables' correlations, centred, widened for six members; by scipy, table by table."""
    tau = methods(np.random.default_rng(15), members=6, pairs=(5, 8))
    table = stats.agreement(tau, resamples=30, level=0.8, seed=3).isel(method=0, other=1)
    x, stream, z = tau.values.astype(float).reshape(6, -1, 2), np.random.default_rng(3), []
    x = x[np.lexsort(x.mean(1).T)]  # whatever the order of the members was
    for _ in range(30):
        pairs = stats.per_pair(simulate(x[stream.integers(6, size=6)].reshape(6, 1, 5, 8, 2)))
        columns = [pairs[name].values.reshape(-1, 2).T for name in ("mean", "std", "p_t")]
        z.append([[np.arctanh(f(a, b).statistic) for f in (scipy.stats.pearsonr, scipy.stats.spearmanr)]
                  for a, b in columns])  # fmt: skip
    wide = np.sqrt(6 / 5) * scipy.stats.t.ppf(0.9, 5) / scipy.stats.norm.ppf(0.9)
    ends = np.quantile(z - np.mean(z, 0), [0.1, 0.9], axis=0) * wide
    for end, scatter in zip((table.low, table.high), ends, strict=True):
        expected = np.tanh(np.arctanh(table.correlation[[0, 1, 3]]) + scatter)
        np.testing.assert_allclose(end[[0, 1, 3]], expected, atol=1e-5)


def test_interval_of_many_pairs_is_that_of_some_drawn_from_all():
    """Of 10,400 pairs, the first without noise and the last with much, 10,000 tell the scatter; all tell the rest."""
    stream = np.random.default_rng(17)
    expectation = stream.normal(size=(104, 100, 2)) + stream.normal(size=(104, 100, 1))
    noise = np.linspace(0, 6, 104)[:, None, None] * stream.normal(size=(5, 1, 104, 100, 2))
    tau = simulate(expectation + noise)
    table = stats.agreement(tau, resamples=8, level=0.8, seed=4).isel(method=0, other=1)
    x = tau.values.astype(np.float64).reshape(5, -1, 2)
    mean, std = x.mean(0).T, x.std(0, ddof=1).T
    measures = (scipy.stats.pearsonr, scipy.stats.spearmanr)
    whole = np.array([[measure(*column).statistic for measure in measures] for column in (mean, std)])
    np.testing.assert_allclose(table.correlation[:2], whole, atol=1e-6)
    assert float(table.same_sign) == pytest.approx((np.sign(mean[0]) == np.sign(mean[1])).mean())
    x = x[np.lexsort(tau.values.reshape(5, -1, 2).mean(1).T)]  # whatever the order of the members was
    stream, z = np.random.default_rng(4), []
    x = x[:, np.sort(stream.choice(10_400, 10_000, replace=False))]
    for _ in range(8):
        again = x[stream.integers(5, size=5)]
        columns = again.mean(0).T, again.std(0, ddof=1).T
        z.append([[np.arctanh(measure(*column).statistic) for measure in measures] for column in columns])
    wide = np.sqrt(5 / 4) * scipy.stats.t.ppf(0.9, 4) / scipy.stats.norm.ppf(0.9)
    ends = np.quantile(z - np.mean(z, 0), [0.1, 0.9], axis=0) * wide
    for end, scatter in zip((table.low, table.high), ends, strict=True):
        np.testing.assert_allclose(end[:2], np.tanh(np.arctanh(whole) + scatter), atol=1e-5)


def test_interval_holds_what_other_members_give():
    """One set of pairs, many sets of members: the mean correlation lies in about 90 % of the 90 % intervals."""
    stream = np.random.default_rng(1)
    expectation = stream.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(1, 12, 15))
    found = []
    for _ in range(100):
        noise = 0.3 * stream.normal(size=(8, 1, 1, 2)) + stream.normal(
            size=(8, 12, 15, 2)
        )  # a part that all pairs share
        mixed = noise * (1 + expectation[..., ::-1])
        table = stats.agreement(simulate((expectation + mixed)[:, None]), resamples=100)
        found.append([table[name].values[0, :, 0, 1] for name in ("correlation", "low", "high")])
    correlation, low, high = np.moveaxis(found, 1, 0)  # (repeat, kind)
    held = ((low <= correlation.mean(0)) & (correlation.mean(0) <= high)).mean(0)
    assert (held > 0.81).all() and ((high - low).mean(0) < 2 * 1.645 * 1.4 * correlation.std(0)).all()


def test_train_may_count_removed_sets():
    """A coordinate `size` (train) stands where `train_index` would, and changes no number."""
    points = methods(np.random.default_rng(16), members=5, pairs=(8, 9)).assign_coords(train_index=("train", range(8)))
    sets = points.drop_vars("train_index").assign_coords(size=("train", [2**k for k in range(8)]))
    for table in (stats.per_pair, stats.power, stats.distances):
        options = {"truth": "m0"} if table is stats.distances else {}
        of_points, of_sets = table(points, **options), table(sets, **options)
        assert of_sets["size"].dims == ("train",) and "train_index" not in of_sets.coords
        xr.testing.assert_identical(of_sets.drop_vars("size"), of_points.drop_vars("train_index"))
    for table in (stats.agreement, stats.top_k_stability):
        xr.testing.assert_identical(table(sets, k=3), table(points, k=3))
    assert len(stats.extremes(stats.per_pair(sets), "m0", count=2)) == 4
    assert "size" not in stats.proponents(stats.by_member(sets)).coords


def test_few_members_have_no_interval():
    table = stats.agreement(methods(np.random.default_rng(13), members=3), resamples=20)
    assert table.low.isnull().all() and table.high.isnull().all() and table.correlation.notnull().all()


def test_order_of_members_does_not_matter():
    tau = methods(np.random.default_rng(2), members=5)
    shuffled = simulate(tau.values[[4, 2, 0, 1, 3], None])
    for table in (stats.agreement, stats.noise_ceiling, stats.distances, stats.top_k_stability):
        options = {"truth": "m0"} if table in (stats.noise_ceiling, stats.distances) else {}
        xr.testing.assert_allclose(table(tau, **options), table(shuffled, **options))


@pytest.mark.parametrize("members", [5, 10])
@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_noise_ceiling_of_known_noise(members, shared):
    """Unit variance of the expectations, noise 2 and 1: reliability, ceiling and true correlation are known."""
    tau = methods(np.random.default_rng(3), members, (100, 200), 0.6, noise=(2.0, 1.0), shared=shared)
    table = stats.noise_ceiling(tau, "m0")
    reliability = 1 / (1 + np.square([2.0, 1.0]) / members)
    np.testing.assert_allclose(table.reliability, reliability, atol=0.01)
    assert float(table.ceiling) == pytest.approx(np.sqrt(reliability[0]), abs=0.01)
    np.testing.assert_allclose(table.true_correlation, [1, 0.6], atol=0.02)
    common = (0.6 + shared * 2 / members) * np.sqrt(reliability.prod())  # noise that is shared counts as agreement
    assert float(table.correlation[1]) == pytest.approx(common, abs=0.01)


def test_noise_ceiling_of_sparse_expectations():
    """Few pairs with large effects among many small ones, where rules for normal values would fail if any were used."""
    stream = np.random.default_rng(12)
    expectation = stream.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(100, 200))
    expectation = np.where(abs(expectation) > 1.5, 3 * expectation, 0.05 * expectation)
    table = stats.noise_ceiling(simulate(expectation + 2 * stream.normal(size=(10, 1, 100, 200, 2))), "m0")
    true = np.corrcoef(expectation.reshape(-1, 2).T)[0, 1]
    assert float(table.true_correlation[1]) == pytest.approx(true, abs=0.02)
    signal = expectation[..., 0].var()
    assert float(table.ceiling) == pytest.approx(np.sqrt(signal / (signal + 4 / 10)), abs=0.01)


def test_a_method_without_noise_reaches_the_ceiling():
    tau = methods(np.random.default_rng(4), 8, (60, 100), rho=1 - 1e-9, noise=(3.0, 0.0))
    table = stats.noise_ceiling(tau, "m0").sel({"method": "m1"})
    assert float(table.correlation) == pytest.approx(float(table.ceiling), abs=0.015) and table.ceiling < 0.75


@pytest.mark.parametrize("members", [4, 8])
@pytest.mark.parametrize("scatter", [0.0, 0.7], ids=["of one scale", "of log-normal scale"])
def test_intervals_of_the_ceilings_correlations_cover(members, scatter):
    """At level 0.9, where members differ in what they give all pairs of a train point, beside noise of each pair."""
    stream = np.random.default_rng(17)
    expectation = stream.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=(20, 15))  # (train, test, method)

    def drawn():
        scale = np.exp(scatter * stream.normal(size=(members, 1, 1, 1, 1)))
        effects = 0.5 * stream.normal(size=(members, 1, 20, 1, 2))
        return simulate(scale * (expectation + effects + stream.normal(size=(members, 1, 20, 15, 2))))

    tables = xr.concat([stats.noise_ceiling(drawn(), "m0").isel(method=1) for _ in range(150)], "draw")
    known = np.corrcoef(expectation.reshape(-1, 2).T)[0, 1]
    usual = {name: float(tables[name].mean()) for name in ("correlation", "ceiling")}  # what so many members give
    ends = [("true_low", known, "true_high"), ("low", usual["correlation"], "high")]
    ends += [("ceiling_low", usual["ceiling"], "ceiling_high")] if not scatter else []
    for low, value, high in ends:
        covered = (tables[low] <= value) & (value <= tables[high])
        assert 0.83 <= float(covered.mean()) <= 0.99, low


def test_a_method_that_never_differs_has_no_correlation():
    """Of one value that float64 does not hold exactly: what rounding leaves of it is no scatter."""
    tau = methods(np.random.default_rng(18), 6).astype(float)
    tau[..., 1] = 0.1
    table = stats.noise_ceiling(tau, "m0")
    lost = table.isel(method=1)
    assert lost.reliability.isnull() and lost.correlation.isnull() and lost.true_correlation.isnull()
    assert table.isel(method=0).true_correlation == pytest.approx(1)


@pytest.mark.parametrize("chunks", [None, {"train": 2, "sample": 3}], ids=["numpy", "dask"])
def test_distances_against_scipy(chunks):
    draws = np.random.default_rng(5).normal(0.2, 1, (4, 3, 3, 4, 3))
    draws[..., 1] = 7 * draws[..., 0] + draws[..., 1]
    draws[..., 0, 0, 2] = 0
    tau = simulate(draws) if chunks is None else simulate(draws).chunk(chunks)
    table = stats.distances(tau, "m0")
    assert table.method.values.tolist() == ["m1", "m2"] and table.w1.shape == (3, 4, 2)
    for method, (train, test) in ((m, at) for m in (0, 1) for at in np.ndindex(3, 4)):
        x, y = (draws.astype(np.float32)[..., train, test, m].ravel().astype(float) for m in (0, method + 1))
        y = y * float(table.scale[method])
        got = table.isel(train=train, test=test, method=method)
        assert float(got.w1) == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-4)
        assert float(got.w2) == pytest.approx(np.sqrt(np.mean((np.sort(x) - np.sort(y)) ** 2)), rel=1e-4)
        assert float(got.energy) == pytest.approx(scipy.stats.energy_distance(x, y), rel=1e-4)
        assert float(got.ks) == pytest.approx(scipy.stats.ks_2samp(x, y).statistic)


def test_distances_of_draws_that_are_equal():
    """Whole numbers, most of them in both; a second pair makes the scale exactly 1."""
    x, y = np.random.default_rng(16).integers(0, 4, (2, 16)).astype(float)
    balance = 1 + (y @ y - np.sort(x) @ np.sort(y)) / 16
    draws = np.stack([np.stack([x, y], -1), np.tile([balance, 1], (16, 1))], 1)  # (member, train, method)
    table = stats.distances(simulate(draws.reshape(16, 1, 2, 1, 2)), "m0").isel(train=0).squeeze()
    assert float(table.scale) == 1
    assert float(table.ks) == pytest.approx(scipy.stats.ks_2samp(x, y).statistic)
    assert float(table.energy) == pytest.approx(scipy.stats.energy_distance(x, y))


def test_the_scale_is_the_best_one():
    tau = methods(np.random.default_rng(6), members=12)
    table = stats.distances(tau, "m0")
    best = float((table.w2**2).mean())
    x, y = np.sort(tau.values[..., 0], 0), np.sort(tau.values[..., 1], 0)
    for factor in (0.97, 1.03):
        assert np.square(x - factor * float(table.scale.squeeze()) * y).mean() > best
    nothing = xr.concat([tau.isel(method=[0]), 0 * tau.isel(method=[1])], "method")
    np.testing.assert_allclose(stats.distances(nothing, "m0").w1[..., 0], abs(x).mean(0), rtol=1e-5)
    opposite = xr.concat([tau.isel(method=[0]), -tau.isel(method=[0]).assign_coords(method=["no"])], "method")
    twin = xr.concat([tau.isel(method=[0]), 4 * tau.isel(method=[0]).assign_coords(method=["same"])], "method")
    assert float(stats.distances(twin, "m0").scale.squeeze()) == pytest.approx(0.25)
    assert float(stats.distances(twin, "m0").w2.max()) < 1e-6
    assert float(stats.distances(opposite, "m0").scale.squeeze()) < 0.5
    shifted = tau.isel(method=[0]) + 9
    against = xr.concat([shifted, -shifted.assign_coords(method=["no"])], "method")
    assert float(stats.distances(against, "m0").scale.squeeze()) == 0


def test_missing_pairs_are_left_out():
    tau = methods(np.random.default_rng(7), members=4)
    holes = tau.copy()
    holes[1, 3] = np.nan
    kept = tau.isel(train=np.delete(np.arange(30), 3))
    for table in (stats.agreement(holes), stats.noise_ceiling(holes, "m0")):
        assert table.correlation.notnull().all()
    np.testing.assert_allclose(stats.agreement(holes).correlation, stats.agreement(kept).correlation)
    gap = stats.agreement(holes).top_k
    np.testing.assert_array_equal(gap, stats.agreement(tau).top_k.where(False))  # each list lacks one point
    far = stats.distances(holes, "m0")
    assert far.isel(train=3).drop_vars("scale").to_array().isnull().all() and far.isel(train=4).ks.notnull().all()
    np.testing.assert_allclose(far.scale, stats.distances(kept, "m0").scale)


def test_impossible_questions_are_refused():
    tau = methods(np.random.default_rng(11), members=3)
    with pytest.raises(ValueError, match="truth 'loo' is not among the methods m0, m1"):
        stats.noise_ceiling(tau)
    with pytest.raises(ValueError, match="truth 'loo' is not among the methods m0, m1"):
        stats.distances(tau)
    with pytest.raises(ValueError, match="no method beside 'm0'"):
        stats.distances(tau.isel(method=[0]), "m0")
    for table in (stats.agreement, stats.top_k_stability):
        with pytest.raises(
            ValueError, match="k: 31 is not possible; it must be from 1 to the number of train points, 30"
        ):
            table(tau, k=31)
        with pytest.raises(ValueError, match="at least 2 members are needed, not 1"):
            table(tau.isel(sample=[0]))
    with pytest.raises(ValueError, match="level: 90 is not possible"):
        stats.agreement(tau, level=90)
    for table in (
        stats.per_pair,
        stats.agreement,
        stats.power,
        stats.top_k_stability,
        stats.noise_ceiling,
        stats.distances,
    ):
        for wrong in (tau.to_dataset(name="tau"), tau.drop_vars(["member", "method"]), tau.isel(train=0), tau.values):
            with pytest.raises(ValueError, match="τ must be a DataArray .* such as result.tau"):
                table(wrong)
        with pytest.raises(ValueError, match="τ is empty"):
            table(tau.isel(test=[]))
    for table in (stats.agreement, stats.top_k_stability):
        with pytest.raises(ValueError, match="the run is not finished"):
            table(tau.where(tau.member < 2))
