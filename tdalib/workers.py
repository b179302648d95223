"""Where work is done: processes here, a dask cluster or a GPU, in one way that repeats to the bit."""

import ctypes
import os
import pickle
import platform
import shutil
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from threading import Thread
from time import sleep
from typing import Any, Literal
from uuid import uuid4

import cloudpickle
import joblib
import psutil
import torch
from joblib.externals.loky.backend import resource_tracker

from tdalib.networks import SlowerPath, float32_by_default, kept_generators
from tdalib.options import one_line

Device = Literal["auto", "cpu", "cuda"]
SHARED_MEMORY = Path("/dev/shm")

_given: dict[str, Any] = {}  # token → what was handed to this process
_prepared: dict[str, Any] = {}  # token → what it made of that


@dataclass(frozen=True)
class Shared:
    """What every worker needs and gets once: units of work carry this instead."""

    token: str = field(default_factory=lambda: uuid4().hex)
    path: Path | None = None

    def get(self, prepare: Callable[[Any], Any]) -> Any:
        """What is shared, prepared by each process when it first asks for it, and kept."""
        if self.token not in _prepared:
            if self.path:  # of processes here, which work at one thing at a time
                _prepared.clear()
            given = pickle.loads(self.path.read_bytes()) if self.path else _given[self.token]
            _prepared[self.token] = prepare(given)
        return _prepared[self.token]


def _forget(token: str) -> None:
    _given.pop(token, None)
    _prepared.pop(token, None)


class _Hand:
    """A dask worker's plugin: hands what is shared to it, and to those that join later."""

    def __init__(self, token: str, content: bytes):
        self.token, self.content = token, content

    def setup(self, worker: Any) -> None:
        if worker.state.nthreads > 1:  # torch's generator and threads belong to a process
            raise ValueError(f"a dask worker has {worker.state.nthreads} threads; start workers with --nthreads 1")
        _given[self.token] = pickle.loads(self.content)

    def teardown(self, worker: Any) -> None:
        _forget(self.token)


def resolve_device(device: Device, scheduler: str | None = None) -> str:
    """Where to compute, cpu or cuda; "auto" is the GPU where there is one, and the work is not a cluster's."""
    usable = torch.cuda.is_available() and scheduler is None
    if device == "cuda" and not usable:
        why = "a scheduler's workers compute on CPUs" if scheduler else "no such GPU is to be had here"
        raise ValueError(f"device: cuda is not possible, {why}; choose auto or cpu")
    return ("cuda" if usable else "cpu") if device == "auto" else device


def check_scheduler(scheduler: str | None) -> None:
    """Refuse a dask scheduler that nothing can be sent to.

    Raises
    ------
    ValueError
        Nothing answers there; or "local", which starts Python anew, in a script that its workers would run again.
    """
    if scheduler == "local":
        script = getattr(sys.modules["__main__"], "__file__", None)
        if script and "__main__" not in Path(script).read_text(encoding="utf-8", errors="ignore"):
            remedy = 'put what it does under `if __name__ == "__main__":`'
            raise ValueError(f"scheduler: local starts workers that run {script} again; {remedy}")
    elif scheduler is not None:
        host, _, port = scheduler.rpartition("://")[2].rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise ValueError(f"scheduler: nothing answers at {scheduler} ({error}); start it or choose local") from None


@contextmanager
def parallel(work: Any, device: str, workers: int | None, scheduler: str | None) -> Iterator[tuple[Any, Shared]]:
    """A context of joblib's Parallel, and `work` as `Shared`: processes here, or a dask cluster.

    A GPU belongs to one process, this one.

    Yields
    ------
    joblib.Parallel and Shared
    """
    jobs = workers or joblib.cpu_count()
    settings: dict[str, Any]
    with ExitStack() as cleared:
        if scheduler is not None:
            shared, settings = _with_cluster(work, jobs, scheduler, cleared), {"backend": "dask"}
        elif device == "cuda" or jobs == 1:
            shared, settings = _in_this_process(work, cleared), {"backend": "sequential"}
        else:
            shared, settings = _with_processes(work, cleared), {"backend": "loky", "n_jobs": jobs}
            settings |= {"inner_max_num_threads": 1, "initializer": _end_with, "initargs": (os.getpid(),)}
        with joblib.parallel_config(**settings), joblib.Parallel(return_as="generator_unordered") as pool:
            yield pool, shared


