"""A posterior: members × checkpoints draws, each a pure function of the seeds, under any weights; and their runs."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from inspect import Signature, getdoc, signature
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tdalib import models
from tdalib.data import Task
from tdalib.networks import State, Theta, state_of
from tdalib.options import Count, Members, Natural, Registry
from tdalib.samplers.draw import Draw, Draws
from tdalib.training import Recipe, Training, follow, known, train, train_stack

GPU_STACK = 100  # retrainings trained at once on a GPU
INIT, BATCH, NOISE = 0, 1, 2  # roles of a seed

SAMPLERS = Registry("sampler")
get = SAMPLERS.find


def register(name: str, *, checkpoints: int = 5) -> Callable[[Callable], Callable]:
    """Decorator: make a sampler known, with its default of `checkpoints`.

    The function (posterior, **options) → Posterior completes one that has all but what is the sampler's own. Known as
    `name` is (model, task, recipe, *, members, checkpoints, seed, stack, **options) → Posterior.
    """

    def decorate(function: Callable) -> Callable:
        def sampler(
            model: str | Callable | nn.Module,
            task: Task,
            recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
            *,
            members: Members = 10,
            checkpoints: Count = checkpoints,
            seed: Natural = 0,
            stack: Count | None = None,
            **options: Any,
        ) -> Posterior:
            """As for every sampler.

            `model` is a name, a network or a function (task, seed) → nn.Module; `members` counts the independent
            trainings, and `checkpoints` the draws of each; `stack` is how many retrainings are trained as one with
            `torch.func.vmap`, faster on a GPU and slower on a CPU (1: one by one; by default 1 on a CPU and 100 on a
            GPU; `attribute` makes stacks of whole blocks of 25, and of θ itself).

            Raises
            ------
            ValueError
                An option that is not known or not possible, or more checkpoints than epochs.
            """
            for what, value, kind in (("task", task, Task), ("recipe", recipe, Recipe)):
                if not isinstance(value, kind):
                    raise ValueError(f"{what}: a {type(value).__name__} is not possible; give a {kind.__name__}")
            each = tuple(Member.of(seed, k) for k in range(members))  # of its own initialisation and batch order
            start = Posterior(task, models.get(model), recipe, each, checkpoints, seed=seed, stack=stack, sampler=name)
            posterior = function(start, **options)
            if posterior.kind == "epochs" and checkpoints > recipe.epochs:
                raise ValueError(f"checkpoints: {checkpoints} is not possible with {recipe.epochs} epochs")
            return posterior

        own = [p for p in signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        shared = [p for p in signature(sampler).parameters.values() if p.kind is not p.VAR_KEYWORD]
        doc = f"{getdoc(function) or name}\n\n{getdoc(sampler)}"
        named: Any = wraps(function)(sampler)
        named.__doc__ = doc
        named.__signature__ = Signature([*shared, *own], return_annotation=Posterior)
        return SAMPLERS.register(name)(named)

    return decorate


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
    """p(θ|D) as members × checkpoints draws: nothing is trained until `draws` is called.

    Attributes
    ----------
    task : Task
    build : (task, seed) → nn.Module
        The network with its initial weights.
    recipe : Recipe, or None where it is not known
    members : tuple of Member
    checkpoints : int
        Draws per member.
    sample : (posterior, member, weights, **options) → iterator over lists of Draw, one list for each row of weights
    options : dict
        What `sample` needs to know beside.
    seed : int
        From which the members' seeds follow.
    kind : {"epochs", "chain", "independent", "finished"}
        What the draws of a member are: θ after the last epochs of its training, states of a Markov chain, independent
        draws around one mode, or what was trained elsewhere.
    stack : int, optional
        Retrainings in a stack, see `stacked`.
    renormalise : bool
        Whether a batch's loss is divided by its kept weight, not by its size.
    sampler : str
        Its name; `register` fills it in.
    """

    task: Task
    build: Callable[[Task, int], nn.Module]
    recipe: Recipe | None
    members: tuple[Member, ...]
    checkpoints: int
    sample: Callable[..., Draws] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    kind: Literal["epochs", "chain", "independent", "finished"] = "epochs"
    seed: int = 0
    stack: int | None = None
    renormalise: bool = False
    sampler: str = ""

    def training(self, member: Member) -> Training:
        """The training of a member, from its own initialisation in its own batch order."""
        network = self.build(self.task, member.init_seed)
        return Training(network, self.task, known(self.recipe), member.batch_seed, self.renormalise)

    def draws(self, member: int, weight: Tensor | None = None) -> list[Draw]:
        """The draws of one member; with `weight` (point,), those it would have given had the points weighed so."""
        return next(self.draws_under(member, torch.ones(1, len(self.task.train)) if weight is None else weight[None]))

    def draws_under(self, member: int, weights: Tensor) -> Draws:
        """The draws of one member under each row of `weights` (removal, point), every random number as it was."""
        assert self.sample is not None, "the sampler sets it"
        return self.sample(self, self.members[member], weights, **self.options)

    def trained(self, member: Member, weights: Tensor) -> Draws:
        """The last epochs of a member's training, once for each row of `weights`."""
        training = self.training(member)
        trainer = train if self.stacked == 1 else train_stack
        for states in trainer(training, weights, keep=self.checkpoints):
            yield self.made(member, training.network, states)

    def modes(self, member: Member, weights: Tensor) -> Iterator[Draw]:
        """θ after the last epoch of the same trainings, one for each row of `weights`: where local samplers start."""
        last = replace(self, checkpoints=1, kind="epochs")
        return (draws[0] for draws in last.trained(member, weights))

    @property
    def numbers(self) -> range:
        """The draws of a member by number: the epochs that are kept, or 1, 2, and so on."""
        last = known(self.recipe).epochs if self.kind == "epochs" else self.checkpoints
        return range(last - self.checkpoints + 1, last + 1)

    def made(self, member: Member, network: nn.Module, states: Iterable[State]) -> list[Draw]:
        """The draws of a member that has these states, numbered; `network` is in eval mode."""
        facts = network, self.task.objective, self.recipe, member.index
        seeds = member.init_seed, member.batch_seed
        return [Draw(state.theta, state.rest, *facts, k, *seeds) for k, state in zip(self.numbers, states, strict=True)]

    def around(self, mode: Draw, thetas: Iterable[Theta]) -> list[Draw]:
        """The draws of a member that has these θ, numbered; all else is that of `mode`."""
        return [replace(mode, theta=theta, checkpoint=k) for k, theta in zip(self.numbers, thetas, strict=True)]

    @property
    def stacked(self) -> int:
        """Retrainings that are trained as one stack; 1: one by one. By default 1 on a CPU and GPU_STACK on a GPU."""
        return self.stack or (GPU_STACK if self.task.train.device.type == "cuda" else 1)

    def description(self) -> dict:
        """What its draws depend on beside its data and model, in plain values."""
        build = getattr(self.build, "build", self.build)  # without masks
        options = getattr(build, "keywords", {})
        build = getattr(build, "func", build)  # without them
        return {
            "dataset": self.task.name,
            "objective": self.task.objective.name,
            "model": getattr(build, "__name__", type(build).__name__),
            "members": len(self.members),
            "model_options": options,
            "sampler": self.sampler,
            "sampler_options": {key: value for key, value in self.options.items() if key != "states"},
            "seeds": [[m.init_seed, m.batch_seed] for m in self.members],
            "checkpoints": self.checkpoints,
            "stack": self.stack,
            **(asdict(self.recipe) if self.recipe else {}),
        }


