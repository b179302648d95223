"""The cost of a run: exact laws are drawn on exactly, and the table holds what is still to be done."""

from dataclasses import replace
from time import sleep

import numpy as np
import pytest

from tdalib import Recipe, attribute, deep_ensemble, plan


@pytest.fixture
def posterior(digits):
    return deep_ensemble("logreg", digits, Recipe(epochs=2), members=2, checkpoints=2)


@pytest.mark.parametrize("law", [lambda n: 0.3 + 0 * n, lambda n: 0.1 * n, lambda n: 2e-4 * n**3], ids=["1", "n", "n3"])
def test_growth_is_drawn_on(monkeypatch, law):
    asked = []
    monkeypatch.setattr(plan, "_cost", lambda run, size, on_gpu: asked.append(size) or (law(size), 2 * law(size)))
    assert plan._growing(lambda size: None, 320, False) == pytest.approx((law(320), 2 * law(320)))
    assert max(asked) < 320 or sum(map(law, asked[:-1])) < plan.ENOUGH


def test_trainings_are_counted_up(blobs, monkeypatch):
    posterior = deep_ensemble("logreg", blobs, Recipe(epochs=100, batch_size=4), members=1, checkpoints=3)
    law = 0.5, 0.01 * 8  # fixed, and an epoch's 8 batches; it has 23
    monkeypatch.setattr(plan, "_cost", lambda run, epochs, on_gpu: (law[0] + law[1] * epochs, 0.2))
    assert plan._training(None, posterior) == pytest.approx((0.5 + 0.01 * 23 * 100, 0.2))
    chain = replace(posterior, kind="chain")  # its fixed part was timed on 8 batches an epoch as well
    assert plan._training(None, chain) == pytest.approx((0.5 * 23 / 8 + 0.01 * 23 * 100, 0.2))


def test_memory_is_the_peak_meanwhile():
    def run(megabytes):
        held = np.ones(megabytes * 125_000)
        sleep(0.1)
        return held

    _, memory = plan._cost(run, 400, on_gpu=False)
    assert memory == pytest.approx(0.4, abs=0.05)


def test_table(posterior, tmp_path):
    path = tmp_path / "a.zarr"
    table = plan.plan(posterior, ["loo", "gd"], path=path, workers=1)
    assert list(table.index) == ["posterior", "loo", "gd", "total"] and list(table.columns) == plan.COLUMNS
    minutes, memory, disk = (table[column] for column in plan.COLUMNS)
    assert (minutes > 0).all() and minutes["total"] == pytest.approx(minutes[:-1].sum())
    assert memory["total"] == memory[:-1].max() and 0.1 < memory["total"] < 10
    result = attribute(posterior, ["loo", "gd"], workers=1)
    assert disk["gd"] * 1e9 == pytest.approx(result.tau.nbytes / 2)
    assert disk["loo"] * 1e9 == pytest.approx(result.tau.nbytes / 2 + result.loss_without.nbytes)
    assert not list(tmp_path.iterdir())


def test_stacks_are_planned(blobs):
    posterior = deep_ensemble("logreg", blobs, Recipe(epochs=2, batch_size=4), members=1, checkpoints=2, stack=100)
    assert plan.plan(posterior, ["loo"], device="cpu", workers=1).loc["loo", "minutes"] > 0


def test_what_is_done_costs_nothing(posterior, tmp_path):
    path = tmp_path / "a.zarr"
    attribute(posterior, ["loo", "gd"], path=path, workers=1)
    assert (plan.plan(posterior, ["loo", "gd"], path=path).to_numpy() == 0).all()
    (path / "tau/c/1/0/0/0").unlink()
    table = plan.plan(posterior, ["loo", "gd"], path=path, workers=1)
    assert table.loc["loo", "minutes"] > 0 and table.loc["gd", "minutes"] == 0
    with pytest.raises(ValueError, match="made with method_options"):
        plan.plan(posterior, ["loo"], path=path)
