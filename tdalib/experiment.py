"""From a posterior to a labelled array of τ draws: units of work through joblib, each into its chunk."""

from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from tdalib import attributors, store
from tdalib.data import resolve
from tdalib.samplers import Draw, Posterior
from tdalib.training import losses


def attribute(
    posterior: Posterior,
    methods,
    *,
    options: dict[str, dict] | None = None,
    path: Path | str | None = None,
    params: dict | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> xr.Dataset:
    """τ for every draw, train point, test point and method.

    Parameters
    ----------
    posterior : Posterior
    methods : sequence of str
        Names of attributors, in the order that `method` will have.
    options : dict, method → keyword options of that attributor
    path : path, optional
        Where to keep the result as a Zarr store; what a store at this place already holds is not computed again. By
        default the result is held in memory. A relative path starts at the repository root.
    params : dict, optional
        What the result depends on, kept in the store; by default a description of `posterior` and `methods`.
    workers : int, optional
        Processes; by default one for each core. Each computes on one thread, so the numbers do not depend on it.
    scheduler : str, optional
        "local" or the address of a dask scheduler; by default joblib's own processes.

    Returns
    -------
    Dataset
        `tau` (sample, train, test, method), `loss` (sample, test), `loss_without` (sample, train, test) with `loo`.

    Raises
    ------
    ValueError
        An unknown method, a value that a method refuses, or a store that was made with other params. Nothing is
        written then, nor where an unknown option raises TypeError.
    """
    methods = [methods] if isinstance(methods, str) else methods
    known = {name: attributors.get(name) for name in methods}
    if not known:
        raise ValueError(f"methods is empty; choose from {', '.join(sorted(attributors.METHODS))}")
    for name in set(options or {}) - set(known):
        raise ValueError(f"options for {name!r}, which is not among the methods {', '.join(known)}")
    options = {name: (options or {}).get(name, {}) for name in known}
    probe(posterior, known, options)
    empty = store.template(posterior, known, params or describe(posterior, options))
    if path is None:
        with TemporaryDirectory() as folder:
            return _fill(Path(folder) / "result.zarr", empty, posterior, known, options, workers, scheduler).load()
    return _fill(resolve(path), empty, posterior, known, options, workers, scheduler)


def describe(posterior: Posterior, options: dict[str, dict]) -> dict:
    """What a result depends on, for one made without a params file; a model is known by its initial weights."""
    weights = sha256()
    for name, value in posterior.model(posterior.task, posterior.members[0].init_seed).state_dict().items():
        weights.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return {
        "dataset": posterior.task.name,
        "model": weights.hexdigest(),
        "sampler": posterior.run.__name__,
        "seeds": [[m.init_seed, m.batch_seed] for m in posterior.members],
        "checkpoints": posterior.checkpoints,
        "methods": list(options),
        "method_options": options,
        **asdict(posterior.recipe),
    }


def probe(posterior: Posterior, methods, options: dict[str, dict]) -> None:
    """Run every method for real on two train points and one epoch: what cannot work fails here, before any work.

    Raises
    ------
    ValueError
        An unknown method, a value that it refuses, or an attributor whose τ has the wrong shape.
    """
    task = posterior.task
    train = {key: getattr(task, key)[:2] for key in ("x_train", "y_train", "train_index")}
    test = {key: getattr(task, key)[:1] for key in ("x_test", "y_test", "test_index")}
    small = replace(task, **train, **test)
    short = replace(posterior, task=small, recipe=replace(posterior.recipe, epochs=1), checkpoints=1)
    (draw,) = short.draws(0)
    outputs, points = draw.model(small.x_test).shape[-1], range(len(small.x_train))
    if outputs < len(task.classes):
        raise ValueError(f"the model has {outputs} outputs; {len(task.classes)} classes need at least as many")
    for name in methods:
        method, chosen = attributors.get(name), options.get(name, {})
        if method.retrains:
            values, expected = _array(method, short, 0, points, **chosen), (1, len(points), 1)
        else:
            values, expected = _array(method, draw, small, **chosen), (len(points), 1)
        if values.shape != expected:
            raise ValueError(f"method {name!r} gave τ of shape {values.shape} where {expected} is needed")


def _array(method: attributors.Method, *arguments, **options) -> np.ndarray:
    values = method.function(*arguments, **options)
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{method.function.__name__} gave a {type(values).__name__} where a tensor is needed")
    return values.detach().numpy()


@dataclass(frozen=True)
class Unit:
    """What is computed in one go: some train blocks of one member and one method, a chunk of the store each."""

    member: int
    method: str
    blocks: list[int]


def _fill(path, empty, posterior, methods, options, workers, scheduler) -> xr.Dataset:
    store.create(path, empty)
    units = _pending(path, empty, methods)
    if units:
        with _parallel(workers, scheduler) as parallel:
            drawn = _draw_members(parallel, path, posterior, sorted({unit.member for unit in units}))
            jobs = (
                joblib.delayed(_compute)(unit, posterior, *drawn[unit.member], methods[unit.method], options)
                for unit in units
            )
            for unit, results in tqdm(parallel(jobs), desc="attribution", total=len(units), unit="unit"):
                for name, block, values in results:
                    method = (list(methods).index(unit.method),) if name == "tau" else ()
                    store.write(path, name, (unit.member, block, 0, *method), values)
    return store.open_result(path)


def _pending(path: Path, empty: xr.Dataset, methods: dict) -> list[Unit]:
    """The units whose chunks are not all there. A retraining unit is one block, an estimate's is all train points."""
    blocks = range(len(empty.chunksizes["train"]))
    units = []
    for k, name in sorted(enumerate(methods), key=lambda item: not methods[item[1]].retrains):  # the longest first
        for member in range(len(empty.chunksizes["sample"])):
            todo = [block for block in blocks if not store.is_done(path, "tau", (member, block, 0, k))]
            together = [[block] for block in todo] if methods[name].retrains else [todo]
            units += [Unit(member, name, chosen) for chosen in together if chosen]
    return units


def _draw_members(parallel, path: Path, posterior: Posterior, members: list[int]) -> dict:
    """Member → (draws, test losses (checkpoint, test)); the losses go into the store."""
    jobs = (joblib.delayed(_member)(posterior, member) for member in members)
    drawn = {}
    for member, draws, loss in tqdm(parallel(jobs), desc="posterior", total=len(members), unit="member"):
        if not store.is_done(path, "loss", (member, 0)):
            store.write(path, "loss", (member, 0), loss)
        drawn[member] = (draws, loss)
    return drawn


def _member(posterior: Posterior, member: int):
    with _one_thread():
        draws, task = posterior.draws(member), posterior.task
        loss = torch.stack([losses(d.model, d.theta, task.x_test, task.y_test) for d in draws]).numpy()
    _check_finite(loss, f"the test loss of member {member}")
    return member, draws, loss


def _compute(unit: Unit, posterior: Posterior, draws: list[Draw], loss: np.ndarray, method, options: dict):
    """The unit, with (variable, block, values) for its chunks; `tau`, whose chunk marks the unit done, comes last."""
    n, options = len(posterior.task.x_train), options[unit.method]
    points = {block: range(n)[block * store.TRAIN_BLOCK :][: store.TRAIN_BLOCK] for block in unit.blocks}
    results = []
    with _one_thread():
        if method.retrains:
            for block in unit.blocks:
                without = _array(method, posterior, unit.member, points[block], **options)
                tau = without - loss[:, None]  # (checkpoint, points, test)
                results += [("loss_without", block, without), ("tau", block, tau[..., None])]
        else:
            tau = np.stack([_array(method, draw, posterior.task, **options) for draw in draws])
            results += [("tau", block, tau[:, points[block], :, None]) for block in unit.blocks]
    for name, _, values in results:
        _check_finite(values, f"{name} of member {unit.member} by {unit.method}")
    return unit, results


def _check_finite(values: np.ndarray, what: str) -> None:
    """NaN stands for "not computed" in a store, so it must not come from a computation."""
    if not np.isfinite(values).all():
        raise RuntimeError(f"{what} is not finite; where a training diverged, a lower learning_rate helps")


@contextmanager
def _parallel(workers: int | None, scheduler: str | None):
    settings = {"n_jobs": workers or joblib.cpu_count(), "backend": "loky", "inner_max_num_threads": 1}
    if scheduler is None:
        with joblib.parallel_config(**settings), joblib.Parallel(return_as="generator_unordered") as parallel:
            yield parallel
        return
    from distributed import Client

    cluster = {"n_workers": settings["n_jobs"], "threads_per_worker": 1, "dashboard_address": None}
    where = cluster if scheduler == "local" else {"address": scheduler}
    with Client(**where), joblib.parallel_config("dask"), joblib.Parallel(return_as="generator_unordered") as parallel:
        yield parallel


@contextmanager
def _one_thread():
    """One torch thread, so that sums are taken in one order whatever the number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
