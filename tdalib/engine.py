"""The engine: units of work through joblib, each into its chunks of the store."""

import ctypes
import os
import platform
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import sleep

import joblib
import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from tdalib import attributors, store
from tdalib.data import Task
from tdalib.samplers import Draw, Posterior
from tdalib.training import losses


@dataclass(frozen=True)
class Unit:
    """What is computed in one go: some train blocks of one member and one method, a chunk of the store each."""

    member: int
    method: str
    blocks: list[int]


def resolve_device(device: str, scheduler: str | None = None) -> str:
    """Where to compute, cpu or cuda; "auto" is the GPU where there is one, and the work is not a cluster's."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r} is not known; choose from auto, cpu, cuda")
    usable = torch.cuda.is_available() and scheduler is None
    if device == "cuda" and not usable:
        why = "a scheduler's workers compute on CPUs" if scheduler else "no such GPU is to be had here"
        raise ValueError(f"device: cuda is not possible, {why}; choose auto or cpu")
    return ("cuda" if usable else "cpu") if device == "auto" else device


def fill(
    path: Path, empty: xr.Dataset, posterior: Posterior, methods: dict, options: dict, workers=None, scheduler=None
) -> xr.Dataset:
    """Compute what the store at `path` does not hold yet; `empty` is its `store.template`.

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
    whole = path.exists() and not (
        pending(path, empty, posterior, methods) or _without_loss(path, empty) or store.missing_coordinates(path, empty)
    )
    if not whole:
        with store.held(path):
            store.create(path, empty)
            try:
                _run(path, empty, posterior, methods, options, workers, scheduler)
            except BrokenExecutor:
                raise RuntimeError(
                    f"store {path}: a worker process was killed, perhaps for want of memory, which fewer workers save; "
                    "the same run goes on from here"
                ) from None
    return store.open_result(path)


