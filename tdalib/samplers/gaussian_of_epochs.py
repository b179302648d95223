"""SWAG: a Gaussian fitted to the last epochs of a training."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tdalib.networks import Theta
from tdalib.options import Count
from tdalib.samplers.draw import Draw
from tdalib.samplers.ensemble import train_member
from tdalib.samplers.posterior import (
    NOISE,
    Member,
    Posterior,
    derive_seed,
    register,
    standard_normals,
)


@register("swag")
def swag(
    posterior: Posterior,
    *,
    collect: Annotated[Count, Field(ge=2)] = 10,
) -> Posterior:
    """SWAG: θ ~ N(θ̄, ½ Σ_diag + ½ D Dᵀ / (K − 1)), from θ after each of the last K epochs of a member's training.

    θ̄ is their mean, Σ_diag their variances, and the columns of D are their deviations from θ̄: all of them, so the low
    rank is K − 1. Maddox et al. collect along SGD at a constant rate and take deviations from the running mean; here
    the training is the recipe's, and the mean is the final one.

    Parameters
    ----------
    collect : int
        K, at least 2.

    Under other weights the member is trained again, and the Gaussian's draws have the same standard normals.

    Source: Maddox et al. 2019, arXiv:1902.02476, equation 1 and algorithm 1.
    """
    epochs = posterior.recipe.epochs
    if collect > epochs:
        raise ValueError(f"collect: {collect} is not possible; it must be from 2 to the {epochs} epochs")
    return replace(posterior, sample=run_swag, options={"collect": collect}, kind="independent")


def run_swag(posterior: Posterior, member: Member, weights: Tensor, *, collect) -> Iterator[list[Draw]]:
    """One member: a training and draws from the Gaussian fitted to its end, once for each row of `weights`."""
    kept = min(collect, posterior.recipe.epochs)  # a trial run has fewer epochs
    for draws in train_member(replace(posterior, checkpoints=kept, kind="epochs"), member, weights):
        stream = torch.Generator().manual_seed(derive_seed(member.batch_seed, 0, NOISE))
        thetas = gaussian([draw.theta for draw in draws], posterior.checkpoints, stream)
        yield posterior.around(draws[-1], thetas)


def gaussian(trajectory: list[Theta], count: int, stream: torch.Generator) -> Iterator[Theta]:
    """`count` draws from the SWAG Gaussian of a trajectory: θ̄ + √½ σ z₁ + D z₂ / √(2 (K − 1)), (P,) each."""
    mean, deviations, spread = {}, {}, {}
    for name in trajectory[0]:
        values = torch.stack([theta[name] for theta in trajectory])  # (K, ...)
        mean[name] = values.mean(0)
        deviations[name] = values - mean[name]
        spread[name] = deviations[name].square().mean(0).sqrt()
    rank = max(1, len(trajectory) - 1)
    for _ in range(count):
        z1 = standard_normals(mean, stream)
        z2 = torch.empty(len(trajectory), dtype=values.dtype).normal_(generator=stream).to(values.device)  # (K,)
        diagonal = {name: spread[name] * z1[name] / 2**0.5 for name in mean}
        low_rank = {name: torch.tensordot(z2, deviations[name], 1) / (2 * rank) ** 0.5 for name in mean}
        yield {name: centre + diagonal[name] + low_rank[name] for name, centre in mean.items()}
