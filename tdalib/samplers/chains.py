"""What Langevin samplers share: the potential of the posterior, the way along it, and the start at a trained mode."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tdalib.data import Task
from tdalib.networks import Theta
from tdalib.samplers.draw import Draw
from tdalib.samplers.ensemble import modes
from tdalib.samplers.posterior import NOISE, Member, Posterior, derive_seed, standard_normals
from tdalib.training import batch_order

Update = Callable[[Theta, Theta], Theta]  # (∇Û, standard normals) → the step of θ


def run_chains(
    posterior: Posterior,
    member: Member,
    weights: Tensor,
    updates: Callable[[], Update],
    *,
    burn_in: int,
    thin: int,
) -> Iterator[list[Draw]]:
    """A chain from each trained mode; after `burn_in` epochs one draw every `thin`, in equal batches and noise."""
    recipe, task = replace(posterior.recipe, epochs=burn_in + thin * posterior.checkpoints), posterior.task
    batches = batch_order(len(task.train), recipe, derive_seed(member.batch_seed, 0, NOISE))
    seed = derive_seed(member.batch_seed, 1, NOISE)
    for weight, mode in zip(weights, modes(posterior, member, weights), strict=True):
        walk = chain(mode, task, batches, updates(), weight, seed=seed, renormalise=posterior.renormalise)
        kept = [theta for epoch, theta in enumerate(walk, start=1 - burn_in) if epoch > 0 and epoch % thin == 0]
        yield posterior.around(mode, kept)


def chain(
    mode: Draw,
    task: Task,
    batches: list[list[Tensor]],
    update: Update,
    weight: Tensor,
    *,
    seed: int,
    renormalise: bool = False,
) -> Iterator[Theta]:
    """θ after each epoch of `batches`, from the θ of `mode` on; the noise of a step follows from `seed`."""
    stream = torch.Generator().manual_seed(seed)
    theta = mode.theta
    for epoch in batches:
        for batch in epoch:
            gradient = potential_gradient(mode, theta, task, batch, weight, renormalise)
            noise = standard_normals(theta, stream)
            step = update(gradient, noise)
            theta = {name: p.clone().add_(step[name]) for name, p in theta.items()}  # a sum may change the layout
        yield theta


def potential_gradient(
    draw: Draw, theta: Theta, task: Task, batch: Tensor, weight: Tensor, renormalise: bool = False
) -> Theta:
    """∇Û(θ) = (n / |B|) Σ_{i ∈ B} w_i ∇L(z_i) + n λ θ, an unbiased estimate of ∇U by a batch B of the n train points.

    U(θ) = Σ_i w_i L(z_i) + (n λ / 2) ‖θ‖² is −log p(θ|D) up to a constant: n times what the recipe minimises, so that
    its weight decay λ is a Gaussian prior of precision n λ. The network is in eval mode. A point of weight 0 leaves the
    sum alone, and still counts in n and |B|: neither the prior nor the weight of another point changes. With
    `renormalise` |B| is the batch's kept weight.
    """
    n, decay = len(task.train), len(task.train) * draw.recipe.weight_decay
    kept = batch[weight[batch] != 0]
    if not len(kept):  # many layers refuse an empty batch
        return {name: decay * p for name, p in theta.items()}
    live = {name: p.detach().requires_grad_() for name, p in theta.items()}
    points, of_kept = task.train[kept], weight[kept].to(task.train.device, task.train.dtype)
    loss = (of_kept * task.objective.loss(draw.outputs(live, points.inputs), points.targets)).sum()
    divisor = float(of_kept.sum()) if renormalise else len(batch)
    gradients = torch.autograd.grad(loss * (n / divisor), list(live.values()))
    return {name: g + decay * theta[name] for name, g in zip(theta, gradients, strict=True)}
