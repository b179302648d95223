"""What every sampler gives: a posterior of members, each a list of draws with provenance."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tdalib.data import Task
from tdalib.training import EVAL_BATCH, Recipe, Theta

GPU_STACK = 100  # retrainings trained at once on a GPU
INIT, BATCH, NOISE = 0, 1, 2  # roles of a seed

SAMPLERS: dict[str, Callable[..., "Posterior"]] = {}


def register(name: str):
    """Decorator: make a function (model, task, recipe, *, members, checkpoints, seed, **options) → Posterior known."""

    def decorate(function):
        @wraps(function)
        def named(*arguments, **options) -> Posterior:
            return replace(function(*arguments, **options), sampler=name)

        SAMPLERS[name] = named
        return named

    return decorate


def get(name: str) -> Callable[..., "Posterior"]:
    """The sampler called `name`."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is not known; choose from {', '.join(sorted(SAMPLERS))}")
    return SAMPLERS[name]


@dataclass(frozen=True)
class Draw:
    """One θ ~ p(θ|D) with its provenance.

    `model` is the network in eval mode, which draws of a member may share: its own weights are not θ, which goes in by
    `torch.func.functional_call(draw.model, draw.theta, (x,))`.
    """

    theta: Theta
    model: nn.Module
    recipe: Recipe
    member: int
    checkpoint: int  # counted from 1: the epoch, or the draw within its member
    init_seed: int
    batch_seed: int


@dataclass(frozen=True)
class Member:
    """One independent run of a sampler, with all that is random about it.

    `init_seed` decides the initialisation, `batch_seed` all the rest: the order of the batches, dropout masks, and what
    a sampler draws beside them.
    """

    index: int
    init_seed: int
    batch_seed: int

    @classmethod
    def of(cls, seed: int, index: int, *, init: int | None = None, batch: int | None = None) -> "Member":
        """Member `index`, with the initialisation and the batch order of others where they are given."""
        init, batch = (index if other is None else other for other in (init, batch))
        return cls(index, derive_seed(seed, init, INIT), derive_seed(seed, batch, BATCH))


@dataclass(frozen=True)
class Posterior:
    """p(θ|D) as members × checkpoints draws, each a pure function of the seeds: nothing runs until `draws` is called.

    Attributes
    ----------
    task : Task
    model : (task, seed) → nn.Module
    recipe : Recipe
    members : tuple of Member
    checkpoints : int
        Draws per member.
    run : (posterior, member, without, **options) → iterator over lists of Draw, one list for each entry of `without`
    options : dict
        What `run` needs to know beside.
    kind : {"epochs", "chain", "independent"}
        What the draws of a member are: θ after the last epochs of its training, states of a Markov chain, or
        independent draws around one mode.
    stack : int, optional
        Retrainings in a stack, see `stacked`.
    sampler : str
        Its name; `register` fills it in.
    """

    task: Task
    model: Callable[[Task, int], nn.Module]
    recipe: Recipe
    members: tuple[Member, ...]
    checkpoints: int
    run: Callable[..., Iterator[list[Draw]]]
    options: dict[str, Any] = field(default_factory=dict)
    kind: Literal["epochs", "chain", "independent"] = "epochs"
    stack: int | None = None
    sampler: str = ""

    def __post_init__(self):
        if not self.members:
            raise ValueError("members: a posterior needs at least 1")
        if self.checkpoints < 1:
            raise ValueError(f"checkpoints: {self.checkpoints} is not possible; it must be at least 1")
        if self.kind == "epochs" and self.checkpoints > self.recipe.epochs:
            raise ValueError(f"checkpoints: {self.checkpoints} is not possible with {self.recipe.epochs} epochs")
        if self.stack is not None and self.stack < 1:
            raise ValueError(f"stack: {self.stack} is not possible; it must be at least 1")

    def draws(self, member: int, without: int | None = None) -> list[Draw]:
        """The draws of one member; with `without`, those it would have given had that train point weighed nothing."""
        return next(self.draws_without(member, [without]))

    def draws_without(self, member: int, points: Sequence[int | None]) -> Iterator[list[Draw]]:
        """The draws of one member without each point in turn, every random number as it was; None: without none."""
        return self.run(self, self.members[member], points, **self.options)

    @property
    def numbers(self) -> range:
        """The draws of a member by number: the epochs that are kept, or 1, 2, …"""
        last = self.recipe.epochs if self.kind == "epochs" else self.checkpoints
        return range(last - self.checkpoints + 1, last + 1)

    def around(self, mode: Draw, thetas: Iterable[Theta]) -> list[Draw]:
        """The draws of a member that has these θ, numbered; the rest of their provenance is that of `mode`."""
        return [replace(mode, theta=theta, checkpoint=k) for k, theta in zip(self.numbers, thetas, strict=True)]

    @property
    def stacked(self) -> int:
        """Retrainings that are trained as one stack; 1: one by one. By default 1 on a CPU and GPU_STACK on a GPU."""
        return self.stack or (GPU_STACK if self.task.x_train.is_cuda else 1)

    def to(self, device: str) -> "Posterior":
        """The same posterior, sampled on `device` ("cpu" or "cuda")."""
        return replace(self, task=self.task.to(device))

    def embedded(self) -> "Posterior":
        """The same posterior with the `frozen_beginning` of its network, if it names one, computed once.

        The points of its task are then what that made of them.

        Raises
        ------
        ValueError
            The beginning has parameters that are trained.
        """
        task = self.task
        model = self.model(task, self.members[0].init_seed).eval()
        if not hasattr(model, "frozen_beginning"):
            return self
        if model.frozen_beginning(task.x_train[:1]).requires_grad:
            raise ValueError("the model's frozen_beginning has parameters that are trained; freeze or rename it")
        with torch.no_grad():
            points = {
                name: torch.cat([model.frozen_beginning(part) for part in getattr(task, name).split(EVAL_BATCH)])
                for name in ("x_train", "x_test")
            }
        return replace(self, task=replace(task, **points))

    def fingerprint(self) -> str:
        """SHA-256 over the initial weights of the first member, frozen ones too: the same model, to the bit."""
        digest = sha256()
        for name, value in self.model(self.task, self.members[0].init_seed).state_dict().items():
            digest.update(name.encode() + np.ascontiguousarray(value.cpu()).tobytes())
        return digest.hexdigest()


def derive_seed(seed: int, member: int, role: int) -> int:
    """A seed for one role of one member, independent of all others."""
    return int(np.random.SeedSequence(seed, spawn_key=(member, role)).generate_state(1)[0])


def standard_normals(theta: Theta, stream: torch.Generator) -> Theta:
    """A standard normal for each entry of θ: the same on every device and in every layout; `stream` is a CPU's."""
    return {
        name: torch.empty(p.shape, dtype=p.dtype).normal_(generator=stream).to(p.device) for name, p in theta.items()
    }


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that no posterior has."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: {temperature} is not possible; it must be 0 or more")
