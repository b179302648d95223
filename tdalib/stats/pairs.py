"""What a distribution of τ says about each train-test pair: labelled tables."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import scipy.stats
import xarray as xr
from threadpoolctl import threadpool_limits

from tdalib.stats.draws import Scale, check_share, check_tau, in_blocks, member_draws, scaled

RESAMPLES = 1000  # of the bootstrap of a pair
EXACT = 12  # members up to which all sign flips are counted
BLOCK = 500  # pairs whose resamples are held at a time


def per_pair(tau: xr.DataArray, *, scale: Scale = None, level: float | None = None, seed: int = 0) -> xr.Dataset:
    """Mean, spread and p-values of every train-test pair, over members, with checkpoints averaged first.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`
        In memory, or lazy: then a few chunks at a time are read.
    scale : "test" or None
        "test": τ of each member divided by its root mean square over train points, in units of what moves the test
        point in it (`scaled`). Losses of one member can be many times those of another, which this takes out.
    level : float, optional
        Of the interval, at most 0.998: beyond that 1,000 resamples do not tell. Where it is given, `low`, `high` and
        `p_flip` are computed too, which takes many times as long.
    seed : int
        Of the bootstrap, and of the sign flips of more than 12 members.

    Returns
    -------
    Dataset (train, test, method)
        `mean`, `std` (n − 1): in the unit of τ.
        `same_sign`: share of draws that have the sign of the mean.
        `snr`: |mean| / std.
        `noise_dominated`: 1.0 where std > |mean|, else 0.0.
        `p_t`: two-sided Student t of H0: E[τ] = 0. Is there an effect on average?
        `q`: p_t corrected for the number of pairs of the method (Benjamini and Hochberg 1995). What a list of pairs
        with small q can claim on real τ, which is skewed and dependent, stands with `trustworthy`.
        `p_noise`: 2 Φ(−|mean| / std), that of the released code of Nguyen et al. 2023. Could one member be told
        from noise? It does not shrink with more members.
        `low`, `high`: the interval of E[τ], by the studentised bootstrap over members (Efron and Tibshirani 1993,
        chapter 12.5). Three members do not bound it at the usual levels: it is infinite then.
        `p_flip`: as p_t by flipping signs, for τ that is symmetric around 0 under H0, normal or not. Of n members it
        is at least 2^(1 − n); of more than 12, which are flipped at random, about 2^−11.
        NaN where τ is missing, and but for `mean` and `same_sign` where there is one member only. A pair whose every τ
        is 0 has all p = 1.

    Raises
    ------
    ValueError
        It is no τ, an unknown scale, or an impossible level.
    """
    check_tau(tau)
    most = 1 - 2 / RESAMPLES  # beyond that they tell nothing
    if level is not None:
        check_share("level", level)
        if level > most:
            raise ValueError(f"level: {level} is not possible with {RESAMPLES} resamples; it must be at most {most}")
    tau = scaled(tau, scale)
    members = np.unique(tau.member.values)
    average = (tau.member.values == members[:, None]).astype(float)  # (member, sample)
    average /= average.sum(1, keepdims=True)
    table = _of_blocks(_moments, tau, ["mean", "std", "same_sign"], average=average)
    if level is not None:
        names, options = ["low", "high", "p_flip"], {"level": level, "seed": seed}
        table = table.assign(_of_blocks(_resampled, tau, names, average=average, **options))
    table["snr"] = snr = xr.apply_ufunc(signal_to_noise, table["mean"], table["std"])
    table["noise_dominated"] = (table["std"] > abs(table["mean"])).where(table["std"].notnull())
    table["p_t"] = t_p(snr, len(members))
    over = [d for d in snr.dims if d != "method"]
    q = xr.apply_ufunc(q_value, table["p_t"], input_core_dims=[over], output_core_dims=[over], vectorize=True)
    table["q"] = q.transpose(*snr.dims)
    table["p_noise"] = 2 * scipy.special.ndtr(-snr)
    return table.assign_attrs(units=tau.attrs.get("units", "{}"), members=len(members))


def moderated_snr(tau: xr.DataArray) -> xr.DataArray:
    """|mean| / std of every pair, with the variance shrunk to what the variances of other pairs say of it.

    Few members tell a variance badly, and many pairs together tell it well: a log variance is taken for the sum of an
    effect of its train point, one of its test point, one of the size of its mean beside theirs, and one of its own. The
    last is shrunk by as much as so few members scatter (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3, with the other
    three as prior). To rank pairs; it has no p-value.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`

    Returns
    -------
    DataArray (train, test, method)

    Raises
    ------
    ValueError
        It is no τ, or one member alone.
    """
    draws = member_draws(tau, at_least=2)
    mean, variance = draws.mean("member", skipna=False), draws.var("member", ddof=1, skipna=False)
    over, freedom = ["train", "test"], len(draws) - 1
    log = xr.apply_ufunc(np.log, variance.where(variance > 0))
    size = _beside_others(xr.apply_ufunc(np.log, mean.where(mean != 0) ** 2))
    own = _beside_others(log)
    own = own - size * (own * size).mean(over) / (size**2).mean(over)
    free = max((draws.sizes["train"] - 1) * (draws.sizes["test"] - 1) - 1, 1)  # of so many pairs beside their effects
    scatter = (own**2).sum(over) / free - scipy.special.polygamma(1, freedom / 2)  # beyond that of so few members
    prior = xr.apply_ufunc(_prior_freedom, scatter, vectorize=True)  # (method,)
    others = np.exp(log - own - _log_bias(freedom) + _log_bias(prior))
    shrunk = (prior * others + freedom * variance) / (prior + freedom)
    std = np.sqrt(shrunk.fillna(variance))
    return xr.apply_ufunc(signal_to_noise, mean, std, keep_attrs=False).rename("snr")


def _beside_others(table: xr.DataArray) -> xr.DataArray:
    """What of each pair is not an effect of its train point or of its test point."""
    return table - table.mean("test") - table.mean("train") + table.mean(["train", "test"])


def _prior_freedom(scatter: float) -> float:
    """Degrees of freedom d of a scaled 1/χ² whose logarithm has this variance: trigamma(d / 2)."""
    low, high = 1e-2, 1e6

    def excess(freedom: float) -> float:
        return scipy.special.polygamma(1, freedom / 2) - scatter

    return scipy.optimize.brentq(excess, low, high) if excess(high) < 0 < excess(low) else high


def _log_bias(freedom: Any) -> Any:
    """Mean of log(χ² / d) of so many degrees of freedom d."""
    return scipy.special.digamma(freedom / 2) - np.log(freedom / 2)


def extremes(table: xr.Dataset, method: str, count: int = 3) -> pd.DataFrame:
    """The `count` most and the `count` least trustworthy pairs of a method, by signal-to-noise ratio.

    Returns
    -------
    DataFrame
        Columns `trust` ("most" or "least"), `train` and `test` (positions), and all of the table; the most
        trustworthy first, the least last. Each train and each test point is shown at most once at either end, so that
        one unusual point does not fill the list; pairs whose τ is always 0 are left out.
    """
    pairs = table.sel({"method": method}).drop_vars(table.coords, errors="ignore").to_dataframe().reset_index()
    pairs = pairs[pairs["snr"].notna() & pairs[["mean", "std"]].any(axis=1)]  # not those whose τ is always 0
    pairs = pairs.sort_values("snr", ascending=False, kind="stable")
    ends = {"most": _distinct(pairs, count), "least": _distinct(pairs[::-1], count)[::-1]}
    return pd.concat([rows.assign(trust=end) for end, rows in ends.items()], ignore_index=True)


def _distinct(pairs: pd.DataFrame, count: int) -> pd.DataFrame:
    """The first `count` pairs of which no two have a point in common."""
    chosen: list = []
    for row in pairs.itertuples():
        if all(row.train != c.train and row.test != c.test for c in chosen):
            chosen.append(row)
        if len(chosen) == count:
            break
    return pairs.loc[[row.Index for row in chosen]]


def _of_blocks(kernel: Callable, tau: xr.DataArray, names: list[str], **options: Any) -> xr.Dataset:
    """Statistics of the pairs, some at a time: `kernel` takes (sample, …) to one array (…) for each name."""
    table = xr.apply_ufunc(
        lambda draws: np.stack(kernel(np.moveaxis(draws, -1, 0), **options), -1), in_blocks(tau),
        input_core_dims=[["sample"]], output_core_dims=[["statistic"]], dask="parallelized", output_dtypes=[float],
        dask_gufunc_kwargs={"output_sizes": {"statistic": len(names)}},
    )  # fmt: skip
    with threadpool_limits(1, "blas"):  # dask's threads are enough: BLAS's would wait for each other
        table = table.compute()
    return table.assign_coords(statistic=names).to_dataset("statistic")


def _moments(draws: np.ndarray, average: np.ndarray) -> tuple[np.ndarray, ...]:
    x = np.tensordot(average, draws, 1)  # (member, …)
    mean = x.mean(0)
    std = x.std(0, ddof=1) if len(x) > 1 else np.full_like(mean, np.nan)
    same_sign = (np.sign(draws) == np.sign(mean)).mean(0)
    return mean, std, np.where(np.isnan(mean), np.nan, same_sign)


def _resampled(draws: np.ndarray, average: np.ndarray, level: float, seed: int) -> tuple[np.ndarray, ...]:
    return resampled(np.tensordot(average, draws, 1), level, seed)


def resampled(draws: np.ndarray, level: float, seed: int) -> tuple[np.ndarray, ...]:
    """`low`, `high` and `p_flip` of `per_pair`, (member, …) → (…) each."""
    x = np.sort(draws.reshape(len(draws), -1).T)  # (pair, member), sorted since the order of members does not matter
    flips, weights = _resampling(len(draws), np.random.default_rng(seed))
    blocks = [_by_resamples(x[k : k + BLOCK], flips, weights, level) for k in range(0, max(len(x), 1), BLOCK)]
    return tuple(np.concatenate(parts).reshape(draws.shape[1:]) for parts in zip(*blocks, strict=True))


def _resampling(members: int, stream: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Signs (member, flip), the first all +1, and weights (member, resample).

    Of few members all flips, but one only of each pair of opposites: that in which the last member keeps its sign.
    """
    if members <= EXACT:
        flips = np.array([(*signs, 1.0) for signs in product([1.0, -1.0], repeat=members - 1)]).T
    else:
        flips = stream.choice([-1.0, 1.0], (members, 2 ** (EXACT - 1)))
        flips[:, 0] = 1
    counts = stream.multinomial(members, np.full(members, 1 / members), RESAMPLES)  # (resample, member)
    return flips, (counts.T / members).astype(np.float32)


