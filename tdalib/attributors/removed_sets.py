"""What gradients of points say about removed sets of points."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor


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
    member = rows.new_zeros(len(removed), len(asked))
    for k, positions in enumerate(at):
        member[k, positions] = 1
    return member @ rows
