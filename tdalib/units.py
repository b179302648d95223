"""Units of work: what one process computes in one go, from a shared description of the work and θ."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
import torch

from tdalib.attributors import Method
from tdalib.chunks import TRAIN_BLOCK, blocks, chunk
from tdalib.data import Task
from tdalib.networks import State, copy_of
from tdalib.removals import Removals
from tdalib.samplers import Draw, Posterior, Run
from tdalib.stopwatch import Cost, timed
from tdalib.workers import Shared, exact_repeat

Written = list[tuple[str, tuple[int, ...], np.ndarray]]  # variable, chunk, values
IsDone = Callable[[str, tuple[int, ...]], bool]  # (variable, chunk)


@dataclass(frozen=True)
class Unit:
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

    def prepared(self) -> "Work":
        """The same work on its device, its points embedded where the network has a frozen beginning."""
        posterior = replace(self.posterior, task=self.posterior.task.to(self.device))
        with exact_repeat():
            posterior = posterior.embedded()
        return replace(self, posterior=replace(posterior, build=_Kept(posterior.build)))

    @property
    def members(self) -> range:
        return range(len(self.posterior.members))

    @property
    def blocks(self) -> list[slice]:
        return blocks(len(self.removals))

    def chunk(self, name: str, member: int, block: int = 0, method: str | None = None) -> tuple[int, ...]:
        """Where a chunk of a variable lies."""
        return chunk(name, member, block, list(self.methods).index(method) if method else 0)

    def pending(self, is_done: IsDone) -> list[Unit]:
        """The units whose chunks are not all there, the longest first.

        An estimate's unit is what is missing of a member, whose linear algebra all points share, or of all members for
        a method that sees them together. A unit of retrainings is one block; or the blocks of a stack, all of them even
        where one alone is missing, for the same stack as before.
        """
        units = []
        for name, method in sorted(self.methods.items(), key=lambda item: not item[1].retrains):
            missing = {member: self._missing(is_done, name, member) for member in self.members}
            if method.scope == "posterior":
                together = set().union(*missing.values())
                units += [Unit(None, name, sorted(together))] if together else []
                continue
            for member, todo in missing.items():
                groups = self._stacks() if method.retrains else [sorted(todo)]
                units += [Unit(member, name, group) for group in groups if todo.intersection(group)]
        return units

    def without_loss(self, is_done: IsDone) -> list[int]:
        """The members whose test losses are not there."""
        return [k for k in self.members if not is_done("loss", chunk("loss", k))]

    def _missing(self, is_done: IsDone, name: str, member: int) -> set[int]:
        """The blocks of one member and method that are not there."""
        variables = ["tau", "loss_without"] if self.methods[name].retrains else ["tau"]
        return {
            block
            for block in range(len(self.blocks))
            if not all(is_done(variable, self.chunk(variable, member, block, name)) for variable in variables)
        }

    def _stacks(self) -> list[list[int]]:
        """The blocks that are trained as one stack."""
        size = max(1, self.posterior.stacked // TRAIN_BLOCK)
        whole = list(range(len(self.blocks)))
        return [whole[first : first + size] for first in whole[::size]]


class _Kept:
    """A network function that builds the network of one seed once, and gives copies of it."""

    def __init__(self, build):
        self.build, self.of, self.network = build, None, None

    def __call__(self, task: Task, seed: int) -> torch.nn.Module:
        if self.of is None or self.of[0] is not task or self.of[1] != seed:
            self.of, self.network = (task, seed), self.build(task, seed)
        return copy_of(self.network)


def job(shared: Shared, unit: Unit, method: Method, drawn: dict[int, tuple[list[State], np.ndarray]]):
    """The unit as a joblib job that carries θ or losses of its members, and no network nor points."""
    if method.retrains:
        # in a tuple: a bare array joblib would leave with one dask worker, and lose with it
        return joblib.delayed(retrain)(shared, unit, (drawn[unit.member][1],))
    members = sorted(drawn) if unit.member is None else [unit.member]
    return joblib.delayed(estimate)(shared, unit, {k: drawn[k][0] for k in members})


def draw_member(shared: Shared, k: int) -> tuple[int, list[State], np.ndarray]:
    """Member k: the states of its draws, and their test losses, (draw, test)."""
    work = shared.get(Work.prepared)
    with exact_repeat():
        draws = work.posterior.draws(k)
        loss = torch.stack([draw.losses(work.posterior.task.test) for draw in draws]).cpu().numpy()
    _check_finite(loss.astype(np.float32), f"the test loss of member {k}")
    return k, [State(draw.theta, draw.rest) for draw in draws], loss


def retrain(shared: Shared, unit: Unit, losses_at_theta: tuple[np.ndarray]) -> Written:
    """The chunks of a unit of retrainings."""
    work, (loss,) = shared.get(Work.prepared), losses_at_theta
    where = {block: work.blocks[block] for block in unit.blocks}  # blocks next to each other
    removals = work.removals[where[unit.blocks[0]].start : where[unit.blocks[-1]].stop]
    with exact_repeat():
        without, control = losses_without(work, unit.member, unit.method, removals)
    tau = without - (loss[:, None] if control is None else control)
    parts = np.cumsum([part.stop - part.start for part in where.values()])[:-1]
    written = []
    for block, of_loss, of_tau in zip(where, np.split(without, parts, 1), np.split(tau, parts, 1), strict=True):
        written.append(("loss_without", work.chunk("loss_without", unit.member, block), of_loss))
        written.append(("tau", work.chunk("tau", unit.member, block, unit.method), of_tau[..., None]))
    return _checked(unit, written)


def losses_without(work: Work, member: int, name: str, removals: Removals) -> tuple[np.ndarray, np.ndarray | None]:
    """Test losses without what is removed, (draw, removal, test), and what to compare with if it is not the draw."""
    method = work.methods[name]
    values = method.function(work.posterior, member, removals.weights(), **work.options[name])
    without, control = values if isinstance(values, tuple) else (values, None)
    without = as_array(method, without)
    needed = (work.posterior.checkpoints, len(removals), len(work.posterior.task.test))
    if without.shape != needed:
        raise ValueError(f"method {name!r} gave losses of shape {without.shape} where {needed} is needed")
    return without, None if control is None else as_array(method, control)


def estimate(shared: Shared, unit: Unit, states: dict[int, list[State]]) -> Written:
    """The chunks of a unit of estimates, from the states of the draws of its members."""
    work = shared.get(Work.prepared)
    with exact_repeat():
        members = {k: draws_of(work.posterior, k, held) for k, held in states.items()}
        tau = estimated(work, unit.method, members, work.removals)
    written = []
    for member, of_member in tau.items():
        for block in unit.blocks:
            at = work.chunk("tau", member, block, unit.method)
            written.append(("tau", at, of_member[:, work.blocks[block], :, None]))
    return _checked(unit, written)


def draws_of(posterior: Posterior, k: int, states: list[State]) -> list[Draw]:
    """The draws of member k from their states."""
    member = posterior.members[k]
    network = posterior.build(posterior.task, member.init_seed).eval()
    return posterior.made(member, network, states)


def estimated(work: Work, name: str, members: dict[int, list[Draw]], removals: Removals) -> dict[int, np.ndarray]:
    """τ of every removal for the draws of each member, (draw, removal, test), by a method's scope."""
    method, posterior, count = work.methods[name], work.posterior, work.posterior.checkpoints
    if method.scope == "posterior":
        copies = [[draw.copy() for draw in draws] for draws in members.values()]
        whole = _asked(work, name, copies, removals)  # (member or draw, removal, test)
        split = whole.reshape(len(members), -1, *whole.shape[1:])
        return {
            k: np.broadcast_to(values, (count, *values.shape[1:])) for k, values in zip(members, split, strict=True)
        }
    if method.scope == "run":
        runs = {
            k: Run(posterior, posterior.members[k], [draw.copy() for draw in draws]) for k, draws in members.items()
        }
        return {k: _asked(work, name, run, removals) for k, run in runs.items()}
    return {k: np.stack([_asked(work, name, draw.copy(), removals) for draw in draws]) for k, draws in members.items()}