def _by_resamples(x: np.ndarray, flips: np.ndarray, weights: np.ndarray, level: float) -> tuple[np.ndarray, ...]:
    members = x.shape[1]
    mean = x.mean(1, keepdims=True)
    std = x.std(1, ddof=1, keepdims=True) if members > 1 else np.full_like(mean, np.nan)
    sums = abs(x @ flips)  # (pair, flip), of which the first flips no sign
    p_flip = (sums >= sums[:, :1] * (1 - 1e-12)).mean(1, keepdims=True)
    p_flip = np.where(np.isnan(std), np.nan, p_flip)
    varies = std > 1e-12 * abs(mean)  # more than by rounding
    z = np.divide(x - mean, std, out=np.zeros_like(x), where=varies).astype(np.float32)  # (pair, member)
    shift = z @ weights  # means of the resamples, (pair, resample)
    variance = np.square(z) @ weights - np.square(shift)
    spread = np.sqrt(np.where(variance > 1e-6, variance, 0))  # 0 where but for rounding all are the same
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(shift == 0, 0, shift / spread)
    t.sort(axis=1)
    cut = round(RESAMPLES * (1 - level) / 2)  # resamples beyond either end
    unbiased = np.sqrt(1 - 1 / members)  # `spread` divides by n, `std` by n − 1
    largest, smallest = t[:, -1 - cut, None], t[:, cut, None]
    low = mean - largest * unbiased * std  # a resample too high speaks for a mean that is lower
    high = mean - smallest * unbiased * std
    return low[:, 0], high[:, 0], p_flip[:, 0]


def signal_to_noise(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """|mean| / std; 0 where both are 0, as every τ is then."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((mean == 0) & (std == 0), 0, abs(mean) / std)


def ratios(x: np.ndarray) -> np.ndarray:
    """|mean| / std over members, (member, pair) → (pair,)."""
    return signal_to_noise(x.mean(0), x.std(0, ddof=1))


def t_p(snr: np.ndarray, members: int) -> np.ndarray:
    """Two-sided Student t of H0: E[τ] = 0, from |mean| / std over so many members."""
    return 2 * scipy.special.stdtr(members - 1, -snr * np.sqrt(members))


def q_value(p: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg over the pairs that are not missing."""
    q, there = p.copy(), ~np.isnan(p)
    q[there] = scipy.stats.false_discovery_control(p[there])
    return q
