"""A draw: one θ ~ p(θ|D), with all that the network's outputs depend on."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tdalib.data import Inputs, Points
from tdalib.networks import EVAL_BATCH, State, Theta, forward_at, set_state
from tdalib.objectives import Objective
from tdalib.training import Recipe


@dataclass(frozen=True)
class Draw:
    """One θ ~ p(θ|D) with its provenance.

    Attributes
    ----------
    theta : dict, name → Tensor
        The trained parameters.
    rest : dict, name → Tensor
        Buffers, and frozen parameters where these differ between draws.
    model : nn.Module
        The network in eval mode, which draws of a member may share: its own weights are not θ, which goes in by
        `torch.func.functional_call(draw.model, draw.theta, (x,))`. `module()` is one that holds θ.
    objective : Objective
    recipe : Recipe or None
        How θ was trained, where that is known.
    member, checkpoint, init_seed, batch_seed : int
        Where it comes from; `checkpoint` counts from 1: the epoch, or the draw within its member.
    """

    theta: Theta
    rest: dict[str, Tensor]
    model: nn.Module
    objective: Objective
    recipe: Recipe | None
    member: int
    checkpoint: int
    init_seed: int
    batch_seed: int

    def __call__(self, inputs: Inputs) -> Tensor:
        """Outputs at this θ, (points, ...), differentiable in the inputs."""
        return self.outputs(self.theta, inputs)

    def outputs(self, theta: Theta, inputs: Inputs) -> Tensor:
        """Outputs at another θ, (points, ...), differentiable in it."""
        return forward_at(self.model, self.rest | theta, inputs)

    def all_outputs(self, points: Points) -> Tensor:
        """Outputs at this θ of many points, a batch at a time, (points, ...); no gradient."""
        with torch.no_grad():
            return torch.cat([self(part.inputs) for part in points.split(EVAL_BATCH)])

    def losses(self, points: Points) -> Tensor:
        """The objective at this θ of every point, (points,), float64."""
        return self._in_batches(self.objective.losses, points)

    def residuals(self, points: Points) -> Tensor:
        """∂L/∂outputs of every point, (points, ...), in the points' precision."""
        return self._in_batches(lambda f, y: self.objective.residuals(f, y).to(points.dtype), points)

    def _in_batches(self, function: Callable[[Tensor, Tensor], Tensor], points: Points) -> Tensor:
        """A function of outputs and targets of many points: those of a language model are too large all at once."""
        parts = points.split(EVAL_BATCH)
        return torch.cat([function(self.all_outputs(part), part.targets) for part in parts])

    def module(self) -> nn.Module:
        """A plain module in eval mode that holds θ, its own: for other libraries."""
        module = deepcopy(self.model)  # its frozen part too, which may differ between draws
        set_state(module, State(self.theta, self.rest))
        return module.eval()

    def copy(self) -> "Draw":
        """The same draw for one who may change what it holds."""
        theta, rest = ({name: p.clone() for name, p in held.items()} for held in (self.theta, self.rest))
        return replace(self, theta=theta, rest=rest, model=self.module())


Draws = Iterator[list[Draw]]  # of a member, a list for each row of weights
