"""What a distribution of τ says about each train-test pair: labelled tables, and which pairs to trust."""

from itertools import product

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
import xarray as xr
from threadpoolctl import threadpool_limits

from tdalib.stats.draws import check_share, check_tau, counted, in_blocks, with_methods

RESAMPLES = 1000  # of the bootstrap of a pair
EXACT = 12  # members up to which all sign flips are counted
BLOCK = 500  # pairs whose resamples are held at a time
STATISTICS = ["mean", "std", "low", "high", "p_flip", "same_sign"]


def per_pair(tau: xr.DataArray, *, level: float = 0.95, seed: int = 0) -> xr.Dataset:
    """Mean, spread, interval and p-values of every train-test pair, over members, with checkpoints averaged first.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`
        In memory, or lazy: then a few chunks at a time are read.
    level : float
        Of the interval, at most 0.998: beyond that 1,000 resamples do not tell.
    seed : int
        Of the bootstrap, and of the sign flips of more than 12 members.

    Returns
    -------
    Dataset (train, test, method)
        `mean`, `std` (n − 1): in the unit of τ.
        `low`, `high`: the interval of E[τ], by the studentised bootstrap over members (Efron and Tibshirani 1993,
        chapter 12.5). Three members do not bound it at the usual levels: it is infinite then.
        `same_sign`: share of draws that have the sign of the mean.
        `snr`: |mean| / std.
        `noise_dominated`: 1.0 where std > |mean|, else 0.0.
        `p_t`: two-sided Student t of H0: E[τ] = 0. Is there an effect on average?
        `p_flip`: the same by flipping signs, for τ that is symmetric around 0 under H0, normal or not. Of n members it
        is at least 2^(1 − n); of more than 12, which are flipped at random, about 2^−11.
        `q`: p_t corrected for the number of pairs of the method (Benjamini and Hochberg 1995): calling all pairs with
        q ≤ 0.05 effects, at most 5 % of these calls are expected to be wrong. Pairs may depend on each other, if
        positively, as those that share their members do (Benjamini and Yekutieli 2001). As p_t it is for τ that is
        about normal or symmetric over members: with few members and skewed τ more of the calls are wrong.
        `p_noise`: 2 Φ(−|mean| / std), that of the released code of Nguyen et al. 2023. Could one member be told
        from noise? It does not shrink with more members.
        NaN where τ is missing, and but for `mean` and `same_sign` where there is one member only. A pair whose every τ
        is 0 has all p = 1.

    Raises
    ------
    ValueError
        It is no τ, or an impossible level.
    """
    check_tau(tau)
    tau = counted(tau)
    check_share("level", level)
    most = 1 - 2 / RESAMPLES
    if level > most:
        raise ValueError(f"level: {level} is not possible with {RESAMPLES} resamples; it must be at most {most}")
    members = np.unique(tau.member.values)
    belongs = tau.member.values[:, None] == members  # (sample, member)
    average = belongs / belongs.sum(0)
    flips, weights = _resampling(len(members), np.random.default_rng(seed))
    table = xr.apply_ufunc(
        _stats, in_blocks(tau),
        kwargs={"average": average, "flips": flips, "weights": weights, "level": level},
        input_core_dims=[["sample"]], output_core_dims=[["statistic"]], dask="parallelized", output_dtypes=[float],
        dask_gufunc_kwargs={"output_sizes": {"statistic": len(STATISTICS)}},
    )  # fmt: skip
    with threadpool_limits(1, "blas"):  # dask's threads are enough: BLAS's would wait for each other
        table = table.compute()
    table = table.assign_coords(statistic=STATISTICS).to_dataset("statistic")
    snr = xr.apply_ufunc(signal_to_noise, table["mean"], table["std"])
    p_t = t_p(snr, len(members))
    over = [d for d in snr.dims if d != "method"]
    q = xr.apply_ufunc(q_value, p_t, input_core_dims=[over], output_core_dims=[over], vectorize=True)
    table = table.assign(
        same_sign=table.same_sign.where(table["mean"].notnull()),
        snr=snr,
        noise_dominated=(table["std"] > abs(table["mean"])).where(table["std"].notnull()),
        p_t=p_t,
        q=q.transpose(*snr.dims),
        p_noise=2 * scipy.special.ndtr(-snr),
    )
    return table.assign_attrs(units=tau.attrs.get("units", "{}"), members=len(members), level=level)


