"""ATS: one more training step."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tdalib.attributors.methods import register
from tdalib.data import Points, Task
from tdalib.networks import Theta
from tdalib.samplers import Draw


@register("ats", unit="{loss}", sets="own")
def one_more_step(draw: Draw, task: Task, removed: Sequence | None = None) -> Tensor:
    """ATS: τ(z_j, z) = L(z; θ) − L(z; θ₊j), θ₊j one optimiser step of the recipe on z_j alone.   (train, test), loss.

    The optimiser starts afresh, so with Adam every parameter moves by about the learning rate: the recipe's, whatever
    its schedule. The model is in eval mode. Positive: the step on z_j lowers the loss at z. Of a set the step is on its
    mean loss; an empty one makes none.

    Source: Nguyen et al. 2023, arXiv:2305.19765, section 3.
    """
    if draw.recipe is None:
        raise ValueError(
            "ats: a step needs the recipe of the training, which is not known; give it to from_checkpoints"
        )
    before = draw.losses(task.test)
    removed = [[j] for j in range(len(task.train))] if removed is None else removed
    tau = before.new_zeros(len(removed), len(before), dtype=task.train.dtype)
    for k, points in enumerate(removed):
        if len(points):
            stepped = replace(draw, theta=_step(draw, task.train[points]))
            tau[k] = before - stepped.losses(task.test)
    return tau


def _step(draw: Draw, points: Points) -> Theta:
    theta = {name: p.clone().requires_grad_() for name, p in draw.theta.items()}
    optimizer = draw.recipe.start(theta.values())
    draw.objective.loss(draw.outputs(theta, points.inputs), points.targets).mean().backward()
    optimizer.step()
    return {name: p.detach() for name, p in theta.items()}
