"""Experiments: what is asked for, once, with its three verbs: check, plan and run."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import torch
import xarray as xr
from tqdm import tqdm

from tdalib import attributors, removals, result, stats, store
from tdalib.behaviour import Behaviour
from tdalib.data import resolve
from tdalib.networks import fingerprint
from tdalib.options import Workers, check, one_line
from tdalib.plan import COLUMNS, measure, table
from tdalib.samplers import Posterior
from tdalib.units import Work, draw_member, job, probe
from tdalib.workers import Device, Shared, check_scheduler, exact_repeat, parallel, resolve_device, temporary_folder


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """τ for every draw, removal, test point and method: what is asked for, where it runs and where it is kept.

    Parameters
    ----------
    posterior : Posterior
    methods : sequence of str
        Names of attributors, in the order that `method` will have.
    removals : dict, optional
        What is left out, by default every point; see `removals.from_spec`.
    options : dict, method → keyword options of that attributor
    path : path, optional
        Where to keep the result as a Zarr store; what a store at this place already holds is not computed again. By
        default the result is held in memory. A relative path starts at the repository root.
    params : dict, optional
        What the result depends on, kept in the store; by default a description of the other arguments.
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where there is one. Numbers of the two agree to float tolerance, so a store is of one.
    workers : int, optional
        Processes; by default one for each core. Each computes on one thread, so the numbers do not depend on it. A GPU
        is used by this process alone, without a scheduler.
    scheduler : str, optional
        "local" or the address of a dask scheduler; by default joblib's own processes.
    """

    posterior: Posterior = field(kw_only=False)
    methods: Sequence[str] | str = field(kw_only=False)
    removals: dict[str, Any] | None = None
    options: dict[str, dict[str, Any]] | None = None
    path: Path | str | None = None
    params: dict | None = None
    device: Device = "auto"
    workers: Workers | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.posterior, Posterior):
            raise ValueError(f"posterior: a {type(self.posterior).__name__} is not possible; give what a sampler gives")
        check("", type(self).__annotations__ | {"posterior": Any}, vars(self))

    def check(self) -> None:
        """Do everything that can fail on what is asked for, and write nothing.

        Raises
        ------
        ValueError
            An unknown method, a value that a method refuses, a store that was made with other params.
        """
        check_scheduler(self.scheduler)
        _ = self._behaviour
        if self.path is not None:
            store.check(resolve(self.path), self._empty)

    def plan(self) -> pd.DataFrame:
        """What `run` will cost; what the store already holds costs nothing. Nothing is written.

        All workers time the same work side by side, as they will share cache and memory later; see `units.measure`.

        Returns
        -------
        DataFrame
            COLUMNS by "posterior" (the draws), method, and "total". Memory is the most that a worker, or the GPU, has
            held until a method was timed; disk is before compression.
        """
        self.check()
        path = resolve(self.path) if self.path else Path("no store")
        work = replace(self._work, columns=store.columns(path, self._empty))
        units, members = work.pending(partial(store.is_done, path))
        if not members:
            return pd.DataFrame(0.0, ["total"], COLUMNS)
        with parallel(work, work.device, self.workers, self.scheduler) as (pool, shared):
            at_once = joblib.effective_n_jobs(self.workers or -1)
            measured = list(pool(joblib.delayed(measure)(shared) for _ in range(at_once)))
        return table(work, units, len(members), measured)

    def run(self) -> xr.Dataset:
        """The result, computed where the store does not hold it yet.

        Returns
        -------
        Dataset
            `tau` (sample, train, test, method), `loss` (sample, test), `loss_without` (sample, train, test) with `loo`;
            where sets are removed, `removed` (train, point) and the coordinate `size` (train).

        Warns
        -----
        UserWarning
            The chains of a sampler have not converged, by `stats.convergence`.

        Raises
        ------
        ValueError
            What `check` raises, or another run is writing the store. Nothing is written then.
        RuntimeError, OSError
            A number is not finite, a worker was killed, the disk is full. What is finished stays: run again to go on.
        """
        self.check()
        if self.path is None:
            with temporary_folder() as folder:
                filled = self._filled(Path(folder) / "result.zarr").load()
        else:
            filled = self._filled(resolve(self.path).resolve())  # where links lead
        if self.posterior.kind == "chain" and (line := stats.convergence_warning(stats.convergence(filled))):
            warnings.warn(f"{self.posterior.sampler}: {line}", stacklevel=2)
        return filled

    def _filled(self, path: Path) -> xr.Dataset:
        """What is asked for, from the store at `path`, what was missing computed."""
        work = replace(self._work, columns=store.columns(path, self._empty), expected=self._behaviour)
        if any(work.pending(partial(store.is_done, path))) or not store.is_whole(path, self._empty):
            with parallel(work, work.device, self.workers, self.scheduler) as (pool, shared), store.held(path):
                store.create(path, self._empty)
                if store.columns(path, self._empty) != work.columns:
                    raise ValueError(f"store {path}: another run has just changed it; run again")
                try:
                    _compute(work, path, pool, shared)
                except Exception as error:  # of those that are meant, libraries have no common class
                    if (why := _want_of_memory(error)) is None:
                        raise
                    kept = f"store {path}: {why}; the same run goes on from here"
                    raise RuntimeError(kept if self.path else why) from None
        whole = store.open_result(path)
        asked = {"sample": slice(self._empty.sizes["sample"]), "method": [*map(work.columns.index, work.methods)]}
        return whole if whole.sizes == self._empty.sizes and work.columns == [*work.methods] else whole.isel(asked)

    @cached_property
    def _work(self) -> Work:
        names = [self.methods] if isinstance(self.methods, str) else list(self.methods)
        if not names:
            raise ValueError(f"methods is empty; choose from {', '.join(sorted(attributors.METHODS))}")
        if len(set(names)) < len(names):
            raise ValueError(f"methods: {', '.join(names)} names a method twice; each may stand once")
        options: dict[str, dict[str, Any]] = {name: {} for name in names} | (self.options or {})
        for name in options.keys() - names:
            raise ValueError(f"options for {name!r}, which is not among the methods {', '.join(names)}")
        methods = {name: attributors.get(name) for name in names}
        if len(retraining := [name for name, method in methods.items() if method.scope == "retrain"]) > 1:
            raise ValueError(f"methods: {', '.join(retraining)} retrain, and a result holds the losses of one alone")
        chosen = removals.from_spec(self.removals, self.posterior.task.train)
        posterior = replace(self.posterior, renormalise=chosen.renormalise)
        return Work(posterior, chosen, methods, options, resolve_device(self.device, self.scheduler))

    @cached_property
    def _behaviour(self) -> Behaviour:
        found = probe(self._work)
        _check_start(self.posterior)
        return found

    @cached_property
    def _empty(self) -> xr.Dataset:
        work = self._work
        asked: dict[str, Any] = {"methods": list(work.methods), "method_options": work.options}
        asked |= {"removals": self.removals, "members": len(work.posterior.members), "device": work.device}
        params = (self.params or self.posterior.description()) | asked
        return result.template(work.posterior, work.removals, work.methods, params, self._behaviour)


def _compute(work: Work, path: Path, pool: joblib.Parallel, shared: Shared) -> None:
    """Compute what the store lacks and write it, chunk by chunk."""
    units, members = work.pending(partial(store.is_done, path))
    drawn = {}
    sampling = (joblib.delayed(draw_member)(shared, k) for k in members)
    for k, states, loss in _shown(pool(sampling), "posterior", len(members), "member"):
        drawn[k] = states, loss
        if not store.is_done(path, "loss", at := work.chunk("loss", k)):
            store.write(path, "loss", at, loss)
    jobs = (job(shared, unit, work.methods[unit.method], drawn) for unit in units)
    for written in _shown(pool(jobs), "attribution", len(units), "unit"):
        for name, at, values in written:
            store.write(path, name, at, values)


def _want_of_memory(error: Exception) -> str | None:
    """What to say where memory was too little; None: it was not that."""
    if isinstance(error, BrokenExecutor):
        return "a worker process was killed, perhaps for want of memory, which fewer workers save"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return f"memory is too little ({one_line(error)[:100]}); fewer workers need less"
    return None


def _shown(steps: Iterable, what: str, total: int, unit: str) -> Iterator:
    """The steps, with a bar of how many are done: a notebook shows what goes to stderr in red."""
    in_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    return iter(tqdm(steps, what, total, unit=unit, file=sys.stdout if in_notebook else sys.stderr))


def attribute(posterior: Posterior, methods: Sequence[str] | str, **asked: Any) -> xr.Dataset:
    """`Experiment(posterior, methods, **asked).run()`: its parameters, and what that returns and raises.

    Of the result, `result.tau.loc[{"method": "loo"}]` picks a method, as a dict: `tau.sel(method="loo")` gives all of
    them back, since `method` is a keyword of `sel` itself, and their mean would mix nats with cosines.
    """
    return Experiment(posterior, methods, **asked).run()


def accuracy(posterior: Posterior) -> xr.DataArray:
    """Share of the test points that each draw predicts rightly, (sample,), with the draw's provenance.

    Members are trained here, one after another.

    Raises
    ------
    ValueError
        The objective does not say what is right.
    """
    test, objective = posterior.task.test, posterior.task.objective
    if objective.correct is None:
        raise ValueError(f"objective {objective.name!r} has no accuracy")
    with exact_repeat():
        draws = (draw for k in range(len(posterior.members)) for draw in posterior.draws(k))
        right = [objective.correct(draw.all_outputs(test), test.targets) for draw in draws]
    shares = [each.double().mean().item() for each in right]
    return xr.DataArray(shares, result.provenance(posterior), "sample", name="accuracy")


def _check_start(posterior: Posterior) -> None:
    """Refuse members that would be the same training, as their network starts from the same weights."""
    members, seeds = posterior.members, list(dict.fromkeys(m.init_seed for m in posterior.members))
    if len(seeds) == 1:
        return
    one, other = (fingerprint(posterior.build(posterior.task, seed).state_dict()) for seed in seeds[:2])
    if one != other:
        return
    fixed = "the model starts from the same weights whatever the seed"
    if len({m.batch_seed for m in members}) < len(members):
        raise ValueError(f"{fixed}, so members that differ in it alone are no members; choose vary: batch")
    warnings.warn(f"{fixed}: initialisation is not sampled", stacklevel=3)
