"""Grad-Cos."""

from torch import Tensor

from tdalib.attributors.gradients import cosine, loss_gradients, pairwise
from tdalib.attributors.methods import register
from tdalib.data import Task
from tdalib.samplers.posterior import Draw


@register("gc", unit="cosine")
def grad_cos(draw: Draw, task: Task, *, memory: float = 1.0) -> Tensor:
    """Grad-Cos: τ(z_j, z) = ∇L(z)·∇L(z_j) / (‖∇L(z)‖ ‖∇L(z_j)‖).   (train, test), from −1 to 1.

    Positive: a gradient step on z_j lowers the loss at z. A point whose gradient is exactly zero has τ = 0.

    Parameters
    ----------
    memory : float
        GB that gradients take at a time; with less they are made in smaller blocks, and anew for every block of z_j.

    Source: Charpiat et al. 2019, arXiv:2102.05262.
    """
    train = loss_gradients(draw, task.x_train, task.y_train, memory)
    return pairwise(cosine, train, loss_gradients(draw, task.x_test, task.y_test, memory))
