"""Work is never lost: processes killed, disks filled, bytes flipped, and two runs at once, each for real."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import kill_and_resume
import numpy as np
import psutil
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from torch import nn

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, run, store

METHODS = ["loo", "if", "gc"]


@pytest.fixture(scope="module")
def posterior():
    task = data.load("mnist3", train_per_class=20, test_per_class=50)
    return deep_ensemble("logreg", task, Recipe(epochs=5), members=4, checkpoints=2)


@pytest.fixture(scope="module")
def undisturbed(posterior, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    attribute(posterior, METHODS, path=path, device="cpu", workers=1)
    return path


@pytest.fixture
def copy(undisturbed, tmp_path):
    return shutil.copytree(undisturbed, tmp_path / "copy.zarr")


def wait_for_a_chunk(path):
    for _ in range(6000):
        if any((path / "tau").glob("c/*/*/*/*")):
            return
        sleep(0.01)
    raise TimeoutError("a minute, and no chunk")


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_nothing_is_lost_when_a_run_is_killed(tmp_path):
    script = [sys.executable, kill_and_resume.__file__, "--rounds", "3", "--seed", str(os.getpid())]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_killed_dask_worker_costs_nothing(posterior, undisturbed, tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))
        path = tmp_path / "dask.zarr"
        where = {"path": path, "scheduler": cluster.scheduler_address}
        with ThreadPoolExecutor() as pool:
            running = pool.submit(attribute, posterior, METHODS, **where)
            wait_for_a_chunk(path)
            os.kill(victim, signal.SIGKILL)
            running.result()
        assert victim not in client.run(os.getpid).values()
    assert kill_and_resume.chunk_bytes(path) == kill_and_resume.chunk_bytes(undisturbed)


@pytest.mark.slow
def test_a_killed_process_is_a_clear_error_and_the_run_goes_on(posterior, undisturbed, tmp_path):
    path = tmp_path / "loky.zarr"

    def kill_one():
        wait_for_a_chunk(path)
        next(child for child in psutil.Process().children() if "LokyProcess" in " ".join(child.cmdline())).kill()

    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill_one)
        with pytest.raises(RuntimeError, match="a worker process was killed.*the same run goes on from here"):
            attribute(posterior, METHODS, path=path, workers=2)
        killing.result()
    before = kill_and_resume.chunk_bytes(path)
    attribute(posterior, METHODS, path=path, workers=2)
    after = kill_and_resume.chunk_bytes(path)
    assert before.items() < after.items() and after == kill_and_resume.chunk_bytes(undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", where], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield where
    subprocess.run(["umount", where], check=True)


def test_full_disk_is_a_clear_error_and_the_run_goes_on(posterior, undisturbed, small_disk):
    path = small_disk / "full.zarr"
    with pytest.raises(OSError, match="full.zarr: the disk is full; make room, and the same run goes on from here"):
        attribute(posterior, METHODS, path=path, workers=1)
    assert store.damaged(path) == [] and not list(path.rglob("*.partial"))
    tau = store.open_result(path).tau
    assert 0 < tau.notnull().sum() < tau.size
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    attribute(posterior, METHODS, path=path, workers=1)
    assert kill_and_resume.chunk_bytes(path) == kill_and_resume.chunk_bytes(undisturbed)


def test_disk_too_full_for_a_new_store_leaves_nothing(posterior, small_disk):
    (small_disk / "ballast").write_bytes(bytes(590_000))
    with pytest.raises(OSError, match="the disk is full"):
        attribute(posterior, METHODS, path=small_disk / "new.zarr", workers=1)
    assert not list(small_disk.glob("new*"))


@pytest.mark.parametrize(
    "chunk", ["tau/c/2/1/0/0", "tau/c/0/0/0/2", "loss_without/c/1/2/0", "loss/c/3/0", "train_index/c/0", "method/c/0"]
)
def test_a_flipped_bit_is_named_and_the_chunk_computed_again(posterior, undisturbed, copy, chunk):
    flip(copy / chunk)
    with pytest.raises(ValueError, match=f"chunk {chunk} of .*copy.zarr is damaged; tdalib.store.repair removes it"):
        store.open_result(copy).load()
    assert store.damaged(copy) == [chunk]
    assert store.repair(copy) == [chunk] and store.repair(copy) == []
    if chunk == "train_index/c/0":
        with pytest.raises(ValueError, match="copy.zarr lacks its train_index"):
            store.open_result(copy)
    attribute(posterior, METHODS, path=copy, workers=1)
    assert kill_and_resume.chunk_bytes(copy) == kill_and_resume.chunk_bytes(undisturbed)


def test_an_empty_file_is_a_damaged_chunk(copy):
    (copy / "tau/c/2/1/0/0").write_bytes(b"")
    assert store.damaged(copy) == ["tau/c/2/1/0/0"]
    with pytest.raises(ValueError, match="chunk tau/c/2/1/0/0 of"):
        store.open_result(copy).load()


def test_repair_keeps_off_a_store_that_is_being_written(copy):
    flip(copy / "tau/c/2/1/0/0")
    with store.held(copy), pytest.raises(ValueError, match="is being written by another run"):
        store.repair(copy)
    assert (copy / "tau/c/2/1/0/0").exists()


def test_the_runner_repairs_on_request(tmp_path, monkeypatch, capsys):
    params = tmp_path / "a.yaml"
    params.write_text(f"model: logreg\nmembers: 2\ntrain_per_class: 2\ntest_per_class: 2\nstore: {tmp_path}/a.zarr\n")
    experiment = run.Params.read(params)
    monkeypatch.setattr(run, "execute", lambda params: params.experiment().run() is None or "done")
    assert run.main([str(params)]) == 0
    before = kill_and_resume.chunk_bytes(experiment.path)
    flip(experiment.path / "tau/c/1/0/0/0")
    assert run.main(["--repair", str(params)]) == 0
    assert "chunk tau/c/1/0/0/0 was damaged and is computed again" in capsys.readouterr().out
    assert kill_and_resume.chunk_bytes(experiment.path) == before


def test_undamaged_chunks_are_read_past_a_damaged_one(copy):
    flip(copy / "tau/c/2/1/0/0")
    assert store.open_result(copy).tau.sel({"method": "gc"}).notnull().all()


def test_what_a_killed_write_left_is_cleared_away(posterior, undisturbed, copy):
    (copy / "tau/c/0/0/0/0").rename(copy / "tau/c/0/0/0/0.1234.partial")
    attribute(posterior, METHODS, path=copy, workers=1)
    assert kill_and_resume.chunk_bytes(copy) == kill_and_resume.chunk_bytes(undisturbed)


HOLD = """
import sys, time
from pathlib import Path
from tdalib import store
with store.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_in_one_store(posterior, copy, tmp_path, capsys):
    (copy / "tau/c/0/0/0/0").unlink()
    params = tmp_path / "second.yaml"
    params.write_text(f"model: logreg\nmembers: 2\nstore: {tmp_path / 'other.zarr'}\n")
    first = [subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) for path in
             (copy, tmp_path / "other.zarr")]  # fmt: skip
    try:
        assert [process.stdout.readline() for process in first] == [b"held\n"] * 2
        with pytest.raises(ValueError, match="copy.zarr is being written by another run; wait for it or choose"):
            attribute(posterior, METHODS, path=copy, workers=1)
        assert not store.is_done(copy, "tau", (0, 0, 0, 0))
        assert run.main([str(params)]) == 2
        assert "is being written by another run" in capsys.readouterr().err
        assert not (tmp_path / "other.ipynb").exists()
    finally:
        for process in first:
            process.kill()  # the lock goes with the process
            process.communicate()
    attribute(posterior, METHODS, path=copy, workers=1)
    assert store.is_done(copy, "tau", (0, 0, 0, 0))


