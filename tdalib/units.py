"""Units of work through joblib, each into its chunks of the store."""

from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from tdalib import result, store, workers
from tdalib.attributors import Method
from tdalib.data import Task
from tdalib.networks import State, copy_of
from tdalib.removals import Removals
from tdalib.samplers import Draw, Posterior, Run
from tdalib.workers import Shared, exact_repeat

Written = list[tuple[str, tuple[int, ...], np.ndarray]]  # variable, chunk, values


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


class _Kept:
    """A network function that builds the network of one seed once, and gives copies of it."""

    def __init__(self, build):
        self.build, self.of, self.network = build, None, None

    def __call__(self, task: Task, seed: int) -> torch.nn.Module:
        if self.of is None or self.of[0] is not task or self.of[1] != seed:
            self.of, self.network = (task, seed), self.build(task, seed)
        return copy_of(self.network)


@dataclass(frozen=True)
class Unit:
    """What is computed in one go by one method: some blocks of removals of one member, or of all (None)."""

    member: int | None
    method: str
    blocks: list[int]


def fill(path: Path, empty: xr.Dataset, work: Work, jobs: int | None = None, scheduler=None) -> xr.Dataset:
    """Compute what the store at `path` does not hold yet; `empty` is its `result.template`.

    Raises
    ------
    ValueError
        The store is another experiment's, or another run is writing it.
    RuntimeError
        A number is not finite, or a worker process was killed.
    OSError
        The disk is full.
    """
    store.check(path, empty)
    whole = path.exists() and not (pending(path, work) or _without_loss(path, work) or store.missing(path, empty))
    if not whole:
        with store.held(path):
            store.create(path, empty)
            try:
                _compute(path, work, jobs, scheduler)
            except BrokenExecutor:
                raise RuntimeError(
                    f"store {path}: a worker process was killed, perhaps for want of memory, which fewer workers save; "
                    "the same run goes on from here"
                ) from None
    return store.open_result(path)


