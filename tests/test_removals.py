"""Removals: what they mean to trainings and to estimates, against plain loops and sums."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, models, removals, samplers, stats
from tdalib.data import Points
from tdalib.samplers.chains import potential_gradient
from tdalib.training import Training, batch_order, train, train_stack

RECIPE = Recipe(epochs=3, batch_size=4)
SETS = [[0, 7, 8], [3], [1, 2, 4, 5, 11]]
DROPPING = models.get("mlp", width=8, dropout=0.3)
LOCAL = {
    "deep_ensemble": {},
    "crossed": {"members": 4},
    "swag": {"collect": 2},
    "sgld": {"burn_in": 1, "thin": 1},
    "sghmc": {"burn_in": 1, "thin": 1},
    "laplace": {},
    "mc_dropout": {},
}


@pytest.fixture(scope="module")
def task():
    """Twelve train digits in float64."""
    return data.load("mnist3", train_per_class=4, test_per_class=2).to(torch.float64)


def rows(sets, n=12):
    """Weights (removal, point)."""
    weights = torch.ones(len(sets), n)
    for row, points in zip(weights, sets, strict=True):
        row[list(points)] = 0
    return weights


def loop(network, task, recipe, seed, out, renormalise):
    """A plain loop that skips the points of a set; the divisor is that of the whole batch, or of what is left."""
    optimizer = recipe.start(network.parameters())
    step = 0
    network.train()
    for epoch in batch_order(len(task.train), recipe, seed):
        for batch in epoch:
            torch.manual_seed(seed + step)
            left = torch.as_tensor([i for i in range(len(batch)) if int(batch[i]) not in out], dtype=int)
            optimizer.zero_grad()
            if len(left):
                outputs = network(task.x_train[batch])[left]  # dropout masks are those of the whole batch
                loss = F.cross_entropy(outputs, task.y_train[batch][left], reduction="sum")
                (loss / (len(left) if renormalise else len(batch))).backward()
            else:
                (0 * network(task.x_train[batch]).sum()).backward()
            optimizer.step()
            step += 1
    return dict(network.named_parameters())


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("model", ["cnn2", DROPPING])
@pytest.mark.parametrize("trainer", [train, train_stack])
def test_a_removal_is_a_loop_that_skips_its_points(task, trainer, model, renormalise):
    network = models.get(model)(task, 5)
    training = Training(network, task, RECIPE, 5, renormalise)
    for out, (state,) in zip(SETS, trainer(training, rows(SETS)), strict=True):
        with torch.random.fork_rng(devices=[]):
            expected = loop(models.get(model)(task, 5), task, RECIPE, 5, out, renormalise)
        for name, value in state.theta.items():
            torch.testing.assert_close(value, expected[name].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("name", LOCAL)
def test_every_sampler_forgets_the_points_of_a_set(task, name, renormalise):
    """What the removed points are plays no part, to the bit; the mode is that of the loop, one by one or stacked."""
    posterior = samplers.get(name)(DROPPING, task, RECIPE, **{"members": 1, "checkpoints": 2} | LOCAL[name])
    posterior = replace(posterior, renormalise=renormalise)
    inputs, targets = task.x_train.clone(), task.y_train.clone()
    inputs[SETS[0]], targets[SETS[0]] = inputs[SETS[0]].flip(-1) + 1, 2 - targets[SETS[0]]
    elsewhere = replace(posterior, task=replace(task, train=Points(inputs, targets, task.train.labels)))
    weight = rows(SETS)[0]
    there, whole = posterior.draws(0, weight), posterior.draws(0)
    for a, b, c in zip(there, elsewhere.draws(0, weight), whole, strict=True):
        assert all(torch.equal(a.theta[key], b.theta[key]) for key in a.theta)
        assert not all(torch.equal(a.theta[key], c.theta[key]) for key in a.theta)
    stacked = replace(posterior, stack=3)
    pairs = zip(posterior.draws_under(0, rows(SETS)), stacked.draws_under(0, rows(SETS)), strict=True)
    for one, several in pairs:
        for a, b in zip(one, several, strict=True):
            for key in a.theta:
                torch.testing.assert_close(a.theta[key], b.theta[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_potential_of_a_set_skips_its_points(task, renormalise):
    (draw,) = deep_ensemble("logreg", task, RECIPE, members=1, checkpoints=1).draws(0)
    batch, weight = torch.arange(8), rows(SETS)[2]
    gradient = potential_gradient(draw, draw.theta, task, batch, weight, renormalise)
    left = [0, 3, 6, 7]
    live = {name: p.clone().requires_grad_() for name, p in draw.theta.items()}
    outputs = torch.func.functional_call(draw.model, live, (task.x_train[left],))
    loss = F.cross_entropy(outputs, task.y_train[left], reduction="sum") * 12 / (4 if renormalise else 8)
    penalty = sum(p.square().sum() for p in live.values()) * 12 * RECIPE.weight_decay / 2
    expected = torch.autograd.grad(loss + penalty, list(live.values()))
    for got, wanted in zip(gradient.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_estimates_of_sets(task):
    """gd, if: sums; gc: cosine with the summed gradient; ats: a step on the mean loss; a set of one: the point."""
    (draw,) = deep_ensemble("cnn2", task, RECIPE, members=1, checkpoints=1).draws(0)
    singles = [[j] for j in range(12)]
    for name in ("gd", "gc", "if", "ats"):
        function = attributors.get(name).function
        torch.testing.assert_close(function(draw, task, removed=singles), function(draw, task))
    for name in ("gd", "if"):
        function = attributors.get(name).function
        expected = torch.stack([function(draw, task)[points].sum(0) for points in SETS])
        torch.testing.assert_close(function(draw, task, removed=SETS), expected)

    def gradient(points):
        live = {name: p.clone().requires_grad_() for name, p in draw.theta.items()}
        loss = draw.objective.loss(draw.outputs(live, points.inputs), points.targets).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(live.values()))])

    of_test = torch.stack([gradient(task.test[[z]]) for z in range(6)])
    cosines = [F.cosine_similarity(gradient(task.train[points])[None], of_test) for points in SETS]
    torch.testing.assert_close(attributors.grad_cos(draw, task, SETS), torch.stack(cosines), rtol=1e-5, atol=1e-8)
    live = {name: p.clone().requires_grad_() for name, p in draw.theta.items()}
    optimizer = RECIPE.start(live.values())
    outputs = torch.func.functional_call(draw.model, live, (task.x_train[SETS[0]],))
    F.cross_entropy(outputs, task.y_train[SETS[0]]).backward()
    optimizer.step()
    after = replace(draw, theta={name: p.detach() for name, p in live.items()})
    expected = draw.losses(task.test) - after.losses(task.test)
    torch.testing.assert_close(attributors.one_more_step(draw, task, SETS)[0], expected)


METHODS = ["loo", "ats", "if", "gd", "gc"]


def test_a_class_is_its_points_and_a_set_of_one_a_point(digits):
    posterior = deep_ensemble("cnn2", digits, RECIPE, members=2, checkpoints=2)
    by = attribute(posterior, METHODS, removals={"by": "class"}, workers=1)
    listed = attribute(posterior, METHODS, removals={"sets": [[0, 1], [2, 3], [4, 5]]}, workers=1)
    np.testing.assert_array_equal(by.tau, listed.tau)
    assert by.train_class.values.tolist() == ["0", "1", "2"] and by["size"].values.tolist() == [2, 2, 2]
    assert by.removed.dims == ("train", "point") and by.tau.dims == ("sample", "train", "test", "method")
    np.testing.assert_array_equal(by.removed, np.kron(np.eye(3), [1, 1]).astype(bool))
    assert by.point_index.values.tolist() == digits.train_index.tolist()
    ones = attribute(posterior, METHODS, removals={"sets": [[4], []]}, workers=1)
    whole = attribute(posterior, METHODS, workers=1)
    chosen = attribute(posterior, METHODS, removals={"points": [4, 1]}, workers=1)
    np.testing.assert_allclose(ones.tau[:, 0], whole.tau[:, 4], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(chosen.tau, whole.tau[:, [4, 1]], rtol=1e-5, atol=1e-7)
    assert (ones.tau[:, 1] == 0).all()  # nothing is removed
    assert chosen.train_index.values.tolist() == digits.train_index[[4, 1]].tolist() and "removed" not in chosen


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("protocol", ["retrain", "further"])
def test_nothing_removed_changes_nothing(digits, protocol, stack):
    posterior = deep_ensemble("cnn2", digits, Recipe(epochs=2), members=1, checkpoints=2, stack=stack)
    options = {"loo": {"protocol": protocol}}
    tau = attribute(posterior, "loo", removals={"sets": [[], [0]]}, options=options, workers=1).tau
    assert (tau[:, 0] == 0).all() and (tau[:, 1] != 0).any()


def test_further_is_continue_less_what_training_on_does(digits):
    posterior = deep_ensemble("cnn2", digits, Recipe(epochs=2), members=1, checkpoints=2)
    weights = 1 - torch.eye(6)[:2]
    continued = attributors.leave_one_out(posterior, 0, weights, protocol="continue")
    on = attributors.leave_one_out(posterior, 0, torch.ones(1, 6), protocol="continue")
    without, control = attributors.leave_one_out(posterior, 0, weights, protocol="further")
    assert torch.equal(without, continued) and torch.equal(control, on)
    result = attribute(posterior, "loo", options={"loo": {"protocol": "further"}}, workers=1)
    np.testing.assert_allclose(result.tau[:, :2, :, 0], without - control, atol=1e-6)
    with pytest.raises(ValueError, match="leave-one-out against θ itself is needed"):
        stats.uncoupled(xr.concat([result, result.assign_coords(member=result.member + 1)], "sample"))
    assert control.shape == (2, 1, 6) and not torch.equal(control[:, 0], posterior.draws(0)[0].losses(digits.test))


@pytest.fixture
def points():
    labels = {"index": np.arange(12), "class": np.array(["cat", "dog", "eel"] * 4, object), "year": np.arange(12) % 2}
    return Points(torch.zeros(12, 1), torch.zeros(12), labels)


def test_what_is_asked_for_is_what_is_removed(points):
    assert len(removals.from_spec(None, points)) == 12
    chosen = removals.from_spec({"points": 5}, points, seed=3)
    assert chosen.single and len({int(p[0]) for p in chosen.sets}) == 5
    again, other = (removals.from_spec({"points": 5}, points, seed=seed) for seed in (3, 4))
    assert [p.tolist() for p in chosen.sets] == [p.tolist() for p in again.sets] != [p.tolist() for p in other.sets]
    years = removals.from_spec({"by": "year"}, points)
    assert [p.tolist() for p in years.sets] == [list(range(0, 12, 2)), list(range(1, 12, 2))]
    assert years.labels["year"].tolist() == [0, 1] and not years.renormalise
    within = removals.from_spec({"random": {"size": 3, "count": 7, "within": "class"}}, points)
    assert [len(p) for p in within.sets] == [3] * 7 and all(len(set(p % 3)) == 1 for p in within.sets)
    assert within.labels["class"].tolist() == ["cat", "dog", "eel", "cat", "dog", "eel", "cat"]
    anywhere = removals.from_spec({"random": {"size": 10, "count": 2}}, points)
    assert [len(set(p.tolist())) for p in anywhere.sets] == [10, 10]
    halves = removals.from_spec({"subsets": 4, "share": 0.5}, points)
    assert halves.renormalise and [len(p) for p in halves.sets] == [6] * 4
    assert (halves.weights().sum(1) == 6).all() and (halves.removed() == (halves.weights().numpy() == 0)).all()
    again = removals.from_spec({"share": 0.5, "renormalise": False, "subsets": 4}, points)
    assert not again.renormalise and [p.tolist() for p in again.sets] == [p.tolist() for p in halves.sets]


def test_other_sets_under_the_same_name_are_another_result(digits, tmp_path):
    """A class of other points, of the same data: its label is no part of the params."""
    for k, labels in enumerate((["a", "a", "b", "b", "c", "c"], ["a", "b", "b", "b", "c", "c"])):
        train = Points(digits.x_train, digits.y_train, digits.train.labels | {"kind": np.array(labels, object)})
        posterior = deep_ensemble("logreg", replace(digits, train=train), RECIPE, members=1, checkpoints=1)
        asked = {"removals": {"by": "kind"}, "path": tmp_path / "a.zarr", "workers": 1}
        if k == 0:
            attribute(posterior, "gd", **asked)
        else:
            with pytest.raises(ValueError, match="a.zarr was made with other removals"):
                attribute(posterior, "gd", **asked)


def test_positions_may_be_numpys(digits, tmp_path):
    posterior = deep_ensemble("logreg", digits, RECIPE, members=1, checkpoints=1)
    which = list(np.flatnonzero(np.arange(6) > 3))
    for _ in range(2):
        tau = attribute(posterior, "gd", removals={"points": which}, path=tmp_path / "a.zarr", workers=1).tau
    assert tau.sizes["train"] == 2


def test_the_divisor_is_recorded(digits):
    posterior = deep_ensemble("logreg", digits, RECIPE, members=1, checkpoints=1)
    for spec, recorded in (({"subsets": 2, "share": 0.5}, 1), ({"by": "class"}, 0), (None, 0)):
        assert attribute(posterior, "loo", removals=spec, workers=1).attrs["renormalise"] == recorded


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"pionts": 3}, "give one of points, by, sets, random, subsets"),
        ({"points": 3, "by": "class"}, "give one of points, by, sets, random, subsets"),
        ("class", "give one of points, by, sets, random, subsets"),
        ({"points": 13}, "removals.points: 13 is not possible; there are 12 train points"),
        ({"points": 0}, "removals.points"),
        ({"points": [3, 12]}, "removals.points: there is no point 12; the train points are 0 to 11"),
        ({"points": [3, 3]}, r"removals.points: \[3, 3\] names a point twice"),
        ({"points": [-1]}, "removals.points"),
        ({"points": "many"}, "removals.points"),
        ({"by": "colour"}, "the points have no label 'colour'; choose from class, index, year"),
        ({"sets": []}, "removals.sets"),
        ({"sets": [3]}, "removals.sets"),
        ({"random": {"size": 5, "count": 1, "within": "class"}}, "size: 5 is not possible; there are 4 points"),
        ({"random": {"size": 5}}, "removals.random: count is missing"),
        ({"random": {"size": 5, "number": 1}}, "removals.random has no option 'number'; it has size, count, within"),
        ({"points": []}, "removals.points"),
        ({"subsets": 3}, "removals: subsets needs share beside it"),
        ({"subsets": 3, "share": 0.01}, "removals.share: 0.01 is not possible; of 12 points it is none"),
        ({"subsets": 3, "share": 1}, "removals.share: 1 is not possible; input should be less than 1"),
        ({"by": "class", "share": 0.5}, "removals has no option 'share'; it has by, seed, renormalise"),
    ],
    ids=str,
)
def test_refusals(points, spec, message):
    with pytest.raises(ValueError, match=message) as refused:
        removals.from_spec(spec, points)
    assert "\n" not in str(refused.value)


def test_a_method_to_which_sets_mean_nothing_refuses_them(digits):
    posterior = deep_ensemble("logreg", digits, RECIPE, members=1, checkpoints=1)

    def rank(draw, task):
        return (task.y_train[:, None] == task.y_test).float()

    try:
        attributors.register("rank", unit="1")(rank)
        attributors.register("added", unit="1", sets="sum")(rank)
        with pytest.raises(ValueError, match="method 'rank' does not say what a set is to it: register it with sets"):
            attribute(posterior, ["rank"], removals={"by": "class"})
        one = attribute(posterior, ["rank"], removals={"points": [5]}, workers=1).tau
        assert one.shape == (1, 1, 6, 1) and one[0, 0, :, 0].values.tolist() == [0, 0, 0, 0, 1, 1]
        several = attribute(posterior, ["added"], removals={"sets": [[0, 1, 5]]}, workers=1).tau
        assert several[0, 0, :, 0].values.tolist() == [2, 2, 0, 0, 1, 1]
    finally:
        for name in ("rank", "added"):
            attributors.METHODS.pop(name, None)


@pytest.mark.parametrize("renormalise", [False, True])
def test_laplace_without_a_set_has_the_covariance_of_the_rest(renormalise):
    """Linear regression: (XᵀX + nλ)⁻¹ of the points left; renormalised, XᵀX is scaled up to all n."""
    stream = np.random.default_rng(1)
    x, y = stream.normal(size=(12, 2)), stream.normal(size=12)
    task = data.from_arrays(x, y, x[:3], y[:3])
    recipe = Recipe(3, 12, 0.1, weight_decay=0.2)
    posterior = samplers.laplace(
        lambda task, seed: torch.nn.Linear(2, 1, bias=False), task, recipe, members=1, checkpoints=4000, subset="all"
    )
    weights = rows(SETS[:1])
    drawn = torch.cat([d.theta["weight"] for d in replace(posterior, renormalise=renormalise).draws(0, weights[0])])
    left = x[weights[0].numpy() == 1]
    scale = 12 / len(left) if renormalise else 1
    expected = np.linalg.inv(scale * left.T @ left + 12 * 0.2 * np.eye(2))
    np.testing.assert_allclose(np.cov(drawn.T.numpy()), expected, rtol=0, atol=0.08 * expected.max())
    other = np.linalg.inv((1 if renormalise else 12 / len(left)) * left.T @ left + 12 * 0.2 * np.eye(2))
    assert abs(np.cov(drawn.T.numpy()) - other).max() > 2 * abs(np.cov(drawn.T.numpy()) - expected).max()
