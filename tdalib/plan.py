"""What a run will cost, method by method, from timing a little of its real work."""

from dataclasses import replace
from math import ceil, log
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import joblib
import pandas as pd
import psutil
import torch

from tdalib import engine, store
from tdalib.data import ROOT, resolve
from tdalib.experiment import prepared
from tdalib.samplers import Posterior

ENOUGH = 1.5  # seconds of timing after which an estimate's cost is drawn on
STEPS = 40  # training steps to time
MOST = 1000  # test points at which an estimate is timed
BATCHES = 8  # of an epoch to time
COLUMNS = ["minutes", "peak memory of a worker (GB)", "disk (GB)"]


def plan(
    posterior: Posterior,
    methods,
    *,
    options: dict[str, dict] | None = None,
    path: Path | str | None = None,
    params: dict | None = None,
    device: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
) -> pd.DataFrame:
    """What `attribute` with the same arguments will cost; what the store at `path` holds already costs nothing.

    All workers time the same work side by side, as they will share cache and memory later. Trainings are timed for a
    few epochs and counted up. An estimate is timed at one draw on more and more train points until it takes a second
    or two, and its growth is drawn on. Nothing is written. Raises what `attribute` raises.

    Returns
    -------
    DataFrame
        COLUMNS (disk is before compression) by "posterior" (the draws), method, and "total".
    """
    posterior, methods, options, empty = prepared(posterior, methods, options, params, device, scheduler)
    if path is None:
        path = ROOT / "no store"
    store.check(resolve(path), empty)
    units = engine.pending(resolve(path), empty, posterior, methods)
    members = {name: 0.0 for name in methods}  # to be done
    for unit in units:
        members[unit.method] += len(unit.blocks) / len(empty.chunksizes["train"])
    rows = {}
    if units:
        with engine.parallel(posterior, workers, scheduler) as run:
            jobs = joblib.effective_n_jobs(workers or -1)
            measured = list(run(joblib.delayed(_measure)(posterior, methods, options) for _ in range(jobs)))
        costs = pd.concat(measured).groupby(level=0)
        seconds, memory = costs["seconds"].mean(), costs["memory"].max()  # of one member
        turns = ceil(len({unit.member for unit in units}) / jobs)
        rows["posterior"] = turns * seconds["posterior"] / 60, memory["posterior"], 0.0
        array = posterior.checkpoints * empty.sizes["train"] * empty.sizes["test"] * 4 / 1e9
        for name, method in methods.items():
            disk = members[name] * array * (2 if method.retrains else 1)
            rows[name] = members[name] * seconds[name] / jobs / 60, memory[name], disk
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS, dtype=float)
    table.loc["total"] = [table[COLUMNS[0]].sum(), table[COLUMNS[1]].max() if units else 0, table[COLUMNS[2]].sum()]
    return table


def _measure(posterior: Posterior, methods: dict, options: dict) -> pd.DataFrame:
    """Seconds for one member and peak memory in GB, by method; "posterior" is the training of its draws."""
    task, n = posterior.task, len(posterior.task.x_train)
    few = task.first(test=MOST)
    more = len(task.x_test) / len(few.x_test)
    at_once = min(posterior.stacked, n)
    points = [0] if at_once == 1 else [None, *(j % (BATCHES * posterior.recipe.batch_size) for j in range(at_once))]
    rows = {}
    with engine.exact_repeat():
        (draw,) = _shortened(posterior, 1, keep=1).draws(0)  # and all is warm
        base = _memory(task.x_train.is_cuda)

        def retrain(epochs):
            engine.as_array(method, _shortened(posterior, epochs), 0, points, **options[name])

        def estimate(size):
            engine.as_array(method, draw, few.first(train=size), **options[name])

        seconds, memory = _training(lambda epochs: engine.member(_shortened(posterior, epochs), 0), posterior)
        rows["posterior"] = seconds, base + memory
        for name, method in methods.items():
            if method.retrains:
                seconds, memory = _training(retrain, posterior)
                rows[name] = seconds * ceil(n / at_once), base + memory
            else:
                seconds, memory = _growing(estimate, n, task.x_train.is_cuda)
                rows[name] = seconds * posterior.checkpoints * more, base + memory
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seconds", "memory"])


def _shortened(posterior: Posterior, epochs: int, keep: int | None = None) -> Posterior:
    """The posterior with other epochs, of at most BATCHES batches each."""
    recipe = replace(posterior.recipe, epochs=epochs)
    kept, task = keep or posterior.checkpoints, posterior.task.first(train=BATCHES * recipe.batch_size)
    return replace(posterior, task=task, recipe=recipe, checkpoints=kept)


def _training(run, posterior: Posterior) -> tuple[float, float]:
    """Seconds, linear in the steps, and GB: timed for the checkpoints' epochs, and for STEPS more.

    What does not grow with the epochs is the test losses, or a chain or a fit over all points after them.
    """
    recipe, n = posterior.recipe, len(posterior.task.x_train)
    steps, timed = (ceil(count / recipe.batch_size) for count in (n, min(n, BATCHES * recipe.batch_size)))  # an epoch's
    few, more = posterior.checkpoints, posterior.checkpoints + ceil(STEPS / timed)
    (short, _), (long, memory) = (_cost(run, epochs, posterior.task.x_train.is_cuda) for epochs in (few, more))
    step = max(0.0, long - short) / (timed * (more - few))
    rest = max(0.0, short - few * timed * step) * (1 if posterior.kind == "epochs" else steps / timed)
    return rest + recipe.epochs * steps * step, memory


def _growing(run, n: int, on_gpu: bool) -> tuple[float, float]:
    """Seconds and GB of an estimate at n train points, by the growth between the last two sizes that were timed."""
    sizes = sorted({max(1, n // part) for part in (16, 8, 4, 2, 1)})
    run(sizes[0])
    costs = []
    for size in sizes:
        costs.append(_cost(run, size, on_gpu))
        if sum(seconds for seconds, _ in costs) > ENOUGH and len(costs) > 1:
            break
    if size == n:
        return costs[-1]
    before = sizes[len(costs) - 2]
    powers = (log(now / then) / log(size / before) for then, now in zip(costs[-2], costs[-1], strict=True))
    return tuple(now * (n / size) ** max(0.0, power) for now, power in zip(costs[-1], powers, strict=True))


def _cost(run, argument: int, on_gpu: bool) -> tuple[float, float]:
    """Seconds of a call, and the highest memory meanwhile in GB over that before, at least a MB."""
    engine.free_memory()
    before, more, done = _memory(on_gpu), [1e-3], Event()

    def watch():
        while not done.wait(0.005):
            more.append(_memory(on_gpu) - before)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    start = perf_counter()
    try:
        run(argument)
        seconds = perf_counter() - start
    finally:
        done.set()
        thread.join()
    return seconds, max(more)


def _memory(on_gpu: bool) -> float:
    """GB that this process takes now; on a GPU, of the GPU's."""
    return (torch.cuda.memory_reserved() if on_gpu else psutil.Process().memory_info().rss) / 1e9