def pending(path: Path, empty: xr.Dataset, posterior: Posterior, methods: dict) -> list[Unit]:
    """The units whose chunks are not all there, the longest first.

    An estimate's unit is what is missing of a member, whose linear algebra all points share. A unit of retrainings is
    one block; or the blocks of a stack, all of them even where one alone is missing, for the same stack as before.
    """
    units = []
    for k, name in sorted(enumerate(methods), key=lambda item: not methods[item[1]].retrains):
        retrains = methods[name].retrains
        size = max(1, posterior.stacked // store.TRAIN_BLOCK)
        for member in range(len(empty.chunksizes["sample"])):
            blocks = list(range(len(empty.chunksizes["train"])))
            todo = {
                block
                for block in blocks
                if not store.is_done(path, "tau", (member, block, 0, k))
                or (retrains and not store.is_done(path, "loss_without", (member, block, 0)))
            }
            groups = [blocks[first : first + size] for first in blocks[::size]] if retrains else [sorted(todo)]
            units += [Unit(member, name, group) for group in groups if todo.intersection(group)]
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
            if not store.is_done(path, "loss", (k, 0)):
                store.write(path, "loss", (k, 0), loss)
            drawn[k] = draws, loss
        jobs = (
            _job(unit, posterior, *drawn[unit.member], methods[unit.method], options[unit.method]) for unit in units
        )
        for unit, results in tqdm(run(jobs), desc="attribution", total=len(units), unit="unit"):
            for name, block, values in results:
                method = (list(methods).index(unit.method),) if name == "tau" else ()
                store.write(path, name, (unit.member, block, 0, *method), values)


def member(posterior: Posterior, k: int) -> tuple[int, list[Draw], np.ndarray]:
    """Member k: its draws and their test losses, (checkpoint, test)."""
    with exact_repeat():
        draws, task = posterior.draws(k), posterior.task
        loss = torch.stack([losses(d.model, d.theta, task.x_test, task.y_test) for d in draws]).cpu().numpy()
    _check_finite(loss, f"the test loss of member {k}")
    return k, draws, loss


def _job(unit: Unit, posterior: Posterior, draws: list[Draw], loss: np.ndarray, method, options: dict):
    """The unit as a joblib job that carries no more than it needs."""
    if method.retrains:
        # in a tuple: a bare array joblib would leave with one dask worker, and lose with it
        return joblib.delayed(_retrained)(unit, posterior, (loss,), method, options)
    return joblib.delayed(_estimated)(unit, posterior.task, draws, method, options)


def _retrained(unit: Unit, posterior: Posterior, losses_at_theta: tuple[np.ndarray], method, options: dict):
    """The unit, with (variable, block, values) for its chunks."""
    points, (loss,) = _points(unit, posterior.task), losses_at_theta
    flat = sum(points.values(), [])
    with exact_repeat():
        if posterior.stacked > 1:  # θ in the same stack: it and θ\j then differ by the point alone, not by rounding
            values = as_array(
                method, posterior, unit.member, [None, *flat], **options
            )  # (checkpoint, 1 + points, test)
            loss, without = values[:, :1], values[:, 1:]
        else:
            loss, without = loss[:, None], as_array(method, posterior, unit.member, flat, **options)
    ends = np.cumsum([len(chosen) for chosen in points.values()])[:-1]
    parts = zip(points, np.split(without, ends, axis=1), np.split(without - loss, ends, axis=1), strict=True)
    results = [
        result for block, at, tau in parts for result in (("loss_without", block, at), ("tau", block, tau[..., None]))
    ]
    return unit, _checked(unit, results)


def _estimated(unit: Unit, task: Task, draws: list[Draw], method, options: dict):
    """The unit, with (variable, block, values) for its chunks."""
    tau = np.empty((len(draws), len(task.x_train), len(task.x_test)), np.float32)
    with exact_repeat():
        for k, draw in enumerate(draws):
            tau[k] = as_array(method, draw, task, **options)
    points = _points(unit, task)
    return unit, _checked(unit, [("tau", block, tau[:, chosen, :, None]) for block, chosen in points.items()])


def _points(unit: Unit, task: Task) -> dict[int, list[int]]:
    """Block → its train points."""
    n, size = len(task.x_train), store.TRAIN_BLOCK
    return {block: list(range(n)[block * size : (block + 1) * size]) for block in unit.blocks}


def _checked(unit: Unit, results: list) -> list:
    for name, _, values in results:
        _check_finite(values, f"{name} of member {unit.member} by {unit.method}")
    return [(name, block, values.astype(np.float32, copy=False)) for name, block, values in results]


def as_array(method: attributors.Method, *arguments, **options) -> np.ndarray:
    """What an attributor gives, as an array."""
    values = method.function(*arguments, **options)
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{method.function.__name__} gave a {type(values).__name__} where a tensor is needed")
    return values.detach().cpu().numpy()


def _check_finite(values: np.ndarray, what: str) -> None:
    """NaN stands for "not computed" in a store, so it must not come from a computation."""
    if not np.isfinite(values).all():
        raise RuntimeError(
            f"{what} is not finite; where a training or a chain diverged, a lower learning_rate or step_size helps"
        )


@contextmanager
def parallel(posterior: Posterior, workers: int | None, scheduler: str | None):
    """joblib's Parallel: processes here, or a dask cluster; a GPU belongs to one process, this one."""
    jobs = workers or joblib.cpu_count()
    if scheduler is None:
        if posterior.task.x_train.is_cuda:
            settings = {"backend": "sequential"}
        else:
            settings = {"backend": "loky", "n_jobs": jobs, "inner_max_num_threads": 1}
            settings |= {"initializer": _end_with, "initargs": (os.getpid(),)}
        with joblib.parallel_config(**settings), joblib.Parallel(return_as="generator_unordered") as run:
            yield run
        return
    from distributed import Client

    cluster = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    where = cluster if scheduler == "local" else {"address": scheduler}
    with Client(**where), joblib.parallel_config("dask"), joblib.Parallel(return_as="generator_unordered") as run:
        yield run


def _end_with(parent: int) -> None:
    """In a worker: end when the parent does, however it ends, instead of waiting for the rest of its work forever."""

    def watch():
        while os.getppid() == parent:
            sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def exact_repeat():
    """The same numbers every time: one torch thread, and on a GPU no TF32 and convolutions that repeat.

    Sums are then taken in one order, whatever the number of workers. For the rest of the process, memory is kept.
    """
    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
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
