"""Grad-Cos."""

from torch import Tensor

from tdalib.attributors.gradients import gram, loss_rows, norms
from tdalib.attributors.methods import register
from tdalib.data import Task
from tdalib.samplers.posterior import Draw


@register("gc", unit="cosine")
def grad_cos(draw: Draw, task: Task) -> Tensor:
    """Grad-Cos: τ(z_j, z) = ∇L(z)·∇L(z_j) / (‖∇L(z)‖ ‖∇L(z_j)‖).   (train, test), from −1 to 1.

    Positive: a gradient step on z_j lowers the loss at z. A point whose gradient is exactly zero has τ = 0.

    Source: Charpiat et al. 2019, arXiv:2102.05262.
    """
    train, test = loss_rows(draw, task.x_train, task.y_train), loss_rows(draw, task.x_test, task.y_test)
    lengths = norms(train)[:, None] * norms(test)  # (train, test)
    return (gram(train, test) / lengths).where(lengths > 0, 0)
