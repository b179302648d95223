"""The verdict on a result: can its attributions be trusted, in a table and three sentences for each method."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tdalib import stats

FDR = 0.05
ENOUGH = 0.5  # of the pairs
TOP = 5
LEGEND = (
    "[low, high]: interval over trainings, 90 % (of seeds needed 95 %). trusted: share of pairs whose sign other "
    "trainings would give too, in units of what moves the test point. noise: share of pairs with std > |mean| over "
    "trainings, in one training mostly noise."
)


@dataclass(frozen=True)
class Verdict:
    """What `verdict` found.

    Attributes
    ----------
    table : DataFrame
        A row for each method.
    sentences : dict, method → list of str
    """

    table: pd.DataFrame
    sentences: dict[str, list[str]]

    def __str__(self) -> str:
        """The sentences, the table, and what it says."""
        return self._said("{}: {}", self.table.T.to_string())

    def _repr_markdown_(self) -> str:
        return self._said("- **{}**: {}", self.table.T.to_html())

    def _said(self, line: str, table: str) -> str:
        lines = [line.format(name, " ".join(said)) for name, said in self.sentences.items()]
        return "\n".join([*lines, "", table, "", LEGEND])


def verdict(result: xr.Dataset | xr.DataArray) -> Verdict:
    """Which signs can be trusted, whether the top 5 survive another seed, and how many seeds would be needed.

    Parameters
    ----------
    result : Dataset with `tau`, or τ (sample, train, test, method)
        One that tdalib computed, or one of finished scores (`from_scores`).

    Returns
    -------
    Verdict
        `table`, a row for each method: `pairs`; `members`; `trusted`, the share of pairs whose sign `stats.trustworthy`
        lists on the scale "test", and their estimated `sign error`; `noise`, the share with std > |mean|, and `noise of
        the largest 1 %` (`stats.noise_by_size`); `top 5 overlap`, what two trainings' lists have in common, and `by
        chance`; `seeds needed`, until half of the pairs are listed, by `stats.power` (of 4 members or more). With
        intervals over members at level 0.9, those of the forecast at 0.95.
        `sentences`: the answers in words.

    Raises
    ------
    ValueError
        It is no τ, or one member alone.
    """
    tau: Any = result["tau"] if isinstance(result, xr.Dataset) and "tau" in result else result
    tau = stats.with_methods(stats.scaled(tau, scale=None)).compute()  # what is no τ is refused
    shares, signs = stats.summary(tau), stats.summary(stats.scaled(tau))
    with warnings.catch_warnings(action="ignore"):  # a list that is empty is 0 of the pairs
        listed = stats.trustworthy(tau, FDR, scale="test")
    errors = listed.groupby("method")["sign_error"].first()
    top = stats.top_k_survival(tau, min(TOP, tau.sizes["train"]))
    enough = _members_for(tau)
    right = stats.noise_ceiling(tau) if "loo" in tau.method.values else None
    rows, sentences = {}, {}
    for method in map(str, tau.method.values):
        share, overlap = shares.loc[method], top.sel({"method": method})
        trusted = signs.loc[(method, "share q ≤ 0.05")].copy()
        passed = trusted["value"]
        if method not in errors:
            trusted[["value", "low"]] = 0.0
        pairs, members = int(trusted["pairs"]), int(trusted["members"])
        rows[method] = {
            "pairs": f"{pairs:,}",
            "members": members,
            "trusted": percent(trusted),
            "sign error": f"{errors[method]:.1%}" if method in errors else "–",
            "noise": percent(share.loc["std > |mean|"]),
            "noise of the largest 1 %": percent(share.loc["std > |mean| of the largest 1 %"]),
            f"top {top.attrs['k']} overlap": percent(overlap),
            "by chance": f"{top.attrs['chance']:.0%}",
            "seeds needed": enough[method],
        }
        known = ""
        if right is not None and method != "loo":
            known = number(right.sel({"method": method}).rename(correlation="value"))
            rows[method]["correlation with loo"] = known
        stay = f"Of a test point's top {top.attrs['k']} train points {percent(overlap)} stay with another seed"
        needed = f"Seeds needed until the sign of half of the pairs can be trusted: {enough[method]}."
        by_chance = f"({top.attrs['chance']:.0%} by chance)"
        points = "{train} train × {test} test".format(**tau.sizes)
        signs_said = _of_signs(trusted["value"], passed, rows[method], points)
        sentences[method] = [signs_said + _of_truth(method, known), f"{stay} {by_chance}.", needed]
    return Verdict(pd.DataFrame.from_dict(rows, orient="index").fillna("–"), sentences)


def _of_signs(share: float, passed: float, row: dict[str, Any], points: str) -> str:
    pairs, trainings = f"{row['pairs']} pairs ({points})", f"{row['members']} trainings"
    if share == 0:
        contradicted = passed and row["members"] > 2  # fewer have no halves that could
        why = f" ({passed:.1%} pass a test, but halves of the trainings contradict each other)" if contradicted else ""
        return f"0 of {pairs} can be trusted with {trainings}{why}: do not act on single pairs."
    said = f"With {trainings} the sign of {row['trusted']} of {pairs} can be trusted"
    same = f"other trainings would give the same (about {row['sign error']} of them would not)"
    return f"{said}: {same}; for the others do not act on single pairs."


def _of_truth(method: str, known: str) -> str:
    """That what is steady need not be right."""
    if method == "loo":
        return ""
    as_known = f": its mean correlates {known} with that of leave-one-out" if known not in ("", "–") else ""
    return f" Whether {method} is right is another question{as_known}."


def percent(of: Any) -> str:
    """A share with its interval, in words: `value`, `low` and `high`."""
    return _with_interval(of, lambda share: f"{share:.1%}" if 0 < share < 0.01 else f"{share:.0%}")


def number(of: Any) -> str:
    """A number with its interval, in words: `value`, `low` and `high`."""
    return _with_interval(of, lambda number: f"{round(number, 2) + 0.0:.2f}")  # no −0.00


def _with_interval(of: Any, write: Callable[[float], str]) -> str:
    value, low, high = ("–" if np.isnan(of[end]) else write(float(of[end])) for end in ("value", "low", "high"))
    return value if "–" in (low, high) else f"{value} [{low}, {high}]"


def _members_for(tau: xr.DataArray) -> dict[str, str]:
    """For each method how many members list enough of the pairs, with the interval of the forecast."""
    methods = list(map(str, tau.method.values))
    if len(np.unique(stats.counted(tau).member)) < 4:
        return dict.fromkeys(methods, "not known from fewer than 4")
    forecast = stats.power(tau)

    def first(share: xr.DataArray) -> str:
        reached = forecast.members.values[share.values >= ENOUGH]
        return str(reached[0]) if len(reached) else f"more than {int(forecast.members[-1])}"

    found = {}
    for method in methods:
        one = forecast.sel({"method": method})
        found[method] = f"{first(one.predicted)} [{first(one.high)} to {first(one.low)}]"
    return found
