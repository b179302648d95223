"""Which pairs to trust: two claims, named apart, and a list of pairs only where the claim can be kept."""

import warnings
from itertools import combinations
from math import ceil, comb, log2
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr

from tdalib.stats.draws import Scale, check_share, member_draws, scaled, with_methods
from tdalib.stats.pairs import per_pair, q_value, ratios, resampled, t_p

Claim = Literal["sign", "effect"]  # of a listed pair

LEVEL = 0.95  # of the interval of a listed pair
SPLITS = 20  # of the members into halves
SKEWED = 0.7  # median |skew| over members from which a list of effects cannot keep its rate
CHANCES = 5  # how many times the chance that all members agree must fit into the rate


def trustworthy(tau: xr.DataArray, fdr: float = 0.05, claim: Claim = "sign", scale: Scale = None) -> pd.DataFrame:
    """The pairs that can be trusted, the clearest first, and nothing where the claim cannot be kept.

    Parameters
    ----------
    tau : DataArray (sample, train, test, method) with the coordinate `member`
    fdr : float
        The share of a method's list that may be wrong.
    claim : "sign" or "effect"
        What is said of a listed pair. "sign": that E[τ] has the sign of the mean. "effect": that E[τ] is not 0.
    scale : "test" or None
        Of the numbers, as in `per_pair`, and of the test of a sign; an effect is always tested on the scale "test".

    Returns
    -------
    DataFrame
        Columns `method`, `train`, `test` (positions), what the coordinates (train) and (test) say of the points, each
        under its name and only where it is there, `mean`, `low`, `high` (at level 0.95), `snr`, `same_sign`, `p_t`,
        `noise_dominated` as in `per_pair`, `q` by which it is listed, and `sign_error`: which share of this method's
        list has the wrong sign, estimated from halves of the members (NaN for effects). A pair can be listed and
        dominated by noise: on average it has an effect, which a single training need not show. `attrs["empty"]`: for
        each method without a list, why it has none.

    Warns
    -----
    UserWarning
        One line where lists are empty, for all methods with the same reason.

    Raises
    ------
    ValueError
        It is no τ, one member alone, an impossible `fdr`, an unknown claim or scale.

    Notes
    -----
    A sign is listed where q ≤ `fdr` by Student's t. Real τ is skewed and pairs depend on each other, half of them
    negatively, so that this is no list of effects at rate `fdr`: of pairs that were made null by centring it listed
    several times as many. But signs it has right. `sign_error` is half the share of listed signs that the other half
    of the members contradicts, as where two halves differ one of them is right; with a list above `fdr` nothing is
    listed.

    An effect is listed where all members have one sign and the larger of Student's p, of τ on the scale "test", and
    2^(1 − n), the chance that n members of a symmetric null agree, is below the bound of Benjamini and Hochberg (1995).
    Nothing is listed where the rate could not be kept: with so few members that this chance is above `fdr` / 5, with
    a median |skew| above 0.7, or where, of lists from all members but one, that member contradicts more than 2 `fdr`.

    Measured by `tests/measure_claims.py` on CNN-2 and an MLP, with 0.8, 0.95, 0.99 and all of the pairs null, 5, 10 and
    20 members, 40 lists each: of the effects listed at 0.05 on average up to 6.9 % were nulls, at 0.2 up to 20 % (95th
    percentile with 0.8 null: 32 %), where q ≤ `fdr` alone listed up to 100 %. Of the signs listed at 0.05 on average up
    to 1.2 % were not those of the other members' means (95th percentile 3.2 %), and `sign_error` was within 0.8 % of
    that.
    """
    check_share("fdr", fdr)
    if claim not in ("sign", "effect"):
        raise ValueError(f"claim: {claim!r} is not possible; it must be 'sign' or 'effect'")
    draws = member_draws(scaled(tau, scale), at_least=2)
    tested = member_draws(scaled(tau, "test")) if claim == "effect" else draws
    table = with_methods(per_pair(tau, scale=scale))
    frames, empty = [], {}
    for k, method in enumerate(map(str, draws.method.values)):
        x = tested.values[..., k]  # (member, train, test)
        whole = ~np.isnan(x).any(0)
        q = np.full(whole.shape, np.nan)
        q[whole], error, why = _effects(x[:, whole], fdr) if claim == "effect" else _signs(x[:, whole], fdr)
        listed = (q <= fdr) & (not why)
        if why:
            empty[method] = why
        rows = _rows(table.isel(method=k).assign(q=(("train", "test"), q)), draws.isel(method=k), listed)
        rows.insert(0, "method", method)
        frames.append(rows.assign(sign_error=error))
    found = pd.concat(frames, ignore_index=True)
    found.attrs["empty"] = empty
    for why in dict.fromkeys(empty.values()):
        names = [method for method, said in empty.items() if said == why]
        warnings.warn(f"{', '.join(names)}: no pair is listed, {why}", stacklevel=2)
    return found


