"""The train points that help a test point most, and whether they stay so in another training."""

import numpy as np
import scipy.stats
import xarray as xr

from tdalib.stats.draws import check_length, member_draws
from tdalib.stats.shares import half_width

PERSISTENCE = 0.9  # of rank-biased overlap: the chance to read on to the next rank


def proponents(tau: xr.DataArray, count: int = 5) -> xr.DataArray:
    """Positions of the `count` train points with the highest τ, best first: (…, train, …) → (…, rank, …).

    Of points with the same τ the first comes first. Where `train` counts sets of points, sets take their place.
    """
    axis = tau.get_axis_num("train")
    order = np.argsort(-tau.values, axis=axis, kind="stable")
    best = order.take(range(min(count, tau.sizes["train"])), axis=axis)
    labels = tau.isel(train=0, drop=True).coords
    return xr.DataArray(best, labels, ["rank" if d == "train" else d for d in tau.dims])


def top_k_stability(tau: xr.DataArray, k: int = 5) -> xr.Dataset:
    """Would the `k` strongest proponents of a test point survive another seed? Agreement between two members' lists.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`; checkpoints are averaged first
    k : int
        Length of the lists.

    Returns
    -------
    Dataset (test, method)
        Means over all pairs of members of:
        `overlap`: share of one list that is in the other.
        `jaccard`: what both hold over what either holds.
        `rbo`: rank-biased overlap, extrapolated from the first k ranks, with persistence 0.9: it gives the first ranks
        more weight (Webber, Moffat and Zobel 2010, ACM TOIS 28:20, eq. 32).
        The attributes `chance_overlap`, `chance_jaccard` and `chance_rbo` are what lists drawn at random would give.
        NaN where a τ is missing. Where all τ are 0 all lists are the same, and all three are 1.

    Raises
    ------
    ValueError
        One member alone, or an impossible `k`.
    """
    draws = member_draws(tau, at_least=2)
    members, points = draws.sizes["member"], draws.sizes["train"]
    check_length(k, points)
    top = proponents(draws, k)
    one, other = np.triu_indices(members, 1)  # each pair of members once
    depths = np.arange(1, k + 1)
    held = (np.stack([in_top(member[:depth], points) for member in top], axis=2) for depth in depths)
    # of each depth how many points two lists share, (test, method, pair of members); the last depth is k
    shared = [(each @ each.swapaxes(2, 3))[..., one, other] for each in held]  # of (test, method, member, train)
    weights = (1 - PERSISTENCE) / PERSISTENCE * PERSISTENCE**depths
    weights[-1] += PERSISTENCE**k
    values = {"overlap": shared[-1] / depths[-1], "jaccard": shared[-1] / (2 * k - shared[-1])}
    values["rbo"] = np.stack(shared, -1) / depths @ weights
    complete = draws.notnull().all(("member", "train"))  # (test, method)
    table = xr.Dataset({name: (complete.dims, v.mean(-1)) for name, v in values.items()}).where(complete)
    common = np.arange(k + 1)
    jaccard = scipy.stats.hypergeom(points, k, k).pmf(common) @ (common / (2 * k - common))
    chance = {"overlap": k / points, "jaccard": jaccard, "rbo": weights @ depths / points}
    return table.assign_attrs(k=k, members=members, **{f"chance_{name}": float(v) for name, v in chance.items()})


def top_k_survival(tau: xr.DataArray, k: int = 5, *, level: float = 0.9) -> xr.Dataset:
    """`overlap` of `top_k_stability`, averaged over test points, with its interval over members.

    Returns
    -------
    Dataset (method)
        `value`, and `low` and `high` by the jackknife over members, which are NaN for fewer than 3. The attribute
        `chance` is what random lists would give.

    Raises
    ------
    ValueError
        What `top_k_stability` raises, or an impossible level.
    """
    draws = member_draws(tau, at_least=2)
    points = draws.sizes["train"]
    check_length(k, points)
    held = np.stack([in_top(member, points) for member in proponents(draws, k)])  # (member, test, method, train)
    complete = draws.notnull().all(("member", "train"))  # (test, method)
    shared = np.einsum("atmj,btmj,tm->abm", held, held, complete.transpose("test", "method")) / k
    count = complete.sum("test").values
    shared /= np.where(count > 0, count, np.nan)  # (member, other, method)

    def overlap(members: np.ndarray) -> np.ndarray:
        one, other = np.triu_indices(len(members), 1)
        return shared[members[one], members[other]].mean(0)

    members = np.arange(len(draws))
    value, half = overlap(members), half_width(overlap, members, level)
    values = {"value": value, "low": (value - half).clip(0), "high": (value + half).clip(max=1)}
    table = xr.Dataset({name: ("method", v) for name, v in values.items()}, {"method": draws.method.values})
    return table.assign_attrs(k=k, chance=k / points, members=len(draws), level=level)


def in_top(top: xr.DataArray, points: int) -> np.ndarray:
    """1.0 where a train point is in the list, from its positions: (rank, test, method) → (test, method, train)."""
    positions = top.transpose("test", "method", "rank").values
    held = np.zeros((*positions.shape[:2], points), np.float32)
    np.put_along_axis(held, positions, 1, axis=2)
    return held
