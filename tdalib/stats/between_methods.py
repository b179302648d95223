"""Do methods agree, with each other and with the ground truth: over pairs, and draw by draw."""

import json

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
import xarray as xr

from tdalib.stats.draws import check_length, check_share, check_tau, in_blocks, member_draws
from tdalib.stats.pairs import signal_to_noise, t_p
from tdalib.stats.shares import half_width
from tdalib.stats.top_lists import in_top, proponents

PAIRS = 10_000  # whose resamples are correlated
ROUNDING = 1e-12  # share of the largest |τ| by which what does not vary may differ
STATISTICS = ["mean", "std", "snr", "p_t", "p_noise"]


def agreement(tau: xr.DataArray, *, k: int = 5, resamples: int = 200, level: float = 0.9, seed: int = 0) -> xr.Dataset:
    """How alike methods see the pairs: correlations of their tables, signs, and the head of their lists.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`
    k : int
        Length of the lists.
    resamples, level, seed
        Of the bootstrap over members: how many, the level of the interval, the seed.

    Returns
    -------
    Dataset
        `correlation` (statistic, kind, method, other): over pairs, of "mean", "std", "snr", "p_t" and "p_noise" as in
        `per_pair`; kind "pearson" or "spearman". A pair for which a method has no finite value is left out of all.
        `low`, `high`: a confidence interval of the correlation that so many members give on average. Members are
        resampled for all methods together; the scatter of Fisher's z is laid around the estimate, because resampled
        means are noisier than the means and so correlate less, and widened for few members (Hesterberg 2015, Amer.
        Statist. 69:371). Where pairs have noise of their own and are many it is too wide, since resamples differ in how
        many members they hold; for "std" and heavy tails it can be too narrow. NaN for fewer than 4 members. Of more
        than 10,000 pairs as many are drawn at random for it.
        `same_sign` (method, other): share of pairs whose means have one sign, of those where neither is 0.
        `top_k` (test, method, other): share of the `k` strongest proponents, by mean, that two methods have in common.

    Raises
    ------
    ValueError
        One member alone, an impossible `level` or `k`.
    """
    check_share("level", level)
    draws, x = _draws(tau)  # x: (member, method, pair)
    check_length(k, draws.sizes["train"])
    found = _correlations(x)
    bounds = _bounds(found, x, resamples, level, np.random.default_rng(seed))
    sign = np.sign(x.mean(0))  # (method, pair): −1, 0 or 1
    neither_is_0 = abs(sign) @ abs(sign).T  # (method, other), a number of pairs
    alike = (neither_is_0 + sign @ sign.T) / 2  # the product of signs adds those alike and takes away the others
    same_sign = alike / np.where(neither_is_0 > 0, neither_is_0, np.nan)
    top = in_top(proponents(draws.mean("member"), k), draws.sizes["train"])  # (test, method, train)
    top[draws.isnull().any(("member", "train")).values] = np.nan  # lists with a gap
    shared = top @ top.swapaxes(1, 2)  # (test, method, other), a number of points
    coords = {"end": ["correlation", "low", "high"], "statistic": STATISTICS, "kind": ["pearson", "spearman"]}
    coords |= {"method": draws.method.values, "other": draws.method.values}
    table = xr.DataArray(np.stack([found, *bounds]), coords, list(coords)).to_dataset("end")
    table["same_sign"] = ("method", "other"), same_sign
    table["top_k"] = ("test", "method", "other"), shared / k
    return table.assign_attrs(members=len(x), level=level, k=k)


