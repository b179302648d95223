"""Points: inputs, targets, and the labels by which a point is found again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

Inputs = Tensor | dict[str, Tensor]  # of many points
Some = slice | Sequence[int] | np.ndarray | Tensor  # which points


def of_each(function: Callable[[Any], Any], inputs: Any) -> Any:
    """The function of a tensor, or of every tensor of a dict."""
    return {key: function(x) for key, x in inputs.items()} if isinstance(inputs, dict) else function(inputs)


def chosen(inputs: Inputs, at: Some) -> Inputs:
    """The inputs of some points, by position."""
    return of_each(lambda x: x[at], inputs)


def tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of the inputs."""
    return list(inputs.values()) if isinstance(inputs, dict) else [inputs]


@dataclass(frozen=True, eq=False)
class Points:
    """n points.

    Attributes
    ----------
    inputs : Tensor or dict of Tensor, (n, ...) each
        What the network takes: floats, or integers such as token ids. A dict goes to `forward` by its keys where that
        has parameters of these names, else as one argument.
    targets : Tensor, (n, ...)
    labels : dict, name → array (n,)
        They become coordinates of results: "index" is the position in the source; others are class, year, file, …
    """

    inputs: Inputs
    targets: Tensor
    labels: dict[str, np.ndarray]

    def __repr__(self) -> str:
        return f"Points({len(self)})"

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, at: Some) -> "Points":
        """Some of the points: a slice, or positions."""
        where = at if isinstance(at, slice) else np.asarray(at)
        labels = {name: values[where] for name, values in self.labels.items()}
        return Points(chosen(self.inputs, at), self.targets[at], labels)

    def split(self, size: int) -> Iterator["Points"]:
        """The points in turn, at most `size` at a time."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def to(self, where: str | torch.dtype) -> "Points":
        """The same points on another device; or with another type of their floats, integers stay integers."""

        def moved(x: Tensor) -> Tensor:
            return x if isinstance(where, torch.dtype) and not x.is_floating_point() else x.to(where)

        return Points(of_each(moved, self.inputs), moved(self.targets), self.labels)

    device = property(attrgetter("targets.device"))

    @property
    def dtype(self) -> torch.dtype:
        """That of the network: of the inputs' or the targets' floats, float32 where all are integers."""
        floats = [x.dtype for x in (*tensors(self.inputs), self.targets) if x.is_floating_point()]
        return floats[0] if floats else torch.float32
