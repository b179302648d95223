"""What varies between members, and where every seed comes from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import without

from tdalib import Recipe, attribute, deep_ensemble, models, samplers
from tdalib.networks import state_of
from tdalib.samplers import gaussians

RECIPE = Recipe(epochs=3, batch_size=2)
DROPPING = models.get("mlp", width=8, dropout=0.3)
LOCAL = {
    "swag": {"collect": 2},
    "sgld": {"burn_in": 1, "thin": 1},
    "sghmc": {"burn_in": 1, "thin": 1},
    "laplace": {},
    "mc_dropout": {},
}


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
    first, second, left = posterior.draws(0), posterior.draws(0), posterior.draws(0, without(digits, 0)[0])
    assert torch.equal(first[0].theta["0.weight"], second[0].theta["0.weight"])
    assert not torch.equal(first[0].theta["0.weight"], left[0].theta["0.weight"])


def test_crossed_members_are_a_grid_with_the_ensemble_on_its_diagonal(digits):
    crossed = samplers.crossed("logreg", digits, RECIPE, members=6, inits=2, checkpoints=1)
    assert [m.index for m in crossed.members] == list(range(6))
    for seeds, count in (([m.init_seed for m in crossed.members], 3), ([m.batch_seed for m in crossed.members], 2)):
        assert all(seeds.count(seed) == count for seed in seeds)
    assert len({(m.init_seed, m.batch_seed) for m in crossed.members}) == 6
    both = deep_ensemble("logreg", digits, RECIPE, members=2, checkpoints=1)
    for k in range(2):
        (on_diagonal,), (drawn) = crossed.draws(k * 3 + k), both.draws(k)
        assert torch.equal(on_diagonal.theta["1.weight"], drawn[0].theta["1.weight"])


@pytest.mark.parametrize("name", LOCAL)
def test_local_draws_have_provenance_vary_and_repeat(digits, name):
    posterior = samplers.get(name)(DROPPING, digits, RECIPE, members=2, checkpoints=4, **LOCAL[name])
    assert posterior.sampler == name  # and more draws than there are epochs
    draws, again, other = posterior.draws(1), posterior.draws(1), posterior.draws(0)
    assert [(d.member, d.checkpoint) for d in draws] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert {d.init_seed for d in draws} == {posterior.members[1].init_seed}

    def loss(d):
        return d.losses(digits.test).tolist()

    assert [loss(d) for d in draws] == [loss(d) for d in again]
    assert len({tuple(loss(d)) for d in [*draws, *other]}) == 8


@pytest.mark.parametrize("name", LOCAL)
def test_removal_is_coupled_and_knows_nothing_of_the_point(digits, name):
    """Coupled to the bit: only the point tells θ\\j from θ, not the order of the calls or what came before."""
    posterior = samplers.get(name)(DROPPING, digits, RECIPE, members=1, checkpoints=2, **LOCAL[name])
    weights = without(digits, None, 3, 0)
    one_by_one = [posterior.draws(0, weight) for weight in weights]
    for draws, alone in zip(posterior.draws_under(0, weights), one_by_one, strict=True):
        for a, b in zip(draws, alone, strict=True):
            assert all(torch.equal(a.theta[key], b.theta[key]) for key in a.theta)
    swapped = digits.x_train.clone()
    swapped[3] = swapped[3].flip(-1)
    elsewhere = replace(posterior, task=replace(digits, train=replace(digits.train, inputs=swapped)))
    for a, b in zip(one_by_one[1], elsewhere.draws(0, weights[1]), strict=True):
        assert all(torch.equal(a.theta[key], b.theta[key]) for key in a.theta)  # what z_3 is plays no part
    assert not torch.equal(elsewhere.draws(0)[0].theta["1.weight"], one_by_one[0][0].theta["1.weight"])


@pytest.mark.filterwarnings("ignore:.*too few to judge")
@pytest.mark.parametrize("name", LOCAL)
def test_every_method_attributes_every_sampler(digits, name):
    posterior = samplers.get(name)(DROPPING, digits, RECIPE, members=2, checkpoints=2, **LOCAL[name])
    result = attribute(posterior, ["loo", "ats", "if", "gd", "gc"], device="cpu", workers=1)
    assert result.tau.checkpoint.values.tolist() == [1, 2, 1, 2] and np.isfinite(result.tau).all()
    assert abs(result.tau).max("train").min() > 0
    (draw, _), x, y = posterior.draws(1), *(getattr(digits, f"{a}_train") for a in "xy")

    def gradient(x, y):
        theta = {key: p.clone().requires_grad_() for key, p in draw.theta.items()}
        loss = F.cross_entropy(torch.func.functional_call(draw.model, draw.rest | theta, (x[None],)), y[None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(theta.values()))])

    expected = gradient(x[1], y[1]) @ gradient(digits.x_test[2], digits.y_test[2])  # masks are those of the draw
    got = result.tau.isel(sample=2, train=1, test=2).loc[{"method": "gd"}]
    assert float(got) == pytest.approx(float(expected), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("name", LOCAL)
def test_a_stack_gives_the_same_draws(digits, name):
    """In float64, and to its tolerance: convolutions of a stack have another layout, the random numbers the same."""
    task = digits.to(torch.float64)
    model = "cnn2" if name != "mc_dropout" else DROPPING
    posterior = samplers.get(name)(model, task, RECIPE, members=1, checkpoints=2, **LOCAL[name])
    stacked, weights = replace(posterior, stack=3), without(task, None, 1)
    for one, several in zip(posterior.draws_under(0, weights), stacked.draws_under(0, weights), strict=True):
        for a, b in zip(one, several, strict=True):
            for key in a.theta:
                torch.testing.assert_close(a.theta[key], b.theta[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgld", "sghmc"])
def test_a_point_alone_in_its_batch_can_be_removed(digits, name):
    class Touchy(torch.nn.Linear):
        def forward(self, x):
            assert len(x), "an empty batch"
            return super().forward(x.flatten(1))

    def model(task, seed):
        return Touchy(784, 3)

    posterior = samplers.get(name)(model, digits, replace(RECIPE, batch_size=5), members=1, checkpoints=1, thin=2)
    draws = [posterior.draws(0, weight)[0].theta["weight"] for weight in without(digits, None, *range(6))]
    assert all(draw.isfinite().all() for draw in draws)


def test_the_callers_random_state_is_left_alone(digits):
    before, weight = torch.get_rng_state(), without(digits, 1)[0]
    for name in LOCAL:
        samplers.get(name)(DROPPING, digits, RECIPE, members=1, checkpoints=1, **LOCAL[name]).draws(0, weight)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["mc_dropout", "laplace"])
def test_a_transformer_with_adapters(digits, name):
    posterior = samplers.get(name)("vit_lora", digits, replace(RECIPE, epochs=1), members=1, checkpoints=2)
    (mode,) = deep_ensemble("vit_lora", digits, replace(RECIPE, epochs=1), members=1, checkpoints=1).draws(0)
    for draw in posterior.draws(0):
        changed = {key for key, p in mode.theta.items() if not torch.equal(draw.theta[key], p)}
        assert all("classifier" in key for key in changed) and (name == "laplace") == bool(changed)
        apart = draw.losses(digits.test) - mode.losses(digits.test)
        assert abs(apart).min() > 1e-6


def test_what_a_sampler_cannot_do_is_refused_by_name(digits, monkeypatch):
    sgld = samplers.sgld("logreg", digits, RECIPE, members=1, checkpoints=1)
    with pytest.raises(ValueError, match="'continue' trains on from epochs; 'sgld' draws none; choose retrain"):
        attribute(sgld, "loo", options={"loo": {"protocol": "continue"}})
    with pytest.raises(
        ValueError, match="'mc_dropout' needs a model with dropout; cnn2 uses no nn.Dropout of p between"
    ):
        samplers.mc_dropout("cnn2", digits, RECIPE)
    monkeypatch.setattr(gaussians, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'laplace' needs the package laplace-torch: pip install 'tdalib\[post"):
        samplers.laplace("cnn2", digits, RECIPE)


def test_a_matrix_that_fits_no_memory_is_refused(digits):
    posterior = samplers.laplace("cnn2", digits, RECIPE, members=1, checkpoints=1, subset="all")
    with pytest.raises(ValueError, match="structure 'full' is for 5,000 weights, not 225,034; choose kron or d"):
        attribute(posterior, "gd", device="cpu", workers=1)


def test_one_of_your_own_is_one_decorator(digits):
    @samplers.register("once", checkpoints=1)
    def once(posterior):
        """The initial weights."""
        return replace(posterior, sample=at_start, kind="independent")

    def at_start(posterior, member, weights):
        network = posterior.build(posterior.task, member.init_seed).eval()
        for weight in weights:
            if (weight != 1).any():
                raise ValueError("sampler 'once' cannot leave out a train point")
            yield posterior.made(member, network, [state_of(network)] * posterior.checkpoints)

    try:
        posterior = samplers.get("once")("logreg", digits, RECIPE, members=2, checkpoints=2)
        assert attribute(posterior, "gd", device="cpu", workers=1).sizes["sample"] == 4
        assert samplers.get("once")("logreg", digits).checkpoints == 1  # its own default
        with pytest.raises(ValueError, match="'once' cannot leave out a train point"):
            attribute(posterior, "loo", device="cpu", workers=1)
    finally:
        del samplers.SAMPLERS["once"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members: 0 is not possible; input should be greater than or equal to 1"),
        ({"checkpoints": 4}, "checkpoints: 4 is not possible with 3 epochs"),
        ({"vary": "all"}, "vary: 'all' is not possible; input should be 'init', 'batch' or 'both'"),
        ({"stack": 0}, "stack: 0 is not possible; input should be greater than or equal to 1"),
    ],
)
def test_refusals(digits, options, message):
    with pytest.raises(ValueError, match=message):
        deep_ensemble("cnn2", digits, RECIPE, **({"members": 1, "checkpoints": 1} | options))
    with pytest.raises(ValueError, match="sampler 'x' is not known; choose from crossed, deep_ensemble, laplace"):
        samplers.get("x")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crossed", {"members": 10}, "members: 10 is no grid of 3 inits × batch orders, each 2 or more"),
        ("crossed", {"members": 3, "inits": 3}, "members: 3 is no grid of 3 inits × batch orders, each 2 or more"),
        ("swag", {"collect": 4}, "collect: 4 is not possible; it must be from 2 to the 3 epochs"),
        ("sgld", {"step_size": 0}, "step_size: 0 is not possible; input should be greater than 0"),
        ("sgld", {"step_size": float("inf")}, "step_size: inf is not possible; input should be a finite number"),
        ("crossed", {"members": 3}, "members: 3 is no grid of 2 inits × batch orders, each 2 or more"),
        ("sgld", {"temperature": -1}, "temperature: -1 is not possible; input should be greater than or equal to 0"),
        ("sghmc", {"friction": 1.5}, "friction: 1.5 is not possible; input should be less than or equal to 1"),
        ("sghmc", {"friction": 0}, "friction: 0 is not possible; input should be greater than 0"),
        ("sghmc", {"thin": 0}, "thin: 0 is not possible; input should be greater than or equal to 1"),
        ("laplace", {"subset": "first"}, "subset: 'first' is not possible; input should be 'last_layer' or 'all'"),
        ("laplace", {"structure": "low"}, "structure: 'low' is not possible; input should be 'full', 'kron' or 'diag'"),
        ("laplace", {"recipe": Recipe(weight_decay=0)}, "weight_decay: 0 leaves laplace without a prior"),
        ("mc_dropout", {"checkpoints": 0}, "checkpoints: 0 is not possible; .* greater than or equal to 1"),
    ],
)
def test_refusals_of_options(digits, name, options, message):
    with pytest.raises(ValueError, match=message):
        samplers.get(name)(DROPPING, digits, **{"recipe": RECIPE} | options)
