"""Var(τ) split into its sources."""

from itertools import combinations
from math import prod

import numpy as np
import pandas as pd
import xarray as xr

from tdalib.stats.draws import check_share, counted, with_methods

RESAMPLES = 4000  # of a bootstrap
TINY = np.finfo(float).tiny


def variance_components(tau: xr.DataArray, *, level: float = 0.9, seed: int = 0) -> xr.Dataset:
    """Var(τ) of one draw by its sources, by the law of total variance: unbiased estimates with random effects.

    Where the members are a full grid of initialisations and batch orders (the sampler `crossed`), the sources are
    "init", "batch", "init × batch" (what is left between members), and "checkpoint" (between the draws of a member, all
    interactions with the others included); else "member" and "checkpoint". With one checkpoint there is no such source,
    and it is part of the one before it.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinates `member`, `init_seed` and `batch_seed`
    level : float
        Of the intervals.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Dataset
        `by_pair` (source, train, test, method): variances of each pair, in the squared unit of τ; as unbiased estimates
        they can be negative. NaN where a τ is missing, and so are the means then.
        `variance` (source, method): their means over pairs; `low`, `high`: a bootstrap interval for each mean, cut off
        at 0, so that a negative estimate lies outside.
        `share` (source, method): of the sum over sources, `share_low` and `share_high`: its interval, from shares
        within each resample, so that it lies between 0 and 1. `median_share`: the median over pairs of their own
        shares; the mean belongs to the pairs with the largest variance.
        `trend` (method): the part of the checkpoints' share that all members have in common, what an epoch more does.

    The interval redraws the mean squares as those of Gaussian effects (for one pair: the generalised interval of
    Weerahandi 1993, JASA 88:899). All pairs share the few initialisations and batch orders: how much more than one
    pair they tell together is estimated from how their effects covary, which takes about 5 of each.

    Raises
    ------
    ValueError
        One member alone, members with unequal numbers of draws, or an impossible level.

    Source: Searle, Casella and McCulloch 1992, Variance Components, chapter 4.
    """
    check_share("level", level)
    tau = counted(tau)
    layout, factors = _layout(tau)
    sets = [s for size in range(1, len(factors) + 1) for s in combinations(range(len(factors)), size)]
    df = [prod(layout.shape[axis] - 1 for axis in s) for s in sets]
    sources, combine = _sources(sets, factors, layout.shape)  # (source and trend, mean square)
    tau = with_methods(tau)
    tables = []
    for method in tau.method.values:
        draws = tau.loc[{"method": method}].transpose("sample", "train", "test").values.astype(np.float64)
        values = draws[layout].reshape(*layout.shape, -1)  # (*factors, pair)
        effects = [_effect(values, s) for s in sets]
        mean_squares = np.stack([np.square(e).sum(0) / d for e, d in zip(effects, df, strict=True)])
        variances = combine @ mean_squares  # (source and trend, pair)
        by_pair, trend = variances[:-1], variances[-1]
        freedom = np.array([[_freedom(e, d)] for e, d in zip(effects, df, strict=True)])  # (mean square, 1)
        chi_squares = np.random.default_rng(seed).chisquare(freedom, (len(df), RESAMPLES))
        redrawn = combine @ (mean_squares.mean(1, keepdims=True) * freedom / chi_squares)
        redrawn = redrawn[:-1].clip(0)  # (source, resample)
        one = xr.Dataset(coords={"source": sources})
        one["by_pair"] = ("source", "train", "test"), by_pair.reshape(-1, *draws.shape[1:])
        one["variance"] = "source", by_pair.mean(1)
        for name, drawn in {"": redrawn, "share_": _shares(redrawn)}.items():
            one[f"{name}low"] = "source", np.quantile(drawn, (1 - level) / 2, axis=1)
            one[f"{name}high"] = "source", np.quantile(drawn, (1 + level) / 2, axis=1)
        one["median_share"] = "source", np.median(_shares(by_pair.clip(0)), axis=1)
        tables.append(one.assign(trend=trend.mean()))
    table = xr.concat(tables, tau.method).transpose("source", "train", "test", "method")
    total = table.variance.sum("source", skipna=False)
    table = table.assign(share=table.variance / total, trend=table.trend / total)
    table = table.assign_coords(tau.isel(sample=0, drop=True).coords)
    return table.assign_attrs(units=tau.attrs.get("units", "{}"), level=level)


