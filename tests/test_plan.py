"""The cost of a run: what was timed is counted up exactly, and the plan holds what is still to be done."""

from math import ceil
from time import sleep
from unittest.mock import patch

import joblib
import numpy as np
import psutil
import pytest
import torch

from tdalib import Experiment, Recipe, attribute, attributors, deep_ensemble, experiment
from tdalib.plan import COLUMNS, Cost, timed

MEMBERS, CHECKPOINTS, POINTS, BLOCK = 3, 2, 90, 25
DRAWING, RETRAINING, ESTIMATE = 6.0, 3.0, 0.5  # seconds that one call takes


@pytest.fixture
def posterior(digits):
    return deep_ensemble("logreg", digits, Recipe(epochs=2), members=2, checkpoints=2)


@pytest.fixture
def known(monkeypatch):
    """One call takes the seconds above, or what is put here, a function of how many removals it is about.

    `of_worker` is how often as long the call takes in each worker, and the GB that it holds.
    """
    laws = {"posterior": lambda n: DRAWING, "retraining": lambda n: RETRAINING, "estimate": lambda n: ESTIMATE}
    laws |= {"of_worker": lambda kind, worker: (1, 0.1), "asked": []}

    def timed(call, *arguments):
        value = call(*arguments)
        if isinstance(value, dict):  # member → τ
            kind, n = "estimate", next(iter(value.values())).shape[1]
        elif len(value) == 2:  # losses, and what to compare with
            kind, n = "retraining", value[0].shape[1]
        else:
            kind, n = "posterior", 0
        worker = [asked for asked, _ in laws["asked"]].count(kind)  # they measure in turn
        laws["asked"].append((kind, n))
        slower, memory = laws["of_worker"](kind, worker)
        return value, Cost(laws[kind](n) * slower, memory)

    monkeypatch.setattr("tdalib.plan.timed", timed)
    return laws


@pytest.fixture
def plan(blobs, monkeypatch):
    """What a plan says of methods; this process plays all workers."""
    parallel = experiment.parallel
    monkeypatch.setattr(experiment, "parallel", lambda work, device, jobs, where: parallel(work, device, 1, where))
    monkeypatch.setattr(joblib, "effective_n_jobs", lambda jobs: jobs)

    def plan(methods, path=None, jobs=1, stack=None):
        return Experiment(ensemble(blobs, stack), methods, path=path, device="cpu", workers=jobs).plan()

    return plan


@pytest.fixture
def seconds(plan):
    """Of a plan, in seconds."""
    return lambda *asked, **how: plan(*asked, **how)["minutes"] * 60


def ensemble(task, stack=None):
    return deep_ensemble("logreg", task, Recipe(epochs=2), members=MEMBERS, checkpoints=CHECKPOINTS, stack=stack)


@pytest.mark.parametrize("jobs", [1, 2, 3, 4])
def test_work_is_divided_by_the_workers_and_members_take_turns(known, seconds, jobs):
    table = seconds(["loo", "gd"], jobs=jobs)
    assert table["posterior"] == pytest.approx(DRAWING * ceil(MEMBERS / jobs))
    assert table["loo"] == pytest.approx(RETRAINING * POINTS * MEMBERS / jobs)
    assert table["gd"] == pytest.approx(ESTIMATE * CHECKPOINTS * MEMBERS / jobs)
    assert table["total"] == pytest.approx(table[:-1].sum())


@pytest.mark.parametrize("stack", [1, 50, 100])
def test_a_stack_is_as_many_removals_as_it_holds(known, seconds, stack):
    in_one = min(stack, POINTS)
    assert seconds(["loo"], stack=stack)["loo"] == pytest.approx(RETRAINING * POINTS / in_one * MEMBERS)
    assert ("retraining", in_one) in known["asked"]


def test_time_is_the_mean_of_the_workers_and_memory_that_of_the_largest(known, plan):
    held = {"posterior": 1.0, "retraining": 4.0, "estimate": 2.0}  # GB
    known["of_worker"] = lambda kind, worker: ([1, 4, 1][worker], held[kind] + [0, 0.5, 0.25][worker])
    minutes, memory, _ = plan(["loo", "gd"], jobs=3).to_numpy().T
    once = [DRAWING, RETRAINING * POINTS, ESTIMATE * CHECKPOINTS]  # of a member; of three workers each has one
    assert minutes[:-1] * 60 == pytest.approx([2 * each for each in once])
    assert memory.tolist() == [1.5, 4.5, 2.5, 4.5]


def test_an_estimate_is_timed_at_one_draw_on_all_removals(known, seconds):
    known["estimate"] = lambda n: 0.1 + 0.01 * n
    assert seconds(["if"])["if"] == pytest.approx((0.1 + 0.01 * POINTS) * CHECKPOINTS * MEMBERS)
    assert [n for kind, n in known["asked"] if kind == "estimate"] == [POINTS]


