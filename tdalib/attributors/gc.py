"""Grad-Cos."""

from collections.abc import Sequence

from torch import Tensor

from tdalib.attributors.gradients import loss_gradients, norms, pairwise
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
    products = summed(pairwise(train, test), removed, asked)  # (removal, test)
    if of_single_points(removed):
        lengths = summed(norms(train), removed, asked)  # (removal,)
    else:
        gram = summed(pairwise(train, train), removed, asked).double()  # (removal, asked)
        lengths = summed(gram.T, removed, asked).diagonal().clamp(min=0).sqrt()
    lengths = lengths[:, None] * norms(test)
    return (products / lengths).where(lengths > 0, 0).to(products.dtype)
