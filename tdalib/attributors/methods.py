"""The methods by name, with their scope, the unit of their τ, and what a removed set of points is to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tdalib.options import Registry, check_fields


@dataclass(frozen=True)
class Method:
    """An attributor.

    Attributes
    ----------
    name : str
    function : callable
        By scope: (draw, task) → (train point, test); (run, task) → (draw, train point, test); (members, task) →
        (member or draw, train point, test), members a list of lists of draws; (posterior, member, weights) → losses
        (draw, removal, test).
    unit : str
        Of its τ; "{loss}" in it stands for the objective's unit.
    scope : {"draw", "run", "posterior", "retrain"}
        What it sees. One with the scope "retrain" trains again, and gives losses; the others estimate.
    sets : {"sum", "own"} or None
        What τ of a set of points is: the sum of τ of its points; what the function gives by itself, which then takes
        `removed`, a list of the positions in each set; or nothing, and sets are refused.
    """

    name: str
    function: Callable
    unit: str
    scope: Literal["draw", "run", "posterior", "retrain"] = "draw"
    sets: Literal["sum", "own"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


METHODS = Registry("method", Method)
register, get = METHODS.register, METHODS.find


def of_single_points(removed: Sequence | None) -> bool:
    """Whether every removal is one point."""
    return removed is None or all(len(points) == 1 for points in removed)


def asked_about(removed: Sequence | None, n: int) -> np.ndarray:
    """Positions of the train points that are in any removal, ascending; None: all n."""
    if removed is None:
        return np.arange(n)
    asked = np.unique(np.concatenate([np.asarray(points, int) for points in removed]))
    return asked if len(asked) else np.arange(1)  # one at least, for the shapes


def summed(rows: Tensor, removed: Sequence | None, asked: np.ndarray) -> Tensor:
    """Rows of the points asked about, summed over each removal: (asked, …) → (removal, …)."""
    if removed is None:
        return rows
    at = [np.searchsorted(asked, points) for points in removed]
    if of_single_points(removed):
        return rows[np.concatenate(at)]
    return torch.stack([rows[positions].sum(0) for positions in at])
