"""What a distribution of τ says about each train-test pair: pure functions on labelled arrays."""

import warnings
from itertools import combinations
from math import prod

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr
from arviz_stats.base import array_stats

RESAMPLES = 4000  # of a bootstrap
TINY = np.finfo(float).tiny


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
        `share` (source, method): of the sum over sources.
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
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is not possible; it must be between 0 and 1")
    layout, factors = _layout(tau)
    sets = [s for size in range(1, len(factors) + 1) for s in combinations(range(len(factors)), size)]
    sources, combine = _sources(sets, factors, layout.shape)  # (source and trend, mean square)
    tau = tau if "method" in tau.dims else tau.expand_dims("method")
    tables = []
    for method in tau.method.values:
        values = tau.loc[{"method": method}].transpose("sample", "train", "test").values.astype(np.float64)[layout]
        effects = [_effect(values.reshape(*layout.shape, -1), s) for s in sets]
        df = [prod(layout.shape[axis] - 1 for axis in s) for s in sets]
        by_pair = combine @ np.stack([np.square(e).sum(0) / d for e, d in zip(effects, df, strict=True)])
        redrawn = combine @ _redrawn(effects, df, np.random.default_rng(seed))  # (source and trend, resample)
        low, high = np.quantile(redrawn, [(1 - level) / 2, (1 + level) / 2], axis=1).clip(0)
        variables = {
            "by_pair": (("source", "train", "test"), by_pair[:-1].reshape(-1, *values.shape[len(factors) :])),
            "variance": ("source", by_pair[:-1].mean(1)),
            "low": ("source", low[:-1]),
            "high": ("source", high[:-1]),
            "trend": ((), by_pair[-1].mean()),
        }
        tables.append(xr.Dataset(variables, {"source": sources}))
    table = xr.concat(tables, tau.method).transpose("source", "train", "test", "method")
    total = table.variance.sum("source", skipna=False)
    table = table.assign(share=table.variance / total, trend=table.trend / total)
    labels = {name: c for name, c in tau.coords.items() if c.dims in (("train",), ("test",))}
    return table.assign_coords(labels).assign_attrs(units=tau.attrs.get("units", "{}"), level=level)


def _layout(tau: xr.DataArray) -> tuple[np.ndarray, list[str]]:
    """Positions of the samples on the grid of the factors, and the names of these."""
    keys = pd.DataFrame({name: tau[name].values for name in ("member", "init_seed", "batch_seed", "checkpoint")})
    members = keys.drop_duplicates("member")
    if len(members) < 2:
        raise ValueError("variance components need at least 2 members")
    if keys["member"].value_counts().nunique() > 1:
        raise ValueError("variance components need the same number of draws of each member")
    kept, seeds = len(keys) // len(members), ["init_seed", "batch_seed"]
    inits, orders = members[seeds].nunique()
    crossed = min(inits, orders) > 1 and inits * orders == len(members) == len(members.drop_duplicates(seeds))
    order = keys.sort_values([*(seeds if crossed else ["member"]), "checkpoint"], kind="stable").index.to_numpy()
    shape, names = ((inits, orders), ["init", "batch"]) if crossed else ((len(members),), ["member"])
    return order.reshape(*shape, *[kept] * (kept > 1)), names + ["checkpoint"] * (kept > 1)


def _effect(values: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """The interaction of the chosen factors, whose squares sum up to its sum of squares: (*factors, pairs) → (levels,
    pairs). It is the deviation from the mean along the chosen axes, and the mean along the others."""
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
    rows, sources = list(combine[~within]), [name for name in names if "checkpoint" not in name]
    if not within.any():
        return sources, np.stack([*rows, 0 * rows[0]])
    return [*sources, "checkpoint"], np.stack([*rows, combine[within].sum(0), combine[names.index("checkpoint")]])


def _redrawn(effects: list[np.ndarray], df: list[int], stream: np.random.Generator) -> np.ndarray:
    """What the mean squares, averaged over pairs, may have been drawn around, (mean square, RESAMPLES)."""
    redrawn = []
    for e, d in zip(effects, df, strict=True):
        freedom = _freedom(e, d)
        redrawn.append(np.square(e).sum(0).mean() / d * freedom / stream.chisquare(freedom, RESAMPLES))
    return np.stack(redrawn)


def _freedom(effects: np.ndarray, df: int) -> float:
    """Degrees of freedom of the mean square averaged over pairs: df for one pair, more the less they go together.

    Satterthwaite's df (tr Σ)² / tr Σ², Σ the covariance of the effects between pairs, both estimated without bias for
    Gaussian effects (Srivastava 2005, J. Japan Statist. Soc. 35:251).
    """
    gram = effects @ effects.T / df  # the eigenvalues of the sample covariance
    trace, square = np.trace(gram) ** 2, np.square(gram).sum()
    if df > 1:
        square = (square - trace / df) * df**2 / ((df - 1) * (df + 2))
        trace -= 2 * square / df
    return float(np.clip(df * trace / max(square, TINY), df, df * effects.shape[1])) if trace > 0 else df


def convergence(result: xr.Dataset) -> pd.DataFrame:
    """R-hat and effective sample size of each member's chain, by the mean test loss of its draws.

    Columns: `draws`; `R-hat`, rank-normalised, of the quarters of the chain: well above 1 where it drifts or hangs;
    `ESS`, in draws. R-hat is NaN for fewer than 8 draws; below about 20 it scatters by 0.3 even for independent
    ones. Chains of different members start at different modes and are not compared.

    Source: Vehtari et al. 2021, arXiv:1903.08008, by arviz-stats.
    """
    rows = {}
    trace = result["loss"].mean("test")
    for member, chain in trace.groupby(trace.member.compute()):
        draws = chain.values.astype(np.float64)
        halves = draws[len(draws) % 2 :].reshape(2, -1)  # (chain, draw); arviz-stats splits each again
        r_hat, ess = float(array_stats.rhat(halves, method="z_scale")), float(array_stats.ess(draws[None]))
        rows[member] = {"draws": len(draws), "R-hat": r_hat, "ESS": ess}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("member")


def convergence_warning(table: pd.DataFrame) -> str | None:
    """One line on what is wrong with the chains of a `convergence` table, judged by the median chain; else None."""
    r_hat, ess, draws = (table[name].median() for name in ("R-hat", "ESS", "draws"))
    if draws < 20:
        return (
            f"{draws:.0f} draws of a chain are too few to judge whether it has converged; 20 checkpoints or more tell"
        )
    if r_hat > 1.1 or ess < draws / 4:
        state = (
            f"R-hat {r_hat:.2f}, effective sample size {ess:.0f} of {draws:.0f} draws (median of {len(table)} chains)"
        )
        return (
            f"the loss of the chains has not converged: {state}; a longer burn_in or thin, or another step_size, helps"
        )
    return None


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