def _shares(variances: np.ndarray) -> np.ndarray:
    """Of each column's sum, (source, …); NaN where that is 0."""
    total = variances.sum(0)
    return variances / np.where(total > 0, total, np.nan)


def _layout(tau: xr.DataArray) -> tuple[np.ndarray, list[str]]:
    """Positions of the samples on the grid of the factors, and the names of these."""
    keys = pd.DataFrame({name: tau[name].values for name in ("member", "init_seed", "batch_seed", "checkpoint")})
    members = keys.drop_duplicates("member")
    if len(members) < 2:
        raise ValueError("variance components need at least 2 members")
    if keys["member"].value_counts().nunique() > 1:
        raise ValueError("variance components need the same number of draws of each member")
    by = ["init_seed", "batch_seed"]
    inits, orders = members[by].nunique()
    if min(inits, orders) == 1 or inits * orders != len(members) or members.duplicated(by).any():
        by = ["member"]  # for want of a full grid
    factors = [name.removesuffix("_seed") for name in by]
    order = keys.sort_values([*by, "checkpoint"], kind="stable").index.to_numpy()
    grid = order.reshape(*members[by].nunique(), -1)  # draws of a member last
    return (grid, [*factors, "checkpoint"]) if grid.shape[-1] > 1 else (grid[..., 0], factors)


def _effect(values: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """The interaction of the chosen factors, (*factors, pairs) → (levels, pairs).

    Its squares sum up to its sum of squares. It is the deviation from the mean along the chosen axes, and the mean
    along the others.
    """
    behind = prod(n for axis, n in enumerate(values.shape[:-1]) if axis not in chosen)  # values behind a level
    for axis in range(values.ndim - 1):
        mean = values.mean(axis, keepdims=True)
        values = values - mean if axis in chosen else mean
    return np.sqrt(behind) * values.reshape(-1, values.shape[-1])


def _sources(sets: list[tuple[int, ...]], factors: list[str], shape: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
    """Names of the sources, and how mean squares combine into their variances; the last row gives the trend.

    The variance of the interaction S is Σ (−1)^(|T| − |S|) MS_T over all T that hold S, over the values behind a level.
    """
    combine = np.zeros((len(sets), len(sets)))
    for row, s in enumerate(sets):
        behind = prod(n for axis, n in enumerate(shape) if axis not in s)
        for column, t in enumerate(sets):
            if set(s) <= set(t):
                combine[row, column] = (-1) ** (len(t) - len(s)) / behind
    names = [" × ".join(factors[axis] for axis in s) for s in sets]
    within = np.array(["checkpoint" in name for name in names])
    sources, rows = [name for name in names if "checkpoint" not in name], list(combine[~within])
    if not within.any():
        return sources, np.stack([*rows, np.zeros(len(sets))])
    checkpoint, trend = combine[within].sum(0), combine[names.index("checkpoint")]
    return [*sources, "checkpoint"], np.stack([*rows, checkpoint, trend])


def _freedom(effects: np.ndarray, df: int) -> float:
    """Degrees of freedom of the mean square averaged over pairs: df for one pair, more the less they go together.

    Satterthwaite's df (tr Σ)² / tr Σ², Σ the covariance of the effects between pairs, both estimated without bias for
    Gaussian effects (Srivastava 2005, J. Japan Statist. Soc. 35:251).
    """
    gram = effects @ effects.T / df  # the eigenvalues of the sample covariance
    trace2, square = np.trace(gram) ** 2, np.square(gram).sum()  # (tr Σ)² and tr Σ²
    if df > 1:
        square = (square - trace2 / df) * df**2 / ((df - 1) * (df + 2))
        trace2 -= 2 * square / df
    return float(np.clip(df * trace2 / max(square, TINY), df, df * effects.shape[1])) if trace2 > 0 else df
