"""A draw: one θ ~ p(θ|D), with all that the network's outputs depend on."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tdalib.data import Inputs, Points
from tdalib.networks import EVAL_BATCH, State, Theta, direction, forward_at, set_state
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
        outputs = ((self.all_outputs(part), part.targets) for part in points.split(EVAL_BATCH))
        return torch.cat([self.objective.losses(f, y) for f, y in outputs])

    def residuals(self, points: Points) -> tuple[Tensor, Tensor]:
        """∂L/∂outputs of every point: of length 1, (points, ...), in the points' type; and their lengths, float64."""
        outputs = ((self.all_outputs(part), part.targets) for part in points.split(EVAL_BATCH))
        parts = [direction(self.objective.residuals(f, y), 1, points.dtype) for f, y in outputs]
        units, lengths = zip(*parts, strict=True)
        return torch.cat(units), torch.cat(lengths)

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
