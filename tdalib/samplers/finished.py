"""Finished checkpoints: trained elsewhere, and taken as draws."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tdalib import models
from tdalib.data import Task, resolve
from tdalib.networks import State, fingerprint, state_of
from tdalib.options import said_as
from tdalib.samplers.draw import Draws
from tdalib.samplers.posterior import Member, Posterior
from tdalib.training import Recipe


def from_checkpoints(
    model: str | Callable,
    task: Task,
    checkpoints: Sequence,
    *,
    members: int | Sequence[int] | None = None,
    recipe: Recipe | None = None,
) -> Posterior:
    """Finished checkpoints as a posterior, for estimates: nothing is trained, and no point can be left out.

    Parameters
    ----------
    model : str or (task, seed) → nn.Module
        The network that the checkpoints fit; what seed it is given does not matter.
    task : Task
        Of the points they were trained on.
    checkpoints : sequence of files or state dicts
        safetensors, or torch's files, of which weights alone are loaded. A relative path starts at the repository root.
    members : int or sequence of int, optional
        From which training each checkpoint comes: one number for each, or how many trainings they are, of which one
        after another has an equal share. By default each comes from its own. Checkpoints of one training are no
        independent draws, and statistics average them.
    recipe : Recipe, optional
        How they were trained, for methods that need to know: ats, and if without a damping of its own.

    Raises
    ------
    ValueError
        A file that cannot be read or does not fit the network, or members with unequal numbers of checkpoints.
    """
    if isinstance(checkpoints, Mapping | Path | str):
        raise ValueError("checkpoints: one alone is given; give a list of files or state dicts")
    checkpoints = list(checkpoints)
    count = len(checkpoints)
    whose = np.arange(count) if members is None else members
    if isinstance(members, int):
        whose = np.repeat(np.arange(members), count // max(1, members))
    indices, counts = np.unique(whose, return_counts=True)
    if counts.sum() != count or len(set(counts)) != 1:
        held = ", ".join(map(str, counts)) or "no"
        raise ValueError(f"members: {held} of {count} checkpoints; each member needs one at least, all equally many")
    build = models.get(model)
    network = build(task, 0)
    states = [_fitting(_read(each), network, k) for k, each in enumerate(checkpoints)]
    of_member = {index: [states[k] for k in np.flatnonzero(np.equal(whose, index))] for index in indices.tolist()}
    every = {f"{k} {name}": p for k, state in enumerate(states) for name, p in (state.theta | state.rest).items()}
    own = {"states": of_member, "sha256": fingerprint(every)}
    each = tuple(Member(index, 0, 0) for index in of_member)
    return Posterior(task, build, recipe, each, count // len(each), _held, own, "finished", sampler="from_checkpoints")


def _held(posterior: Posterior, member: Member, weights: Tensor, *, states: dict[int, list], sha256: str) -> Draws:
    network = posterior.build(posterior.task, 0).eval()
    device = posterior.task.train.device
    asked = states[member.index][-posterior.checkpoints :]
    moved = [State(*({name: p.to(device) for name, p in held.items()} for held in state)) for state in asked]
    for weight in weights:
        if (weight != 1).any():
            raise ValueError("finished checkpoints cannot be trained again without a point; use a sampler that trains")
        yield posterior.made(member, network, moved)


def _read(checkpoint: Mapping[str, Tensor] | Path | str) -> Mapping[str, Tensor]:
    """The state dict of a file, or as it is given."""
    if isinstance(checkpoint, Mapping):
        return checkpoint
    path = resolve(checkpoint)
    if not path.is_file():
        raise ValueError(f"checkpoint {checkpoint}: no file {path}")
    with said_as(f"checkpoint {checkpoint} is no safetensors file nor torch weights", 200):
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True).items())


def _fitting(loaded: Mapping[str, Tensor], network: nn.Module, number: int) -> State:
    """A state dict as a state of the network: θ, and all else that it holds."""
    if inside := [name for name, value in loaded.items() if isinstance(value, Mapping)]:
        raise ValueError(f"checkpoint {number} is no state dict, but holds dicts; give one of {', '.join(inside)}")
    if any(isinstance(value, Tensor) and value.is_complex() for value in loaded.values()):
        raise ValueError(f"checkpoint {number} holds complex numbers; the model's parameters are real")
    with said_as(f"checkpoint {number} does not fit the model"):
        network.load_state_dict(loaded)
    theta, buffers = state_of(network)
    frozen = {name: p.detach().clone() for name, p in network.named_parameters() if name not in theta}
    return State(theta, buffers | frozen)
