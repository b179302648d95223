"""Ensembles: train again from another initialisation, in another batch order, or on a grid of both."""

from dataclasses import replace
from math import isqrt
from typing import Literal

from tdalib.options import Count
from tdalib.samplers.posterior import Member, Posterior, register


@register("deep_ensemble")
def deep_ensemble(posterior: Posterior, *, vary: Literal["init", "batch", "both"] = "both") -> Posterior:
    """Deep ensemble: each member is one training; θ after each of its last epochs is a draw (the paper's SWA).

    Parameters
    ----------
    vary : {"init", "batch", "both"}
        What differs between members: the initialisation, the batch order, or both.

    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474; with checkpoints, Nguyen et al. 2023, arXiv:2305.19765.
    """
    shared = {"init": {"batch": 0}, "batch": {"init": 0}, "both": {}}[vary]
    members = tuple(Member.of(posterior.seed, k, **shared) for k in range(len(posterior.members)))
    return replace(posterior, members=members, sample=Posterior.trained)


@register("crossed")
def crossed(posterior: Posterior, *, inits: Count | None = None) -> Posterior:
    """Crossed ensemble: a grid of `inits` initialisations × members / inits batch orders, one training each.

    Member i·(batch orders) + b is trained from initialisation i in batch order b; those with i = b are the members of
    `deep_ensemble`. `stats.variance_components` splits the variance of its τ.

    Parameters
    ----------
    inits : int, optional
        By default the square root of `members`.

    Raises
    ------
    ValueError
        The members do not fill a grid.

    Source: the two-way layout with random effects, Searle, Casella and McCulloch 1992, Variance Components, chapter 4.
    """
    count = len(posterior.members)
    inits = max(2, isqrt(count)) if inits is None else inits
    if inits < 2 or count % inits or count // inits < 2:
        raise ValueError(f"members: {count} is no grid of {inits} inits × batch orders, each 2 or more; set inits")
    orders = count // inits
    grid = tuple(Member.of(posterior.seed, k, init=k // orders, batch=k % orders) for k in range(count))
    return replace(posterior, members=grid, sample=Posterior.trained)