def _asked(work: Work, name: str, seen, removals: Removals) -> np.ndarray:
    """What a method says of the removals, (…, removal, test), about what its scope sees."""
    method, task, options = work.methods[name], work.posterior.task, work.options[name]
    if method.sets == "own":
        tau = as_array(method, method.function(seen, task, removed=removals.sets, **options))
    else:
        points = as_array(method, method.function(seen, task, **options))
        _check_shape(method, points, seen, len(task.train), len(task.test))
        tau = np.stack([points[..., of_set, :].sum(-2) for of_set in removals.sets], -2)
    _check_shape(method, tau, seen, len(removals), len(task.test))
    return tau


def _check_shape(method: Method, tau: np.ndarray, seen: Any, train: int, test: int) -> None:
    """Refuse τ of another shape than the scope's."""
    if method.scope == "draw":
        leading = [()]
    elif method.scope == "run":
        leading = [(len(seen.draws),)]
    else:  # members, or all their draws
        leading = [(len(seen),), (sum(map(len, seen)),)]
    shapes = [(*axes, train, test) for axes in leading]
    if tau.shape not in shapes:
        needed = " or ".join(map(str, shapes))
        raise ValueError(f"method {method.name!r} gave τ of shape {tau.shape} where {needed} is needed")


def _checked(unit: Unit, written: Written) -> Written:
    where = "" if unit.member is None else f" of member {unit.member}"
    written = [(name, at, values.astype(np.float32, copy=False)) for name, at, values in written]
    for name, _, values in written:
        _check_finite(values, f"{name}{where} by {unit.method}")
    return written


