"""The recipe: optimiser, schedule, epochs and batches of a training."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tdalib.options import Count, NonNegative, Number, Positive, check_fields

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
    momentum: Number = 0.0

    def __post_init__(self):
        check_fields(self)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: {self.momentum} is not possible; it must be from 0 to below 1")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum: {self.momentum} is for sgd; optimizer {self.optimizer!r} has its own")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one of a training's `steps`, counted from 0."""
        return self.learning_rate * (1 if self.schedule == "constant" else 1 - step / steps)

    def start(self, parameters) -> torch.optim.Optimizer:
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


def batch_order(n: int, recipe: Recipe, batch_seed: int) -> list[list[Tensor]]:
    """Batches of every epoch: a fresh permutation of n points an epoch, the last batch as it falls."""
    stream = np.random.default_rng(batch_seed)
    epochs = (torch.as_tensor(stream.permutation(n)) for _ in range(recipe.epochs))
    return [list(order.split(recipe.batch_size)) for order in epochs]
