"""Grad-Dot."""

from torch import Tensor

from tdalib.attributors.gradients import inner, loss_gradients, pairwise
from tdalib.attributors.methods import register
from tdalib.data import Task
from tdalib.samplers.posterior import Draw


@register("gd", unit="nats / learning rate")
def grad_dot(draw: Draw, task: Task, *, memory: float = 1.0) -> Tensor:
    """Grad-Dot: τ(z_j, z) = ∇L(z)·∇L(z_j).   (train, test), nats per unit of learning rate.

    Positive: a gradient step on z_j lowers the loss at z.

    Parameters
    ----------
    memory : float
        GB that gradients take at a time; with less they are made in smaller blocks, and anew for every block of z_j.

    Source: Charpiat et al. 2019, arXiv:2102.05262; one checkpoint of TracIn, Pruthi et al. 2020, arXiv:2002.08484.
    """
    train = loss_gradients(draw, task.x_train, task.y_train, memory)
    return pairwise(inner, train, loss_gradients(draw, task.x_test, task.y_test, memory))