def test_a_finished_store_can_be_read_by_many(posterior, copy):
    with store.held(copy):
        assert attribute(posterior, METHODS, path=copy).tau.notnull().all()


MEMORY = """
import resource, sys
import numpy as np
from dataclasses import replace
from tdalib import Recipe, attributors, data, deep_ensemble, workers
method, m = sys.argv[1], int(sys.argv[2])
task = data.load("mnist3", train_per_class=3, test_per_class=20)
task = replace(task, test=task.test[np.arange(m) % 60])
(draw,) = deep_ensemble("cnn2", task, Recipe(epochs=1), members=1, checkpoints=1).draws(0)
with workers.exact_repeat():
    tau = attributors.get(method).function(draw, task, memory=0.08)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)  # GB
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gd", "gc", "if"])
def test_more_test_points_take_no_more_memory_than_a_block(method):
    """4,000 gradients of cnn2 that are not kept as factors are 0.3 GB; memory is 0.08 GB."""
    few, many = (
        float(subprocess.run([sys.executable, "-c", MEMORY, method, m], capture_output=True, check=True).stdout)
        for m in ("200", "4000")
    )
    images = 3800 * 28 * 28 * 4 / 1e9
    assert many - few < 0.08 + images


def test_blocks_of_gradients_give_what_one_block_gives(posterior):
    draw = posterior.draws(0)[0]
    for name in ("gd", "gc", "if"):
        function = attributors.get(name).function
        whole = function(draw, posterior.task).numpy()
        blocks = function(draw, posterior.task, memory=2e-4).numpy()
        np.testing.assert_allclose(blocks, whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())
    with pytest.raises(ValueError, match="if.memory: 0 is not possible; input should be greater than 0"):
        function(draw, posterior.task, memory=0)


IN_A_CELL = """
from pathlib import Path
from tdalib import Recipe, attribute, data, deep_ensemble
task = data.load("mnist3", train_per_class=20, test_per_class=10)
posterior = deep_ensemble("logreg", task, Recipe(epochs=100), members=3, checkpoints=2)
result = attribute(posterior, ["loo", "gd"], path=Path({path!r}), workers=2)
int(result.tau.notnull().sum()) == result.tau.size
"""


@pytest.mark.slow
def test_a_cell_that_is_interrupted_goes_on_when_it_is_run_again(tmp_path):
    """The square button of JupyterLab: SIGINT to the kernel and what it started."""
    path, cell = tmp_path / "a.zarr", IN_A_CELL.format(path=str(tmp_path / "a.zarr"))
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute(cell)
        wait_for_a_chunk(path)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        assert reply["content"]["status"] == "error" and reply["content"]["ename"] == "KeyboardInterrupt"
        before = kill_and_resume.chunk_bytes(path)
        assert store.damaged(path) == [] and not list(path.rglob("*.partial"))
        again = client.execute_interactive(cell, timeout=120, output_hook=lambda message: None)
        assert again["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert before.items() < kill_and_resume.chunk_bytes(path).items()
    assert store.open_result(path).tau.notnull().all()


class Hungry(nn.Module):
    """It asks for more memory than there is, for whole batches alone."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(784, 3)

    def forward(self, x):
        if len(x) > 12:
            torch.empty(10**15)
        return self.dense(x.flatten(1))


@pytest.mark.parametrize("workers", [1, 2])
def test_want_of_memory_is_named_and_the_store_goes_on(tmp_path, workers):
    task = data.load("mnist3", train_per_class=5, test_per_class=2)
    posterior = deep_ensemble(lambda task, seed: Hungry(), task, Recipe(epochs=1), members=2, checkpoints=1)
    with pytest.raises(RuntimeError, match=r"a.zarr: memory is too little .*; fewer workers need less; the same"):
        attribute(posterior, "gd", path=tmp_path / "a.zarr", workers=workers)
    with pytest.raises(RuntimeError, match="^memory is too little .*fewer workers need less$"):
        attribute(posterior, "gd", workers=workers)
    assert store.damaged(tmp_path / "a.zarr") == []
