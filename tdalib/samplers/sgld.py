"""SGLD: stochastic-gradient Langevin dynamics around a trained mode."""

from collections.abc import Iterator, Sequence

from tdalib import models
from tdalib.data import Task
from tdalib.samplers.chain import check_chain, run_chains
from tdalib.samplers.posterior import Draw, Member, Posterior, register
from tdalib.training import Recipe, Theta


@register("sgld")
def sgld(
    model,
    task: Task,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    members: int = 10,
    checkpoints: int = 20,
    seed: int = 0,
    step_size: float = 1e-5,
    temperature: float = 1.0,
    burn_in: int = 10,
    thin: int = 10,
) -> Posterior:
    """SGLD: θ ← θ − (ε/2) ∇Û(θ) + √(ε T) ξ, ξ ~ N(0, I), from the mode that a member's training finds.

    ∇Û is the gradient of the potential on a minibatch, scaled to n points, with the recipe's weight decay λ as a prior
    of precision n λ (`chain.potential_gradient`). For small ε the chain's law is p(θ|D)^(1/T)
    in the long run: directions that the data leave free take 2 / (ε n λ) steps, and a shorter chain explores the
    neighbourhood of its mode.

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
    members, checkpoints : int
        Chains, each from another initialisation in another batch order, and draws kept of each.
    step_size : float
        ε, in units of θ² (U has none).
    temperature : float
        T; 1 is the posterior, smaller is closer to the mode, 0 adds no noise.
    burn_in, thin : int
        Epochs that are let go at the start, and epochs to the first draw and from one to the next.

    Without a point the mode is trained again without it, and the chain has weight 0 on it, the same batches and noise.

    Source: Welling and Teh 2011, ICML; of temperatures, Wenzel et al. 2020, arXiv:2002.02405.
    """
    check_chain(step_size, temperature, burn_in, thin)
    runs = tuple(Member.of(seed, k) for k in range(members))
    options = {"step_size": step_size, "temperature": temperature, "burn_in": burn_in, "thin": thin}
    return Posterior(task, models.get(model), recipe, runs, checkpoints, run=run_sgld, options=options, kind="chain")


def run_sgld(
    posterior: Posterior, member: Member, without: Sequence[int | None], *, step_size, temperature, **epochs
) -> Iterator[list[Draw]]:
    """One member: a training and a chain from its end, once for each entry of `without`."""

    def update(gradient: Theta, noise: Theta) -> Theta:
        spread = (step_size * temperature) ** 0.5
        return {name: spread * noise[name] - step_size / 2 * g for name, g in gradient.items()}

    return run_chains(posterior, member, without, lambda: update, **epochs)