def pending(path: Path, work: Work) -> list[Unit]:
    """The units whose chunks are not all there, the longest first.

    An estimate's unit is what is missing of a member, whose linear algebra all points share, or of all members for a
    method that sees them together. A unit of retrainings is one block; or the blocks of a stack, all of them even where
    one alone is missing, for the same stack as before.
    """
    units = []
    blocks = list(range(len(result.train_blocks(len(work.removals)))))
    members = range(len(work.posterior.members))
    stack = max(1, work.posterior.stacked // result.TRAIN_BLOCK)
    for name, method in sorted(work.methods.items(), key=lambda item: not item[1].retrains):
        missing = {member: _missing(path, work, name, member, blocks) for member in members}
        if method.scope == "posterior":
            todo = sorted(set().union(*missing.values()))
            units += [Unit(None, name, todo)] if todo else []
            continue
        for member, todo in missing.items():
            groups = [blocks[first : first + stack] for first in blocks[::stack]] if method.retrains else [sorted(todo)]
            units += [Unit(member, name, group) for group in groups if todo.intersection(group)]
    return units


def _missing(path: Path, work: Work, name: str, member: int, blocks: list[int]) -> set[int]:
    """The blocks of one member and method that are not there yet."""
    k, retrains = list(work.methods).index(name), work.methods[name].retrains
    return {
        block
        for block in blocks
        if not store.is_done(path, "tau", result.tau_chunk(member, block, k))
        or (retrains and not store.is_done(path, "loss_without", result.loss_without_chunk(member, block)))
    }


def _without_loss(path: Path, work: Work) -> list[int]:
    members = range(len(work.posterior.members))
    return [k for k in members if not store.is_done(path, "loss", result.loss_chunk(k))]


def _compute(path: Path, work: Work, jobs: int | None, scheduler: str | None) -> None:
    units = pending(path, work)
    asked = {unit.member for unit in units} | set(_without_loss(path, work))
    members = sorted(range(len(work.posterior.members)) if None in asked else asked)
    with workers.parallel(work, work.device, jobs, scheduler) as (pool, shared):
        drawn = {}
        sampling = (joblib.delayed(draw_member)(shared, k) for k in members)
        for k, states, loss in tqdm(pool(sampling), desc="posterior", total=len(members), unit="member"):
            if not store.is_done(path, "loss", result.loss_chunk(k)):
                store.write(path, "loss", result.loss_chunk(k), loss)
            drawn[k] = states, loss
        todo = (_job(shared, unit, work.methods[unit.method], drawn) for unit in units)
        for written in tqdm(pool(todo), desc="attribution", total=len(units), unit="unit"):
            for name, chunk, values in written:
                store.write(path, name, chunk, values)


def _job(shared: Shared, unit: Unit, method: Method, drawn: dict):
    """The unit as a joblib job that carries θ or losses, and no network nor points."""
    if method.retrains:
        # in a tuple: a bare array joblib would leave with one dask worker, and lose with it
        return joblib.delayed(retrain)(shared, unit, (drawn[unit.member][1],))
    wanted = drawn if unit.member is None else [unit.member]
    return joblib.delayed(estimate)(shared, unit, {k: drawn[k][0] for k in wanted})


def draw_member(shared: Shared, k: int) -> tuple[int, list[State], np.ndarray]:
    """Member k: the states of its draws, and their test losses, (draw, test)."""
    work = shared.get(Work.prepared)
    with exact_repeat():
        draws = work.posterior.draws(k)
        loss = torch.stack([draw.losses(work.posterior.task.test) for draw in draws]).cpu().numpy()
    _check_finite(loss, f"the test loss of member {k}")
    return k, [State(draw.theta, draw.rest) for draw in draws], loss


def retrain(shared: Shared, unit: Unit, losses_at_theta: tuple[np.ndarray]) -> Written:
    """The chunks of a unit of retrainings."""
    work, (loss,) = shared.get(Work.prepared), losses_at_theta
    blocks = _blocks(work, unit)
    removals = work.removals[np.concatenate([np.arange(len(work.removals))[block] for block in blocks.values()])]
    with exact_repeat():
        without, control = losses_without(work, unit.member, unit.method, removals)
    tau = without - (loss[:, None] if control is None else control)
    written, first, k = [], 0, list(work.methods).index(unit.method)
    for block, where in blocks.items():
        rows = slice(first, first := first + where.stop - where.start)
        written.append(("loss_without", result.loss_without_chunk(unit.member, block), without[:, rows]))
        written.append(("tau", result.tau_chunk(unit.member, block, k), tau[:, rows, :, None]))
    return _checked(unit, written)


def losses_without(work: Work, member: int, name: str, removals: Removals) -> tuple[np.ndarray, np.ndarray | None]:
    """Test losses without what is removed, (draw, removal, test), and what to compare with if it is not the draw."""
    method = work.methods[name]
    values = method.function(work.posterior, member, removals.weights(), **work.options[name])
    without, control = values if isinstance(values, tuple) else (values, None)
    return as_array(method, without), None if control is None else as_array(method, control)


def estimate(shared: Shared, unit: Unit, states: dict[int, list[State]]) -> Written:
    """The chunks of a unit of estimates, from the states of the draws of its members."""
    work = shared.get(Work.prepared)
    with exact_repeat():
        members = {k: draws_of(work.posterior, k, held) for k, held in states.items()}
        tau = estimated(work, unit.method, members, work.removals)
    k = list(work.methods).index(unit.method)
    return _checked(unit, [
        ("tau", result.tau_chunk(member, block, k), of_member[:, where, :, None])
        for member, of_member in tau.items()
        for block, where in _blocks(work, unit).items()
    ])  # fmt: skip


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
        per_member = 1 if len(whole) == len(members) else count
        if len(whole) != len(members) * per_member:
            raise ValueError(f"method {name!r} gave τ of {len(whole)}; one for each member or each draw is needed")
        split = whole.reshape(len(members), per_member, *whole.shape[1:])
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
        _check_shape(method, points, len(task.train), len(task.test))
        tau = np.stack([points[..., of_set, :].sum(-2) for of_set in removals.sets], -2)
    _check_shape(method, tau, len(removals), len(task.test))
    return tau


def _check_shape(method: Method, tau: np.ndarray, train: int, test: int) -> None:
    axes = 2 if method.scope == "draw" else 3
    if tau.ndim != axes or tau.shape[-2:] != (train, test):
        needed = f"({train}, {test})" if axes == 2 else f"(…, {train}, {test})"
        raise ValueError(f"method {method.name!r} gave τ of shape {tau.shape} where {needed} is needed")


def _blocks(work: Work, unit: Unit) -> dict[int, slice]:
    """Block → its removals."""
    blocks = result.train_blocks(len(work.removals))
    return {block: blocks[block] for block in unit.blocks}


def _checked(unit: Unit, written: Written) -> Written:
    where = "" if unit.member is None else f" of member {unit.member}"
    for name, _, values in written:
        _check_finite(values, f"{name}{where} by {unit.method}")
    return [(name, chunk, values.astype(np.float32, copy=False)) for name, chunk, values in written]


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
