"""What varies between members, and where every seed comes from."""

import numpy as np
import pytest
import torch

from tdalib import Recipe, deep_ensemble, samplers

RECIPE = Recipe(epochs=3, batch_size=2)


@pytest.mark.parametrize(("vary", "inits", "batches"), [("init", 3, 1), ("batch", 1, 3), ("both", 3, 3)])
def test_vary(digits, vary, inits, batches):
    posterior = deep_ensemble("cnn2", digits, RECIPE, members=3, checkpoints=1, vary=vary)
    assert len({m.init_seed for m in posterior.members}) == inits
    assert len({m.batch_seed for m in posterior.members}) == batches
    a, b = (posterior.draws(k)[0].theta["0.weight"] for k in (0, 1))
    assert not torch.equal(a, b)


def test_seeds_follow_from_one(digits):
    posterior = deep_ensemble("cnn2", digits, RECIPE, members=2, checkpoints=1, seed=9)
    expected = [[np.random.SeedSequence(9, spawn_key=(k, r)).generate_state(1)[0] for r in (0, 1)] for k in (0, 1)]
    assert [[m.init_seed, m.batch_seed] for m in posterior.members] == expected


def test_draws_are_the_last_epochs_with_provenance(digits):
    draws = deep_ensemble("cnn2", digits, RECIPE, members=2, checkpoints=2).draws(1)
    assert [(d.member, d.checkpoint) for d in draws] == [(1, 2), (1, 3)]
    assert not torch.equal(draws[0].theta["0.weight"], draws[1].theta["0.weight"])


def test_draws_are_a_pure_function_of_the_seeds(digits):
    posterior = deep_ensemble("cnn2", digits, RECIPE, members=1, checkpoints=1)
    first, second, without = posterior.draws(0), posterior.draws(0), posterior.draws(0, without=0)
    assert torch.equal(first[0].theta["0.weight"], second[0].theta["0.weight"])
    assert not torch.equal(first[0].theta["0.weight"], without[0].theta["0.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members: a posterior needs at least 1"),
        ({"checkpoints": 4}, "checkpoints: 4 is not possible with 3 epochs"),
        ({"vary": "all"}, "choose from init, batch, both"),
    ],
)
def test_refusals(digits, options, message):
    with pytest.raises(ValueError, match=message):
        deep_ensemble("cnn2", digits, RECIPE, **({"members": 1, "checkpoints": 1} | options))
    with pytest.raises(ValueError, match="sampler 'x' is not known; choose from deep_ensemble"):
        samplers.get("x")
