r"""τ as draws: by member, with θ and θ\j independent, in blocks of pairs; and whether chains have converged."""

import json
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats

Scale = Literal["test"] | None  # of τ: in units of what moves a test point, or as it is


def by_member(tau: xr.DataArray) -> xr.DataArray:
    """τ with the checkpoints of each member averaged: (sample, …) → (member, …).

    Checkpoints of one member are correlated, so they are no independent evidence: inference counts members.
    """
    tau = counted(tau)
    return tau.groupby(tau.member.compute()).mean("sample", skipna=False, keep_attrs=True)


def scaled(tau: xr.DataArray, scale: Scale = "test") -> xr.DataArray:
    """τ in units of what moves a test point: of each member divided by its root mean square over train points.

    All checkpoints of a member are divided by one number, that of their average. None leaves τ as it is.

    Raises
    ------
    ValueError
        It is no τ, or an unknown scale.
    """
    check_tau(tau)
    tau = counted(tau)
    if scale is None:
        return tau
    if scale != "test":
        raise ValueError(f"scale: {scale!r} is not possible; it must be 'test' or None")
    square = by_member(tau).astype(np.float64) ** 2
    root = (square.mean("train") ** 0.5).compute()  # (member, test, method)
    root = root.where(root > 0, 1).sel(member=tau.member).drop_vars("member")
    units = json.dumps(dict.fromkeys(json.loads(tau.attrs.get("units", "{}")), "root mean squares"))
    return (tau / root).astype(tau.dtype).transpose(*tau.dims).assign_attrs(tau.attrs | {"units": units})


def uncoupled(result: xr.Dataset) -> xr.DataArray:
    r"""Leave-one-out τ with θ and θ\j drawn independently, from losses that are there: no new training.

    Members are taken in pairs; the first gives θ, the second θ\j. So the draws, half as many, are independent of each
    other. The coupled ones to compare them with are those of the same number of members.

    Parameters
    ----------
    result : Dataset with `loss` (sample, test) and `loss_without` (sample, train, test), as `loo` leaves it

    Returns
    -------
    DataArray (sample, train, test, method), the method "loo", in the unit of the loss, with the coordinates of
    the draws of θ.

    Raises
    ------
    ValueError
        There is no `loss_without`, or it is compared with another training (protocol "further"); there are fewer than 2
        members, or they have unequal numbers of draws.
    """
    loss, without = apart(result, coupled=False)
    tau = (without - loss).expand_dims(method=["loo"]).transpose("sample", "train", "test", "method")
    return tau.rename("tau").assign_attrs(units=json.dumps({"loo": result["loss"].attrs.get("units", "")}))


def apart(result: xr.Dataset, *, coupled: bool) -> tuple[xr.DataArray, xr.DataArray]:
    """`loss` and `loss_without` of the same draws, or of two halves of the members, as `uncoupled` takes them.

    Raises
    ------
    ValueError
        What `uncoupled` raises.
    """
    if "loss_without" not in result:
        raise ValueError("the result lacks loss_without, which a method that retrains (loo) leaves in the store")
    if "tau" in result and "loo" in result["method"].values:
        one = result.isel(sample=0).transpose("train", "test", ...)
        tau, difference = one["tau"].loc[{"method": "loo"}].values, (one["loss_without"] - one["loss"]).values
        if not np.allclose(tau, difference, atol=1e-3 * np.nanmax(np.abs(tau)), equal_nan=True):
            raise ValueError("leave-one-out against θ itself is needed; in this result it is against another training")
    result = counted(result)
    members, counts = np.unique(result.member.values, return_counts=True)
    if len(members) < 2 or len(set(counts)) > 1:
        raise ValueError(f"at least 2 members with equal numbers of draws are needed, not {counts.tolist()}")
    if coupled:
        return result["loss"], result["loss_without"]
    result = result.sortby(["member", "checkpoint"] if "checkpoint" in result.coords else "member")
    first, second = members[:-1:2], members[1::2]  # an odd last one is left out
    loss = result["loss"].isel(sample=np.isin(result.member.values, first))
    without = result["loss_without"].isel(sample=np.isin(result.member.values, second))
    return loss, without.assign_coords(loss.coords)


