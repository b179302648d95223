"""SWAG: a Gaussian fitted to the last epochs of a training."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from tdalib import models
from tdalib.data import Task
from tdalib.samplers.deep_ensemble import train_member
from tdalib.samplers.posterior import NOISE, Draw, Member, Posterior, derive_seed, register, standard_normals
from tdalib.training import Recipe, Theta


@register("swag")
def swag(
    model,
    task: Task,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    members: int = 10,
    checkpoints: int = 5,
    seed: int = 0,
    collect: int = 10,
    stack: int | None = None,
) -> Posterior:
    """SWAG: θ ~ N(θ̄, ½ Σ_diag + ½ D Dᵀ / (K − 1)), from θ after each of the last K epochs of a member's training.

    θ̄ is their mean, Σ_diag their variances, and the columns of D are their deviations from θ̄: all of them, so the low
    rank is K − 1. Maddox et al. collect along SGD at a constant rate and take deviations from the running mean; here
    the training is the recipe's (Adam), and the mean is the final one.

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
    members, checkpoints : int
        Trainings, each from another initialisation in another batch order, and draws from the Gaussian of each.
    collect : int
        K, at least 2.
    stack : int, optional
        As in `deep_ensemble`.

    Without a point the member is trained again without it, and the Gaussian's draws have the same standard normals.

    Source: Maddox et al. 2019, arXiv:1902.02476, equation 1 and algorithm 1.
    """
    if not 2 <= collect <= recipe.epochs:
        raise ValueError(f"collect: {collect} is not possible; it must be from 2 to the {recipe.epochs} epochs")
    runs = tuple(Member.of(seed, k) for k in range(members))
    known = {"options": {"collect": collect}, "kind": "independent", "stack": stack}
    return Posterior(task, models.get(model), recipe, runs, checkpoints, run=run_swag, **known)


def run_swag(posterior: Posterior, member: Member, without: Sequence[int | None], *, collect) -> Iterator[list[Draw]]:
    """One member: a training and draws from the Gaussian fitted to its end, once for each entry of `without`."""
    kept = min(collect, posterior.recipe.epochs)  # a trial run has fewer epochs
    for draws in train_member(replace(posterior, checkpoints=kept, kind="epochs"), member, without):
        stream = torch.Generator().manual_seed(derive_seed(member.batch_seed, 0, NOISE))
        thetas = gaussian([draw.theta for draw in draws], posterior.checkpoints, stream)
        yield posterior.around(draws[-1], thetas)


def gaussian(trajectory: list[Theta], count: int, stream: torch.Generator) -> Iterator[Theta]:
    """`count` draws from the SWAG Gaussian of a trajectory: θ̄ + √½ σ z₁ + D z₂ / √(2 (K − 1)), (P,) each."""
    stacked = {name: torch.stack([theta[name] for theta in trajectory]) for name in trajectory[0]}  # (K, ...)
    mean = {name: values.mean(0) for name, values in stacked.items()}
    deviations = {name: values - mean[name] for name, values in stacked.items()}
    spread = {name: apart.square().mean(0).sqrt() for name, apart in deviations.items()}
    rank = max(1, len(trajectory) - 1)
    for _ in range(count):
        z1 = standard_normals(mean, stream)
        (z2,) = standard_normals({"": next(iter(stacked.values())).flatten(1)[:, 0]}, stream).values()  # (K,)
        yield {
            name: centre
            + spread[name] * z1[name] / 2**0.5
            + torch.tensordot(z2, deviations[name], 1) / (2 * rank) ** 0.5
            for name, centre in mean.items()
        }
