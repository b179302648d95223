"""Training: the recipe, the batch order, and a plain loop in which one point can weigh nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Theta = dict[str, Tensor]  # name → trainable parameter

EVAL_BATCH = 100  # activations of 100 images stay in the processor's cache


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the paper's for mnist3 (Nguyen et al. 2023, appendix).

    Adam on the mean cross-entropy of each batch. `weight_decay` λ is an L2 term (λ/2)‖θ‖² in the loss, not decoupled.
    To train to convergence, as exact tests do, take full batches and a small learning rate, about 0.01: at a constant
    rate Adam keeps jittering around the optimum, and a larger rate jitters more. With the schedule "linear" the rate
    falls by the same amount every step, to 0 after the last, as in the paper's fine-tuning of a transformer.

    Raises
    ------
    ValueError
        A value that no training can have.
    """

    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 5e-3
    schedule: Literal["constant", "linear"] = "constant"

    def __post_init__(self):
        for key, least in (("epochs", 1), ("batch_size", 1), ("weight_decay", 0)):
            if not getattr(self, key) >= least:
                raise ValueError(f"{key}: {getattr(self, key)} is not possible; it must be at least {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: {self.learning_rate} is not possible; it must be above 0")
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"schedule {self.schedule!r} is not known; choose from constant, linear")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one of a training's `steps`, counted from 0."""
        return self.learning_rate * (1 if self.schedule == "constant" else 1 - step / steps)

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)


def trainable(model: nn.Module) -> Theta:
    """θ: the parameters that training changes, by name (the live tensors, not copies)."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def batch_order(n: int, recipe: Recipe, batch_seed: int) -> list[list[Tensor]]:
    """Batches of every epoch: a fresh permutation of n points an epoch, the last batch as it falls."""
    stream = np.random.default_rng(batch_seed)
    epochs = (torch.as_tensor(stream.permutation(n)) for _ in range(recipe.epochs))
    return [list(order.split(recipe.batch_size)) for order in epochs]


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    batches: list[list[Tensor]],
    *,
    seed: int,
    without: Sequence[int | None] = (None,),
    keep: int = 1,
) -> Iterator[list[Theta]]:
    """Train `model` from the weights it has, once for each entry of `without`; yields θ after the last `keep` epochs.

    A point left out has weight 0 in the loss, while the batch mean is still divided by the batch size: every other
    number of the run stays what it was, and a point that is in no batch changes nothing, to the bit. None leaves out
    nothing. Up to the first batch that holds its point a run is the one that leaves out nothing, so it starts there.
    Dropout masks follow from `seed` and the step; the caller's random state is left alone.
    """
    flat, kept_after = flatten(batches, keep)
    starts = [_first_use(batches[0], j) for j in without]
    states = _states(model, x, y, recipe, flat, seed, starts)
    for j, start in zip(without, starts, strict=True):
        (weight,) = weights([j], x)
        optimizer = _restore(model, recipe, states[start])
        to_training(model)
        kept = []
        for step in range(start, len(flat)):
            _step(model, optimizer, recipe.rate(step, len(flat)), x, y, weight, flat[step], seed + step)
            if step in kept_after:
                kept.append({name: p.detach().clone() for name, p in trainable(model).items()})
        model.eval()
        yield kept


def flatten(batches: list[list[Tensor]], keep: int) -> tuple[list[Tensor], list[int]]:
    """The batches of all epochs, and the steps that end one of the last `keep` epochs."""
    ends = np.cumsum([len(epoch) for epoch in batches]) - 1
    return list(chain(*batches)), ends[-keep:].tolist()


def weights(without: Sequence[int | None], x: Tensor) -> Tensor:
    """Weights of the points in the loss, 0 for the one left out; (runs, points)."""
    each = x.new_ones(len(without), len(x))
    for run, j in enumerate(without):
        if j is not None:
            each[run, j] = 0
    return each


@contextmanager
def masks_from(seed: int, x: Tensor):
    """Random numbers of one step (dropout) follow from `seed`; the state from before comes back."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if x.is_cuda:
            torch.cuda.manual_seed(seed)
        yield


def to_training(model: nn.Module) -> None:
    """Training mode (dropout is active), but for batch norm, which keeps its fixed statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _step(model, optimizer, rate, x, y, weight, batch, seed) -> None:
    set_rate(optimizer, rate)
    with masks_from(seed, x):
        each = point_losses(model(x[batch]), y[batch])  # (batch,)
        optimizer.zero_grad()
        (weight[batch] * each).mean().backward()
        optimizer.step()


def _first_use(epoch: list[Tensor], j: int | None) -> int:
    """The first step at which leaving out j can matter; for a point the epoch does not hold, its last."""
    if j is None:
        return 0
    return next((step for step, batch in enumerate(epoch) if j in batch), len(epoch) - 1)


def _states(model, x, y, recipe, flat, seed, steps) -> dict[int, tuple[dict, dict]]:
    """Step → (parameters and buffers, optimiser state) before it, in the run that leaves out nothing."""
    optimizer, (weight,) = recipe.optimizer(trainable(model).values()), weights([None], x)
    states = {}
    to_training(model)
    for step in range(max(steps) + 1):
        if step in steps:
            values = {name: value.detach().clone() for name, value in _changing(model).items()}
            states[step] = values, deepcopy(optimizer.state_dict())
        if step < max(steps):
            _step(model, optimizer, recipe.rate(step, len(flat)), x, y, weight, flat[step], seed + step)
    return states


def _restore(model, recipe, state) -> torch.optim.Optimizer:
    values, of_optimizer = state
    optimizer = recipe.optimizer(trainable(model).values())
    optimizer.load_state_dict(deepcopy(of_optimizer))  # it would go on in the tensors it is given
    with torch.no_grad():
        for name, value in _changing(model).items():
            value.copy_(values[name])
    return optimizer


def _changing(model: nn.Module) -> dict[str, Tensor]:
    return trainable(model) | dict(model.named_buffers())


def logits(model: nn.Module, theta: Theta, x: Tensor) -> Tensor:
    """Outputs at θ, (points, outputs); no gradient."""
    with torch.no_grad():
        return torch.cat([functional_call(model, theta, (part,)) for part in x.split(EVAL_BATCH)])


def losses(model: nn.Module, theta: Theta, x: Tensor, y: Tensor) -> Tensor:
    """The loss at θ of every point, (points,), nats, float64.

    The logits keep the model's precision; their log-sum-exp does not, or every loss below 1e-7 would be 0.
    """
    return point_losses(logits(model, theta, x).double(), y)


def point_losses(outputs: Tensor, y: Tensor) -> Tensor:
    """The loss of every point, (points,), nats: cross-entropy of logits.

    For float targets (points, outputs) it is ½‖f − y‖², regression with unit noise, whose posterior is known: samplers
    are checked on it. Attributors that take gradients know class labels alone.
    """
    if y.is_floating_point():
        return (outputs - y).square().sum(1) / 2
    return F.cross_entropy(outputs, y, reduction="none")
