"""ATS: one more training step."""

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from tdalib.attributors.methods import register
from tdalib.data import Task
from tdalib.samplers.posterior import Draw
from tdalib.training import losses


@register("ats", unit="nats")
def one_more_step(draw: Draw, task: Task) -> Tensor:
    """ATS: τ(z_j, z) = L(z; θ) − L(z; θ₊j), θ₊j one optimiser step of the recipe on z_j alone.   (train, test), nats.

    The optimiser starts afresh, so with Adam every parameter moves by about the learning rate: the recipe's, whatever
    its schedule. The model is in eval mode. Positive: the step on z_j lowers the loss at z.

    Source: Nguyen et al. 2023, arXiv:2305.19765, section 3.
    """
    before = losses(draw.model, draw.theta, task.x_test, task.y_test)
    tau = before.new_empty(len(task.x_train), len(before), dtype=task.x_train.dtype)
    for j in range(len(task.x_train)):
        stepped = _step(draw, task.x_train[j : j + 1], task.y_train[j : j + 1])
        tau[j] = before - losses(draw.model, stepped, task.x_test, task.y_test)
    return tau


def _step(draw: Draw, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    theta = {name: p.clone().requires_grad_() for name, p in draw.theta.items()}
    optimizer = draw.recipe.optimizer(theta.values())
    F.cross_entropy(functional_call(draw.model, theta, (x,)), y).backward()
    optimizer.step()
    return {name: p.detach() for name, p in theta.items()}
