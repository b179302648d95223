"""Variance by its sources: unbiased, covered, and against the textbook's sums of squares."""

import numpy as np
import pytest
import xarray as xr
from simulated import simulate

from tdalib import stats

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
    shares = true / true.sum()
    held = np.mean([(t.share_low.values <= shares) & (shares <= t.share_high.values) for t in tables], axis=0)
    assert (held > 0.8).all(), held


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


def test_sources_of_removed_sets_keep_their_size():
    tau = crossed(np.random.default_rng(6), [1.0] * 3).assign_coords(size=("train", [1, 10, 100]))
    assert stats.variance_components(tau)["size"].values.tolist() == [1, 10, 100]


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


def test_shares_lie_between_0_and_1_with_their_intervals():
    """Each resample's shares sum up to 1, and the median is that of the pairs' own shares."""
    stream = np.random.default_rng(8)
    draws = stream.normal(size=(6, 1, 5, 6, 1)) + 3 * stream.normal(size=(6, 4, 5, 6, 1))
    tau = simulate(draws)
    seeds = {"init_seed": tau.member, "batch_seed": tau.member, "checkpoint": ("sample", np.tile(range(4), 6))}
    table = stats.variance_components(tau.assign_coords(seeds)).isel(method=0)
    assert (
        (table.share_low >= 0).all() and (table.share_low <= table.share_high).all() and (table.share_high <= 1).all()
    )
    assert float(table.share_high.sel(source="checkpoint")) > 0.8 > float(table.share_high.sel(source="member"))
    positive = table.by_pair.clip(0)
    own = (positive / positive.sum("source")).median(("train", "test"))
    np.testing.assert_allclose(table.median_share, own)
