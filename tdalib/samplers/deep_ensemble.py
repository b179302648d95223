"""Deep ensembles: train again from another initialisation, in another batch order, or both."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from tdalib import models
from tdalib.data import Task
from tdalib.samplers.posterior import Draw, Member, Posterior, register
from tdalib.stacked import train_stack
from tdalib.training import Recipe, batch_order, train


@register("deep_ensemble")
def deep_ensemble(
    model,
    task: Task,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    members: int = 10,
    checkpoints: int = 5,
    seed: int = 0,
    vary: Literal["init", "batch", "both"] = "both",
    stack: int | None = None,
) -> Posterior:
    """Deep ensemble: each member is one training; θ after each of its last epochs is a draw (the paper's SWA).

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
    members, checkpoints : int
        Independent trainings, and draws kept of each.
    vary : {"init", "batch", "both"}
        What differs between members: the initialisation, the batch order, or both.
    stack : int, optional
        Retrainings that are trained as one stack with `torch.func.vmap`, faster on a GPU and slower on a CPU; 1: one by
        one. By default 1 on a CPU and 100 on a GPU. `attribute` makes stacks of whole blocks of 25, and of θ itself.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474; with checkpoints, Nguyen et al. 2023, arXiv:2305.19765.
    """
    if vary not in ("init", "batch", "both"):
        raise ValueError(f"vary {vary!r} is not known; choose from init, batch, both")
    shared = {"init": {"batch": 0}, "batch": {"init": 0}, "both": {}}[vary]
    runs = tuple(Member.of(seed, k, **shared) for k in range(members))
    return Posterior(task, models.get(model), recipe, runs, checkpoints, run=train_member, stack=stack)


def train_member(posterior: Posterior, member: Member, without: Sequence[int | None]) -> Iterator[list[Draw]]:
    """Train one member from its own initialisation in its own batch order, once for each entry of `without`."""
    task, recipe = posterior.task, posterior.recipe
    model = posterior.model(task, member.init_seed)
    trainer = train if posterior.stacked == 1 else train_stack
    runs = trainer(
        model,
        task.x_train,
        task.y_train,
        recipe,
        batch_order(len(task.x_train), recipe, member.batch_seed),
        seed=member.batch_seed,
        without=without,
        keep=posterior.checkpoints,
    )
    for thetas in runs:
        yield [
            Draw(theta, model, recipe, member.index, epoch, member.init_seed, member.batch_seed)
            for epoch, theta in zip(posterior.numbers, thetas, strict=True)
        ]


def modes(posterior: Posterior, member: Member, without: Sequence[int | None]) -> Iterator[Draw]:
    """θ after the last epoch of the same trainings, one for each entry of `without`: where local samplers start."""
    trained = replace(posterior, checkpoints=1, kind="epochs")
    return (draws[0] for draws in train_member(trained, member, without))
