"""Figures from labelled tables. No statistics here: every function draws what it is given and returns Axes."""

import json
from typing import Any
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = sns.color_palette("colorblind")
PALETTE = {name: _COLOURS[k] for k, name in enumerate(("loo", "ats", "if", "gd", "gc"))}  # one colour per method


def colour(method: str) -> tuple[float, float, float]:
    """The colour of a method, the same in every figure; one of your own gets one of the rest by its name."""
    rest = _COLOURS[len(PALETTE) :]
    return PALETTE.get(method, rest[crc32(method.encode()) % len(rest)])


def plot_reliability(table: xr.Dataset, method: str, *, ax: Axes | None = None) -> Axes:
    """Mean against standard deviation of τ for every pair of a method; the diagonal is SNR = 1, noise is above it."""
    ax = ax or plt.gca()
    pairs = table.sel({"method": method})
    mean, std = (np.abs(pairs[name].values).ravel() for name in ("mean", "std"))
    shown = (mean > 0) & (std > 0)
    mean, std = mean[shown], std[shown]
    if len(mean):
        low, high = np.percentile(np.concatenate([mean, std]), 0.5), max(mean.max(), std.max())
        tint = sns.light_palette(colour(method), as_cmap=True)
        ax.hexbin(mean, std, xscale="log", yscale="log", gridsize=45, mincnt=1, bins="log", cmap=tint)
        ax.plot([low, high], [low, high], color="0.2", linewidth=1)
        ax.set(xlim=(low, high), ylim=(low, high))
    unit = _unit(table, method)
    ax.set(xlabel=f"|mean τ| ({unit})", ylabel=f"std τ ({unit})", title=method, aspect="equal")
    return ax


