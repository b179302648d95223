"""Units of work: what one process computes in one go, from a shared description of the work and θ."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch

from tdalib.attributors import Method
from tdalib.behaviour import Behaviour, check_network, differs, named
from tdalib.networks import SlowerPath, State, copy_of, seeded
from tdalib.removals import Removals, from_spec
from tdalib.result import DIMS, TRAIN_BLOCK
from tdalib.samplers import Draw, Member, Posterior, Run
from tdalib.workers import Shared, exact_repeat

Written = list[tuple[str, tuple[int, ...], np.ndarray]]  # variable, chunk, values
IsDone = Callable[[str, tuple[int, ...]], bool]  # (variable, chunk)


class Unit(NamedTuple):
    """What is computed in one go by one method: some blocks of removals of one member, or of all (None)."""

    member: int | None
    method: str
    blocks: list[int]


@dataclass(frozen=True)
class Work:
    """All that the numbers depend on: the posterior, what is removed, and the methods with their options."""

    posterior: Posterior
    removals: Removals
    methods: dict[str, Method]
    options: dict[str, dict[str, Any]]
    device: str = "cpu"
    columns: Sequence[str] = ()
    expected: Behaviour = field(default_factory=dict)
    origin: int = field(default_factory=os.getpid)

    def prepared(self) -> "Work":
        """The same work on its device; the network of one seed is built once, and copied from then on."""
        task = self.posterior.task.to(self.device)
        built = lru_cache(1)(partial(self.posterior.build, task))
        posterior = replace(self.posterior, task=task, build=lambda _, seed: copy_of(built(seed)))
        return replace(self, posterior=posterior)

    def received(self) -> "Work":
        """The same work prepared, where another process gives the same numbers on a few points as its origin.

        Raises
        ------
        ValueError
            It does not.
        """
        if self.expected and self.origin != os.getpid():
            with warnings.catch_warnings(action="ignore", category=SlowerPath):  # notice was given
                other = differs(self.expected, probe(self))
            if other:
                said = f"in a worker the {other} of a few points are others than in this process"
                raise ValueError(f"{said}: hand a setting or a changed module to the function itself")
        return self.prepared()

    @property
    def blocks(self) -> list[slice]:
        """The removals of each chunk."""
        return [slice(first, first + TRAIN_BLOCK) for first in range(0, len(self.removals), TRAIN_BLOCK)]

    def chunk(self, name: str, member: int, block: int = 0, method: str | None = None) -> tuple[int, ...]:
        """Where a chunk of a variable lies, counted along each of its dims."""
        column = list(self.columns or self.methods).index(method) if method else 0
        place = {"sample": member, "train": block, "test": 0, "method": column}
        return tuple(place[dim] for dim in DIMS[name])

    def pending(self, is_done: IsDone) -> tuple[list[Unit], list[int]]:
        """The units whose chunks are not all there, the longest first, and the members whose draws are needed.

        An estimate's unit is what is missing of a member, whose linear algebra all points share, or of all members for
        a method that sees them together. A unit of retrainings is one block; or the blocks of a stack, all of them even
        where one alone is missing, for the same stack as before.
        """
        units, members = [], range(len(self.posterior.members))
        whole = list(range(len(self.blocks)))
        size = max(1, self.posterior.stacked // TRAIN_BLOCK)
        stacks = [whole[first : first + size] for first in whole[::size]]
        for name, method in sorted(self.methods.items(), key=lambda item: item[1].scope != "retrain"):
            missing: dict[int | None, set[int]] = {member: self._missing(is_done, name, member) for member in members}
            if method.scope == "posterior":
                missing = {None: set().union(*missing.values())}
            for member, todo in missing.items():
                groups = stacks if method.scope == "retrain" else [sorted(todo)]
                units += [Unit(member, name, group) for group in groups if todo.intersection(group)]
        asked = {unit.member for unit in units}
        lossless = {k for k in members if not is_done("loss", self.chunk("loss", k))}
        return units, [k for k in members if None in asked or k in asked | lossless]

    def _missing(self, is_done: IsDone, method: str, member: int) -> set[int]:
        """The blocks of one member and method of which a variable is not there."""
        variables = ["tau", "loss_without"] if self.methods[method].scope == "retrain" else ["tau"]
        chunks = product(variables, range(len(self.blocks)))
        return {block for name, block in chunks if not is_done(name, self.chunk(name, member, block, method))}


def probe(work: Work) -> Behaviour:
    """What the network and every method give on a few points: run for real on two train points, for two epochs.

    What cannot work fails here, before any work; and the numbers tell changed code from that which made a store.

    Raises
    ------
    ValueError
        A network that would give wrong numbers, a value that a method refuses, sets for one to which they mean nothing,
        or τ of the wrong shape.
    """
    posterior, task = work.posterior, work.posterior.task
    two = replace(task, train=task.train[[0, len(task.train) - 1]], test=task.test[-1:])
    kept = min(2, posterior.checkpoints)
    recipe = replace(posterior.recipe, epochs=kept) if posterior.recipe else None
    members = posterior.members[:1] if posterior.kind == "finished" else (Member(-1, 0, 0),)  # the same for any seeds
    one = replace(posterior, task=two, recipe=recipe, checkpoints=kept, members=members)
    few = from_spec(None if work.removals.single else {"sets": [[0], []]}, two.train)
    with exact_repeat():
        found = check_network(posterior.build, task.to(work.device), members[0].init_seed)
        small = replace(work, posterior=one, removals=few).prepared()
        draws = small.posterior.draws(0)
        found["losses"] = torch.stack([draw.losses(small.posterior.task.test) for draw in draws]).cpu().numpy()
        check_finite(found["losses"], "the test loss after two steps")
        for name, method in small.methods.items():
            if method.scope == "retrain":
                values, _ = losses_without(small, 0, name, few)
            else:
                seen = draws[-1:] if method.scope == "draw" else draws
                values = estimated(small, name, {0: seen})[0]
            check_finite(values, f"what method {name!r} gives")
            found[f"numbers by {name}"] = values
    return found


def job(shared: Shared, unit: Unit, method: Method, drawn: dict[int, tuple[list[State], np.ndarray]]) -> tuple:
    """The unit as a joblib job that carries θ, or losses at θ, of its members, and no network nor points."""
    members = sorted(drawn) if unit.member is None else [unit.member]
    compute, needed = (retrain, 1) if method.scope == "retrain" else (estimate, 0)
    return joblib.delayed(compute)(shared, unit, {k: drawn[k][needed] for k in members})


def draw_member(shared: Shared, k: int) -> tuple[int, list[State], np.ndarray]:
    """Member k: the states of its draws, and their test losses, (draw, test)."""
    work = shared.get(Work.received)
    with exact_repeat():
        draws = work.posterior.draws(k)
        loss = torch.stack([draw.losses(work.posterior.task.test) for draw in draws]).cpu().numpy()
    check_finite(loss.astype(np.float32), f"the test loss of member {k}")
    return k, [State(draw.theta, draw.rest) for draw in draws], loss


def retrain(shared: Shared, unit: Unit, losses_at_theta: dict[int, np.ndarray]) -> Written:
    """The chunks of a unit of retrainings, of blocks next to each other."""
    work, (member,) = shared.get(Work.received), losses_at_theta  # of one member
    first, last = work.blocks[unit.blocks[0]].start, work.blocks[unit.blocks[-1]].stop
    with exact_repeat():
        without, control = losses_without(work, member, unit.method, work.removals[first:last])
    tau = without - (losses_at_theta[member][:, None] if control is None else control)
    return list(_chunks(work, unit, member, {"loss_without": without, "tau": tau}, first))


def losses_without(work: Work, member: int, name: str, removals: Removals) -> tuple[np.ndarray, np.ndarray | None]:
    """Test losses without what is removed, (draw, removal, test), and what to compare with if it is not the draw."""
    method, posterior = work.methods[name], replace(work.posterior, task=deepcopy(work.posterior.task))
    with named(f"method {name!r}"), torch.enable_grad(), seeded(0, posterior.task.train.device):
        values = method.function(posterior, member, removals.weights(), **deepcopy(work.options[name]))
    without, control = values if isinstance(values, tuple) else (values, None)
    draws, test = posterior.checkpoints, len(posterior.task.test)
    without = _array(method, without, [(draws, len(removals), test)])
    return without, None if control is None else _array(method, control, [(draws, 1, test)])


def estimate(shared: Shared, unit: Unit, states: dict[int, list[State]]) -> Written:
    """The chunks of a unit of estimates, from the states of the draws of its members."""
    work = shared.get(Work.received)
    with exact_repeat():
        members = {k: draws_of(work.posterior, k, held) for k, held in states.items()}
        tau = estimated(work, unit.method, members)
    return [written for k, of_member in tau.items() for written in _chunks(work, unit, k, {"tau": of_member})]


def draws_of(posterior: Posterior, k: int, states: list[State]) -> list[Draw]:
    """The draws of member k from their states."""
    member = posterior.members[k]
    network = posterior.build(posterior.task, member.init_seed).eval()
    return posterior.made(member, network, states)


def estimated(work: Work, name: str, members: dict[int, list[Draw]]) -> dict[int, np.ndarray]:
    """τ of every removal for the draws of each member, (draw, removal, test), by a method's scope."""
    scope, posterior, count = work.methods[name].scope, work.posterior, work.posterior.checkpoints
    if scope == "draw":  # a method gets its own, which it may change
        return {k: np.stack([_asked(work, name, draw.copy(), [()]) for draw in draws]) for k, draws in members.items()}
    copies = {k: [draw.copy() for draw in draws] for k, draws in members.items()}
    if scope == "posterior":
        whole = _asked(work, name, list(copies.values()), [(len(copies),), (len(copies) * count,)])
        parts = np.split(whole, len(copies))  # (1 or draw, removal, test) of each member
        return {k: np.broadcast_to(part, (count, *part.shape[1:])) for k, part in zip(copies, parts, strict=True)}
    runs = {k: Run(posterior, posterior.members[k], draws) for k, draws in copies.items()}
    return {k: _asked(work, name, run, [(count,)]) for k, run in runs.items()}


