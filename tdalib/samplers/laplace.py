"""Laplace: a Gaussian at a trained mode, from the curvature there."""

import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.util import find_spec
from typing import Literal

import torch
from torch.utils.data import DataLoader, TensorDataset

from tdalib import models
from tdalib.data import Task
from tdalib.samplers.deep_ensemble import modes
from tdalib.samplers.posterior import NOISE, Draw, Member, Posterior, check_temperature, derive_seed, register
from tdalib.training import Recipe, Theta, trainable

FIT_BATCH = {"full": 32, "kron": 32, "diag": 4}  # points; the Jacobians that "diag" forms stay in the cache

MOST = 20_000  # weights for which the full matrix is made, 1.6 GB in float32


@register("laplace")
def laplace(
    model,
    task: Task,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    members: int = 10,
    checkpoints: int = 5,
    seed: int = 0,
    subset: Literal["last_layer", "all"] = "last_layer",
    structure: Literal["full", "kron", "diag"] = "full",
    temperature: float = 1.0,
    stack: int | None = None,
) -> Posterior:
    """Laplace: θ ~ N(θ*, T (n (H + λI))⁻¹) at the mode θ* that a member's training finds, by laplace-torch.

    H is the generalised Gauss–Newton matrix of the mean loss, n λ the precision of the prior. It covers the last layer
    alone (the rest of θ stays at the mode) or all trained weights. The Gauss–Newton matrix is the Hessian for models
    linear in θ and at an optimum; training stops before one, so θ* is its centre, not a maximum. The weight decay of
    the default recipe is so weak a prior that draws at T = 1 have losses of many nats, over all weights more than over
    the last layer; T = 0.01 and less stays near the mode.

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
    members, checkpoints : int
        Modes, each from another initialisation in another batch order, and draws from the Gaussian at each.
    subset : {"last_layer", "all"}
        Weights that vary.
    structure : {"full", "kron", "diag"}
        Of the matrix. "full" holds P × P numbers for P weights, at most 20,000; "kron" and "diag" approximate it by
        Kronecker factors of each layer and by its diagonal.
    temperature : float
        T scales the covariance; 0 gives the mode.
    stack : int, optional
        As in `deep_ensemble`.

    Without a point the mode is trained again and H made without it; the standard normals are the same
    (those of a GPU differ from a CPU's).

    Raises
    ------
    ValueError
        laplace-torch is not installed, or the recipe has no weight decay; in a run, too many weights for "full".

    Source: MacKay 1992, Neural Computation 4:448; Daxberger et al. 2021, arXiv:2106.14806.
    """
    if find_spec("laplace") is None:
        raise ValueError("sampler 'laplace' needs the package laplace-torch: pip install 'tdalib[posteriors]'")
    for key, value, choices in (("subset", subset, ("last_layer", "all")), ("structure", structure, FIT_BATCH)):
        if value not in choices:
            raise ValueError(f"{key} {value!r} is not known; choose from {', '.join(choices)}")
    check_temperature(temperature)
    if recipe.weight_decay == 0:
        raise ValueError("weight_decay: 0 leaves laplace without a prior; it must be above 0")
    runs = tuple(Member.of(seed, k) for k in range(members))
    options = {"subset": subset, "structure": structure, "temperature": temperature}
    known = {"options": options, "kind": "independent", "stack": stack}
    return Posterior(task, models.get(model), recipe, runs, checkpoints, run=run_laplace, **known)


def run_laplace(
    posterior: Posterior, member: Member, without: Sequence[int | None], *, subset, structure, temperature
) -> Iterator[list[Draw]]:
    """One member: a training and draws from the Gaussian at its end, once for each entry of `without`."""
    task = posterior.task
    for j, mode in zip(without, modes(posterior, member, without), strict=True):
        rest = [i for i in range(len(task.x_train)) if i != j]
        fitted, names = _fit(mode, task, rest, subset, structure)
        stream = torch.Generator(task.x_train.device).manual_seed(derive_seed(member.batch_seed, 0, NOISE))
        samples = fitted.mean + temperature**0.5 * (fitted.sample(posterior.checkpoints, stream) - fitted.mean)
        yield posterior.around(mode, (mode.theta | _named(sample, names, mode.theta) for sample in samples))


def _fit(mode: Draw, task: Task, points: list[int], subset: str, structure: str):
    """laplace-torch's posterior at the mode given these train points, and the names of the weights it covers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own torch.jit
        from laplace import Laplace  # takes seconds
    model = deepcopy(mode.model).to(memory_format=torch.contiguous_format)  # laplace-torch views parameters flat
    model.load_state_dict(mode.theta, strict=False)
    count = sum(p.numel() for p in mode.theta.values())
    if (subset, structure) == ("all", "full") and count > MOST:
        raise ValueError(f"laplace: structure 'full' is not possible for all {count:,} weights; choose kron or diag")
    fitted = Laplace(
        model,
        "regression" if task.y_train.is_floating_point() else "classification",
        subset_of_weights=subset,
        hessian_structure=structure,
        prior_precision=float(len(task.x_train) * mode.recipe.weight_decay),
    )
    given = TensorDataset(task.x_train[points], task.y_train[points])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        fitted.fit(DataLoader(given, FIT_BATCH[structure], generator=torch.Generator()))  # else the global one moves
    if subset == "all":
        return fitted, list(trainable(model))
    last = fitted.model.last_layer
    (prefix,) = (name for name, module in fitted.model.model.named_modules() if module is last)
    return fitted, [f"{prefix}.{name}" for name, _ in last.named_parameters()]


def _named(vector: torch.Tensor, names: list[str], theta: Theta) -> Theta:
    parts = vector.split([theta[name].numel() for name in names])
    return {name: part.view_as(theta[name]) for name, part in zip(names, parts, strict=True)}
