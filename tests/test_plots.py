"""Figures show what the tables say."""

import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from matplotlib.colors import to_rgb

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


def lines_of(ax):
    """Method → its line, by its colour."""
    names = {to_rgb(plots.colour(name)): name for name in ("loo", "gc", "gd")}
    return {names[to_rgb(line.get_color())]: line for line in ax.lines if to_rgb(line.get_color()) in names}


def table_of(**statistics):
    """A table of statistics, (train, test, method), for "loo" and "gc"."""
    dims, coords = ("train", "test", "method"), {"method": ["loo", "gc"]}
    variables = {name: (dims, np.asarray(values, float)) for name, values in statistics.items()}
    return xr.Dataset(variables, coords, {"units": '{"loo": "nats", "gc": "cosine"}'})


@pytest.mark.parametrize("method", ["loo", "gc"])
def test_every_pair_lies_at_its_mean_and_std(ax, method):
    """In a hexagon (in log₁₀; 45 to the width, 25 to the height); pairs with a mean or std of 0 lie nowhere."""
    stream = np.random.default_rng(3)
    mean, std = 10 ** stream.uniform([[-2.0], [1.0]], [[0.0], [2.0]], (2, 200)).reshape(2, 20, 5, 2)
    mean[::2] *= -1
    mean[0, 0], std[1, 1] = 0, 0
    plots.plot_reliability(table_of(mean=mean, std=std, snr=abs(mean) * 7), method, ax=ax)
    (hexagons,) = ax.collections
    centres, counts = hexagons.get_offsets(), hexagons.get_array()
    pairs = abs(np.stack([mean, std])[..., ["loo", "gc"].index(method)]).reshape(2, 100)
    pairs = np.log10(pairs[:, (pairs > 0).all(0)])  # (mean or std, pair)
    half = np.ptp(pairs, axis=1) / [45 * 2, 25 * 3] * 1.01  # of the width and of the height of a hexagon
    holds = (abs(centres[:, :, None] - pairs) <= half[:, None]).all(1)  # (hexagon, pair)
    assert counts.sum() == pairs.shape[1] == 98
    assert holds.any(0).all() and holds.any(1).all()
    (diagonal,) = ax.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[1] == pytest.approx(10 ** pairs.max())


def test_axes_carry_units(tau, ax):
    table = stats.per_pair(tau)
    assert plots.plot_reliability(table, "loo", ax=ax).get_xlabel() == "|mean τ| (nats)"
    one = tau.sel({"method": "gc"}).isel(train=0, test=0)
    ax.figure.clear()
    assert plots.plot_draws(one, stats.by_member(one), ax=ax.figure.gca()).get_xlabel() == "τ gc (cosine)"


def test_bars_are_the_shares(tau, ax):
    summary = stats.summary(tau)
    noise = summary.index.get_level_values("share") == "std > |mean|"
    summary.loc[noise, ["value", "low", "high"]] = [[0.9, 0.8, 0.95], [0.004, 0, 0.2]]
    bars = plots.plot_noise_share(summary, ax=ax).patches
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.8, 0.95], [0, 0.2]]
    assert [bar.get_height() for bar in bars] == [0.9, 0.004]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx([0, 1])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["loo", "gc"]
    assert [(*text.get_position(), text.get_text()) for text in ax.texts] == [(0, 0.95, "90%"), (1, 0.2, "0.4%")]


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
    between = [line.get_xydata().tolist() for line in ax.lines]
    assert between == [[[0, 1.5], [1, 1.5]], [[2.5, 0], [2.5, 1]]]  # rows of two classes, and columns
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


@pytest.mark.parametrize("low", [-1, 0])
def test_heat_map_says_the_correlations(ax, low):
    """Rows are `method` and columns `other`, in whatever order the dims come."""
    values = [[1, 0.25, -0.001], [0.75, 1, -0.5]]
    correlation = xr.DataArray(values, {"method": ["loo", "gc"], "other": ["gd", "if", "ats"]}, ("method", "other"))
    plots.plot_correlations(correlation.transpose("other", "method"), low=low, ax=ax)
    assert [text.get_text() for text in ax.texts] == ["1.00", "0.25", "0.00", "0.75", "1.00", "-0.50"]
    (cells,) = ax.collections
    np.testing.assert_allclose(cells.get_array(), values, atol=0.005)
    assert cells.get_clim() == (low, 1)
    for labels, names in ((ax.get_yticklabels(), ["loo", "gc"]), (ax.get_xticklabels(), ["gd", "if", "ats"])):
        assert [label.get_text() for label in labels] == names


