"""Training: the recipe, the batch order, and a plain loop in which one point can weigh nothing."""

from dataclasses import dataclass

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
    rate Adam keeps jittering around the optimum, and a larger rate jitters more.

    Raises
    ------
    ValueError
        A value that no training can have.
    """

    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 5e-3

    def __post_init__(self):
        for key, least in (("epochs", 1), ("batch_size", 1), ("weight_decay", 0)):
            if not getattr(self, key) >= least:
                raise ValueError(f"{key}: {getattr(self, key)} is not possible; it must be at least {least}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: {self.learning_rate} is not possible; it must be above 0")

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
    without: int | None = None,
    keep: int = 1,
) -> list[Theta]:
    """Train `model` in place; return θ after each of the last `keep` epochs.

    A point left out (`without`) has weight 0 in the loss, while the batch mean is still divided by the batch size:
    every other number of the run stays what it was, and a point that is in no batch changes nothing, to the bit.
    Dropout masks follow from `seed`; the caller's random state is left alone.
    """
    weight = torch.ones(len(x), dtype=x.dtype)
    if without is not None:
        weight[without] = 0
    optimizer = recipe.optimizer(trainable(model).values())
    model.train()
    kept = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch, order in enumerate(batches):
            for batch in order:
                each = F.cross_entropy(model(x[batch]), y[batch], reduction="none")  # (batch,)
                optimizer.zero_grad()
                (weight[batch] * each).mean().backward()
                optimizer.step()
            if epoch >= len(batches) - keep:
                kept.append({name: p.detach().clone() for name, p in trainable(model).items()})
    model.eval()
    return kept


def logits(model: nn.Module, theta: Theta, x: Tensor) -> Tensor:
    """Outputs at θ, (points, outputs); no gradient."""
    with torch.no_grad():
        return torch.cat([functional_call(model, theta, (part,)) for part in x.split(EVAL_BATCH)])


def losses(model: nn.Module, theta: Theta, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy at θ for every point, (points,), nats, float64.

    The logits keep the model's precision; their log-sum-exp does not, or every loss below 1e-7 would be 0.
    """
    return F.cross_entropy(logits(model, theta, x).double(), y, reduction="none")
