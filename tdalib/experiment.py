"""From a posterior to a labelled array of τ draws: what is asked for, checked before any work starts."""

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import numpy as np
import xarray as xr

from tdalib import attributors, engine, stats, store
from tdalib.data import resolve
from tdalib.samplers import Posterior
from tdalib.training import logits


def attribute(
    posterior: Posterior,
    methods,
    *,
    options: dict[str, dict] | None = None,
    path: Path | str | None = None,
    params: dict | None = None,
    device: str = "auto",
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
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where there is one. Numbers of the two agree to float tolerance, so a store is of one.
    workers : int, optional
        Processes; by default one for each core. Each computes on one thread, so the numbers do not depend on it. A GPU
        is used by this process alone, without a scheduler.
    scheduler : str, optional
        "local" or the address of a dask scheduler; by default joblib's own processes.

    Returns
    -------
    Dataset
        `tau` (sample, train, test, method), `loss` (sample, test), `loss_without` (sample, train, test) with `loo`.

    Warns
    -----
    UserWarning
        The chains of a sampler have not converged, by `stats.convergence`.

    Raises
    ------
    ValueError
        An unknown method, a value that a method refuses, a store that was made with other params or that another run
        is writing. Nothing is written then, nor where an unknown option raises TypeError.
    RuntimeError, OSError
        A number is not finite, or a worker was killed; the disk is full. What is finished stays: call again to go on.
    """
    posterior, methods, options, empty = prepared(posterior, methods, options, params, device, scheduler)
    work = posterior, methods, options, workers, scheduler
    if path is None:
        with TemporaryDirectory() as folder:
            result = engine.fill(Path(folder) / "result.zarr", empty, *work).load()
    else:
        result = engine.fill(resolve(path), empty, *work)
    if posterior.kind == "chain" and (line := stats.convergence_warning(stats.convergence(result))):
        warnings.warn(f"{posterior.sampler}: {line}", stacklevel=2)
    return result


def prepared(posterior: Posterior, methods, options, params: dict | None, device: str, scheduler: str | None):
    """Everything that can fail on what is asked for; the posterior on its device, and the empty result."""
    device = engine.resolve_device(device, scheduler)
    methods, options = _known(methods, options)
    posterior = posterior.to("cpu")
    with engine.exact_repeat():
        there = posterior.to(device).embedded()
    probe(there, methods, options)
    empty = store.template(posterior, methods, (params or describe(posterior, options)) | {"device": device})
    return there, methods, options, empty


def accuracy(posterior: Posterior, *, workers: int | None = None) -> xr.DataArray:
    """Share of the test points that each draw classifies rightly, (sample,), with the draw's provenance."""
    with engine.exact_repeat():
        posterior = posterior.embedded()
    with engine.parallel(posterior, workers, None) as run:
        shares = dict(run(joblib.delayed(_accuracy)(posterior, k) for k in range(len(posterior.members))))
    provenance = store.provenance(posterior)
    return xr.DataArray(np.concatenate([shares[k] for k in sorted(shares)]), provenance, "sample", name="accuracy")


def _accuracy(posterior: Posterior, k: int) -> tuple[int, list[float]]:
    task = posterior.task
    with engine.exact_repeat():
        outputs = [logits(draw.model, draw.theta, task.x_test) for draw in posterior.draws(k)]
    return k, [(output.argmax(1) == task.y_test).double().mean().item() for output in outputs]


def _known(methods, options: dict | None) -> tuple[dict, dict]:
    """Name → Method and name → options, in the order asked for."""
    methods = [methods] if isinstance(methods, str) else methods
    known = {name: attributors.get(name) for name in methods}
    if not known:
        raise ValueError(f"methods is empty; choose from {', '.join(sorted(attributors.METHODS))}")
    for name in set(options or {}) - set(known):
        raise ValueError(f"options for {name!r}, which is not among the methods {', '.join(known)}")
    return known, {name: (options or {}).get(name, {}) for name in known}


def describe(posterior: Posterior, options: dict[str, dict]) -> dict:
    """What a result depends on beside its data and model, for one made without a params file."""
    model = getattr(posterior.model, "func", posterior.model)  # without bound options
    return {
        "dataset": posterior.task.name,
        "model": getattr(model, "__name__", type(model).__name__),
        "members": len(posterior.members),
        "sampler": posterior.sampler,
        "sampler_options": posterior.options,
        "seeds": [[m.init_seed, m.batch_seed] for m in posterior.members],
        "checkpoints": posterior.checkpoints,
        "stack": posterior.stack,
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
    small = task.first(train=2, test=1)
    short = replace(posterior, task=small, recipe=replace(posterior.recipe, epochs=1), checkpoints=1)
    (draw,) = short.draws(0)
    outputs, points = draw.model(small.x_test).shape[-1], list(range(len(small.x_train)))
    if outputs < len(task.classes):
        raise ValueError(f"the model has {outputs} outputs; {len(task.classes)} classes need at least as many")
    for name in methods:
        method, chosen = attributors.get(name), options.get(name, {})
        if method.retrains:
            asked = [None, *points] if short.stacked > 1 else points
            values, expected = engine.as_array(method, short, 0, asked, **chosen), (1, len(asked), 1)
        else:
            values, expected = engine.as_array(method, draw, small, **chosen), (len(points), 1)
        if values.shape != expected:
            raise ValueError(f"method {name!r} gave τ of shape {values.shape} where {expected} is needed")