@dataclass(frozen=True)
class Step:
    """One step of a training, before it is taken.

    Attributes
    ----------
    number : int
        Steps that are done.
    draw : Draw
        θ before the step; its `checkpoint` is the epoch, from 1.
    optimizer : dict
        The optimiser's state, as its `state_dict` gives it.
    batch : Tensor, (|B|,)
        Positions of the train points.
    rate : float
        The learning rate.
    seed : int
        Of the step's dropout masks.
    """

    number: int
    draw: Draw
    optimizer: dict
    batch: Tensor
    rate: float
    seed: int


class Run:
    """One training of a member under given weights.

    Its steps are not stored: `steps` trains again, to the bit where its draws were not trained in a stack.

    Attributes
    ----------
    draws : list of Draw
    kept : list of int
        How many steps were done before each draw.
    weight : Tensor (point,), optional
        By default all ones.
    """

    def __init__(self, posterior: Posterior, member: Member, draws: list[Draw], weight: Tensor | None = None):
        if posterior.kind != "epochs":
            raise ValueError(f"a run is a training's, whose epochs sampler {posterior.sampler!r} does not draw")
        self.posterior, self.member, self.draws, self.weight = posterior, member, draws, weight
        self.kept = posterior.training(member).ends[-posterior.checkpoints :]

    def steps(self) -> Iterator[Step]:
        """Every step in turn, from the initialisation on."""
        training = self.posterior.training(self.member)
        recipe, batches = training.recipe, training.steps
        (weight,) = training.weights(None if self.weight is None else self.weight[None])
        epochs = [epoch for epoch, of_epoch in enumerate(training.batches, 1) for _ in of_epoch]
        for batch, epoch, (done, optimizer) in zip(batches, epochs, follow(training, weight), strict=False):
            theta, rest = state_of(training.network)
            draw = replace(self.draws[0], theta=theta, rest=rest, checkpoint=epoch)
            state = deepcopy(optimizer.state_dict())
            yield Step(done, draw, state, batch, recipe.rate(done, len(batches)), training.seed + done)


def derive_seed(seed: int, member: int, role: int) -> int:
    """A seed for one role of one member, independent of all others."""
    return int(np.random.SeedSequence(seed, spawn_key=(member, role)).generate_state(1)[0])


def standard_normals(theta: Theta, stream: torch.Generator) -> Theta:
    """A standard normal for each entry of θ: the same on every device and in every layout; `stream` is a CPU's."""
    return {name: torch.randn(p.shape, dtype=p.dtype, generator=stream).to(p.device) for name, p in theta.items()}
