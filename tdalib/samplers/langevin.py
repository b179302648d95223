"""SGLD: stochastic-gradient Langevin dynamics around a trained mode."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from tdalib.networks import Theta
from tdalib.options import Count, Natural, NonNegative, Positive
from tdalib.samplers.chains import run_chains
from tdalib.samplers.draw import Draw
from tdalib.samplers.posterior import Member, Posterior, register


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
        T; 1 is the posterior, smaller is closer to the mode, 0 adds no noise.
    burn_in, thin : int
        Epochs that are let go at the start, and epochs to the first draw and from one to the next.

    Under other weights the mode is trained again, and the chain has the same weights, batches and noise.

    Source: Welling and Teh 2011, ICML; of temperatures, Wenzel et al. 2020, arXiv:2002.02405.
    """
    posterior.recipe.l2("sampler 'sgld'")
    options = {"step_size": step_size, "temperature": temperature, "burn_in": burn_in, "thin": thin}
    return replace(posterior, sample=run_sgld, options=options, kind="chain")


def run_sgld(
    posterior: Posterior, member: Member, weights: Tensor, *, step_size, temperature, **epochs
) -> Iterator[list[Draw]]:
    """One member: a training and a chain from its end, once for each row of `weights`."""

    def update(gradient: Theta, noise: Theta) -> Theta:
        spread = (step_size * temperature) ** 0.5
        return {name: spread * noise[name] - step_size / 2 * g for name, g in gradient.items()}

    return run_chains(posterior, member, weights, lambda: update, **epochs)