def _signs(x: np.ndarray, fdr: float) -> tuple[np.ndarray, float, str]:
    """Of (member, pair): q of every pair, the estimated share of wrong signs, and why nothing can be listed."""
    q = q_value(_p(x))
    if not (q <= fdr).any():
        return q, np.nan, f"as no q is {fdr:g} or less; more members, or scale='test', find more"
    if len(x) < 3:
        return q, np.nan, f"as {len(x)} members have no halves to hold their signs against; 3 may do"
    error = _sign_error(x, fdr, (q <= fdr).sum())
    if error > fdr:
        return q, error, f"as halves of {len(x)} members contradict each other (sign error {error:.0%}); more help"
    return q, error, ""


def _sign_error(x: np.ndarray, fdr: float, many: int) -> float:
    """Half of what the other half of the members contradicts in the lists of halves.

    Where no half lists a pair by itself, it lists as `many` as all members do.
    """
    halves = [(x[one], np.delete(x, one, 0)) for one in _halves(len(x))]
    lists = [q_value(_p(one)) <= fdr for one, _ in halves]
    if not np.any(lists):
        lists = [p <= np.partition(p, many - 1)[many - 1] for p in (_p(one) for one, _ in halves)]
    against = [np.sign(one.mean(0)) != np.sign(other.mean(0)) for one, other in halves]
    return float(np.sum(np.logical_and(lists, against)) / np.sum(lists) / 2)


def _effects(x: np.ndarray, fdr: float) -> tuple[np.ndarray, float, str]:
    """As `_signs`, of τ on the scale "test"; the error of signs is not estimated."""
    members = len(x)
    chance = 2.0 ** (1 - members)
    q = q_value(np.where(_one_sign(x), np.maximum(_p(x), chance), 1))
    why = ""
    if chance * CHANCES > fdr:
        enough = 1 + ceil(log2(CHANCES / fdr))
        why = f"as {members} members are too few for effects at fdr {fdr:g}; {enough} may do, or claim='sign'"
    elif (skew := _median_skew(x)) > SKEWED:
        why = f"as τ is too skewed over the {members} members (median |skew| {skew:.2f}); claim='sign' may be kept"
    elif not (q <= fdr).any():
        why = f"as of {members} members' no q is {fdr:g} or less where all have one sign (median |skew| {skew:.2f})"
    elif (contradicted := _contradicted(x, fdr)) > 2 * fdr:
        why = f"as members contradict {contradicted:.0%} of what all others list; more members than {members} help"
    return q, np.nan, why


def _contradicted(x: np.ndarray, fdr: float) -> float:
    """Of what all members but one list as an effect by Student's t alone, the share in which that one differs."""
    found, against = 0, 0
    for k, left_out in enumerate(x):
        rest = np.delete(x, k, 0)
        listed = q_value(np.where(_one_sign(rest), _p(rest), 1)) <= fdr
        found += listed.sum()
        against += (listed & (np.sign(left_out) != np.sign(rest[0]))).sum()
    return against / max(found, 1)


def _halves(members: int) -> list[np.ndarray]:
    """Of the members, the larger half: all that there are, or SPLITS drawn at random."""
    half = (members + 1) // 2
    if comb(members, half) <= SPLITS:
        return [np.array(chosen) for chosen in combinations(range(members), half)]
    stream = np.random.default_rng(0)
    return [stream.permutation(members)[:half] for _ in range(SPLITS)]


def _p(x: np.ndarray) -> np.ndarray:
    return t_p(ratios(x), len(x))


def _one_sign(x: np.ndarray) -> np.ndarray:
    return abs(np.sign(x).sum(0)) == len(x)


def _median_skew(x: np.ndarray) -> float:
    varies = np.ptp(x, 0) > 1e-12 * abs(x).max(0)  # more than by rounding
    return float(np.median(abs(scipy.stats.skew(x[:, varies])))) if varies.any() else 0.0


def _rows(table: xr.Dataset, draws: xr.DataArray, listed: np.ndarray) -> pd.DataFrame:
    """The listed pairs of one method, (train, test), the clearest first."""
    labels = [name for name, c in table.coords.items() if c.dims in (("train",), ("test",)) and name not in c.dims]
    train, test = (xr.DataArray(positions, dims="pair") for positions in np.nonzero(listed))
    at: dict[str, Any] = {"train": train, "test": test}
    low, high, _ = resampled(draws.isel(at).values, LEVEL, 0)
    picked = table.isel(at).assign(**at, low=("pair", low), high=("pair", high))
    columns = ["train", "test", *labels, "mean", "low", "high", "snr", "same_sign", "p_t", "q", "noise_dominated"]
    frame = picked.to_dataframe()[columns].astype({"noise_dominated": bool})
    return frame.sort_values("snr", ascending=False, kind="stable")
