"""Crossed ensembles: every initialisation with every batch order, so that their shares of Var(τ) can be told apart."""

from dataclasses import replace
from math import isqrt

from tdalib.options import Count
from tdalib.samplers.ensemble import train_member
from tdalib.samplers.posterior import Member, Posterior, register


@register("crossed")
def crossed(posterior: Posterior, *, inits: Count | None = None) -> Posterior:
    """Crossed ensemble: a grid of `inits` initialisations × members / inits batch orders, one training each.

    Member i·(batch orders) + b is trained from initialisation i in batch order b; those with i = b are the members of
    `deep_ensemble`. `stats.variance_components` splits the variance of its τ.

    Parameters
    ----------
    inits : int, optional
        By default the square root of `members`.

    Source: the two-way layout with random effects, Searle, Casella and McCulloch 1992, Variance Components, chapter 4.
    """
    count = len(posterior.members)
    inits = max(2, isqrt(count)) if inits is None else inits
    if inits < 2 or count % inits or count // inits < 2:
        raise ValueError(
            f"members: {count} is no grid of {inits} initialisations × batch orders, 2 of each or more; "
            "take a square number, or set inits to a divisor"
        )
    orders = count // inits
    grid = tuple(Member.of(posterior.seed, k, init=k // orders, batch=k % orders) for k in range(count))
    return replace(posterior, members=grid, sample=train_member)
