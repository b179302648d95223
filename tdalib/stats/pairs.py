"""What a distribution of τ says about each train-test pair: labelled tables, and which pairs to trust."""

import warnings
from itertools import product

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr
from threadpoolctl import threadpool_limits

from tdalib.stats.draws import check_share, check_tau, in_blocks

RESAMPLES = 1000  # of the bootstrap of a pair
EXACT = 12  # members up to which all sign flips are counted
BLOCK = 500  # pairs whose resamples are held at a time
STATISTICS = ("mean", "std", "low", "high", "same_sign", "p_t", "p_flip")


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
    check_share("level", level)
    most = 1 - 2 / RESAMPLES
    if level > most:
        raise ValueError(f"level: {level} is not possible with {RESAMPLES} resamples; it must be at most {most}")
    members = np.unique(tau.member.values)
    belongs = tau.member.values[:, None] == members  # (sample, member)
    average = belongs / belongs.sum(0)
    flips, weights = _resampling(len(members), np.random.default_rng(seed))
    table = xr.apply_ufunc(
        _statistics, in_blocks(tau),
        kwargs={"average": average, "flips": flips, "weights": weights, "level": level},
        input_core_dims=[["sample"]], output_core_dims=[["statistic"]], dask="parallelized", output_dtypes=[float],
        dask_gufunc_kwargs={"output_sizes": {"statistic": len(STATISTICS)}},
    )  # fmt: skip
    with threadpool_limits(1, "blas"):  # dask's threads are enough: BLAS's would wait for each other
        table = table.compute()
    table = table.assign_coords(statistic=list(STATISTICS)).to_dataset("statistic")
    never = (table["mean"] == 0) & (table["std"] == 0)
    snr = (abs(table["mean"]) / table["std"]).where(~never, 0)
    table = table.assign(
        p_t=table.p_t.where(~never, 1),
        snr=snr,
        noise_dominated=(table["std"] > abs(table["mean"])).where(table["std"].notnull()),
        p_noise=2 * xr.apply_ufunc(scipy.stats.norm.sf, snr),
    )
    over = [d for d in table.p_t.dims if d != "method"]
    q = xr.apply_ufunc(q_value, table.p_t, input_core_dims=[over], output_core_dims=[over], vectorize=True)
    table["q"] = q.transpose(*table.p_t.dims)
    return table.assign_attrs(units=tau.attrs.get("units", "{}"), members=len(members), level=level)


def summary(table: xr.Dataset) -> pd.DataFrame:
    """One row per method: the shares and means over pairs of a `per_pair` table.

    Columns: pairs, members, the share with std > |mean|, the mean t-test p, the share with t-test p < 0.05 (expect
    0.05 of pure noise), the share with q ≤ 0.05, and the mean p_noise. Pairs that are NaN are left out and not counted
    in `pairs`.
    """
    table = table if "method" in table.dims else table.expand_dims("method")
    over = ("train", "test")
    columns = {
        "pairs": table.p_t.notnull().sum(over),
        "members": xr.full_like(table.method, table.attrs["members"], dtype=int),
        "std > |mean|": table.noise_dominated.mean(over),
        "mean p (t)": table.p_t.mean(over),
        "share p (t) < 0.05": (table.p_t < 0.05).where(table.p_t.notnull()).mean(over),
        "share q ≤ 0.05": (table.q <= 0.05).where(table.q.notnull()).mean(over),
        "mean p_noise": table.p_noise.mean(over),
    }
    return pd.DataFrame({name: column.to_series() for name, column in columns.items()}).loc[table.method.values]


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
    table = tau if isinstance(tau, xr.Dataset) else per_pair(tau)
    table = table if "method" in table.dims else table.expand_dims("method")
    labels = [name for name, c in table.coords.items() if c.dims in (("train",), ("test",)) and name not in c.dims]
    columns = ["mean", "low", "high", "snr", "same_sign", "p_t", "q", "noise_dominated"]
    small = table.q.transpose("method", "train", "test").values <= fdr
    method, train, test = (xr.DataArray(at, dims="pair") for at in np.nonzero(small))  # positions
    picked = table[columns].isel(method=method, train=train, test=test)  # (pair,)
    frame = pd.DataFrame({"method": picked.method.values, "train": train.values, "test": test.values})
    frame = frame.assign(**{name: picked[name].values for name in [*labels, *columns]})
    frame = frame.astype({"noise_dominated": bool})
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
    always_zero = (pairs["mean"] == 0) & (pairs["std"] == 0)
    pairs = pairs[pairs["snr"].notna() & ~always_zero].sort_values("snr", ascending=False, kind="stable")
    ends = {"most": _distinct(pairs, count), "least": _distinct(pairs[::-1], count)[::-1]}
    return pd.concat([rows.assign(trust=end) for end, rows in ends.items()], ignore_index=True)


