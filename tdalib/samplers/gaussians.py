"""SWAG and Laplace: a Gaussian around a trained mode, from the last epochs of the training or from the curvature."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from tdalib.data import Points
from tdalib.networks import Theta, state_of, trainable
from tdalib.options import Count, NonNegative
from tdalib.samplers.draw import Draw, Draws
from tdalib.samplers.posterior import NOISE, Member, Posterior, derive_seed, register, standard_normals
from tdalib.training import known

FIT_BATCH = {"full": 32, "kron": 32, "diag": 4}  # points; the Jacobians that "diag" forms stay in the cache

MOST = 5_000  # weights for which the full matrix is made and its root taken, about a minute


@register("swag")
def swag(posterior: Posterior, *, collect: Annotated[Count, Field(ge=2)] = 10) -> Posterior:
    """SWAG: θ ~ N(θ̄, ½ Σ_diag + ½ D Dᵀ / (K − 1)), from θ after each of the last K epochs of a member's training.

    θ̄ is their mean, Σ_diag their variances, and the columns of D are their deviations from θ̄: all of them, so the low
    rank is K − 1. Maddox et al. collect along SGD at a constant rate and take deviations from the running mean; here
    the training is the recipe's, and the mean is the final one.

    Parameters
    ----------
    collect : int
        K, at least 2.

    Under other weights the member is trained again, and the Gaussian's draws have the same standard normals.

    Raises
    ------
    ValueError
        Fewer epochs than are collected.

    Source: Maddox et al. 2019, arXiv:1902.02476, equation 1 and algorithm 1.
    """
    epochs = known(posterior.recipe).epochs
    if collect > epochs:
        raise ValueError(f"collect: {collect} is not possible; it must be from 2 to the {epochs} epochs")
    return replace(posterior, sample=run_swag, options={"collect": collect}, kind="independent")


def run_swag(posterior: Posterior, member: Member, weights: Tensor, *, collect: int) -> Draws:
    """One member: a training and draws from the Gaussian fitted to its end, once for each row of `weights`."""
    kept = min(collect, known(posterior.recipe).epochs)  # a trial run has fewer epochs
    for draws in replace(posterior, checkpoints=kept, kind="epochs").trained(member, weights):
        stream = torch.Generator().manual_seed(derive_seed(member.batch_seed, 0, NOISE))
        thetas = gaussian([draw.theta for draw in draws], posterior.checkpoints, stream)
        yield posterior.around(draws[-1], thetas)


def gaussian(trajectory: list[Theta], count: int, stream: torch.Generator) -> Iterator[Theta]:
    """`count` draws from the SWAG Gaussian of a trajectory: θ̄ + √½ σ z₁ + D z₂ / √(2 (K − 1)), (P,) each."""
    values = {name: torch.stack([theta[name] for theta in trajectory]) for name in trajectory[0]}  # (K, ...)
    mean = {name: of_each.mean(0) for name, of_each in values.items()}
    spread = {name: of_each.std(0, correction=0) for name, of_each in values.items()}
    deviations = {name: of_each - mean[name] for name, of_each in values.items()}
    like, rank = next(iter(mean.values())), max(1, len(trajectory) - 1)
    for _ in range(count):
        z1 = standard_normals(mean, stream)
        z2 = torch.randn(len(trajectory), dtype=like.dtype, generator=stream).to(like.device)  # (K,)
        diagonal = {name: spread[name] * z1[name] / 2**0.5 for name in mean}
        low_rank = {name: torch.tensordot(z2, deviations[name], 1) / (2 * rank) ** 0.5 for name in mean}
        yield {name: centre + diagonal[name] + low_rank[name] for name, centre in mean.items()}


@register("laplace")
def laplace(
    posterior: Posterior,
    *,
    subset: Literal["last_layer", "all"] = "last_layer",
    structure: Literal["full", "kron", "diag"] = "full",
    temperature: NonNegative = 1.0,
) -> Posterior:
    """Laplace: θ ~ N(θ*, T (n (H + λI))⁻¹) at the mode θ* that a member's training finds, by laplace-torch.

    H is the generalised Gauss–Newton matrix of the mean loss, n λ the precision of the prior. It covers the last layer
    alone (the rest of θ stays at the mode) or all trained weights. The Gauss–Newton matrix is the Hessian for models
    linear in θ and at an optimum; training stops before one, so θ* is its centre, not a maximum. The weight decay of
    the default recipe is so weak a prior that draws at T = 1 have losses of many nats, over all weights more than over
    the last layer; T = 0.01 and less stays near the mode.

    Parameters
    ----------
    subset : {"last_layer", "all"}
        Weights that vary.
    structure : {"full", "kron", "diag"}
        Of the matrix. "full" holds P × P numbers for P weights, at most 5,000; "kron" and "diag" approximate it by
        Kronecker factors of each layer and by its diagonal.
    temperature : float
        T scales the covariance; 0 gives the mode.

    Without a point the mode is trained again and H made without it; the standard normals are the same
    (those of a GPU differ from a CPU's).

    Raises
    ------
    ValueError
        laplace-torch is not installed or does not know the objective, or the recipe has no weight decay that is an L2
        term; in a run, too many weights for "full", or points that are weighed other than 0 and 1.

    Source: MacKay 1992, Neural Computation 4:448; Daxberger et al. 2021, arXiv:2106.14806.
    """
    if find_spec("laplace") is None:
        raise ValueError("sampler 'laplace' needs the package laplace-torch: pip install 'tdalib[posteriors]'")
    if known(posterior.recipe).l2("sampler 'laplace'") == 0:
        raise ValueError("weight_decay: 0 leaves laplace without a prior; it must be above 0")
    if posterior.task.objective.likelihood is None:
        raise ValueError(f"laplace: objective {posterior.task.objective.name!r} has no likelihood; register one")
    options = {"subset": subset, "structure": structure, "temperature": temperature}
    return replace(posterior, sample=run_laplace, options=options, kind="independent")


def run_laplace(posterior: Posterior, member: Member, weights: Tensor, *, temperature: float, **shape: str) -> Draws:
    """One member: a training and draws from the Gaussian at its end, once for each row of `weights`."""
    task = posterior.task
    for weight, mode in zip(weights, posterior.modes(member, weights), strict=True):
        if not set(weight.unique().tolist()) <= {0.0, 1.0}:
            raise ValueError("laplace: a point is in the data or not; its weight must be 0 or 1")
        left = weight.nonzero()[:, 0]
        counted = len(left) if posterior.renormalise else len(weight)  # n H is that of so many points
        fitted, network, covered = _fit(mode, task.train[left], counted, **shape)
        stream = torch.Generator(task.train.device).manual_seed(derive_seed(member.batch_seed, 0, NOISE))
        drawn = _drawn(fitted, posterior.checkpoints, stream, shape["structure"])
        samples = fitted.mean + (temperature * counted / len(weight)) ** 0.5 * (drawn - fitted.mean)
        thetas = []
        for sample in samples:
            vector_to_parameters(sample, covered)
            thetas.append(state_of(network).theta)
        yield posterior.around(mode, thetas)


def _fit(mode: Draw, points: Points, counted: int, subset: str, structure: str) -> tuple[Any, nn.Module, list[Tensor]]:
    """laplace-torch's posterior at the mode given the points left, a network, and its weights that are covered."""
    network = mode.module().to(memory_format=torch.contiguous_format)  # laplace-torch views parameters flat
    count = sum(p.numel() for p in mode.theta.values())
    if (subset, structure) == ("all", "full") and count > MOST:
        raise ValueError(f"laplace: structure 'full' is for {MOST:,} weights, not {count:,}; choose kron or diag")
    if isinstance(points.inputs, dict):
        raise ValueError("sampler 'laplace': laplace-torch takes inputs of one tensor, not a dict of them")
    given = TensorDataset(points.inputs, points.targets)
    prior = float(counted * known(mode.recipe).weight_decay)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's, of its own torch.jit
        from laplace import Laplace  # takes seconds

        fitted: Any = Laplace(network, str(mode.objective.likelihood), subset, structure, prior_precision=prior)
        fitted.fit(DataLoader(given, FIT_BATCH[structure], generator=torch.Generator()))  # else the global one moves
    if subset == "all":
        return fitted, network, list(trainable(network).values())
    return fitted, fitted.model.model, list(fitted.model.last_layer.parameters())  # of a copy


def _drawn(fitted: Any, count: int, stream: torch.Generator, structure: str) -> Tensor:
    """Draws from a fitted Gaussian, (count, P): mean + Σ^½ z with the symmetric root.

    Without a point Σ changes a little, and Σ^½ with it; a triangular root, as laplace-torch takes of a full matrix,
    changes by more, and by another amount for weights in another order.
    """
    if structure != "full":
        return fitted.sample(count, stream)
    values, vectors = torch.linalg.eigh(fitted.posterior_precision.double())
    z = torch.randn(count, len(values), dtype=torch.float64, generator=stream, device=values.device)
    return fitted.mean + (z @ (vectors * values.rsqrt()) @ vectors.T).to(fitted.mean.dtype)
