"""SGHMC: stochastic-gradient Hamiltonian Monte Carlo around a trained mode."""

from collections.abc import Iterator, Sequence

from tdalib import models
from tdalib.data import Task
from tdalib.samplers.chain import check_chain, run_chains
from tdalib.samplers.posterior import Draw, Member, Posterior, register
from tdalib.training import Recipe, Theta


@register("sghmc")
def sghmc(
    model,
    task: Task,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    members: int = 10,
    checkpoints: int = 20,
    seed: int = 0,
    step_size: float = 1e-6,
    friction: float = 0.1,
    temperature: float = 1.0,
    burn_in: int = 10,
    thin: int = 10,
) -> Posterior:
    """SGHMC: v ← (1 − α) v − ε ∇Û(θ) + √(2 α ε T) ξ, θ ← θ + v, ξ ~ N(0, I), from the mode of a member's training.

    ∇Û as in `sgld`: the gradient of the potential on a minibatch, scaled to n points, with the recipe's weight decay λ
    as a prior of precision n λ. v starts at 0. For small ε the law of θ is p(θ|D)^(1/T) in the long run.

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
    members, checkpoints : int
        Chains, each from another initialisation in another batch order, and draws kept of each.
    step_size : float
        ε, in units of θ² (U has none).
    friction : float
        α, above 0 and at most 1; the momentum lasts for about 1/α steps.
    temperature : float
        T; 1 is the posterior, smaller is closer to the mode, 0 adds no noise.
    burn_in, thin : int
        Epochs that are let go at the start, and epochs to the first draw and from one to the next.

    Without a point the mode is trained again without it, and the chain has weight 0 on it, the same batches and noise.

    Source: Chen, Fox and Guestrin 2014, arXiv:1402.4102, equation 15, without an estimate of the gradients' noise.
    """
    check_chain(step_size, temperature, burn_in, thin)
    if not 0 < friction <= 1:
        raise ValueError(f"friction: {friction} is not possible; it must be above 0 and at most 1")
    runs = tuple(Member.of(seed, k) for k in range(members))
    options = {"step_size": step_size, "friction": friction, "temperature": temperature}
    options |= {"burn_in": burn_in, "thin": thin}
    return Posterior(task, models.get(model), recipe, runs, checkpoints, run=run_sghmc, options=options, kind="chain")


def run_sghmc(
    posterior: Posterior, member: Member, without: Sequence[int | None], *, step_size, friction, temperature, **epochs
) -> Iterator[list[Draw]]:
    """One member: a training and a chain from its end, once for each entry of `without`."""

    def updates():
        velocity: Theta = {}

        def update(gradient: Theta, noise: Theta) -> Theta:
            spread = (2 * friction * step_size * temperature) ** 0.5
            for name, g in gradient.items():
                before = velocity.get(name, 0.0)
                velocity[name] = (1 - friction) * before - step_size * g + spread * noise[name]
            return velocity

        return update

    return run_chains(posterior, member, without, updates, **epochs)
