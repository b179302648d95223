"""What a distribution of τ says about each train-test pair: pure functions on labelled arrays."""

import warnings

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr


def by_member(tau: xr.DataArray) -> xr.DataArray:
    """τ with the checkpoints of each member averaged: (sample, …) → (member, …).

    Checkpoints of one member are correlated, so they are no independent evidence: inference counts members.
    """
    return tau.groupby(tau.member.compute()).mean("sample", skipna=False, keep_attrs=True)


def per_pair(tau: xr.DataArray) -> xr.Dataset:
    """Mean, spread and p-values of every train-test pair, over members, with checkpoints averaged first.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`

    Returns
    -------
    Dataset (train, test, method)
        `mean`, `std` (n − 1): in the unit of τ.
        `snr`: |mean| / std.
        `noise_dominated`: 1.0 where std > |mean|, else 0.0.
        `p_t`: two-sided Student t of H0: E[τ] = 0. Is there an effect on average?
        `p_noise`: 2 Φ(−|mean| / std), that of the released code of Nguyen et al. 2023. Could one draw be told from
        noise? It does not shrink with more members.
        NaN where τ is missing or there is one member only. A pair whose every τ is 0 has both p = 1.
    """
    draws = by_member(tau).astype(np.float64).compute()
    mean = draws.mean("member", skipna=False)
    several = draws.sizes["member"] > 1
    std = draws.std("member", ddof=1, skipna=False) if several else xr.full_like(mean, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = abs(mean) / std
    never = (mean == 0) & (std == 0)
    table = xr.Dataset(
        {
            "mean": mean,
            "std": std,
            "snr": snr.where(~never, 0),
            "noise_dominated": (std > abs(mean)).where(std.notnull()),
            "p_t": xr.apply_ufunc(_t_p, draws, input_core_dims=[["member"]]).where(~never, 1),
            "p_noise": xr.apply_ufunc(_noise_p, snr).where(~never, 1),
        }
    )
    return table.assign_attrs(units=tau.attrs.get("units", "{}"), members=draws.sizes["member"])


def summary(table: xr.Dataset) -> pd.DataFrame:
    """One row per method: the shares and means over pairs of a `per_pair` table.

    Columns: pairs, members, the share with std > |mean|, the mean t-test p, the share with t-test p < 0.05 (expect
    0.05 of pure noise), and the mean p_noise. Pairs that are NaN are left out and not counted in `pairs`.
    """
    table = table if "method" in table.dims else table.expand_dims("method")
    over = ("train", "test")
    columns = {
        "pairs": table.p_t.notnull().sum(over),
        "members": xr.full_like(table.method, table.attrs["members"], dtype=int),
        "std > |mean|": table.noise_dominated.mean(over),
        "mean p (t)": table.p_t.mean(over),
        "share p (t) < 0.05": (table.p_t < 0.05).where(table.p_t.notnull()).mean(over),
        "mean p_noise": table.p_noise.mean(over),
    }
    return pd.DataFrame({name: column.to_series() for name, column in columns.items()}).loc[table.method.values]


def proponents(tau: xr.DataArray, count: int = 5) -> xr.DataArray:
    """Positions of the `count` train points with the highest τ, best first: (…, train, …) → (…, rank, …)."""
    axis = tau.get_axis_num("train")
    order = np.argsort(-tau.values, axis=axis, kind="stable")
    order = order.take(range(min(count, tau.sizes["train"])), axis=axis)
    kept = {name: c for name, c in tau.coords.items() if "train" not in c.dims}
    return xr.DataArray(order, kept, [("rank" if d == "train" else d) for d in tau.dims])


def extremes(table: xr.Dataset, method: str, count: int = 3) -> pd.DataFrame:
    """The `count` most and the `count` least trustworthy pairs of a method, by signal-to-noise ratio.

    Returns
    -------
    DataFrame
        Columns `trust` ("most" or "least"), `train` and `test` (positions), and all of the table; the most
        trustworthy first, the least last. Each train and each test point is shown at most once at either end, so that
        one unusual image does not fill the list; pairs whose τ is always 0 are left out.
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


def _t_p(draws: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of pairs that never vary, and of single members
        return scipy.stats.ttest_1samp(draws, 0.0, axis=-1).pvalue


def _noise_p(snr: np.ndarray) -> np.ndarray:
    return 2 * scipy.stats.norm.sf(snr)