def plot_noise_share(summary: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of pairs with std > |mean|, of `stats.summary`, a bar for each method, with its interval over members."""
    share = summary.xs("std > |mean|", level="share")
    tints = list(map(colour, share.index))
    ax = sns.barplot(x=share.index, y=share.value, hue=share.index, palette=tints, errorbar=None, ax=ax)
    for k, (value, low, high) in enumerate(share[["value", "low", "high"]].to_numpy()):
        ax.plot([k, k], [low, high], color="0.2", linewidth=1.2)
        said = f"{value:.0%}" if value > 0.01 else f"{value:.1%}"
        ax.text(k, np.nanmax([value, high]), said, ha="center", va="bottom")
    ax.set(xlabel="method", ylabel="share of pairs, std > |mean|", ylim=(0, 1.08))
    return ax


def plot_noise_by_size(table: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Noise against size, of `stats.noise_by_size`: a line for each method, with its interval over members."""
    ax = ax or plt.gca()
    for method in map(str, table.method.values):
        one = table.sel({"method": method})
        ax.plot(one.share, one["noise"], "o-", color=colour(method), markersize=4, linewidth=1.2, label=method)
        ax.fill_between(one.share, one["low"], one["high"], color=colour(method), alpha=0.15, linewidth=0)
    label = "largest pairs, chosen in one training (share of all)"
    ax.set(xscale="log", xlabel=label, ylabel="share with std > |mean| in the others", ylim=(-0.02, 1.02))
    ax.set_xticks(table.share.values, [f"{share:.0%}" for share in table.share.values])
    ax.minorticks_off()
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_snr(table: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Histogram of the signal-to-noise ratio |mean| / std over pairs, a line for each method; below 1 noise wins."""
    ax = ax or plt.gca()
    frame = _long(table, "snr")
    frame = frame[frame.snr.between(0, np.inf, inclusive="neither")]
    if len(frame):
        sns.histplot(
            frame, x="snr", hue="method", palette=_palette(table), log_scale=True, element="step", fill=False, bins=60,
            stat="proportion", common_norm=False, ax=ax,
        )  # fmt: skip
    ax.axvline(1, color="0.2", linewidth=1)
    ax.set(xlabel="signal-to-noise ratio |mean τ| / std τ", ylabel="share of pairs")
    return ax


def plot_p_values(table: xr.Dataset, p: str, *, ax: Axes | None = None) -> Axes:
    """Cumulative share of pairs with a p-value below x, a line for each method; pure noise gives p_t the diagonal."""
    ax = sns.ecdfplot(_long(table, p), x=p, hue="method", palette=_palette(table), ax=ax)
    ax.axvline(0.05, color="0.2", linewidth=1, linestyle=":")
    label = {"p_t": "p_t: is E[τ] = 0? (Student t)", "p_noise": "p_noise: could one member be noise?"}[p]
    if p == "p_t":
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    ax.set(xlabel=label, ylabel="share of pairs below", xlim=(0, 1), ylim=(0, 1.02))
    return ax


def plot_trust_map(table: xr.Dataset, method: str, *, ax: Axes | None = None) -> Axes:
    """Signal-to-noise ratio of every pair of a method, points sorted by class; blue is signal, red is noise.

    Points without classes, and removed sets, stay in their order.
    """
    ax = ax or plt.gca()
    snr = table["snr"].sel({"method": method}).transpose("train", "test").clip(0.1, 10)
    rows = "removed sets" if "size" in table.coords else "train points"
    ax.set(xlabel="test points", ylabel=rows, title=method)
    for split, axis, line in (("train", ax.yaxis, ax.axhline), ("test", ax.xaxis, ax.axvline)):
        axis.set_ticks([])
        if f"{split}_class" in table.coords:
            classes = table[f"{split}_class"].values.astype(object)
            snr = snr.isel({split: np.argsort(classes, kind="stable")})
            names, counts = np.unique(classes, return_counts=True)
            ends = np.cumsum(counts) - 0.5
            axis.set_ticks(ends - counts / 2, names)
            axis.set_label_text(f"{axis.get_label_text()}, by class")
            for end in ends[:-1]:
                line(end, color="0.2", linewidth=0.8)
    image = ax.imshow(snr, cmap="RdBu", norm="log", vmin=0.1, vmax=10, aspect="auto", interpolation="none")
    bar = ax.figure.colorbar(image, ax=ax, extend="both", label="SNR |mean τ| / std τ", format="%g")
    bar.set_ticks([0.1, 0.3, 1, 3, 10])
    bar.minorticks_off()
    return ax


def plot_correlations(correlation: xr.DataArray, *, low: float = -1, ax: Axes | None = None) -> Axes:
    """Heat map of a (method, other) of `stats.agreement`, from `low` to 1: −1 for correlations, 0 for shares."""
    frame = correlation.transpose("method", "other").to_pandas().round(2) + 0.0  # no −0.00
    ax = sns.heatmap(
        frame, vmin=low, vmax=1, cmap="vlag" if low < 0 else "Blues", annot=True, fmt=".2f", square=True, cbar=False,
        annot_kws={"size": 8}, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0, rotation=0)
    return ax


def plot_ceiling(ceiling: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Correlation with the truth, as measured and free of noise, and intervals, for each method of `noise_ceiling`."""
    ax = ax or plt.gca()
    methods = [str(name) for name in ceiling.method.values if name != ceiling.attrs["truth"]]
    chosen = ceiling.sel({"method": methods})
    at, width, tints = np.arange(len(methods)), 0.38, list(map(colour, methods))
    ax.bar(at - width / 2, chosen["correlation"], width, color=tints, alpha=0.45, edgecolor="0.3")
    ax.bar(at + width / 2, chosen["true_correlation"], width, color=tints, edgecolor="0.3")
    ax.vlines(at - width / 2, chosen["low"], chosen["high"], color="0.2", linewidth=1)
    ax.vlines(at + width / 2, chosen["true_low"], chosen["true_high"], color="0.2", linewidth=1)
    line = ax.axhline(float(chosen["ceiling"]), color="0.2", linestyle="--", linewidth=1)
    ax.axhline(0, color="0.2", linewidth=0.8)
    ax.set_xticks(at, methods)
    label = f"Pearson correlation of mean τ with {ceiling.attrs['truth']}"
    ax.set(xlabel="method", ylabel=label, ylim=(np.clip(ax.get_ylim()[0], -1.1, 0), 1.38))
    ax.set_yticks([y for y in np.linspace(-1, 1, 11) if y >= ax.get_ylim()[0]])
    pale, full = (plt.Rectangle((0, 0), 1, 1, facecolor="0.4", alpha=alpha, edgecolor="0.3") for alpha in (0.45, 1))
    names = ["as measured (left)", "free of noise (right)", "noise ceiling of what is measured"]
    ax.legend([pale, full, line], names, frameon=False, fontsize="small", loc="upper right")
    return ax


def plot_power(power: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Share of pairs that so many members find, of `stats.power`: dots by subsets of the pilot, lines predicted.

    The shade is the interval of the forecast.
    """
    ax = ax or plt.gca()
    for method in map(str, power.method.values):
        one = power.sel({"method": method})
        ax.plot(power.members, one["predicted"], color=colour(method), linewidth=1.2, label=method)
        ax.fill_between(power.members, one["low"], one["high"], color=colour(method), alpha=0.12, linewidth=0)
        ax.plot(power.members, one["found"], "o", color=colour(method), markersize=4)
    ax.plot([], [], "o", color="0.4", markersize=4, label="found by subsets")
    ax.plot([], [], color="0.4", linewidth=1.2, label="predicted")
    ax.axvline(power.attrs["pilot"], color="0.2", linestyle=":", linewidth=1, label="pilot")
    ax.set(xscale="log", xlabel="members", ylabel=f"share of pairs with q ≤ {power.attrs['fdr']:g}", ylim=(-0.02, 1.02))
    shown = [k for k in (2, 5, 10, 20, 50, 100, 200) if power.members.min() <= k <= power.members.max()]
    ax.set_xticks(shown, map(str, shown))
    ax.minorticks_off()
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_variance_shares(components: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Shares of Var(τ) by source, of `stats.variance_components`: a stacked bar for each method.

    An estimate below 0 is drawn as 0, and the rest then fill the bar.
    """
    ax = ax or plt.gca()
    shares = components.share.transpose("method", "source").to_pandas().clip(lower=0)  # an estimate can be negative
    shares = shares.div(shares.sum(axis=1), axis=0)
    shares.plot.barh(stacked=True, width=0.8, color=sns.color_palette("viridis", len(shares.columns)), ax=ax)
    ax.set(xlabel="share of Var(τ) of one draw", ylabel="method", xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(ncols=len(shares.columns), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    return ax


def plot_draws(tau: xr.DataArray, members: xr.DataArray, *, ax: Axes | None = None) -> Axes:
    """The τ draws of one pair and method, (sample,), as dots, and `stats.by_member` of it, (member,), as diamonds.

    The shade behind them is the density of the draws.
    """
    ax = ax or plt.gca()
    method = str(tau.method.item())
    ax.axvline(0, color="0.2", linewidth=1)
    behind = ax.twinx()
    behind.set_axis_off()
    sns.kdeplot(x=tau, color=colour(method), fill=True, alpha=0.15, linewidth=0, warn_singular=False, ax=behind)
    ax.scatter(tau, tau.member + 1, color=colour(method), alpha=0.5, s=14, linewidth=0)
    ax.scatter(members, members.member + 1, color=colour(method), marker="D", s=26, edgecolor="0.2", linewidth=0.6)
    ax.set(xlabel=f"τ {method} ({_unit(tau, method)})", ylabel="training", yticks=[1, members.sizes["member"]])
    ax.locator_params(axis="x", nbins=5)
    return ax


def plot_image(image: Any, title: str, *, ax: Axes | None = None) -> Axes:
    """One image, (channels, height, width) in any range, scaled to its own range; a vector becomes a strip."""
    ax = ax or plt.gca()
    image = np.asarray(image)
    image = np.moveaxis(image, 0, -1) if image.ndim == 3 else np.atleast_2d(image)  # (height, width, C) or (1, width)
    image = (image - image.min()) / (np.ptp(image) or 1)
    ax.imshow(image, cmap="gray", aspect="auto" if len(image) == 1 else None)
    ax.set_title(title)
    ax.axis("off")
    return ax


def plot_proponents(top: xr.DataArray, task: Any, test: int, *, axes: np.ndarray | None = None) -> np.ndarray:
    """The train images that help one test image most, best first, a row for each member; above each its class.

    `top` is `stats.proponents` of one test point and method, (member, rank). A thick frame marks the images of the
    first row, so that agreement is seen at a glance.
    """
    rows, columns = top.sizes["member"], top.sizes["rank"] + 1
    if axes is None:
        axes = plt.subplots(rows, columns, figsize=(1.1 * columns, 1.3 * rows), squeeze=False)[1]
    for row, member, positions in zip(axes, top.member.values, top.values, strict=True):
        plot_image(task.x_test[test], f"test: {task.classes[task.y_test[test]]}", ax=row[0])
        row[0].text(-0.1, 0.5, f"training {member + 1}", rotation=90, ha="right", va="center",
                    transform=row[0].transAxes)  # fmt: skip
        for ax, j in zip(row[1:], positions, strict=True):
            plot_image(task.x_train[j], task.classes[task.y_train[j]], ax=ax)
            if j in top.values[0]:
                ax.axis("on")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set(linewidth=4, color=colour(str(top.method.item())))
    return axes


def show(figure: Figure, alt: str) -> None:
    """Show a figure with an alt text that says what is seen, for readers who cannot see it."""
    from IPython.display import display

    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)  # else it is shown again at the end of the cell


def _long(table: xr.Dataset, name: str) -> pd.DataFrame:
    """One variable as rows of (method, …, value), as seaborn takes it."""
    return table[name].transpose("method", ...).to_series().reset_index()


def _palette(table: xr.Dataset) -> dict:
    return {str(method): colour(str(method)) for method in table.method.values}


def _unit(labelled: xr.Dataset | xr.DataArray, method: str) -> str:
    return json.loads(labelled.attrs["units"]).get(method, "")
