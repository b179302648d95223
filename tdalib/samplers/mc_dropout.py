"""MC dropout: dropout masks kept at a trained mode."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tdalib import models
from tdalib.data import Task
from tdalib.samplers.deep_ensemble import modes
from tdalib.samplers.posterior import NOISE, Draw, Member, Posterior, derive_seed, register
from tdalib.training import Recipe


@register("mc_dropout")
def mc_dropout(
    model,
    task: Task,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    members: int = 10,
    checkpoints: int = 5,
    seed: int = 0,
    stack: int | None = None,
) -> Posterior:
    """MC dropout: θ of a member's training, each draw with its own dropout masks, kept for all points.

    A draw is one thinned network: every `nn.Dropout` layer multiplies its input by one mask, drawn as in training and
    shared by all points, in losses and in gradients alike. Other forms of dropout (channels, attention) are not drawn,
    and a layer that is called twice has one mask.

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
        With at least one `nn.Dropout` of p > 0 that is used.
    members, checkpoints : int
        Trainings, each from another initialisation in another batch order, and draws of masks for each.
    stack : int, optional
        As in `deep_ensemble`.

    Without a point the member is trained again without it, and the masks are the same.

    Source: Gal and Ghahramani 2016, arXiv:1506.02142.
    """
    runs = tuple(Member.of(seed, k) for k in range(members))
    posterior = Posterior(
        task, models.get(model), recipe, runs, checkpoints, run=run_masked, kind="independent", stack=stack
    )
    if not dropouts(posterior.model(task, runs[0].init_seed)):
        name = model if isinstance(model, str) else getattr(model, "__name__", "this model")
        raise ValueError(
            f"sampler 'mc_dropout' needs a model with dropout; {name} has no nn.Dropout layer "
            "(mlp has some with its option dropout)"
        )
    return posterior


def run_masked(posterior: Posterior, member: Member, without: Sequence[int | None]) -> Iterator[list[Draw]]:
    """One member: a training and masks for its end, once for each entry of `without`."""
    seed = derive_seed(member.batch_seed, 0, NOISE)
    masked = None
    for mode in modes(posterior, member, without):
        if masked is None:
            x = posterior.task.x_train[:1]
            masked = [thinned(mode.model, x, derive_seed(seed, k, NOISE)) for k in posterior.numbers]
        yield [replace(mode, model=m, checkpoint=k) for k, m in zip(posterior.numbers, masked, strict=True)]


def dropouts(model: nn.Module) -> dict[str, nn.Dropout]:
    """The dropout layers of a model by name."""
    return {name: m for name, m in model.named_modules() if type(m) is nn.Dropout and m.p > 0}


def thinned(model: nn.Module, x: Tensor, seed: int) -> nn.Module:
    """A copy of `model` whose dropout layers have one mask each; `x` is a point, for the shapes."""
    model, seen = deepcopy(model, {id(p): p for p in model.parameters()}), {}  # but for its weights: θ goes in beside
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in dropouts(model).items():
            note = partial(lambda name, _, args, __: seen.update({name: args[0][0]}), name)
            hooks.enter_context(layer.register_forward_hook(note))
        model(x)
    stream = torch.Generator().manual_seed(seed)
    for name, values in seen.items():
        model.set_submodule(name, _Mask(values, model.get_submodule(name).p, stream))
    return model


class _Mask(nn.Module):
    """Dropout that drops the same entries of every point."""

    def __init__(self, values: Tensor, p: float, stream: torch.Generator):
        super().__init__()
        mask = torch.empty(values.shape, dtype=values.dtype).bernoulli_(1 - p, generator=stream) / (1 - p)
        self.register_buffer("mask", mask.to(values.device))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask
