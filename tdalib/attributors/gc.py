"""Grad-Cos."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tdalib.attributors.gradients import cosines, loss_gradients
from tdalib.attributors.methods import asked_about, of_single_points, register, summed
from tdalib.data import Task
from tdalib.options import Positive
from tdalib.samplers import Draw


@register("gc", unit="cosine", sets="own")
def grad_cos(draw: Draw, task: Task, removed: Sequence | None = None, *, memory: Positive = 1.0) -> Tensor:
    """Grad-Cos: τ(z_j, z) = ∇L(z)·∇L(z_j) / (‖∇L(z)‖ ‖∇L(z_j)‖).   (train, test), from −1 to 1.

    Positive: a gradient step on z_j lowers the loss at z. A point whose gradient is exactly zero has τ = 0. Of a set it
    is the cosine with the sum of its points' gradients.

    Parameters
    ----------
    memory : float
        GB that gradients take at a time; with less they are made in smaller blocks, and anew for every block of z_j.

    Source: Charpiat et al. 2019, arXiv:2102.05262.
    """
    asked = asked_about(removed, len(task.train))
    train, test = loss_gradients(draw, task.train[asked], memory), loss_gradients(draw, task.test, memory)
    found = cosines(train, test)  # (asked, test)
    if of_single_points(removed):
        return summed(found, removed, asked)
    weight = (train.lengths / train.lengths.max().clamp(min=torch.finfo(torch.float64).tiny))[:, None]
    gram = summed(cosines(train, train) * weight * weight.T, removed, asked)  # (removal, asked)
    lengths = summed(gram.T, removed, asked).diagonal().clamp(min=0).sqrt()[:, None]  # of sums, (removal, 1)
    return (summed(found * weight, removed, asked) / lengths).where(lengths > 0, 0).to(task.train.dtype)