def convergence(result: xr.Dataset) -> pd.DataFrame:
    """R-hat and effective sample size of each member's chain, by the mean test loss of its draws.

    Columns: `draws`; `R-hat`, rank-normalised, of the quarters of the chain: well above 1 where it drifts or hangs;
    `ESS`, in draws. R-hat is NaN for fewer than 8 draws; below about 20 it scatters by 0.3 even for independent
    ones. Chains of different members start at different modes and are not compared.

    Source: Vehtari et al. 2021, arXiv:1903.08008, by arviz-stats.
    """
    rows = {}
    trace = counted(result)["loss"].mean("test")
    for member, chain in trace.groupby(trace.member.compute()):
        draws = chain.values.astype(np.float64)
        halves = draws[len(draws) % 2 :].reshape(2, -1)  # (chain, draw), no odd first; arviz-stats splits each again
        r_hat = float(array_stats.rhat(halves, method="z_scale"))
        rows[member] = {"draws": len(draws), "R-hat": r_hat, "ESS": float(array_stats.ess(draws[None]))}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("member")


def convergence_warning(table: pd.DataFrame) -> str | None:
    """One line on what is wrong with the chains of a `convergence` table, judged by the median chain; else None."""
    r_hat, ess, draws = (table[name].median() for name in ("R-hat", "ESS", "draws"))
    if draws < 20:
        return f"{draws:.0f} draws of a chain are too few to judge whether it has converged; 20 checkpoints may tell"
    if r_hat > 1.1 or ess < draws / 4:
        state = f"R-hat {r_hat:.2f}, effective sample size {ess:.0f} of {draws:.0f} draws"
        advice = "a longer burn_in or thin, or another step_size, helps"
        return f"the loss of the chains has not converged: {state} (median of {len(table)} chains); {advice}"
    return None


def member_draws(tau: xr.DataArray, at_least: int = 1) -> xr.DataArray:
    """τ by member in memory, (member, train, test, method), float64; one method alone keeps its dimension.

    Raises
    ------
    ValueError
        It is no τ, there are fewer members, or no pair is finished.
    """
    check_tau(tau)
    draws = by_member(with_methods(tau))
    if draws.sizes["member"] < at_least:
        raise ValueError(f"at least {at_least} members are needed, not {draws.sizes['member']}")
    draws = draws.transpose("member", "train", "test", "method").astype(np.float64).compute()
    if draws.isnull().any("member").all():
        raise ValueError("τ is NaN somewhere in every pair: the run is not finished")
    return draws


def whole_pairs(x: np.ndarray) -> np.ndarray:
    """The pairs that no member lacks, (member, train, test) → (member, pair)."""
    flat = x.reshape(len(x), -1)
    return flat[:, ~np.isnan(flat).any(0)]


def counted(labelled: Any) -> Any:
    """A τ, or a result, whose `member` counts trainings, also where runs were put together that number theirs alike.

    Raises
    ------
    ValueError
        The draws are of other data, or of other points.
    """
    spread = [name for name, c in labelled.coords.items() if "sample" in c.dims and c.ndim > 1]
    if spread or ("data_id" in labelled.coords and len(np.unique(labelled["data_id"])) > 1):
        what = f"{spread[0]} differs between draws" if spread else "draws are of different data"
        raise ValueError(f"{what}: a pair of points is then another one in each; put together runs of the same data")
    told = [labelled[name].values for name in ("member", "init_seed", "batch_seed") if name in labelled.coords]
    members, seeds = pd.MultiIndex.from_arrays(told).factorize()  # in the order in which they come
    return labelled if len(seeds) == len(np.unique(told[0])) else labelled.assign_coords(member=("sample", members))


def with_methods(labelled: Any) -> Any:
    """A τ, or a table of it, in which one method alone keeps its dimension."""
    if "method" in labelled.dims:
        return labelled
    return labelled.expand_dims("method") if "method" in labelled.coords else labelled.expand_dims(method=["tau"])


def check_tau(tau: xr.DataArray, coordinate: str = "member") -> None:
    """Refuse what is not a labelled τ."""
    whole = isinstance(tau, xr.DataArray) and {"sample", "train", "test"} <= set(tau.dims) and coordinate in tau.coords
    if not whole:
        raise ValueError(f"τ must be a DataArray (sample, train, test, method) with {coordinate!r}, such as result.tau")
    if 0 in tau.shape:
        raise ValueError(f"τ is empty: {dict(tau.sizes)}")


def in_blocks(tau: xr.DataArray) -> xr.DataArray:
    """τ in lazy blocks that hold all samples of some pairs, so that dask works on a few at a time."""
    return tau.chunk({"sample": -1} if tau.chunks else {"sample": -1, "train": 100})


def check_share(name: str, value: float) -> None:
    """Refuse what is not strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}: {value} is not possible; it must be between 0 and 1")


def check_length(k: int, points: int) -> None:
    """Refuse a list of `k` of so many train points."""
    if not 1 <= k <= points:
        raise ValueError(f"k: {k} is not possible; it must be from 1 to the number of train points, {points}")