def test_bars_stand_under_the_ceiling_line(ax):
    """For every method but the truth: left as measured, right free of noise, each with its interval."""
    measured, true, low = [0.3, 1.0, -0.2], [0.5, 1.1, 0.4], [-0.5, -0.6, -0.7]
    variables = {"correlation": measured, "low": low, "high": [0.9, 1.0, 0.8]}
    variables |= {"true_correlation": true, "true_low": low, "true_high": [0.6, 1.2, 0.5]}
    variables = {name: ("method", values) for name, values in variables.items()} | {"ceiling": 0.7}
    plots.plot_ceiling(xr.Dataset(variables, {"method": ["gc", "loo", "gd"]}, {"truth": "loo"}), ax=ax)
    assert [bar.get_height() for bar in ax.patches] == [0.3, -0.2, 0.5, 0.4]
    assert [bar.get_x() + bar.get_width() for bar in ax.patches[:2]] == pytest.approx([0, 1])
    assert [bar.get_x() for bar in ax.patches[2:]] == pytest.approx([0, 1])
    spans = [line.vertices[:, 1].tolist() for lines in ax.collections for line in lines.get_paths()]
    assert spans == [[-0.5, 0.9], [-0.7, 0.8], [-0.5, 0.6], [-0.7, 0.5]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["gc", "gd"]
    assert [to_rgb(bar.get_facecolor()) for bar in ax.patches] == [to_rgb(plots.colour(m)) for m in ("gc", "gd")] * 2
    assert list(ax.lines[0].get_ydata()) == [0.7, 0.7] and list(ax.lines[1].get_ydata()) == [0, 0]
    assert ax.get_ylabel() == "Pearson correlation of mean τ with loo"


def test_power_shows_dots_to_the_pilot_and_lines_beyond(ax):
    values = np.random.default_rng(1).normal(0.8, 1, size=(4, 5, 6, 2))
    coords = {"member": ("sample", range(4)), "method": ["loo", "gc"]}
    power = stats.power(xr.DataArray(values, coords, ("sample", "train", "test", "method")), [2, 4, 20])
    plots.plot_power(power, ax=ax)
    lines, dots = ax.lines[0:4:2], ax.lines[1:4:2]
    np.testing.assert_allclose([line.get_ydata() for line in lines], power.predicted.T)
    np.testing.assert_allclose([line.get_ydata() for line in dots], power.found.T)
    for line, dot, method in zip(lines, dots, ("loo", "gc"), strict=True):
        np.testing.assert_array_equal([line.get_xdata(), dot.get_xdata()], [[2, 4, 20]] * 2)
        assert line.get_label() == method and line.get_color() == dot.get_color() == plots.colour(method)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_label() == "pilot"] == [4]
    assert np.isnan(dots[0].get_ydata()[-1]) and [t.get_text() for t in ax.get_xticklabels()] == ["2", "5", "10", "20"]


def test_draws_and_means_are_where_they_should_be(tau, ax):
    one = tau.sel({"method": "loo"}).isel(train=2, test=3)
    dots, diamonds = (c.get_offsets() for c in plots.plot_draws(one, stats.by_member(one), ax=ax).collections)
    np.testing.assert_allclose(dots.T, [one, [1, 1, 2, 2, 3, 3]])
    np.testing.assert_allclose(diamonds.T, [one.values.reshape(3, 2).mean(1), [1, 2, 3]], rtol=1e-6)
    (shade,) = ax.figure.axes[1].collections
    x, y = shade.get_paths()[0].vertices.T
    x, y = x[y > 0], y[y > 0]
    np.testing.assert_allclose(y, scipy.stats.gaussian_kde(one)(x), rtol=1e-6)
    assert x.min() < one.min() and one.max() < x.max()
    assert list(ax.lines[0].get_xdata()) == [0, 0]


