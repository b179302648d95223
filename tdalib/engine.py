"""The engine: units of work through joblib, each into its chunks of the store."""

import ctypes
import platform
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from tdalib import attributors, store
from tdalib.samplers import Draw, Posterior
from tdalib.training import losses

IDLE = 10  # seconds after which a process without work ends, so that none outlives a killed run for long


@dataclass(frozen=True)
class Unit:
    """What is computed in one go: some train blocks of one member and one method, a chunk of the store each."""

    member: int
    method: str
    blocks: list[int]


def resolve_device(device: str) -> str:
    """Where to compute, cpu or cuda; "auto" is the GPU where there is one."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r} is not known; choose from auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: no cuda GPU is to be had here; choose auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def fill(
    path: Path, empty: xr.Dataset, posterior: Posterior, methods: dict, options: dict, workers=None, scheduler=None
) -> xr.Dataset:
    """Compute what the store at `path` does not hold yet; `empty` is its `store.template`."""
    store.check(path, empty)
    if not path.exists() or pending(path, empty, posterior, methods) or _without_loss(path, empty):
        with store.held(path):
            store.create(path, empty)
            _run(path, empty, posterior, methods, options, workers, scheduler)
    return store.open_result(path)


def pending(path: Path, empty: xr.Dataset, posterior: Posterior, methods: dict) -> list[Unit]:
    """The units whose chunks are not all there, the longest first.

    An estimate's unit is all train points of a member, whose linear algebra is shared; a unit of retrainings is one
    block, or as many as make up a stack.
    """
    units = []
    for k, name in sorted(enumerate(methods), key=lambda item: not methods[item[1]].retrains):
        retrains = methods[name].retrains
        size = max(1, (posterior.stack or 1) // store.TRAIN_BLOCK) if retrains else None
        for member in range(len(empty.chunksizes["sample"])):
            todo = [
                block
                for block in range(len(empty.chunksizes["train"]))
                if not store.is_done(path, "tau", (member, block, 0, k))
                or (retrains and not store.is_done(path, "loss_without", (member, block, 0)))
            ]
            step = size or len(todo) or 1
            units += [Unit(member, name, todo[first : first + step]) for first in range(0, len(todo), step)]
    return units


def _without_loss(path: Path, empty: xr.Dataset) -> list[int]:
    return [k for k in range(len(empty.chunksizes["sample"])) if not store.is_done(path, "loss", (k, 0))]


def _run(path, empty, posterior, methods, options, workers, scheduler) -> None:
    units = pending(path, empty, posterior, methods)
    members = {unit.member for unit in units} | set(_without_loss(path, empty))
    with parallel(posterior, workers, scheduler) as run:
        drawn = {}
        jobs = (joblib.delayed(member)(posterior, k) for k in sorted(members))
        for k, draws, loss in tqdm(run(jobs), desc="posterior", total=len(members), unit="member"):
            store.write(path, "loss", (k, 0), loss)
            drawn[k] = draws, loss
        jobs = (
            joblib.delayed(_compute)(unit, posterior, *drawn[unit.member], methods[unit.method], options[unit.method])
            for unit in units
        )
        for unit, results in tqdm(run(jobs), desc="attribution", total=len(units), unit="unit"):
            for name, block, values in results:
                method = (list(methods).index(unit.method),) if name == "tau" else ()
                store.write(path, name, (unit.member, block, 0, *method), values)


def member(posterior: Posterior, k: int) -> tuple[int, list[Draw], np.ndarray]:
    """Member k: its draws and their test losses, (checkpoint, test)."""
    with one_thread():
        draws, task = posterior.draws(k), posterior.task
        loss = torch.stack([losses(d.model, d.theta, task.x_test, task.y_test) for d in draws]).cpu().numpy()
    _check_finite(loss, f"the test loss of member {k}")
    return k, draws, loss


def _compute(unit: Unit, posterior: Posterior, draws: list[Draw], loss: np.ndarray, method, options: dict):
    """The unit, with (variable, block, values) for its chunks."""
    size, n = store.TRAIN_BLOCK, len(posterior.task.x_train)
    blocks = {block: list(range(n)[block * size : (block + 1) * size]) for block in unit.blocks}
    results = []
    with one_thread():
        if method.retrains:
            points = sum(blocks.values(), [])
            if posterior.stack > 1:  # θ in the same stack: it and θ\j then differ by the point alone, not by rounding
                values = array(method, posterior, unit.member, [None, *points], **options)
                base, without = values[:, :1], values[:, 1:]
            else:
                base, without = loss[:, None], array(method, posterior, unit.member, points, **options)
            tau = without - base  # (checkpoint, points, test)
            for block, chosen in blocks.items():
                at = slice(points.index(chosen[0]), points.index(chosen[-1]) + 1)
                results += [("loss_without", block, without[:, at]), ("tau", block, tau[:, at, :, None])]
        else:
            tau = np.empty((len(draws), n, loss.shape[1]), np.float32)
            for k, draw in enumerate(draws):
                tau[k] = array(method, draw, posterior.task, **options)
            results = [("tau", block, tau[:, chosen[0] : chosen[-1] + 1, :, None]) for block, chosen in blocks.items()]
    for name, _, values in results:
        _check_finite(values, f"{name} of member {unit.member} by {unit.method}")
    return unit, [(name, block, values.astype(np.float32)) for name, block, values in results]


def array(method: attributors.Method, *arguments, **options) -> np.ndarray:
    """What an attributor gives, as an array."""
    values = method.function(*arguments, **options)
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{method.function.__name__} gave a {type(values).__name__} where a tensor is needed")
    return values.detach().cpu().numpy()


def _check_finite(values: np.ndarray, what: str) -> None:
    """NaN stands for "not computed" in a store, so it must not come from a computation."""
    if not np.isfinite(values).all():
        raise RuntimeError(f"{what} is not finite; where a training diverged, a lower learning_rate helps")


@contextmanager
def parallel(posterior: Posterior, workers: int | None, scheduler: str | None):
    """joblib's Parallel: processes here, or a dask cluster; a GPU belongs to one process, this one."""
    jobs = workers or joblib.cpu_count()
    if scheduler is None:
        if posterior.task.x_train.is_cuda:
            settings = {"backend": "sequential"}
        else:
            settings = {"backend": "loky", "n_jobs": jobs, "inner_max_num_threads": 1, "idle_worker_timeout": IDLE}
        with joblib.parallel_config(**settings), joblib.Parallel(return_as="generator_unordered") as run:
            yield run
        return
    from distributed import Client

    cluster = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    where = cluster if scheduler == "local" else {"address": scheduler}
    with Client(**where), joblib.parallel_config("dask"), joblib.Parallel(return_as="generator_unordered") as run:
        yield run


@contextmanager
def one_thread():
    """One torch thread, so that sums are taken in one order whatever the number of workers."""
    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Let glibc keep blocks up to 32 MB for the next step; given back to the system, they cost a page fault each 4 kB.

    Measured for cnn2: a step takes 0.7 times as long, an evaluation 0.55 times.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # numbers of malloc.h
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)


def free_memory() -> None:
    """Give the kept blocks back to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
