"""Figures show what the tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from tdalib import plots, stats


@pytest.fixture
def ax():
    yield plt.figure().gca()
    plt.close("all")


@pytest.fixture
def tau():
    values = np.random.default_rng(0).normal(0.2, 1, size=(6, 5, 6, 2)).astype(np.float32)
    units = '{"loo": "nats", "gc": "cosine"}'
    coords = {"member": ("sample", [0, 0, 1, 1, 2, 2]), "method": ["loo", "gc"]}
    return xr.DataArray(values, coords, ("sample", "train", "test", "method"), attrs={"units": units})


def test_axes_carry_units(tau, ax):
    table = stats.per_pair(tau)
    assert plots.plot_reliability(table, "loo", ax=ax).get_xlabel() == "|mean τ| (nats)"
    one = tau.sel({"method": "gc"}).isel(train=0, test=0)
    ax.figure.clear()
    assert plots.plot_draws(one, stats.by_member(one), ax=ax.figure.gca()).get_xlabel() == "τ gc (cosine)"


def test_bars_are_the_shares(tau, ax):
    summary = stats.summary(stats.per_pair(tau))
    bars = [bar.get_height() for bar in plots.plot_noise_share(summary, ax=ax).patches]
    np.testing.assert_allclose(bars, summary["std > |mean|"])


def test_sources_are_stacked_to_the_whole(tau, ax):
    seeds = {"init_seed": tau.member, "batch_seed": tau.member, "checkpoint": ("sample", [1, 2] * 3)}
    components = stats.variance_components(tau.assign_coords(seeds))
    bars = plots.plot_variance_shares(components, ax=ax).patches
    widths = np.array([bar.get_width() for bar in bars]).reshape(2, 2)  # (source, method)
    expected = components.share.transpose("source", "method").values.clip(0)  # an estimate can be negative
    np.testing.assert_allclose(widths, expected / expected.sum(0))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["loo", "gc"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["member", "checkpoint"]


def test_trust_map_is_sorted_by_class(tau, ax):
    names = {"train_class": ("train", list("babab")), "test_class": ("test", list("dccddc"))}
    table = stats.per_pair(tau.assign_coords(names))
    image = plots.plot_trust_map(table, "loo", ax=ax).images[0]
    rows, columns = [1, 3, 0, 2, 4], [1, 2, 5, 0, 3, 4]
    expected = table.snr.sel({"method": "loo"}).values[np.ix_(rows, columns)].clip(0.1, 10)
    np.testing.assert_allclose(image.get_array(), expected)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_xticks().tolist() == [1, 4] and ax.figure.axes[1].get_ylabel() == "SNR |mean τ| / std τ"


def test_trust_map_of_removed_sets_and_of_stored_labels(tau, ax):
    stored = {"train_class": ("train", np.array(list("babab"), dtype=np.dtypes.StringDType()))}  # as Zarr gives them
    table = stats.per_pair(tau.assign_coords(stored))
    plots.plot_trust_map(table, "loo", ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_xlabel() == "test points" and ax.get_ylabel() == "train points, by class"
    sets = stats.per_pair(tau.assign_coords(size=("train", [3, 1, 2, 1, 1])))
    image = plots.plot_trust_map(sets, "loo", ax=plt.figure().gca()).images[0]
    np.testing.assert_allclose(image.get_array(), sets.snr.sel({"method": "loo"}).values.clip(0.1, 10))
    assert image.axes.get_ylabel() == "removed sets"


def test_heat_map_says_the_correlations(tau, ax):
    correlation = stats.agreement(tau, resamples=2).correlation.sel(statistic="mean", kind="pearson")
    plots.plot_correlations(correlation, ax=ax)
    assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in correlation.values.ravel()]


def test_bars_stand_under_the_ceiling_line(tau, ax):
    ceiling = stats.noise_ceiling(tau)
    ceiling["ceiling"][()], ceiling["true_correlation"][:] = 0.7, 0.5
    plots.plot_ceiling(ceiling, ax=ax)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, [float(ceiling.correlation.sel({"method": "gc"}).squeeze()), 0.5])
    assert ax.lines[0].get_ydata()[0] == 0.7 and ax.get_ylabel() == "Pearson correlation of mean τ with loo"


def test_power_shows_dots_to_the_pilot_and_lines_beyond(ax):
    values = np.random.default_rng(1).normal(0.8, 1, size=(4, 5, 6, 2))
    coords = {"member": ("sample", range(4)), "method": ["loo", "gc"]}
    power = stats.power(xr.DataArray(values, coords, ("sample", "train", "test", "method")), [2, 4, 20])
    plots.plot_power(power, ax=ax)
    lines, dots = ax.lines[0:4:2], ax.lines[1:4:2]
    np.testing.assert_allclose([line.get_ydata() for line in lines], power.predicted.T)
    np.testing.assert_allclose([line.get_ydata() for line in dots], power.found.T)
    assert np.isnan(dots[0].get_ydata()[-1]) and [t.get_text() for t in ax.get_xticklabels()] == ["2", "5", "10", "20"]


def test_draws_and_means_are_where_they_should_be(tau, ax):
    one = tau.sel({"method": "loo"}).isel(train=2, test=3)
    dots, diamonds = (c.get_offsets() for c in plots.plot_draws(one, stats.by_member(one), ax=ax).collections)
    np.testing.assert_allclose(dots[:, 0], one)
    np.testing.assert_allclose(diamonds[:, 0], one.values.reshape(3, 2).mean(1), rtol=1e-6)


@pytest.mark.parametrize("draw", [plots.plot_snr, lambda table, ax: plots.plot_p_values(table, "p_t", ax=ax)])
def test_distributions_of_every_method_are_drawn(tau, ax, draw):
    legend = draw(stats.per_pair(tau), ax=ax).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["loo", "gc"]


def test_proponents_stand_in_order_and_shared_ones_are_framed(tau, digits):
    top = stats.proponents(stats.by_member(tau).sel({"method": "loo"}), 3).isel(test=1)
    axes = plots.plot_proponents(top, digits, 1)
    assert axes.shape == (3, 4)
    for member, rank in np.ndindex(3, 3):
        j = int(top[member, rank])
        shown = axes[member, rank + 1].images[0].get_array()
        np.testing.assert_allclose(shown, (digits.x_train[j, 0] + 1) / 2, atol=1e-6)
        assert axes[member, rank + 1].axison == (j in top[0])


def test_colours_are_fixed_and_distinct():
    assert len({plots.colour(name) for name in ("loo", "ats", "if", "gd", "gc", "mine")}) == 6
    assert plots.colour("mine") == plots.colour("mine")


@pytest.mark.parametrize(
    ("image", "shown"), [(np.zeros((1, 4, 5)), (4, 5)), (np.ones((3, 4, 5)), (4, 5, 3)), (np.arange(4.0), (1, 4))]
)
def test_images_of_every_shape(ax, image, shown):
    assert plots.plot_image(image, "", ax=ax).images[0].get_array().shape == shown