def noise_ceiling(tau: xr.DataArray, truth: str = "loo", *, level: float = 0.9) -> xr.Dataset:
    """How well a method can correlate with a ground truth that is noisy itself, and how near each comes to that.

    By Pearson's correlation over pairs: the rules below do not hold for ranks, where they can be far off.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`
    truth : str
        The method that is compared with.
    level : float
        Of the intervals.

    Returns
    -------
    Dataset
        `reliability` (method): correlation over pairs of the means of τ with those of as many other members.
        `ceiling`: the square root of the truth's reliability, what its noiseless expectation would reach.
        `correlation` (method): of the means with the truth's, the noise of shared members included.
        `true_correlation` (method): of the expectations, free of noise (Spearman 1904). Two members do not share their
        noise, so the covariance of different members holds only what the expectations have in common. Of members that
        share a seed, as in a crossed ensemble, it holds what that seed does too. It can pass 1 and scatters where the
        noise is strong; NaN where a variance without noise is not above 0.
        `low` and `high`, `true_low` and `true_high` (method), `ceiling_low` and `ceiling_high`: intervals over members,
        by the jackknife, for what so many members give on average. At level 0.9 those of correlations held 82 to 97 %
        of simulated cases, with 3 to 20 members, normal or of very different scale; those of the ceiling as much of
        normal ones, but 40 to 80 % where the scale of members differs much. NaN for fewer than 3 members, or where the
        number is NaN without one of them.

    Raises
    ------
    ValueError
        It is no τ, one member alone, a truth that is not among the methods, or an impossible level.
    """
    draws, x = _draws(tau)
    at, every = _names(draws, truth).index(truth), np.arange(len(x))
    products = _products(x)

    def found(members: np.ndarray) -> np.ndarray:  # by position → (number, method)
        return _ceiling(products[np.ix_(members, members)], at, len(x))

    value, half = found(every), half_width(found, every, level)
    reliability, correlation, true = value
    (_, low, true_low), (_, high, true_high) = value - half, value + half
    by_method = {"reliability": reliability, "correlation": correlation, "true_correlation": true}
    by_method |= {"low": low.clip(-1, 1), "high": high.clip(-1, 1), "true_low": true_low, "true_high": true_high}
    ends = reliability[at] + half[0, at] * np.array([0, -1, 1])
    ceiling = dict(zip(("ceiling", "ceiling_low", "ceiling_high"), np.sqrt(ends.clip(0, 1)), strict=True))
    table = xr.Dataset({name: ("method", v) for name, v in by_method.items()}, {"method": draws.method.values})
    return table.assign(ceiling).assign_attrs(members=len(x), truth=truth, level=level)


def distances(tau: xr.DataArray, truth: str = "loo") -> xr.Dataset:
    """How far the draws of τ of each method lie from those of the ground truth, pair by pair, after rescaling.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method)
    truth : str
        The method that is compared with.

    Returns
    -------
    Dataset
        `scale` (method): what the method's draws are multiplied by, since methods have different units: the factor,
        not below 0, for which the mean squared Wasserstein-2 distance over all pairs is least.
        `w1`, `w2` (train, test, method): Wasserstein distances, in the unit of the truth.
        `energy`: the energy distance (2 ∫ (F − G)²)^½ of scipy, in the square root of that unit.
        `ks`: Kolmogorov and Smirnov's, the largest |F − G|.
        NaN where a τ is missing. The truth itself is left out.

    Raises
    ------
    ValueError
        The truth is not among the methods, or there is nothing else.
    """
    check_tau(tau, "method")
    if _names(tau, truth) == [truth]:
        raise ValueError(f"there is no method beside {truth!r} to compare with it")
    core: dict = {"input_core_dims": [["sample"]], "output_core_dims": [["sample"]]}
    ordered = xr.apply_ufunc(np.sort, in_blocks(tau), **core, dask="parallelized", output_dtypes=[tau.dtype]).compute()
    true = ordered.sel({"method": truth}, drop=True)
    other = ordered.drop_sel({"method": truth})
    other = other.where((true + other).notnull().all("sample"))  # a pair is whole or missing
    over = ["sample", "train", "test"]
    square = (other**2 * true.notnull()).sum(over)
    scale = ((true * other).sum(over) / square.where(square > 0, 1)).clip(min=0)  # least squares through 0
    table = xr.apply_ufunc(
        _distances, true.chunk(train=5), other.chunk(train=5) * scale,
        input_core_dims=[["sample"], ["sample"]], output_core_dims=[["distance"]], dask="parallelized",
        output_dtypes=[float], dask_gufunc_kwargs={"output_sizes": {"distance": 4}},
    )  # fmt: skip
    table = table.compute().assign_coords(distance=["w1", "w2", "energy", "ks"]).to_dataset("distance")
    unit = json.loads(tau.attrs.get("units", "{}")).get(truth, "")
    return table.assign(scale=scale).assign_attrs(truth=truth, unit=unit)


def _distances(true: np.ndarray, other: np.ndarray) -> np.ndarray:
    """w1, w2, energy and ks of sorted draws: two arrays (…, sample) → (…, distance)."""
    true, other = np.broadcast_arrays(true, other)
    apart = abs(true - other).astype(np.float64)
    w2 = np.sqrt(np.square(apart).mean(-1))
    pooled = np.concatenate([true, other], -1).astype(np.float64)
    order = np.argsort(pooled, -1)
    step = np.where(order < true.shape[-1], 1.0, -1.0) / true.shape[-1]  # F rises at draws of the truth, G at others
    above = np.cumsum(step, -1)[..., :-1]  # F − G between neighbours
    gap = np.diff(np.take_along_axis(pooled, order, -1))  # 0 where draws are equal
    energy = np.sqrt(2 * (above**2 * gap).sum(-1))
    ks = (abs(above) * np.sign(gap)).max(-1)
    return np.stack([apart.mean(-1), w2, energy, ks], -1)


