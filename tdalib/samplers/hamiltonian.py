"""SGHMC: stochastic-gradient Hamiltonian Monte Carlo around a trained mode."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from tdalib.networks import Theta
from tdalib.options import Count, Natural, NonNegative, Positive
from tdalib.samplers.chains import run_chains
from tdalib.samplers.draw import Draw
from tdalib.samplers.posterior import Member, Posterior, register


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
        T; 1 is the posterior, smaller is closer to the mode, 0 adds no noise.
    burn_in, thin : int
        Epochs that are let go at the start, and epochs to the first draw and from one to the next.

    Under other weights the mode is trained again, and the chain has the same weights, batches and noise.

    Source: Chen, Fox and Guestrin 2014, arXiv:1402.4102, equation 15, without an estimate of the gradients' noise.
    """
    posterior.recipe.l2("sampler 'sghmc'")
    options = {"step_size": step_size, "friction": friction, "temperature": temperature}
    options |= {"burn_in": burn_in, "thin": thin}
    return replace(posterior, sample=run_sghmc, options=options, kind="chain")


def run_sghmc(
    posterior: Posterior, member: Member, weights: Tensor, *, step_size, friction, temperature, **epochs
) -> Iterator[list[Draw]]:
    """One member: a training and a chain from its end, once for each row of `weights`."""

    def updates():
        velocity: Theta = {}

        def update(gradient: Theta, noise: Theta) -> Theta:
            spread = (2 * friction * step_size * temperature) ** 0.5
            for name, g in gradient.items():
                before = velocity.get(name, 0.0)
                velocity[name] = (1 - friction) * before - step_size * g + spread * noise[name]
            return velocity

        return update

    return run_chains(posterior, member, weights, updates, **epochs)
