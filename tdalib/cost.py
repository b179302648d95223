"""What a run will cost, method by method, from timing a little of its real work."""

from math import ceil
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import joblib
import pandas as pd
import psutil
import torch

from tdalib import result, units, workers
from tdalib.units import Work
from tdalib.workers import Shared

ENOUGH = 20.0  # seconds that a method may be timed for
COLUMNS = ["minutes", "peak memory of a worker (GB)", "disk (GB)"]


def costs(work: Work, path: Path | None, jobs: int | None = None, scheduler: str | None = None) -> pd.DataFrame:
    """What is still to be done of the work in the store at `path`, if there is one. Nothing is written.

    All workers time the same work side by side, as they will share cache and memory later: one member's training, one
    retraining or stack, and one draw's estimates of one block, or of all where those are quick.

    Returns
    -------
    DataFrame
        COLUMNS (disk is before compression) by "posterior" (the draws), method, and "total".
    """
    todo = units.pending(path or Path("no store"), work)
    share = {name: 0.0 for name in work.methods}  # of members
    for unit in todo:
        of_one = len(unit.blocks) / len(result.train_blocks(len(work.removals)))
        share[unit.method] += of_one * (len(work.posterior.members) if unit.member is None else 1)
    rows = {}
    if todo:
        with workers.parallel(work, work.device, jobs, scheduler) as (pool, shared):
            at_once = joblib.effective_n_jobs(jobs or -1)
            measured = list(pool(joblib.delayed(_measure)(shared) for _ in range(at_once)))
        one = pd.concat(measured).groupby(level=0)
        seconds, memory = one["seconds"].mean(), one["memory"].max()  # of one member
        members = len(work.posterior.members) if None in {u.member for u in todo} else len({u.member for u in todo})
        rows["posterior"] = ceil(members / at_once) * seconds["posterior"] / 60, memory["posterior"], 0.0
        array = work.posterior.checkpoints * len(work.removals) * len(work.posterior.task.test) * 4 / 1e9
        for name, method in work.methods.items():
            turns = 1 if method.scope == "posterior" else at_once
            disk = share[name] * array * (2 if method.retrains else 1)
            rows[name] = share[name] * seconds[name] / turns / 60, memory[name], disk
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS, dtype=float)
    table.loc["total"] = [table[COLUMNS[0]].sum(), table[COLUMNS[1]].max() if rows else 0, table[COLUMNS[2]].sum()]
    return table


def _measure(shared: Shared) -> pd.DataFrame:
    """Seconds for one member and peak memory in GB, by method; "posterior" is the training of its draws."""
    work = shared.get(Work.prepared)
    on_gpu = work.device == "cuda"
    (_, states, _), seconds, more = _timed(lambda: units.draw_member(shared, 0), on_gpu)
    base = _memory(on_gpu)
    rows = {"posterior": (seconds, base + more)}
    with workers.exact_repeat():
        draws = units.draws_of(work.posterior, 0, states)
        for name, method in work.methods.items():
            seconds, more = _of_retraining(work, name, on_gpu) if method.retrains else _of_estimate(work, name, draws)
            rows[name] = seconds, base + more
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seconds", "memory"])


def _of_retraining(work: Work, name: str, on_gpu: bool) -> tuple[float, float]:
    """Seconds for one member and GB, from one retraining or one stack of them."""
    some = work.removals[: work.posterior.stacked]
    _, seconds, more = _timed(lambda: units.losses_without(work, 0, name, some), on_gpu)
    return seconds * len(work.removals) / len(some), more


def _of_estimate(work: Work, name: str, draws: list) -> tuple[float, float]:
    """Seconds for one member and GB, from one draw, or all draws where the method sees them together."""
    together = work.methods[name].scope != "draw"
    seen, times = (draws, 1) if together else (draws[:1], len(draws))

    def timed(some):
        return _timed(lambda: units.estimated(work, name, {0: seen}, some), work.device == "cuda")

    block = work.removals[: result.TRAIN_BLOCK]
    _, seconds, more = timed(block)
    blocks = len(work.removals) / len(block)
    if seconds * blocks < ENOUGH:
        _, seconds, more = timed(work.removals)
        blocks = 1
    return seconds * blocks * times, more


def _timed(call, on_gpu: bool):
    """What a call gives, its seconds, and the highest memory meanwhile in GB over that before, at least a MB."""
    workers.free_memory()
    before, more, done = _memory(on_gpu), [1e-3], Event()

    def watch():
        while not done.wait(0.005):
            more.append(_memory(on_gpu) - before)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    start = perf_counter()
    try:
        value = call()
        seconds = perf_counter() - start
    finally:
        done.set()
        thread.join()
    return value, seconds, max(more)


def _memory(on_gpu: bool) -> float:
    """GB that this process takes now; on a GPU, of the GPU's."""
    return (torch.cuda.memory_reserved() if on_gpu else psutil.Process().memory_info().rss) / 1e9
