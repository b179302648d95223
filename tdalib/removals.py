"""Removals: which train points are left out together, and how a batch's loss is divided then."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tdalib.data import Points
from tdalib.options import Count, Natural, Number, check, options_of

Share = Annotated[Number, Field(gt=0, lt=1)]
Positions = Annotated[list[Natural], Field(min_length=1)]
Sets = Annotated[list[list[Natural]], Field(min_length=1)]

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

    def __getitem__(self, which: slice | Sequence[int] | np.ndarray) -> "Removals":
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
    return Removals(tuple(np.arange(len(points))[:, None]), len(points), points.labels)


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
        raise ValueError(f"removals: {spec!r} is not possible; give one of {', '.join(KINDS)}")
    find = KINDS[kind[0]]
    types = options_of(find)
    options = check("removals", types | {"seed": Natural, "renormalise": bool}, spec)
    renormalise = options.pop("renormalise", kind[0] == "subsets")
    stream = np.random.default_rng(np.random.SeedSequence(options.pop("seed", seed), spawn_key=(STREAM,)))
    for key in types.keys() - options:
        raise ValueError(f"removals: {kind[0]} needs {key} beside it")
    return replace(find(points, stream, **options), renormalise=renormalise)


def _selection(train: Points, stream: np.random.Generator, *, points: Count | Positions) -> Removals:
    if isinstance(points, int):
        if points > len(train):
            raise ValueError(f"removals.points: {points} is not possible; there are {len(train)} train points")
        points = list(np.sort(stream.permutation(len(train))[:points]))
    return every_point(train)[_positions(points, len(train), "points")]


def _by(train: Points, stream: np.random.Generator, *, by: str) -> Removals:
    groups = _groups(train, by, "by")
    return _several(train, groups.values(), {by: np.array(list(groups), object)})


def _sets(train: Points, stream: np.random.Generator, *, sets: Sets) -> Removals:
    return _several(train, [_positions(positions, len(train), "sets") for positions in sets])


def _random(train: Points, stream: np.random.Generator, *, random: dict[str, Any]) -> Removals:
    options = check("removals.random", {"size": Count, "count": Count, "within": str}, random)
    for key in sorted({"size", "count"} - options.keys()):
        raise ValueError(f"removals.random: {key} is missing; it needs size and count")
    size, within = options["size"], options.get("within")
    groups = _groups(train, within, "random.within") if within else {"": np.arange(len(train))}
    smallest = min(map(len, groups.values()))
    if size > smallest:
        raise ValueError(f"removals.random.size: {size} is not possible; there are {smallest} points to draw from")
    names = [list(groups)[k % len(groups)] for k in range(options["count"])]  # the groups take turns
    labels = {within: np.array(names, object)} if within else {}
    return _several(train, [np.sort(stream.permutation(groups[name])[:size]) for name in names], labels)


def _subsets(train: Points, stream: np.random.Generator, *, subsets: Count, share: Share) -> Removals:
    size = round(share * len(train))
    if size == 0:
        raise ValueError(f"removals.share: {share} is not possible; of {len(train)} points it is none")
    return _several(train, [np.sort(stream.permutation(len(train))[:size]) for _ in range(subsets)])


KINDS: dict[str, Callable] = {"points": _selection, "by": _by, "sets": _sets, "random": _random, "subsets": _subsets}


def _several(train: Points, sets: Iterable[np.ndarray], labels: dict[str, np.ndarray] | None = None) -> Removals:
    return Removals(tuple(sets), len(train), labels or {}, single=False)


def _groups(points: Points, label: str, key: str) -> dict[Any, np.ndarray]:
    """The points by the values of a label."""
    if label not in points.labels:
        known = ", ".join(sorted(points.labels))
        raise ValueError(f"removals.{key}: the points have no label {label!r}; choose from {known}")
    values = points.labels[label]
    return {value: np.flatnonzero(values == value) for value in np.unique(values).tolist()}


def _positions(positions: Sequence[int] | np.ndarray, n: int, key: str) -> np.ndarray:
    positions = np.asarray(positions, int)
    if positions.max(initial=0) >= n:
        raise ValueError(f"removals.{key}: there is no point {positions.max()}; the train points are 0 to {n - 1}")
    if len(set(positions.tolist())) < len(positions):
        raise ValueError(f"removals.{key}: {positions.tolist()} names a point twice; each may stand once")
    return positions
