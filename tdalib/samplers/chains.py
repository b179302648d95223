"""SGLD and SGHMC: Markov chains along the stochastic gradient, around a trained mode."""

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from tdalib.data import Task
from tdalib.networks import Theta
from tdalib.options import Count, Natural, NonNegative, Positive
from tdalib.samplers.draw import Draw, Draws
from tdalib.samplers.posterior import NOISE, Member, Posterior, derive_seed, register, standard_normals
from tdalib.training import batch_order, known


@register("sgld", checkpoints=20)
def sgld(
    posterior: Posterior,
    *,
    step_size: Positive = 1e-5,
    temperature: NonNegative = 1.0,
    burn_in: Natural = 10,
    thin: Count = 10,
) -> Posterior:
    """SGLD: θ ← θ − (ε/2) ∇Û(θ) + √(ε T) ξ, ξ ~ N(0, I), from the mode that a member's training finds.

    ∇Û is the gradient of the potential on a minibatch, scaled to n points, with the recipe's weight decay λ as a prior
    of precision n λ (`chains.potential_gradient`). For small ε the chain's law is p(θ|D)^(1/T)
    in the long run: directions that the data leave free take 2 / (ε n λ) steps, and a shorter chain explores the
    neighbourhood of its mode.

    Parameters
    ----------
    step_size : float
        ε, in units of θ² (U has none).
    temperature : float
        T scales the noise that is added; 1 is the posterior, smaller is closer to the mode, 0 adds none. That of the
        batches stays: with small ones the chain is wider than p(θ|D)^(1/T).
    burn_in, thin : int
        Epochs that are let go at the start, and epochs to the first draw and from one to the next.

    Under other weights the mode is trained again, and the chain has the same weights, batches and noise.

    Source: Welling and Teh 2011, ICML; of temperatures, Wenzel et al. 2020, arXiv:2002.02405.
    """
    known(posterior.recipe).l2("sampler 'sgld'")
    options = {"step_size": step_size, "temperature": temperature, "burn_in": burn_in, "thin": thin}
    return replace(posterior, sample=run_sgld, options=options, kind="chain")


@register("sghmc", checkpoints=20)
def sghmc(
    posterior: Posterior,
    *,
    step_size: Positive = 1e-6,
    friction: Annotated[Positive, Field(le=1)] = 0.1,
    temperature: NonNegative = 1.0,
    burn_in: Natural = 10,
    thin: Count = 10,
) -> Posterior:
    """SGHMC: v ← (1 − α) v − ε ∇Û(θ) + √(2 α ε T) ξ, θ ← θ + v, ξ ~ N(0, I), from the mode of a member's training.

    ∇Û as in `sgld`: the gradient of the potential on a minibatch, scaled to n points, with the recipe's weight decay λ
    as a prior of precision n λ. v starts at 0. For small ε the law of θ is p(θ|D)^(1/T) in the long run.

    Parameters
    ----------
    step_size : float
        ε, in units of θ² (U has none).
    friction : float
        α, above 0 and at most 1; the momentum lasts for about 1/α steps.
    temperature : float
        T scales the noise that is added; 1 is the posterior, smaller is closer to the mode, 0 adds none. That of the
        batches stays: with small ones the chain is wider than p(θ|D)^(1/T).
    burn_in, thin : int
        Epochs that are let go at the start, and epochs to the first draw and from one to the next.

    Under other weights the mode is trained again, and the chain has the same weights, batches and noise.

    Source: Chen, Fox and Guestrin 2014, arXiv:1402.4102, equation 15, without an estimate of the gradients' noise.
    """
    known(posterior.recipe).l2("sampler 'sghmc'")
    options = dict(step_size=step_size, friction=friction, temperature=temperature, burn_in=burn_in, thin=thin)
    return replace(posterior, sample=run_sghmc, options=options, kind="chain")


def run_sgld(posterior: Posterior, member: Member, weights: Tensor, *, step_size: float, **options: Any) -> Draws:
    """One member: SGHMC with friction 1, which keeps no momentum, at half the step size."""
    return run_sghmc(posterior, member, weights, step_size=step_size / 2, friction=1.0, **options)


def run_sghmc(
    posterior: Posterior, member: Member, weights: Tensor, *,
    step_size: float, friction: float, temperature: float, burn_in: int, thin: int,
) -> Draws:  # fmt: skip
    """One member: a training and a chain from its end, once for each row of `weights`, in equal batches and noise."""
    recipe, task = replace(known(posterior.recipe), epochs=burn_in + thin * posterior.checkpoints), posterior.task
    batches = batch_order(len(task.train), recipe, derive_seed(member.batch_seed, 0, NOISE))
    spread = (2 * friction * step_size * temperature) ** 0.5
    for weight, mode in zip(weights, posterior.modes(member, weights), strict=True):
        stream = torch.Generator().manual_seed(derive_seed(member.batch_seed, 1, NOISE))
        theta, kept = mode.theta, []
        velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
        for epoch, of_epoch in enumerate(batches, start=1 - burn_in):
            for batch in of_epoch:
                gradient = potential_gradient(mode, theta, task, batch, weight, posterior.renormalise)
                noise = standard_normals(theta, stream)
                for name, g in gradient.items():
                    velocity[name] = (1 - friction) * velocity[name] - step_size * g + spread * noise[name]
                theta = {name: p.clone().add_(velocity[name]) for name, p in theta.items()}  # a sum changes the layout
            if epoch > 0 and epoch % thin == 0:
                kept.append(theta)
        yield posterior.around(mode, kept)


def potential_gradient(draw: Draw, theta: Theta, task: Task, batch: Tensor, weight: Tensor, renormalise: bool) -> Theta:
    """∇Û(θ) = (n / |B|) Σ_{i ∈ B} w_i ∇L(z_i) + n λ θ, an unbiased estimate of ∇U by a batch B of the n train points.

    U(θ) = Σ_i w_i L(z_i) + (n λ / 2) ‖θ‖² is −log p(θ|D) up to a constant: n times what the recipe minimises, so that
    its weight decay λ is a Gaussian prior of precision n λ. The network is in eval mode. A point of weight 0 leaves the
    sum alone, and still counts in n and |B|: neither the prior nor the weight of another point changes. With
    `renormalise` |B| is the batch's kept weight.
    """
    n, decay = len(task.train), len(task.train) * known(draw.recipe).weight_decay
    kept = batch[weight[batch] != 0]
    if not len(kept):  # many layers refuse an empty batch
        return {name: decay * p for name, p in theta.items()}
    live = {name: p.detach().requires_grad_() for name, p in theta.items()}
    points, of_kept = task.train[kept], weight[kept].to(task.train.device, task.train.dtype)
    loss = (of_kept * task.objective.loss(draw.outputs(live, points.inputs), points.targets)).sum()
    divisor = float(of_kept.sum()) if renormalise else len(batch)
    gradients = torch.autograd.grad(loss * (n / divisor), list(live.values()), materialize_grads=True)
    # in older versions of torch the zeros of an unused parameter require a gradient
    return {name: g.detach() + decay * theta[name] for name, g in zip(theta, gradients, strict=True)}
