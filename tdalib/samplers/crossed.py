"""Crossed ensembles: every initialisation with every batch order, so that their shares of Var(τ) can be told apart."""

from math import isqrt

from tdalib import models
from tdalib.data import Task
from tdalib.samplers.deep_ensemble import train_member
from tdalib.samplers.posterior import Member, Posterior, register
from tdalib.training import Recipe


@register("crossed")
def crossed(
    model,
    task: Task,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    members: int = 25,
    checkpoints: int = 5,
    seed: int = 0,
    inits: int | None = None,
    stack: int | None = None,
) -> Posterior:
    """Crossed ensemble: a grid of `inits` initialisations × members / inits batch orders, one training each.

    Member i·(batch orders) + b is trained from initialisation i in batch order b; those with i = b are the members of
    `deep_ensemble`. `stats.variance_components` splits the variance of its τ.

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
    members, checkpoints : int
        Trainings in all, and draws kept of each: θ after each of its last epochs.
    inits : int, optional
        By default the square root of `members`.
    stack : int, optional
        As in `deep_ensemble`.

    Source: the two-way layout with random effects, Searle, Casella and McCulloch 1992, Variance Components, chapter 4.
    """
    inits = max(2, isqrt(members)) if inits is None else inits
    if inits < 2 or members % inits or members // inits < 2:
        raise ValueError(
            f"members: {members} is no grid of {inits} initialisations × batch orders, 2 of each or more; "
            "take a square number, or set inits to a divisor"
        )
    orders = members // inits
    runs = tuple(Member.of(seed, k, init=k // orders, batch=k % orders) for k in range(members))
    return Posterior(task, models.get(model), recipe, runs, checkpoints, run=train_member, stack=stack)
