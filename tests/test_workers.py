"""What travels to workers: units without networks or points, and the work itself once."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from time import sleep

import cloudpickle
import joblib
import numpy as np
import pytest

from tdalib import Experiment, Recipe, deep_ensemble, units, workers


def test_a_unit_carries_its_theta_and_no_network_nor_points(digits):
    posterior = deep_ensemble("vit_lora", digits, Recipe(epochs=1), members=1, checkpoints=1)
    work = Experiment(posterior, ["loo", "gd"], device="cpu", workers=1)._work
    with workers.parallel(work, "cpu", 1, None) as (_, shared):
        k, states, loss = units.draw_member(shared, 0)
        for unit in work.pending(lambda *_: False)[0]:
            job = units.job(shared, unit, work.methods[unit.method], {k: (states, loss)})
            theta = len(pickle.dumps(states[0].theta)) if unit.method == "gd" else 0
            assert len(cloudpickle.dumps(job)) - theta < 5000


class Loud:
    """Says each time it is unpickled, by a file of its own."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__.update(state)
        (Path(self.folder) / f"{os.getpid()} {os.urandom(4).hex()}").touch()


def seen(shared, k):
    shared.get(lambda work: work)
    sleep(0.05)
    return os.getpid()


def test_the_work_goes_to_each_worker_once(tmp_path):
    for scheduler in (None, "local"):
        folder = tmp_path / str(scheduler)
        folder.mkdir()
        with workers.parallel(Loud(folder), "cpu", 2, scheduler) as (pool, shared):
            pids = set(pool(joblib.delayed(seen)(shared, k) for k in range(12)))
        loads = [int(file.name.split()[0]) for file in folder.iterdir()]
        assert pids <= set(loads) and len(loads) == len(set(loads)) <= 2
        assert not (shared.path and shared.path.is_file())


KILLED = """
import os, signal, sys
from tdalib import workers
with workers.parallel("work", "cpu", 2, None) as (_, shared):
    print(shared.path, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_no_folder_behind():
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    path = Path(done.stdout.strip())
    assert done.returncode == -9 and path.name
    for _ in range(100):
        if not path.parent.exists():
            break
        sleep(0.1)
    assert not path.parent.exists()


def test_a_network_is_built_once_and_copied(digits):
    built = []

    def build(task, seed):
        built.append(seed)
        return deep_ensemble("logreg", task, members=1).build(task, seed)

    work = Experiment(deep_ensemble(build, digits, Recipe(epochs=1), members=1, checkpoints=1), "gd")._work.prepared()
    kept, task = work.posterior.build, work.posterior.task
    first, second, other = kept(task, 1), kept(task, 1), kept(task, 2)
    assert built == [1, 2] and first is not second
    first[1].weight.data.zero_()
    assert second[1].weight.any() and not np.array_equal(second[1].weight.detach(), other[1].weight.detach())


def test_a_dask_worker_of_several_threads_is_refused():
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(ValueError, match="a dask worker has 2 threads; start workers with --nthreads 1"),
        workers.parallel("work", "cpu", None, cluster.scheduler_address),
    ):
        pass


def test_two_works_at_once_do_not_disturb_each_other():
    with workers.parallel("one", "cpu", 1, None) as (_, one), workers.parallel("two", "cpu", 1, None) as (_, two):
        assert [shared.get(str.upper) for shared in (one, two, one)] == ["ONE", "TWO", "ONE"]
