"""ATS: one more training step, or several."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tdalib.attributors.methods import register
from tdalib.data import Task
from tdalib.options import Count
from tdalib.samplers import Draw


@register("ats", unit="{loss}", sets="own")
def one_more_step(draw: Draw, task: Task, removed: Sequence | None = None, *, steps: Count = 1) -> Tensor:
    """ATS: τ(z_j, z) = L(z; θ) − L(z; θ₊j), θ₊j after steps of the recipe on z_j alone.   (train, test), loss.

    The optimiser starts afresh, so in one step of Adam every parameter moves by about the learning rate: the recipe's,
    whatever its schedule. The model is in eval mode. Positive: training on z_j lowers the loss at z. Of a set the steps
    are on its mean loss; an empty one makes none.

    Parameters
    ----------
    steps : int
        How many steps are taken on z_j, one after another; the paper takes one.

    Raises
    ------
    ValueError
        The recipe of the training is not known.

    Source: Nguyen et al. 2023, arXiv:2305.19765, section 3.
    """
    if draw.recipe is None:
        raise ValueError("ats: a step needs the training's recipe, which is not known; give it to from_checkpoints")
    before = draw.losses(task.test)
    removed = [[j] for j in range(len(task.train))] if removed is None else removed
    tau = before.new_zeros(len(removed), len(before), dtype=task.train.dtype)
    for k, points in enumerate(removed):
        if len(points):
            batch = task.train[points]
            stepped = replace(draw, theta={name: p.clone().requires_grad_() for name, p in draw.theta.items()})
            optimizer = draw.recipe.start(stepped.theta.values())
            for _ in range(steps):
                optimizer.zero_grad()
                draw.objective.loss(stepped(batch.inputs), batch.targets).mean().backward()
                optimizer.step()
            tau[k] = before - stepped.losses(task.test)
    return tau