def as_array(method: Method, values: Any) -> np.ndarray:
    """What an attributor gave, as an array."""
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{method.name} gave a {type(values).__name__} where a tensor is needed")
    return values.detach().cpu().numpy()


def _check_finite(values: np.ndarray, what: str) -> None:
    """NaN stands for "not computed" in a store, so it must not come from a computation."""
    if not np.isfinite(values).all():
        raise RuntimeError(
            f"{what} is not finite; where a training or a chain diverged, a lower learning_rate or step_size helps"
        )


def measure(shared: Shared) -> dict[str, Cost]:
    """The cost of one member, by method, from timing a little of the real work; "posterior" is that of its draws.

    Timed are a member's draws, one retraining or stack of them, and the estimates at one draw.
    """
    work = shared.get(Work.prepared)
    on_gpu, states = work.device == "cuda", []
    costs = {"posterior": timed(lambda: states.extend(draw_member(shared, 0)[1]), on_gpu)}
    with exact_repeat():
        draws = draws_of(work.posterior, 0, states)
        for name, method in work.methods.items():
            if method.retrains:
                some = work.removals[: work.posterior.stacked]
                cost = timed(lambda: losses_without(work, 0, name, some), on_gpu)  # noqa: B023 (called at once)
                costs[name] = cost.times(len(work.removals) / len(some))
            else:
                costs[name] = _of_estimate(work, name, draws, on_gpu)
    return costs


def _of_estimate(work: Work, name: str, draws: list[Draw], on_gpu: bool) -> Cost:
    """The cost of a member's estimates by a method; one that sees a member's draws together is timed on all of them."""
    seen = draws[:1] if work.methods[name].scope == "draw" else draws
    return timed(lambda: estimated(work, name, {0: seen}, work.removals), on_gpu).times(len(draws) / len(seen))
