"""The run of a member: one training that can be followed again, step by step."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor

from tdalib.networks import copy_of, state_of
from tdalib.samplers.draw import Draw
from tdalib.samplers.posterior import Member, Posterior
from tdalib.training import follow


@dataclass(frozen=True)
class Step:
    """One step of a training, before it is taken.

    Attributes
    ----------
    number : int
        Steps that are done.
    draw : Draw
        θ before the step; its `checkpoint` is the epoch, from 1.
    optimizer : dict
        The optimiser's state, as its `state_dict` gives it.
    batch : Tensor, (|B|,)
        Positions of the train points.
    rate : float
        The learning rate.
    seed : int
        Of the step's dropout masks.
    """

    number: int
    draw: Draw
    optimizer: dict
    batch: Tensor
    rate: float
    seed: int


class Run:
    """One training of a member under given weights. Its steps are not stored: `steps` trains again, to the bit where
    its draws were not trained in a stack.

    Attributes
    ----------
    draws : list of Draw
    kept : list of int
        How many steps were done before each draw.
    weight : Tensor (point,), optional
        By default all ones.
    """

    def __init__(self, posterior: Posterior, member: Member, draws: list[Draw], weight: Tensor | None = None):
        if posterior.kind != "epochs":
            raise ValueError(f"a run is a training's, whose epochs sampler {posterior.sampler!r} does not draw")
        self.posterior, self.member, self.draws, self.weight = posterior, member, draws, weight
        self.kept = posterior.training(member).ends[-posterior.checkpoints :]

    def steps(self) -> Iterator[Step]:
        """Every step in turn, from the initialisation on."""
        training, member = self.posterior.training(self.member), self.member
        recipe, batches = training.recipe, training.steps
        shown = copy_of(training.network).eval()
        (weight,) = training.weights(None if self.weight is None else self.weight[None])
        epochs = [epoch for epoch, of_epoch in enumerate(training.batches, 1) for _ in of_epoch]
        for batch, epoch, (done, optimizer) in zip(batches, epochs, follow(training, weight), strict=False):
            facts = training.task.objective, recipe, member.index, epoch, member.init_seed, member.batch_seed
            draw = Draw(*state_of(training.network), shown, *facts)
            state = deepcopy(optimizer.state_dict())
            yield Step(done, draw, state, batch, recipe.rate(done, len(batches)), member.batch_seed + done)
