"""What Langevin samplers share: the potential of the posterior, the way along it, and the start at a trained mode."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call

from tdalib.data import Task
from tdalib.samplers.deep_ensemble import modes
from tdalib.samplers.posterior import (
    NOISE,
    Draw,
    Member,
    Posterior,
    check_temperature,
    derive_seed,
    standard_normals,
)
from tdalib.training import Theta, batch_order, point_losses

Update = Callable[[Theta, Theta], Theta]  # (∇Û, standard normals) → the step of θ


def run_chains(
    posterior: Posterior,
    member: Member,
    without: Sequence[int | None],
    updates: Callable[[], Update],
    *,
    burn_in: int,
    thin: int,
) -> Iterator[list[Draw]]:
    """A chain from each trained mode; after `burn_in` epochs one draw every `thin`, in equal batches and noise."""
    recipe = replace(posterior.recipe, epochs=burn_in + thin * posterior.checkpoints)
    batches = batch_order(len(posterior.task.x_train), recipe, derive_seed(member.batch_seed, 0, NOISE))
    for j, mode in zip(without, modes(posterior, member, without), strict=True):
        walk = chain(mode, posterior.task, batches, updates(), seed=derive_seed(member.batch_seed, 1, NOISE), without=j)
        kept = [theta for epoch, theta in enumerate(walk, start=1 - burn_in) if epoch > 0 and epoch % thin == 0]
        yield posterior.around(mode, kept)


def chain(
    mode: Draw, task: Task, batches: list[list[Tensor]], update: Update, *, seed: int, without: int | None = None
) -> Iterator[Theta]:
    """θ after each epoch of `batches`, from the θ of `mode` on; the noise of a step follows from `seed`."""
    stream = torch.Generator().manual_seed(seed)
    theta = mode.theta
    for epoch in batches:
        for batch in epoch:
            gradient = potential_gradient(mode, theta, task, batch, without)
            noise = standard_normals(theta, stream)
            step = update(gradient, noise)
            theta = {name: p.clone().add_(step[name]) for name, p in theta.items()}  # a sum may change the layout
        yield theta


def potential_gradient(draw: Draw, theta: Theta, task: Task, batch: Tensor, without: int | None = None) -> Theta:
    """∇Û(θ) = (n / |B|) Σ_{i ∈ B} ∇L(z_i) + n λ θ, an unbiased estimate of ∇U by a batch B of the n train points.

    U(θ) = Σ_i L(z_i) + (n λ / 2) ‖θ‖² is −log p(θ|D) up to a constant: n times what the recipe minimises, so that its
    weight decay λ is a Gaussian prior of precision n λ. The network is in eval mode. A point that is left out leaves
    the sum alone, and still counts in n and |B|: neither the prior nor the weight of another point changes.
    """
    n = len(task.x_train)
    rest = batch if without is None else batch[batch != without]
    live = {name: p.detach().requires_grad_() for name, p in theta.items()}
    decay = n * draw.recipe.weight_decay
    if not len(rest):  # the point was alone in its batch; many layers refuse an empty one
        return {name: decay * p for name, p in theta.items()}
    loss = point_losses(functional_call(draw.model, live, (task.x_train[rest],)), task.y_train[rest]).sum()
    gradients = torch.autograd.grad(loss * (n / len(batch)), list(live.values()))
    return {name: g + decay * theta[name] for name, g in zip(theta, gradients, strict=True)}


def check_chain(step_size: float, temperature: float, burn_in: int, thin: int) -> None:
    """Refuse what no chain can have."""
    if not 0 < step_size < float("inf"):
        raise ValueError(f"step_size: {step_size} is not possible; it must be above 0")
    check_temperature(temperature)
    for key, value, least in (("burn_in", burn_in, 0), ("thin", thin, 1)):
        if not value >= least:
            raise ValueError(f"{key}: {value} is not possible; it must be at least {least}")