def test_histogram_is_of_the_signal_to_noise_ratio(tau, ax):
    """Shares of each method's own pairs, in bins that all methods share; without pairs of ratio 0 or ∞."""
    table = stats.per_pair(tau)
    table["snr"][0, 0, 0], table["snr"][1, :3, 1] = 0, np.inf
    lines = lines_of(plots.plot_snr(table, ax=ax))
    assert sorted(lines) == ["gc", "loo"]
    for method, line in lines.items():
        ratios = table.snr.sel({"method": method}).values.ravel()
        ratios = np.sort(ratios[(ratios > 0) & (ratios < np.inf)])
        left, heights = line.get_xdata()[:-1], line.get_ydata()[:-1]
        binned = np.searchsorted(left * (1 - 1e-9), ratios, side="right") - 1  # a bin begins at the smallest ratio
        np.testing.assert_allclose(heights, np.bincount(binned, minlength=60) / len(ratios))
    assert ax.get_xscale() == "log" and list(ax.lines[-1].get_xdata()) == [1, 1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loo", "gc"]


@pytest.mark.parametrize(("p", "references"), [("p_t", 2), ("p_noise", 1)])
def test_curves_are_the_cumulative_p_values(tau, ax, p, references):
    table = stats.per_pair(tau)
    lines = lines_of(plots.plot_p_values(table, p, ax=ax))
    assert sorted(lines) == ["gc", "loo"]
    for method, line in lines.items():
        np.testing.assert_array_equal(line.get_xdata()[1:], np.sort(table[p].sel({"method": method}).values.ravel()))
        np.testing.assert_allclose(line.get_ydata(), np.arange(31) / 30)
    marked = [line.get_xydata().tolist() for line in ax.lines[2:]]
    assert marked == [[[0.05, 0], [0.05, 1]], [[0, 0], [1, 1]]][:references]  # the diagonal is for p_t alone
    assert ax.get_xlabel().startswith(f"{p}:")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loo", "gc"]


def test_proponents_stand_in_order_and_shared_ones_are_framed(tau, digits):
    top = stats.proponents(stats.by_member(tau).sel({"method": "loo"}), 3).isel(test=1)
    axes = plots.plot_proponents(top, digits, 1)
    assert axes.shape == (3, 4)
    asked = digits.x_test[1, 0]
    for member, row in enumerate(axes):
        shown = row[0].images[0].get_array()
        np.testing.assert_allclose(shown, (asked - asked.min()) / (asked.max() - asked.min()), atol=1e-6)
        assert [text.get_text() for text in row[0].texts] == [f"training {member + 1}"]
        titles = [digits.classes[digits.y_train[j]] for j in top[member].values]
        assert [ax.get_title() for ax in row] == [f"test: {digits.classes[digits.y_test[1]]}", *titles]
    for member, rank in np.ndindex(3, 3):
        j = int(top[member, rank])
        shown = axes[member, rank + 1].images[0].get_array()
        np.testing.assert_allclose(shown, (digits.x_train[j, 0] + 1) / 2, atol=1e-6)
        assert axes[member, rank + 1].axison == (j in top[0])


def test_colours_are_fixed_and_distinct():
    assert len({plots.colour(name) for name in ("loo", "ats", "if", "gd", "gc", "mine")}) == 6


def test_colours_are_the_same_in_every_process_and_order():
    names = ["loo", "gc", *(f"mine{k}" for k in range(10))]
    here = {name: list(plots.colour(name)) for name in names}
    code = "import json, sys; from tdalib import plots; print(json.dumps([plots.colour(n) for n in sys.argv[1:]]))"
    environment = os.environ | {"PYTHONHASHSEED": "random"}
    asked = [sys.executable, "-c", code, *names[::-1]]
    there = json.loads(subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout)
    assert dict(zip(names[::-1], there, strict=True)) == here


@pytest.mark.parametrize(
    ("image", "shown"), [(np.zeros((1, 4, 5)), (4, 5)), (np.ones((3, 4, 5)), (4, 5, 3)), (np.arange(4.0), (1, 4))]
)
def test_images_of_every_shape(ax, image, shown):
    assert plots.plot_image(image, "", ax=ax).images[0].get_array().shape == shown


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 5)])
def test_images_are_upright_and_scaled_to_their_range(ax, shape):
    image = np.random.default_rng(5).normal(size=shape)
    drawn = plots.plot_image(image, "", ax=ax).images[0].get_array().reshape(4, 5, -1)
    for channel, row, column in np.ndindex(shape):
        scaled = (image[channel, row, column] - image.min()) / (image.max() - image.min())
        assert drawn[row, column, channel] == pytest.approx(scaled)
