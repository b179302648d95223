"""Training: the recipe, and two trainers with one loop: a network after another, or a stack of them at once."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.optim import Optimizer

from tdalib import networks
from tdalib.data import Inputs, Task, chosen
from tdalib.networks import State, Theta
from tdalib.options import Count, Fraction, NonNegative, Positive, check_fields

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the paper's for mnist3 (Nguyen et al. 2023, appendix).

    The mean loss of each batch is minimised. To train to convergence, as exact tests do, take full batches: sgd
    converges at a constant rate, Adam with a small one, about 0.01, keeps jittering around the optimum.

    Parameters
    ----------
    epochs, batch_size : int
    learning_rate : float
    weight_decay : float
        λ. For adam and sgd an L2 term (λ/2)‖θ‖² in the loss; for adamw decoupled from the loss.
    schedule : {"constant", "linear"}
        "linear": the rate falls by the same amount every step, to 0 after the last, as in the paper's fine-tuning of a
        transformer.
    optimizer : {"adam", "adamw", "sgd"}
    momentum : float
        Of sgd, from 0 to below 1.

    Raises
    ------
    ValueError
        A value that no training can have.
    """

    epochs: Count = 15
    batch_size: Count = 32
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 5e-3
    schedule: Literal["constant", "linear"] = "constant"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: Fraction = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum: {self.momentum} is for sgd; optimizer {self.optimizer!r} has its own")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one of a training's `steps`, counted from 0."""
        return self.learning_rate * (1 if self.schedule == "constant" else 1 - step / steps)

    def start(self, parameters: Iterable[Tensor]) -> Optimizer:
        """A fresh optimiser: torch's own, in its fused form, which is the fastest on CPUs too."""
        options = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        rate, decay = self.learning_rate, self.weight_decay
        return OPTIMIZERS[self.optimizer](parameters, lr=rate, weight_decay=decay, fused=True, **options)

    def l2(self, who: str) -> float:
        """λ of the term (λ/2)‖θ‖² in the loss, for one who needs it.

        Raises
        ------
        ValueError
            There is no such term: adamw decays weights apart from the loss.
        """
        if self.optimizer == "adamw" and self.weight_decay:
            raise ValueError(f"{who} needs weight_decay as a term of the loss, and adamw decays apart from it")
        return self.weight_decay


def known(recipe: Recipe | None) -> Recipe:
    """The recipe, for one who cannot do without it.

    Raises
    ------
    ValueError
        It is not known.
    """
    if recipe is None:
        raise ValueError("the recipe of the training is not known, and is needed here")
    return recipe


