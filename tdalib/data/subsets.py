"""Subsets: so many points of each class, from a random order that a seed decides."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tdalib.data.task import SPLITS, class_counts


def choose(labels: Any, classes: Sequence[str], per_class: int, seed: int, split: str, name: object) -> np.ndarray:
    """Positions of `per_class` points of each class, class by class: the first of a random order."""
    orders = random_orders(labels, classes or ("",), {f"{split}_per_class": per_class}, seed, split, name)
    return np.concatenate([np.sort(order[:per_class]) for order in orders])


def random_orders(
    labels: Any, classes: Sequence[str], wanted: dict[str, int], seed: int, split: str, name: object
) -> list[np.ndarray]:
    """The positions of each class in random order; there must be as many as are wanted in all."""
    available = class_counts(labels, classes, split).min()
    if sum(wanted.values()) > available:
        asked = " beside ".join(f"{key}: {count}" for key, count in wanted.items())
        raise ValueError(f"{asked} is not possible; {name} has 1 to {available} per class")
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
    return [stream.permutation(np.flatnonzero(np.equal(labels, label))) for label in range(len(classes))]
