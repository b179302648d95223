"""Shares of the pairs, each with its interval over members."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
import xarray as xr

from tdalib.stats.draws import check_share, member_draws, whole_pairs
from tdalib.stats.pairs import q_value, signal_to_noise, t_p

FEW = 8  # members below which a jackknife cannot tell how many pairs pass a correction
LARGEST = 0.01  # of the pairs


def summary(tau: xr.DataArray, *, level: float = 0.9) -> pd.DataFrame:
    """Shares and means over the pairs of each method, with intervals over members.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`
    level : float
        Of the intervals.

    Returns
    -------
    DataFrame
        A row for each (method, share) with the columns `value`, `low`, `high`, `pairs`, `members`. The shares:
        "std > |mean|", also "of the largest 1 %" of pairs (`noise_by_size`); "mean p (t)", the t test's; "share p (t) <
        0.05" (expect 0.05 of pure noise); "share q ≤ 0.05", which `trustworthy` lists for their sign; "mean p_noise".
        Pairs that are NaN are left out and not counted.

    The interval, by `jackknife`, is for the share that so many members give on average: a share with q ≤ 0.05 grows
    with them. Of fewer than 8 members, four or so list next to nothing; its upper end is then that of p (t) < 0.05. NaN
    for fewer than 3 members, and of the largest pairs for fewer than 4.

    Raises
    ------
    ValueError
        It is no τ, one member alone, or an impossible level.
    """
    draws = member_draws(tau, at_least=2)
    names = ["std > |mean|", "mean p (t)", "share p (t) < 0.05", "share q ≤ 0.05", "mean p_noise"]
    tables = {}
    for k, method in enumerate(map(str, draws.method.values)):
        x = whole_pairs(draws.values[..., k])
        found = jackknife(_shares, x, level)  # (value and ends, share)
        if len(x) < FEW:
            found[2, 3] = max(found[2, 3], found[2, 2])
        largest = jackknife(lambda of: _noise_of_largest(of, [LARGEST]), x, level)
        values = np.hstack([found, largest]).T
        table = pd.DataFrame(values, [*names, "std > |mean| of the largest 1 %"], ["value", "low", "high"])
        tables[method] = table.assign(pairs=x.shape[1], members=len(x))
    return pd.concat(tables, names=["method", "share"])


def noise_by_size(
    tau: xr.DataArray, shares: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1), *, level: float = 0.9
) -> xr.Dataset:
    """Noise against size: the share of pairs with std > |mean| among the largest, chosen in another training.

    Most pairs are tiny as well as noisy. One member says which pairs are the largest, by |τ|, and the others whether
    they are noisy: chosen by the members that judge it, a pair would look larger than it is. Means over who chooses.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`
    shares : sequence of float
        Of the pairs, above 0 and up to 1: at least one pair is looked at.
    level : float
        Of the interval over members, by `jackknife`.

    Returns
    -------
    Dataset (share, method)
        `noise`, and `low` and `high`, which are NaN for fewer than 4 members.

    Raises
    ------
    ValueError
        It is no τ, there are fewer than 3 members, or an impossible share or level.
    """
    shares = list(shares)
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares: {shares} is not possible; they must be above 0 and at most 1")
    draws = member_draws(tau, at_least=3)
    by_method = (whole_pairs(draws.values[..., k]) for k in range(draws.sizes["method"]))
    found = [jackknife(lambda of: _noise_of_largest(of, shares), x, level) for x in by_method]
    coords = {"method": draws.method.values, "end": ["noise", "low", "high"], "share": shares}
    table = xr.DataArray(np.array(found), coords, list(coords)).transpose("end", "share", "method")
    return table.to_dataset("end").assign_attrs(members=len(draws), level=level)


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], x: np.ndarray, level: float) -> np.ndarray:
    """Value, low and high end of shares, (3, share), for `statistic` of (member, pair): the jackknife over members.

    On the scale arcsin √share, with Student's t for n − 1 (Efron and Tibshirani 1993, chapter 11). The ends are NaN for
    fewer than 3 members, or where one member fewer gives none.
    """
    half = half_width(lambda some: np.arcsin(np.sqrt(statistic(some))), x, level)
    value = statistic(x)
    angle = np.arcsin(np.sqrt(value))
    ends = [np.sin(np.clip(end, 0, np.pi / 2)) ** 2 for end in (angle - half, angle + half)]
    return np.stack([value, *ends])


def half_width(statistic: Callable[[np.ndarray], np.ndarray], x: np.ndarray, level: float) -> np.ndarray:
    """Half the width of the jackknife's interval for `statistic` of (member, …); NaN for fewer than 3 members."""
    check_share("level", level)
    members = len(x)
    if members < 3:
        return np.full_like(statistic(x), np.nan)
    without = [statistic(np.delete(x, k, 0)) for k in range(members)]
    with np.errstate(invalid="ignore"):  # of what is infinite
        spread = np.sqrt((members - 1) * np.var(without, axis=0))
    return scipy.stats.t.ppf((1 + level) / 2, members - 1) * spread


def _shares(x: np.ndarray) -> np.ndarray:
    mean, std = x.mean(0), x.std(0, ddof=1)
    snr = signal_to_noise(mean, std)
    p = t_p(snr, len(x))
    shares = [std > abs(mean), p, p < 0.05, q_value(p) <= 0.05, 2 * scipy.special.ndtr(-snr)]
    return np.array([each.mean() for each in shares])


def _noise_of_largest(x: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    if len(x) < 3 or x.shape[1] == 0:
        return np.full(len(shares), np.nan)
    counts = np.ceil(np.array(shares) * x.shape[1] - 1e-9).astype(int)
    of_each = []
    for k, size in enumerate(abs(x)):
        smallest = np.partition(size, -counts)[-counts]  # of the largest
        judged = [np.delete(x[:, size >= least], k, 0) for least in smallest]
        of_each.append([(some.std(0, ddof=1) > abs(some.mean(0))).mean() for some in judged])
    return np.mean(of_each, 0)