def _distinct(pairs: pd.DataFrame, count: int) -> pd.DataFrame:
    chosen = []
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
    return flips, counts.T / members


def _statistics(draws: np.ndarray, average, flips, weights, level: float) -> np.ndarray:
    """The STATISTICS of each pair, (…, sample) → (…, statistic)."""
    x = draws @ average  # (…, member)
    mean = x.mean(-1)
    same_sign = (np.sign(draws) == np.sign(mean)[..., None]).mean(-1)
    if x.shape[-1] == 1:
        nan = np.full_like(mean, np.nan)
        return np.stack([mean, nan, nan, nan, same_sign, nan, nan], -1)
    std = x.std(-1, ddof=1)
    pairs = np.sort(x, -1).reshape(-1, x.shape[-1])  # the order of members does not matter
    blocks = [_resampled(pairs[k : k + BLOCK], flips, weights, level) for k in range(0, len(pairs), BLOCK)]
    low, high, p_flip = np.concatenate(blocks, 1).reshape(3, *mean.shape)
    same_sign = np.where(np.isnan(mean), np.nan, same_sign)
    p_flip = np.where(np.isnan(mean), np.nan, p_flip)
    return np.stack([mean, std, mean + low * std, mean + high * std, same_sign, t_p(x), p_flip], -1)


def _resampled(x: np.ndarray, flips, weights, level: float) -> np.ndarray:
    """Ends of the interval in standard deviations from the mean, and the sign-flip p: (pair, member) → (3, pair)."""
    sums = abs(x @ flips)  # (pair, flip)
    seen = sums[:, :1]  # no sign flipped
    p_flip = (sums >= seen * (1 - 1e-12)).mean(1)
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    varies = std > 1e-12 * abs(mean)  # more than by rounding
    z = np.where(varies, (x - mean) / np.where(varies, std, 1), 0).astype(np.float32)  # (pair, member)
    weights = weights.astype(np.float32)
    shift = z @ weights  # means of the resamples, (pair, resample)
    variance = np.square(z) @ weights - np.square(shift)
    spread = np.sqrt(np.where(variance > 1e-6, variance, 0))  # 0 where but for rounding all are the same
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(shift == 0, 0, shift / spread)
    t.sort(axis=1)
    cut = round(RESAMPLES * (1 - level) / 2)  # resamples beyond either end
    unbiased = np.sqrt(1 - 1 / x.shape[1])  # `spread` divides by n, `std` by n − 1
    low = -t[:, -1 - cut].astype(float) * unbiased  # a resample too high speaks for a mean that is lower
    high = -t[:, cut].astype(float) * unbiased
    return np.stack([low, high, p_flip])


def t_p(x: np.ndarray) -> np.ndarray:
    """Two-sided Student t over the last axis."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of pairs that never vary
        return scipy.stats.ttest_1samp(x, 0.0, axis=-1).pvalue


def q_value(p: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg over the pairs that are not missing."""
    q, there = p.copy(), ~np.isnan(p)
    if there.any():
        q[there] = scipy.stats.false_discovery_control(p[there])
    return q
