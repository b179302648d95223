"""Removals: which train points are left out together, and how a batch's loss is divided then."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tdalib.data import Points
from tdalib.options import Count, Natural, Number, check

Share = Annotated[Number, Field(gt=0, lt=1)]

STREAM = 2  # of random removals; 0 and 1 choose train and test points


@dataclass(frozen=True)
class Removals:
    """Sets of train points, each a row of weights that is 0 at its points and 1 elsewhere.

    Attributes
    ----------
    sets : tuple of int arrays
        Positions of the points of each removal.
    points : int
        How many train points there are.
    labels : dict, name → array (removal,)
        Coordinates of the removals: the points' labels for single points, else what the sets have in common.
    single : bool
        Whether every removal is a single point, as asked for.
    renormalise : bool
        Whether a batch's loss is divided by its kept weight; else by its size.
    """

    sets: tuple[np.ndarray, ...]
    points: int
    labels: dict[str, np.ndarray]
    single: bool = True
    renormalise: bool = False

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, which: slice | Sequence[int]) -> "Removals":
        """Some of the removals."""
        positions = np.arange(len(self))[which]
        labels = {name: values[positions] for name, values in self.labels.items()}
        return replace(self, sets=tuple(self.sets[k] for k in positions), labels=labels)

    def weights(self) -> Tensor:
        """Weights of the points in the loss, (removal, point)."""
        weights = torch.ones(len(self), self.points)
        for row, points in zip(weights, self.sets, strict=True):
            row[points] = 0
        return weights

    def removed(self) -> np.ndarray:
        """Which points each removal leaves out, (removal, point), bool."""
        return self.weights().numpy() == 0


def every_point(points: Points) -> Removals:
    """Each point by itself."""
    return _singles(points, np.arange(len(points)))


def from_spec(spec: dict[str, Any] | None, points: Points, seed: int = 0) -> Removals:
    """Removals of the train points from what `removals` says.

    Parameters
    ----------
    spec : dict, optional
        None: every point. {"points": 50}: so many at random, {"points": [3, 17]}: these. {"by": "class"}: all points
        of a class, or of another label. {"sets": [[0, 4], [7]]}: these sets. {"random": {"size": 10, "count": 20,
        "within": "class"}}: random sets, with `within` each of points that share a label. {"subsets": 100, "share":
        0.5}: random subsets with this share of all points. Beside each "renormalise": whether a batch's loss is divided
        by its kept weight (by default for subsets) or by its size, and "seed", by default `seed`.

    Raises
    ------
    ValueError
        One line that names what is wrong and what is allowed.
    """
    if spec is None:
        return every_point(points)
    if not isinstance(spec, dict) or len(kind := [key for key in KINDS if key in spec]) != 1:
        raise ValueError(
            f"removals: {spec!r} is not possible; give one of {', '.join(KINDS)}, or nothing for every point"
        )
    find, types = KINDS[kind[0]]
    options = check("removals", types | {"seed": Natural, "renormalise": bool}, spec)
    renormalise = options.pop("renormalise", kind[0] == "subsets")
    stream = np.random.default_rng(np.random.SeedSequence(options.pop("seed", seed), spawn_key=(STREAM,)))
    missing = [key for key in types if key not in options]
    if missing:
        raise ValueError(f"removals: {kind[0]} needs {missing[0]} beside it")
    return replace(find(points, stream, *(options[key] for key in types)), renormalise=renormalise)


def _selection(points: Points, stream, which: int | list[int]) -> Removals:
    if isinstance(which, int):
        if which > len(points):
            raise ValueError(f"removals.points: {which} is not possible; there are {len(points)} train points")
        which = np.sort(stream.permutation(len(points))[:which])
    return _singles(points, _positions(which, len(points), "points"))


def _by(points: Points, stream, label: str) -> Removals:
    groups = _groups(points, label, "by")
    names = np.array(list(groups), dtype=object)
    return Removals(tuple(groups.values()), len(points), {label: names}, single=False)


def _sets(points: Points, stream, sets: list[list[int]]) -> Removals:
    return _several([_positions(positions, len(points), "sets") for positions in sets], points)


def _random(points: Points, stream, how: dict[str, Any]) -> Removals:
    options = check("removals.random", {"size": Count, "count": Count, "within": str}, how)
    for key in ("size", "count"):
        if key not in options:
            raise ValueError(f"removals.random: {key} is missing; it needs size and count")
    size, within = options["size"], options.get("within")
    groups = _groups(points, within, "random.within") if within else {"": np.arange(len(points))}
    smallest = min(map(len, groups.values()))
    if size > smallest:
        raise ValueError(f"removals.random.size: {size} is not possible; there are {smallest} points to draw from")
    names = [list(groups)[k % len(groups)] for k in range(options["count"])]  # the groups take turns
    drawn = _several([np.sort(stream.permutation(groups[name])[:size]) for name in names], points)
    return replace(drawn, labels={within: np.array(names, object)}) if within else drawn


def _subsets(points: Points, stream, count: int, share: float) -> Removals:
    size = round(share * len(points))
    if size == 0:
        raise ValueError(f"removals.share: {share} is not possible; of {len(points)} points it is none")
    return _several([np.sort(stream.permutation(len(points))[:size]) for _ in range(count)], points)


KINDS = {
    "points": (_selection, {"points": Count | Annotated[list[Natural], Field(min_length=1)]}),
    "by": (_by, {"by": str}),
    "sets": (_sets, {"sets": Annotated[list[list[Natural]], Field(min_length=1)]}),
    "random": (_random, {"random": dict[str, Any]}),
    "subsets": (_subsets, {"subsets": Count, "share": Share}),
}


def _singles(points: Points, positions: np.ndarray) -> Removals:
    sets = tuple(positions[:, None])
    return Removals(sets, len(points), {name: values[positions] for name, values in points.labels.items()})


def _several(sets: list[np.ndarray], points: Points) -> Removals:
    return Removals(tuple(sets), len(points), {}, single=False)


def _groups(points: Points, label: str, key: str) -> dict[Any, np.ndarray]:
    """The points by the values of a label."""
    if label not in points.labels:
        known = ", ".join(sorted(points.labels))
        raise ValueError(f"removals.{key}: the points have no label {label!r}; choose from {known}")
    values = points.labels[label]
    return {value: np.flatnonzero(values == value) for value in np.unique(values).tolist()}


def _positions(positions: Sequence[int], n: int, key: str) -> np.ndarray:
    positions = np.asarray(positions, int)
    if len(positions) and positions.max() >= n:
        raise ValueError(f"removals.{key}: there is no point {positions.max()}; the train points are 0 to {n - 1}")
    if len(set(positions.tolist())) < len(positions):
        raise ValueError(f"removals.{key}: {positions.tolist()} names a point twice; each may stand once")
    return positions