def test_what_sees_many_draws_is_timed_on_them_and_what_sees_all_members_has_one_worker(known, seconds):
    with patch.dict(attributors.METHODS):

        @attributors.register("of_run", unit="1", scope="run", sets="sum")
        def of_run(run, task):
            return torch.zeros(len(run.draws), len(task.train), len(task.test))

        @attributors.register("of_all", unit="1", scope="posterior", sets="sum")
        def of_all(members, task):
            return torch.zeros(len(members), len(task.train), len(task.test))

        table = seconds(["of_run", "of_all"], jobs=2)
    assert table["of_run"] == pytest.approx(ESTIMATE * MEMBERS / 2)
    assert table["of_all"] == pytest.approx(ESTIMATE * MEMBERS)


def test_what_is_half_done_costs_the_rest(known, plan, blobs, tmp_path):
    path = tmp_path / "a.zarr"
    attribute(ensemble(blobs), ["loo", "gd"], path=path, device="cpu", workers=1)
    for chunk in ("0/1/0/0", "1/2/0/0", "1/3/0/1"):  # of member, block, test, method
        (path / "tau/c" / chunk).unlink()
    table, blocks = plan(["loo", "gd"], path=path, jobs=2), ceil(POINTS / BLOCK)
    seconds, disk = table["minutes"] * 60, table["disk (GB)"]
    assert seconds["posterior"] == pytest.approx(DRAWING)  # two members at once
    assert seconds["loo"] == pytest.approx(RETRAINING * POINTS * 2 / blocks / 2)
    assert seconds["gd"] == pytest.approx(ESTIMATE * CHECKPOINTS * 1 / blocks / 2)
    block = CHECKPOINTS * POINTS * len(blobs.test) * 4 / 1e9 / blocks
    assert disk.tolist() == pytest.approx([0, 2 * 2 * block, block, 5 * block])  # two blocks of two variables, and one


def test_a_stack_that_lacks_one_block_costs_all_of_its_blocks(known, seconds, blobs, tmp_path):
    path = tmp_path / "a.zarr"
    attribute(ensemble(blobs, stack=2 * BLOCK), ["loo"], path=path, device="cpu", workers=1)
    (path / "tau/c/1/2/0/0").unlink()
    table = seconds(["loo"], path=path, stack=2 * BLOCK)
    stacks = POINTS / (2 * BLOCK)  # as the one that is timed
    assert table["loo"] == pytest.approx(RETRAINING * stacks * 2 / ceil(POINTS / BLOCK))


def test_memory_is_the_most_that_was_held_until_then():
    _, (_, peak) = timed(sleep, 0.1)
    size = peak + 0.4  # GB; more than all that was held before
    held = psutil.Process().memory_info().rss / 1e9
    _, (_, memory) = timed(lambda: np.ones(int(size * 1e9 / 8)).sum())
    _, (seconds, after) = timed(sleep, 0.1)
    assert memory == pytest.approx(held + size, abs=0.1) and after == memory
    assert 0.1 < seconds < 10


def test_table(posterior, tmp_path):
    path = tmp_path / "a.zarr"
    table = Experiment(posterior, ["loo", "gd"], path=path, workers=1).plan()
    assert list(table.index) == ["posterior", "loo", "gd", "total"] and list(table.columns) == COLUMNS
    minutes, memory, disk = (table[column] for column in COLUMNS)
    assert (minutes > 0).all() and minutes["total"] == pytest.approx(minutes[:-1].sum())
    assert memory["total"] == memory[:-1].max() and 0.1 < memory["total"] < 10
    result = attribute(posterior, ["loo", "gd"], workers=1)
    assert disk["gd"] * 1e9 == pytest.approx(result.tau.nbytes / 2)
    assert disk["loo"] * 1e9 == pytest.approx(result.tau.nbytes / 2 + result.loss_without.nbytes)
    assert disk["posterior"] == 0 and disk["total"] == pytest.approx(disk["loo"] + disk["gd"])
    assert not list(tmp_path.iterdir())


def test_stacks_are_planned(blobs):
    posterior = deep_ensemble("logreg", blobs, Recipe(epochs=2, batch_size=4), members=1, checkpoints=2, stack=100)
    assert Experiment(posterior, ["loo"], device="cpu", workers=1).plan().loc["loo", "minutes"] > 0


def test_what_is_done_costs_nothing(posterior, tmp_path):
    path = tmp_path / "a.zarr"
    attribute(posterior, ["loo", "gd"], path=path, workers=1)
    assert (Experiment(posterior, ["loo", "gd"], path=path).plan().to_numpy() == 0).all()
    (path / "tau/c/1/0/0/0").unlink()
    table = Experiment(posterior, ["loo", "gd"], path=path, workers=1).plan()
    assert table.loc["loo", "minutes"] > 0 and table.loc["gd", "minutes"] == 0
    with pytest.raises(ValueError, match="made with method_options of loo"):
        Experiment(posterior, ["loo"], options={"loo": {"protocol": "continue"}}, path=path).plan()


def test_a_loss_that_is_missing_costs_its_member(posterior, tmp_path):
    path = tmp_path / "a.zarr"
    attribute(posterior, ["gd"], path=path, workers=1)
    (path / "loss" / "c" / "0" / "0").unlink()
    table = Experiment(posterior, ["gd"], path=path, workers=1).plan()
    assert table.loc["posterior", "minutes"] > 0 and table.loc["gd", "minutes"] == 0
