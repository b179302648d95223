"""Retraining only what is promising, as notebook 35 does it, against simulations whose truth is known."""

import nbformat
import numpy as np
import pytest
import scipy.stats

from tdalib.data import ROOT

SIMULATIONS = 200
MEMBERS, TRAIN, TEST = 10, 30, 60
EFFECTS = {"in few train points": (1 / 3, 0.6), "everywhere": (1, 0.2), "nowhere": (1, 0)}  # of points, of their pairs


@pytest.fixture(scope="module")
def procedure():
    """The functions of the notebook's cell."""
    notebook = nbformat.read(ROOT / "notebooks" / "35_find_stable_pairs_cheaply.ipynb", as_version=4)
    (cell,) = [cell.source for cell in notebook.cells if cell.source.startswith("STAGES")]
    names = {"np": np, "scipy": scipy}
    exec(cell, names)
    return names


def simulated(effects, seed):
    """Normal τ (member, train, test), and which pairs have an effect."""
    stream = np.random.default_rng(seed)
    of_points, of_pairs = EFFECTS[effects]
    true = stream.random((TRAIN, TEST)) < of_pairs
    true[round(of_points * TRAIN) :] = False
    return stream.normal(size=(MEMBERS, TRAIN, TEST)) + 1.5 * true * stream.choice([-1, 1], true.shape), true


@pytest.mark.parametrize("effects", EFFECTS)
def test_giving_up_train_points_adds_no_false_discovery(procedure, effects):
    wrong, found, found_by_all, costs = [], [], [], []
    for seed in range(SIMULATIONS):
        draws, true = simulated(effects, seed)
        going, retrainings = procedure["allocated"](draws, procedure["promising_ratio"])
        listed = procedure["listed"](draws, going)
        by_all = procedure["listed"](draws, np.arange(TRAIN))
        wrong.append((listed & ~true).sum() / max(listed.sum(), 1))
        found.append((listed & true).sum() / max(true.sum(), 1))
        found_by_all.append((by_all & true).sum() / max(true.sum(), 1))
        costs.append(retrainings / (MEMBERS * TRAIN))
    assert set(costs) == {0.5}
    assert np.mean(wrong) <= 0.05 + 2 * np.std(wrong) / SIMULATIONS**0.5
    if effects == "in few train points":  # then it pays
        assert np.mean(found) > 0.75 * np.mean(found_by_all)
    if effects == "everywhere":  # then it does not
        assert np.mean(found) < 0.6 * np.mean(found_by_all)


def test_draws_of_train_points_given_up_are_not_looked_at(procedure):
    draws, _ = simulated("in few train points", 0)
    going, _ = procedure["allocated"](draws, procedure["promising_ratio"])
    first, second = (procedure["STAGES"][k][0] for k in (0, 1))
    unseen = draws.copy()
    given_up = np.setdiff1d(np.arange(TRAIN), going)
    unseen[second:, given_up] = np.nan
    again, _ = procedure["allocated"](unseen, procedure["promising_ratio"])
    assert first < second and np.array_equal(going, again)
    assert np.array_equal(procedure["listed"](draws, going), procedure["listed"](unseen, going))
