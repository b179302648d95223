"""The cost of an experiment, from timing a little of the real work."""

import sys
from collections.abc import Callable
from math import ceil
from resource import RUSAGE_SELF, getrusage
from time import perf_counter
from typing import Any, NamedTuple

import pandas as pd
import torch

from tdalib.units import Unit, Work, draw_member, draws_of, estimated, losses_without
from tdalib.workers import Shared, exact_repeat

COLUMNS = ["minutes", "peak memory of a worker (GB)", "disk (GB)"]


class Cost(NamedTuple):
    """Seconds of work, and GB: the most that its process, or the GPU, has held until then."""

    seconds: float
    memory: float


def table(work: Work, units: list[Unit], members: int, measured: list[dict[str, Cost]]) -> pd.DataFrame:
    """Minutes, memory and disk of the units by method, from what each of the workers measured for one member."""
    timed = pd.concat([pd.DataFrame.from_dict(costs, "index", columns=Cost._fields) for costs in measured])
    cost = timed.groupby(level=0, sort=False).agg({"seconds": "mean", "memory": "max"})
    array = work.posterior.checkpoints * len(work.removals) * len(work.posterior.task.test) * 4 / 1e9  # GB of a member
    turns, disk = {"posterior": float(ceil(members / len(measured)))}, {"posterior": 0.0}
    for name, method in work.methods.items():
        is_one_unit = method.scope == "posterior"  # of all members
        blocks = sum(len(unit.blocks) for unit in units if unit.method == name)
        share = blocks / len(work.blocks) * (len(work.posterior.members) if is_one_unit else 1)  # of members
        turns[name] = share / (1 if is_one_unit else len(measured))
        disk[name] = share * array * (2 if method.scope == "retrain" else 1)
    columns = cost["seconds"] * pd.Series(turns) / 60, cost["memory"], pd.Series(disk)
    table = pd.concat(columns, axis=1, keys=COLUMNS)
    table.loc["total"] = table.agg(dict(zip(COLUMNS, ["sum", "max", "sum"], strict=True)))
    return table


def measure(shared: Shared) -> dict[str, Cost]:
    """The cost of one member, by method, from timing a little of the real work; "posterior" is that of its draws.

    Timed are a member's draws, one retraining or stack of them, and the estimates at one draw, or at all its draws for
    a method that sees them together.
    """
    work = shared.get(Work.received)
    (_, states, _), cost = timed(draw_member, shared, 0)
    costs = {"posterior": cost}
    with exact_repeat():
        draws = draws_of(work.posterior, 0, states)
        for name, method in work.methods.items():
            if method.scope == "retrain":
                some = work.removals[: work.posterior.stacked]
                _, cost = timed(losses_without, work, 0, name, some)
                share = len(some) / len(work.removals)
            else:
                seen = draws[:1] if method.scope == "draw" else draws
                _, cost = timed(estimated, work, name, {0: seen})
                share = len(seen) / len(draws)
            costs[name] = Cost(cost.seconds / share, cost.memory)
    return costs


def timed(call: Callable, *arguments: Any) -> tuple[Any, Cost]:
    """What a call gives, and its cost."""
    start = perf_counter()
    value = call(*arguments)
    seconds = perf_counter() - start
    of_process = getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else of_process
    return value, Cost(seconds, peak / 1e9)