def batch_order(n: int, recipe: Recipe, batch_seed: int) -> list[list[Tensor]]:
    """Batches of every epoch: a fresh permutation of n points an epoch, the last batch as it falls."""
    stream = np.random.default_rng(batch_seed)
    epochs = (torch.as_tensor(stream.permutation(n)) for _ in range(recipe.epochs))
    return [list(order.split(recipe.batch_size)) for order in epochs]


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
        return [batch for epoch in self.batches for batch in epoch]

    @property
    def ends(self) -> list[int]:
        """How many steps are done after each epoch."""
        return np.cumsum([len(epoch) for epoch in self.batches]).tolist()

    def batch_loss(self, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Σ w_i L_i over a batch, divided by its size or by its kept weight; 0 where nothing is kept."""
        each = weight * self.task.objective.loss(outputs, targets)
        if not self.renormalise:
            return each.mean()
        kept = weight.sum()
        return each.sum() / torch.where(kept > 0, kept, 1)

    def weights(self, weights: Tensor | None) -> Tensor:
        """Weights (removal, point) as the network wants them; None: one row of ones."""
        weights = torch.ones(1, len(self.task.train)) if weights is None else weights
        return weights.to(self.task.train.device, self.task.train.dtype)


def train(training: Training, weights: Tensor | None = None, keep: int = 1) -> Iterator[list[State]]:
    """Train from what the network holds, once for each row of `weights` (removal, point).

    A batch's loss is Σ w_i L(z_i) / |B|: a point of weight 0 leaves every other number of the training as it was, and
    one that is in no batch changes nothing, to the bit.

    Yields
    ------
    list of State
        After each of the last `keep` epochs.
    """
    start, ends = networks.state_of(training.network), training.ends[-keep:]
    for weight in training.weights(weights):
        networks.set_state(training.network, start)
        with networks.kept_generators():
            kept = [networks.state_of(training.network) for done, _ in follow(training, weight) if done in ends]
        training.network.eval()
        yield kept


def follow(training: Training, weight: Tensor) -> Iterator[tuple[int, Optimizer]]:
    """One training in place: how many steps are done, 0 to all, and the optimiser; the network holds the θ of then."""
    network, points = training.network, training.task.train

    def loss(batch: Tensor) -> Tensor:
        outputs = networks.forward(network, chosen(points.inputs, batch))
        return training.batch_loss(outputs, points.targets[batch], weight[batch])

    return _steps(training, networks.trainable(network).values(), loss)


def train_stack(training: Training, weights: Tensor | None = None, keep: int = 1) -> Iterator[list[State]]:
    """What `train` gives, to float tolerance, with all removals trained at once; the network keeps its parameters.

    Every parameter gets a leading dimension, one entry a removal, and `torch.func.vmap` maps one removal's loss over
    it; the rest is shared. All see the same batches and dropout masks, each with its own weights of the points. A
    network that this cannot serve is trained once after the other.

    Yields
    ------
    list of State
        After each of the last `keep` epochs.
    """
    network, points, ends = training.network, training.task.train, training.ends[-keep:]
    weights = training.weights(weights)
    theta = networks.trainable(network)
    # name → (removal, ...)
    stacked = {name: torch.stack([p.detach()] * len(weights)).requires_grad_() for name, p in theta.items()}

    def of_one(theta: Theta, weight: Tensor, inputs: Inputs, targets: Tensor) -> Tensor:
        return training.batch_loss(networks.forward_at(network, theta, inputs), targets, weight)

    of_each = vmap(of_one, in_dims=(0, 0, None, None), randomness="same")

    def loss(batch: Tensor) -> Tensor:
        batch = batch.to(points.device)
        return of_each(stacked, weights[:, batch], chosen(points.inputs, batch), points.targets[batch]).sum()

    start, fault = networks.state_of(network), None
    try:
        with networks.seeded(training.seed, points.device):
            loss(training.steps[0]).backward()
    except Exception as error:  # a network that vmap cannot serve fails in its own way
        fault = error
    networks.set_state(network, start)
    if fault:
        networks.say_slower("a stack is trained one network after another", fault)
        yield from train(training, weights, keep)
        return
    kept = []
    with networks.kept_generators():
        for done, _ in _steps(training, stacked.values(), loss):
            if done in ends:
                now = {name: p.detach().clone() for name, p in stacked.items()}
                kept.append(State(now, networks.state_of(network).rest))
    network.eval()
    for removal in range(len(weights)):
        yield [State({name: p[removal] for name, p in state.theta.items()}, state.rest) for state in kept]


def _steps(training: Training, theta: Iterable[Tensor], loss: Callable[[Tensor], Tensor]) -> Iterator:
    """Minimise the loss of one batch after another: (steps done, optimiser) before each and at the end.

    Random numbers of a step (dropout) follow from the seed; torch's state from before comes back.
    """
    optimizer, batches = training.recipe.start(theta), training.steps
    networks.to_training(training.network)
    for step, batch in enumerate(batches):
        yield step, optimizer
        for group in optimizer.param_groups:
            group["lr"] = training.recipe.rate(step, len(batches))
        with networks.seeded(training.seed + step, training.task.train.device):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
    yield len(batches), optimizer