def _asked(work: Work, name: str, seen: Any, leading: list[tuple]) -> np.ndarray:
    """τ of the removals, (*leading, removal, test), by a method that is shown what its scope sees."""
    method, task, sets = work.methods[name], deepcopy(work.posterior.task), work.removals.sets
    if method.sets is None and not work.removals.single:
        raise ValueError(f"method {name!r} does not say what a set is to it: register it with sets")
    removed = {"removed": deepcopy(sets)} if method.sets == "own" else {}
    rows = len(sets) if removed else len(task.train)
    with named(f"method {name!r}"), torch.enable_grad(), seeded(0, task.train.device):  # a method may be random
        tau = method.function(seen, task, **removed, **deepcopy(work.options[name]))
    tau = _array(method, tau, [(*axes, rows, len(task.test)) for axes in leading])
    return tau if removed else np.stack([tau[..., of_set, :].sum(-2) for of_set in sets], -2)


def _array(method: Method, values: Any, shapes: list[tuple]) -> np.ndarray:
    """What a method gave, as an array, if it has one of the shapes."""
    what, needed = "losses" if method.scope == "retrain" else "τ", " or ".join(map(str, shapes))
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"method {method.name!r} gave a {type(values).__name__} where a tensor {needed} is needed")
    if values.is_complex() or values.layout != torch.strided or values.is_meta:
        raise ValueError(f"method {method.name!r} gave {what} that are complex, sparse or meta; give real, dense ones")
    if tuple(values.shape) not in shapes:
        raise ValueError(f"method {method.name!r} gave {what} of shape {tuple(values.shape)} where {needed} is needed")
    return values.detach().cpu().numpy()


def _chunks(work: Work, unit: Unit, member: int, variables: dict[str, np.ndarray], first: int = 0) -> Iterator:
    """The unit's chunks of variables of one member, whose values (draw, removal, test) are from removal `first` on."""
    for name, block in product(variables, unit.blocks):
        where = work.blocks[block]
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
            part = variables[name][:, where.start - first : where.stop - first].astype(np.float32, copy=False)
        check_finite(part, f"{name} of member {member} by {unit.method}")
        part = part[..., None] if name == "tau" else part
        yield name, work.chunk(name, member, block, unit.method), part


def check_finite(values: np.ndarray, what: str) -> None:
    """NaN stands for "not computed" in a store, so it must not come from a computation."""
    if not np.isfinite(values).all():
        raise RuntimeError(f"{what} is not finite; if it diverged, a lower learning_rate or step_size helps")