def _in_this_process(work: Any, cleared: ExitStack) -> Shared:
    shared = Shared()
    _given[shared.token] = work
    cleared.callback(_forget, shared.token)
    return shared


def _with_processes(work: Any, cleared: ExitStack) -> Shared:
    _sweep()
    folder = cleared.enter_context(temporary_folder())
    resource_tracker.register(folder, "folder")  # joblib's: it removes what is left where this process is killed
    cleared.callback(resource_tracker.unregister, folder, "folder")
    path = Path(folder) / "work"
    path.write_bytes(_packed(work))
    return Shared(path=path)


def temporary_folder() -> TemporaryDirectory:
    """A folder for a while, named after this process and its computer."""
    return TemporaryDirectory(prefix=f"tdalib-{os.getpid()}-", suffix=f"@{platform.node()}")


def _sweep() -> None:
    """Remove what a run left here that was killed together with joblib's tracker, which else removes it."""
    for folder in Path(gettempdir()).glob(f"tdalib-*-*@{platform.node()}"):
        process = folder.name.split("-")[1]
        is_ours = process.isdigit() and folder.lstat().st_uid == os.getuid()
        if is_ours and not psutil.pid_exists(int(process)):
            for left in (folder, *SHARED_MEMORY.glob(f"joblib_memmapping_folder_{process}_*")):
                shutil.rmtree(left, ignore_errors=True)
            for left in SHARED_MEMORY.glob(f"sem.loky-{process}-*"):
                left.unlink(missing_ok=True)


def _with_cluster(work: Any, jobs: int, scheduler: str, cleared: ExitStack) -> Shared:
    from distributed import Client, WorkerPlugin

    cluster = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    where = cluster if scheduler == "local" else {"address": scheduler}
    shared = _in_this_process(work, cleared)  # joblib gives what is for one worker to no cluster
    plugin = type("Hand", (_Hand, WorkerPlugin), {})(shared.token, _packed(work))
    client = cleared.enter_context(Client(**where))
    client.register_plugin(plugin, name=shared.token)
    cleared.callback(client.unregister_worker_plugin, shared.token)
    return shared


def _packed(work: Any) -> bytes:
    """The work as workers get it.

    Raises
    ------
    ValueError
        It cannot be sent.
    """
    try:
        return cloudpickle.dumps(work)
    except Exception as error:  # whatever a part of a network makes of it
        remedy = "give the model as a function (task, seed) that makes it, or set workers: 1"
        raise ValueError(f"the work cannot be sent to workers: {one_line(error)}; {remedy}") from None


def _end_with(parent: int) -> None:
    """In a worker: end when the parent does, however it ends, instead of waiting for the rest of its work forever.

    A notice of a slower path has been given by the parent.
    """
    warnings.filterwarnings("ignore", category=SlowerPath)

    def watch() -> None:
        while os.getppid() == parent:
            sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def exact_repeat() -> Iterator[None]:
    """The same numbers every time: one torch thread, and on a GPU no TF32 and convolutions that repeat.

    What this process has set otherwise, and workers would not know, does not count: default type, precision, autocast,
    gradients switched off. Sums are taken in one order, whatever the number of workers. For the rest of the process,
    memory is kept: glibc keeps blocks up to 32 MB for the next step, as given back to the system they cost a page fault
    each 4 kB. Measured for cnn2: a step takes 0.7 times as long, an evaluation 0.55 times.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3  # numbers of malloc.h
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)
    with ExitStack() as afterwards, float32_by_default(), torch.enable_grad(), kept_generators():
        afterwards.callback(torch.set_num_threads, torch.get_num_threads())
        afterwards.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
        flags = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
        afterwards.enter_context(torch.backends.cudnn.flags(**flags))
        if torch.is_autocast_enabled("cpu"):  # around another, an autocast would keep what that has cast
            afterwards.enter_context(torch.autocast("cpu", enabled=False))
        afterwards.enter_context(warnings.catch_warnings())
        for said in ("There is a performance drop", ".torch.jit.script. is deprecated"):  # by torch, of itself
            warnings.filterwarnings("ignore", message=said)
        yield