def summary(table: xr.Dataset) -> pd.DataFrame:
    """One row per method: the shares and means over pairs of a `per_pair` table.

    Columns: pairs, members, the share with std > |mean|, the mean t-test p, the share with t-test p < 0.05 (expect
    0.05 of pure noise), the share with q ≤ 0.05, and the mean p_noise. Pairs that are NaN are left out and not counted
    in `pairs`.
    """
    table = with_methods(table).reset_coords(drop=True)
    over = ("train", "test")
    columns = {
        "pairs": table.p_t.notnull().sum(over),
        "members": table.attrs["members"],
        "std > |mean|": table.noise_dominated.mean(over),
        "mean p (t)": table.p_t.mean(over),
        "share p (t) < 0.05": (table.p_t < 0.05).where(table.p_t.notnull()).mean(over),
        "share q ≤ 0.05": (table.q <= 0.05).where(table.q.notnull()).mean(over),
        "mean p_noise": table.p_noise.mean(over),
    }
    return xr.Dataset(columns).to_dataframe()


def trustworthy(tau: xr.DataArray | xr.Dataset, fdr: float = 0.05) -> pd.DataFrame:
    """The pairs whose effect can be trusted: those with q ≤ `fdr`, the clearest first.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method), or its `per_pair` table
    fdr : float
        The false discovery rate: of the pairs listed for a method, at most this share is expected to have E[τ] = 0, or
        more with few members and skewed τ, see `q` of `per_pair`.

    Returns
    -------
    DataFrame
        Columns `method`, `train`, `test` (positions), what the coordinates (train) and (test) say of the points, each
        under its name and only where it is there, `mean`, `low`, `high`, `snr`, `same_sign`, `p_t`, `q`,
        `noise_dominated`. A pair can be listed and dominated by noise: on average it has an effect, which a single
        training need not show.

    Raises
    ------
    ValueError
        An impossible `fdr`.
    """
    check_share("fdr", fdr)
    table = with_methods(tau if isinstance(tau, xr.Dataset) else per_pair(tau))
    labels = [name for name, c in table.coords.items() if c.dims in (("train",), ("test",)) and name not in c.dims]
    columns = ["mean", "low", "high", "snr", "same_sign", "p_t", "q", "noise_dominated"]
    small = table.q.transpose("method", "train", "test").values <= fdr
    method, train, test = (xr.DataArray(at, dims="pair") for at in np.nonzero(small))  # positions
    picked = table.isel(method=method, train=train, test=test).assign(train=train, test=test)  # (pair,)
    frame = picked.to_dataframe()[["method", "train", "test", *labels, *columns]].astype({"noise_dominated": bool})
    order = np.lexsort((-frame["snr"], method))  # by method, the clearest first
    return frame.iloc[order].reset_index(drop=True)


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


def _stats(draws: np.ndarray, average: np.ndarray, flips: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """The STATISTICS of each pair, (…, sample) → (…, statistic)."""
    x = np.sort(draws @ average)  # (…, member), sorted since the order of members does not matter
    same_sign = (np.sign(draws) == np.sign(x.mean(-1, keepdims=True))).mean(-1, keepdims=True)
    pairs = x.reshape(-1, x.shape[-1])
    blocks = [_over_members(pairs[k : k + BLOCK], flips, weights, level) for k in range(0, len(pairs), BLOCK)]
    found = np.concatenate(blocks).reshape(*x.shape[:-1], -1)
    return np.concatenate([found, same_sign], -1)


def _over_members(x: np.ndarray, flips: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """The STATISTICS but the last, (pair, member) → (pair, statistic)."""
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
    return np.concatenate([mean, std, low, high, p_flip], 1)


def signal_to_noise(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """|mean| / std; 0 where both are 0, as every τ is then."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((mean == 0) & (std == 0), 0, abs(mean) / std)


def t_p(snr: np.ndarray, members: int) -> np.ndarray:
    """Two-sided Student t of H0: E[τ] = 0, from |mean| / std over so many members."""
    return 2 * scipy.special.stdtr(members - 1, -snr * np.sqrt(members))


def q_value(p: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg over the pairs that are not missing."""
    q, there = p.copy(), ~np.isnan(p)
    q[there] = scipy.stats.false_discovery_control(p[there])
    return q
