"""Grad-Dot."""

from collections.abc import Sequence

from torch import Tensor

from tdalib.attributors.gradients import loss_gradients, pairwise
from tdalib.attributors.methods import asked_about, register, summed
from tdalib.data import Task
from tdalib.options import Positive
from tdalib.samplers import Draw


@register("gd", unit="{loss} / learning rate", sets="own")
def grad_dot(draw: Draw, task: Task, removed: Sequence | None = None, *, memory: Positive = 1.0) -> Tensor:
    """Grad-Dot: τ(z_j, z) = ∇L(z)·∇L(z_j).   (train, test), loss per unit of learning rate.

    Positive: a gradient step on z_j lowers the loss at z. Of a set it is the sum over its points.

    Parameters
    ----------
    memory : float
        GB that gradients take at a time; with less they are made in smaller blocks, and anew for every block of z_j.

    Source: Charpiat et al. 2019, arXiv:2102.05262; one checkpoint of TracIn, Pruthi et al. 2020, arXiv:2002.08484.
    """
    asked = asked_about(removed, len(task.train))
    train = loss_gradients(draw, task.train[asked], memory)
    test = loss_gradients(draw, task.test, memory)
    return summed(pairwise(train, test), removed, asked).to(task.train.dtype)