def _draws(tau: xr.DataArray) -> tuple[xr.DataArray, np.ndarray]:
    """τ by member, (member, train, test, method), and the pairs that no method lacks, (member, method, pair).

    Members are put into an order of their own, so that resamples do not depend on that of the samples.
    """
    draws = member_draws(tau, at_least=2)
    x = draws.values.reshape(len(draws), -1, draws.sizes["method"]).swapaxes(1, 2)  # (member, method, pair)
    x = x[..., ~np.isnan(x).any((0, 1))]
    return draws, x[np.lexsort(x.mean(-1).T)]


def _names(tau: xr.DataArray, truth: str) -> list[str]:
    """Those of the methods, the truth among them."""
    names = [str(name) for name in np.atleast_1d(tau.method.values)]
    if truth not in names:
        raise ValueError(f"truth {truth!r} is not among the methods {', '.join(names)}")
    return names


def _correlations(x: np.ndarray) -> np.ndarray:
    """Of the methods' STATISTICS over pairs: (member, method, pair) → (statistic, kind, method, other)."""
    members, mean, std = len(x), x.mean(0), x.std(0, ddof=1)
    snr = signal_to_noise(mean, std)
    found = []
    for table in (mean, std, snr, t_p(snr, members), 2 * scipy.special.ndtr(-snr)):  # (method, pair)
        values = table[:, np.isfinite(table).all(0)]
        ranks = scipy.stats.rankdata(values, axis=1)
        found.append([_correlation(values, values), _correlation(ranks, ranks)])
    return np.array(found)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, of each row with each: (method, pair), (other, pair) → (method, other); NaN without scatter."""
    if a.shape[1] < 2:
        return np.full((len(a), len(b)), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.corrcoef(a, b)[: len(a), len(a) :]  # the rows of a with those of b


def _products(x: np.ndarray) -> np.ndarray:
    """Covariances over pairs of each member with each, (member, method, pair) → (member, member, method, method)."""
    centred = x - x.mean(-1, keepdims=True)
    centred[abs(centred) <= ROUNDING * abs(x).max(-1, keepdims=True, initial=0)] = 0
    rows = centred.reshape(-1, x.shape[-1])
    return (rows @ rows.T / max(x.shape[-1], 1)).reshape(*x.shape[:2], *x.shape[:2]).swapaxes(1, 2)


def _ceiling(products: np.ndarray, at: int, count: int) -> np.ndarray:
    """Reliability of means over `count` members, and both correlations with method `at`, from `_products`."""
    members = len(products)
    within = np.trace(products) / members  # of a member with itself, (method, other)
    of_means = products.mean((0, 1))  # of means over these members
    between = (members * of_means - within) / (members - 1)  # of different members
    signal, noise = between.diagonal(), (within - between).diagonal()
    reliability = np.where(signal > 0, signal, np.nan) / (signal + noise / count)
    return np.stack([reliability, _scaled(of_means)[at], _scaled(between)[at]])


def _scaled(covariance: np.ndarray) -> np.ndarray:
    """Correlations; NaN where a variance is not above 0."""
    variance = covariance.diagonal()
    std = np.sqrt(np.where(variance > 0, variance, np.nan))
    return covariance / np.outer(std, std)


def _bounds(found: np.ndarray, x: np.ndarray, resamples: int, level: float, stream: np.random.Generator) -> np.ndarray:
    """Low and high end for each of the correlations `found` in x, (member, method, pair)."""
    members, _, pairs = x.shape
    if members < 4:  # they tell their scatter too badly
        return np.full((2, *found.shape), np.nan)
    if pairs > PAIRS:
        x = x[..., np.sort(stream.choice(pairs, PAIRS, replace=False))]
    redrawn = [_correlations(x[stream.integers(members, size=members)]) for _ in range(resamples)]
    z = pd.DataFrame(_fisher(np.stack(redrawn)).reshape(resamples, -1))  # a column for each correlation
    tail = (1 + level) / 2
    ends = (z - z.mean()).quantile([1 - tail, tail]).to_numpy().reshape(2, *found.shape)
    student, normal = scipy.stats.t.ppf(tail, members - 1), scipy.stats.norm.ppf(tail)
    wide = np.sqrt(members / (members - 1)) * student / normal  # means scatter more, and few members tell it badly
    return np.tanh(_fisher(found) + wide * ends)


def _fisher(r: np.ndarray) -> np.ndarray:
    return np.arctanh(r.clip(-1 + 1e-12, 1 - 1e-12))
