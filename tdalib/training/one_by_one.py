"""Training one network after another: a plain loop in which every point has a weight."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from tdalib.data import Task, chosen
from tdalib.networks import State, forward, set_state, state_of, to_training, trainable
from tdalib.training.recipe import Recipe, batch_order


@dataclass(frozen=True)
class Training:
    """What is trained and how, but for the weights of the points.

    Attributes
    ----------
    network : nn.Module
        Trained in place, from what it holds.
    seed : int
        Of the batch order, and of the dropout masks of each step.
    renormalise : bool
        Whether a batch's loss is divided by its kept weight; else by its size.
    """

    network: nn.Module
    task: Task
    recipe: Recipe
    seed: int
    renormalise: bool = False

    @cached_property
    def batches(self) -> list[list[Tensor]]:
        """The batches of every epoch."""
        return batch_order(len(self.task.train), self.recipe, self.seed)

    @property
    def steps(self) -> list[Tensor]:
        """The batch of every step."""
        return list(chain(*self.batches))

    @property
    def ends(self) -> list[int]:
        """How many steps are done after each epoch."""
        return np.cumsum([len(epoch) for epoch in self.batches]).tolist()

    def batch_loss(self, each: Tensor, weight: Tensor) -> Tensor:
        """Σ w_i L_i over a batch, divided by its size or by its kept weight; 0 where nothing is kept."""
        if not self.renormalise:
            return (weight * each).mean()
        kept = weight.sum()
        return (weight * each).sum() / torch.where(kept > 0, kept, 1)

    def weights(self, weights: Tensor | None) -> Tensor:
        """Weights (removal, point) as the network wants them; None: one row of ones."""
        weights = torch.ones(1, len(self.task.train)) if weights is None else weights
        return weights.to(self.task.train.device, self.task.train.dtype)

    @contextmanager
    def masks(self, step: int):
        """Random numbers of one step (dropout) follow from the seed; the state from before comes back."""
        device = self.task.train.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(self.seed + step)
            if device.type == "cuda":
                torch.cuda.manual_seed(self.seed + step)
            yield


def train(training: Training, weights: Tensor | None = None, keep: int = 1) -> Iterator[list[State]]:
    """Train from what the network holds, once for each row of `weights` (removal, point).

    Yields the states after each of the last `keep` epochs. A batch's loss is Σ w_i L(z_i) / |B|: a point of weight 0
    leaves every other number of the training as it was, and one that is in no batch changes nothing, to the bit.
    """
    start, ends = state_of(training.network), training.ends[-keep:]
    for weight in training.weights(weights):
        set_state(training.network, start)
        kept = [state_of(training.network) for done, _ in follow(training, weight) if done in ends]
        training.network.eval()
        yield kept


def follow(training: Training, weight: Tensor) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """One training in place: how many steps are done, 0 to all, and the optimiser; the network holds the θ of then."""
    network, points, loss = training.network, training.task.train, training.task.objective.loss
    optimizer, steps = training.recipe.start(trainable(network).values()), training.steps
    to_training(network)
    for step, batch in enumerate(steps):
        yield step, optimizer
        set_rate(optimizer, training.recipe.rate(step, len(steps)))
        with training.masks(step):
            each = loss(forward(network, chosen(points.inputs, batch)), points.targets[batch])  # (batch,)
            optimizer.zero_grad()
            training.batch_loss(each, weight[batch]).backward()
            optimizer.step()
    yield len(steps), optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
