"""Samplers against posteriors that are known: Bayesian linear regression in float64, and SGD on a quadratic."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import without
from torch import nn

from tdalib import Recipe, attribute, attributors, objectives, samplers
from tdalib.data import Points, Task
from tdalib.samplers import chains, gaussians
from tdalib.samplers.gaussians import gaussian
from tdalib.training import batch_order
from tdalib.workers import exact_repeat

N, OUTPUTS = 40, 300  # each output is a chain of its own: the same regression, its own noise
TOLERANCE = 0.05
RECIPE = Recipe(epochs=400, batch_size=N, learning_rate=0.01, weight_decay=0.1)
BATCHES_OF_TEN = replace(RECIPE, batch_size=10)


def linear(task, seed):
    return nn.Linear(task.x_train.shape[1], task.y_train.shape[1], bias=False)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors wait for threads longer than they take."""
    with exact_repeat():
        yield


@pytest.fixture(scope="module")
def regression():
    stream = np.random.default_rng(3)
    x = stream.normal(size=(N + 1, 3)) * [1, 0.7, 0.4]
    y = x @ [1, -2, 0.5] + stream.normal(size=N + 1)
    x, y = torch.as_tensor(x), torch.as_tensor(y)[:, None].expand(-1, OUTPUTS).contiguous()
    train, test = Points(x[:N], y[:N], {"index": np.arange(N)}), Points(x[N:], y[N:], {"index": np.arange(1)})
    return Task(train, test, objectives.get("squared_error"), "regression")


def exact(task, removed=None, recipe=RECIPE):
    """Mean and covariance of one output's weights: unit noise, and a prior of precision n λ."""
    rest = [i for i in range(N) if i != removed]
    x, y = task.x_train[rest].numpy(), task.y_train[rest, 0].numpy()
    covariance = np.linalg.inv(x.T @ x + N * recipe.weight_decay * np.eye(3))
    return covariance @ x.T @ y, covariance


def errors(draws, task):
    """Largest errors of the draws' mean, in posterior standard deviations, and of their covariance, relative."""
    weights = torch.cat([d.theta["weight"] for d in draws]).numpy()  # (draws · outputs, 3)
    mean, covariance = exact(task)
    scale = np.sqrt(np.diag(covariance))
    of_mean = abs(weights.mean(0) - mean) / scale
    return of_mean.max(), abs((np.cov(weights.T) - covariance) / np.outer(scale, scale)).max()


def posterior(name, task, checkpoints=100, recipe=BATCHES_OF_TEN, **options):
    return samplers.get(name)(linear, task, recipe, members=1, checkpoints=checkpoints, **options)


OPTIONS = {
    "sgld": {"step_size": 2.5e-4, "burn_in": 200, "thin": 16},
    "sghmc": {"step_size": 2e-5, "friction": 0.1, "burn_in": 400, "thin": 30},
    "laplace": {"subset": "all"},
}
CHAINS = ("sgld", "sghmc")


@pytest.mark.parametrize("name", OPTIONS)
def test_linear_regression_is_recovered_the_better_the_more_draws(name, regression):
    few, many = (errors(posterior(name, regression, k, **OPTIONS[name]).draws(0), regression) for k in (1, 100))
    assert max(many) < TOLERANCE
    assert few[1] > 2 * many[1]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_temperature_is_seen(name, regression):
    draws = posterior(name, regression, **OPTIONS[name] | {"temperature": 1.2}).draws(0)
    assert errors(draws, regression)[1] > 3 * TOLERANCE


@pytest.mark.parametrize("name", CHAINS)
def test_a_missing_factor_of_the_minibatch_is_seen(name, regression, monkeypatch):
    right = chains.potential_gradient

    def missing(draw, theta, task, batch, *weighed):
        gradient, decay = right(draw, theta, task, batch, *weighed), N * draw.recipe.weight_decay
        return {key: decay * theta[key] + (g - decay * theta[key]) * len(batch) / N for key, g in gradient.items()}

    monkeypatch.setattr(chains, "potential_gradient", missing)
    assert min(errors(posterior(name, regression, **OPTIONS[name]).draws(0), regression)) > 3 * TOLERANCE


@pytest.mark.parametrize("name", ["sgld", pytest.param("sghmc", marks=pytest.mark.slow), "laplace"])
def test_coupled_removal_gives_the_closed_form(name, regression):
    """LOO of the posterior mean loss, Σ over outputs of ½ E(xᵀw − y)², with far less noise than independent draws."""
    removed, options = [4, 17], OPTIONS[name]
    drawn = posterior(name, regression, **options)
    other = posterior(name, regression, seed=1, **options)
    loo = attributors.get("loo").function
    left, whole, whole_of_other = (
        loo(posterior, 0, without(regression, *points))[..., 0]
        for posterior, points in ((drawn, removed), (drawn, [None]), (other, [None]))
    )  # (checkpoint, points)
    expected = [mean_loss(regression, j) - mean_loss(regression) for j in removed]
    coupled = (left - whole).mean(0)
    np.testing.assert_allclose(coupled, expected, rtol=0.05, atol=0.05 * max(map(abs, expected)))
    assert (left - whole).std(0).max() < 0.2 * (left - whole_of_other).std(0).min()


def mean_loss(task, removed=None):
    mean, covariance = exact(task, removed)
    x, y = task.x_test[0].numpy(), task.y_test[0, 0].item()
    return OUTPUTS * ((x @ mean - y) ** 2 + x @ covariance @ x) / 2


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("model", ["cnn2", linear])
def test_a_chain_without_a_point_is_that_on_the_data_without_it(name, model, digits, regression):
    """To the bit, given the same batches otherwise: written out as a loop over a data set that lacks the point."""
    task, recipe, j = (digits, Recipe(3, 4), 2) if model == "cnn2" else (regression, BATCHES_OF_TEN, 17)
    weight = without(task, j)[0]
    drawn = samplers.get(name)(model, task, recipe, members=1, checkpoints=3, burn_in=1, thin=2)
    (mode,) = samplers.deep_ensemble(model, task, recipe, members=1, checkpoints=1).draws(0, weight)
    expected = chain_on_rest(name, mode, task, j, drawn)
    for draw, theta in zip(drawn.draws(0, weight), expected, strict=True):
        assert all(torch.equal(draw.theta[key], theta[key]) for key in theta)
    assert not all(torch.equal(draw.theta[key], theta[key]) for key in theta for draw in drawn.draws(0)[-1:])


def chain_on_rest(name, mode, task, j, drawn):
    """Draws 3, 5 and 7 epochs on, from a loop over arrays without point j."""
    keep = [i for i in range(len(task.train)) if i != j]
    x, y = task.x_train[keep], task.y_train[keep]
    n, member, option = len(task.train), drawn.members[0], drawn.options
    order = batch_order(n, replace(mode.recipe, epochs=7), samplers.derive_seed(member.batch_seed, 0, 2))
    stream = torch.Generator().manual_seed(samplers.derive_seed(member.batch_seed, 1, 2))
    model, theta, velocity = mode.module(), {k: p.clone() for k, p in mode.theta.items()}, {}
    for epoch, batches in enumerate(order, 1):
        for batch in batches:
            rest = torch.as_tensor([keep.index(i) for i in batch.tolist() if i != j])
            model.load_state_dict(theta, strict=False)
            model.zero_grad()
            (task.objective.loss(model(x[rest]), y[rest]).sum() * (n / len(batch))).backward()
            for key, p in model.named_parameters():
                gradient = p.grad + n * mode.recipe.weight_decay * theta[key]
                noise = torch.empty(theta[key].shape, dtype=theta[key].dtype).normal_(generator=stream)
                if name == "sgld":
                    step = option["step_size"] ** 0.5 * noise - option["step_size"] / 2 * gradient
                else:
                    a, e = option["friction"], option["step_size"]
                    step = (1 - a) * velocity.get(key, 0.0) - e * gradient + (2 * a * e) ** 0.5 * noise
                    velocity[key] = step
                theta[key].add_(step)
        if epoch in (3, 5, 7):
            yield {key: p.clone() for key, p in theta.items()}


def test_swag_on_a_quadratic_with_known_noise():
    """SGD on ½ θᵀHθ with gradient noise C has the covariance S = (I − ηH) S (I − ηH) + η² C; SWAG halves what is off
    its diagonal."""
    rate, hessian = 0.1, torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    map_ = (torch.eye(2) - rate * hessian).numpy()
    stationary = scipy.linalg.solve_discrete_lyapunov(map_, rate**2 * (root @ root.T).numpy())
    expected = (np.diag(np.diag(stationary)) + stationary) / 2
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    stream, theta, path = torch.Generator().manual_seed(0), torch.zeros(2, dtype=torch.float64), []
    for _ in range(60_000):
        noise = root @ torch.empty_like(theta).normal_(generator=stream)
        theta = theta - rate * (hessian @ theta + noise)
        path.append({"w": theta})

    def error(kept):
        draws = torch.stack([d["w"] for d in gaussian(kept, 20_000, torch.Generator().manual_seed(1))]).numpy()
        return abs((np.cov(draws.T) - expected) / scale).max()

    long = path[::20]  # a step remembers about ten
    assert error(long) < 0.06
    assert error(long[:30]) > 2 * error(long)
    assert abs(expected - stationary).max() / scale.max() > 0.15  # the halves are seen


def test_dropout_masks_are_those_of_training_and_shared_by_points(regression):
    task = regression.first(train=8)
    drawn = samplers.mc_dropout(with_dropout, task, Recipe(2, 8), members=1, checkpoints=400)
    (plain,) = samplers.deep_ensemble(with_dropout, task, Recipe(2, 8), members=1, checkpoints=1).draws(0)
    draws, left = drawn.draws(0), drawn.draws(0, without(task, 3)[0])
    weight = draws[0].theta["1.weight"]
    assert torch.equal(weight, plain.theta["1.weight"])
    masks = torch.stack([d.rest["0.mask"] for d in draws])  # (draw, 3)
    assert set(masks.unique().tolist()) == {0.0, 1 / 0.6} and abs((masks > 0).double().mean() - 0.6) < 0.05
    for a, b in zip(draws, left, strict=True):
        torch.testing.assert_close(a(task.x_train), (task.x_train * a.rest["0.mask"]) @ a.theta["1.weight"].T)
        torch.testing.assert_close(a.module()(task.x_train), a(task.x_train))
        assert torch.equal(a.rest["0.mask"], b.rest["0.mask"])
    assert not torch.equal(weight, left[0].theta["1.weight"])


def with_dropout(task, seed):
    return nn.Sequential(nn.Dropout(0.4), nn.Linear(task.x_train.shape[1], task.y_train.shape[1], bias=False))


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
@pytest.mark.parametrize("subset", ["last_layer", "all"])
def test_laplace_at_temperature_0_is_the_mode_and_covers_what_it_says(digits, subset, structure):
    recipe, options = Recipe(2, 4), {"subset": subset, "structure": structure}
    if (subset, structure) == ("all", "full"):
        train, test = (replace(points, inputs=points.inputs[..., :4]) for points in (digits.train, digits.test))
        digits, model = replace(digits, train=train, test=test), "logreg"
    else:
        model = "cnn2"
    (mode,) = samplers.deep_ensemble(model, digits, recipe, members=1, checkpoints=1).draws(0)
    (cold,) = samplers.laplace(model, digits, recipe, members=1, checkpoints=1, temperature=0, **options).draws(0)
    (warm,) = samplers.laplace(model, digits, recipe, members=1, checkpoints=1, **options).draws(0)
    assert all(torch.equal(cold.theta[name], p) for name, p in mode.theta.items())
    moved = {name for name, p in mode.theta.items() if not torch.equal(warm.theta[name], p)}
    last = set(list(mode.theta)[-2:])
    assert moved == (last if subset == "last_layer" else set(mode.theta))


class SharedDropout(nn.Module):
    """One dropout layer under two names, used twice."""

    def __init__(self, p=0.5, second=16, used=True):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(784, 16), nn.Linear(16, second), nn.Linear(second, 3)
        self.drop = self.again = nn.Dropout(p)
        self.used = used

    def forward(self, x):
        x = torch.tanh(self.first(x.flatten(1)))
        if not self.used:
            return self.last(torch.tanh(self.second(x)))
        return self.last(self.again(torch.tanh(self.second(self.drop(x)))))


def test_a_dropout_layer_of_two_names_masks_both_uses(digits):
    (draw,) = samplers.mc_dropout(lambda t, s: SharedDropout(), digits, Recipe(1), members=1, checkpoints=1).draws(0)
    mask = draw.rest["drop.mask"]
    assert set(mask.unique().tolist()) == {0.0, 2.0} and list(draw.rest) == ["drop.mask"]
    theta, x = draw.theta, digits.x_test.flatten(1)
    hidden = torch.tanh(x @ theta["first.weight"].T + theta["first.bias"]) * mask
    hidden = torch.tanh(hidden @ theta["second.weight"].T + theta["second.bias"]) * mask
    torch.testing.assert_close(draw(digits.x_test), hidden @ theta["last.weight"].T + theta["last.bias"])
    torch.testing.assert_close(draw.module()(digits.x_test), draw(digits.x_test))


def test_a_dropout_layer_that_drops_all_gives_zeros(digits):
    class All(SharedDropout):
        def __init__(self):
            super().__init__(p=0.5)
            self.again = nn.Dropout(1.0)

    for draw in samplers.mc_dropout(lambda t, s: All(), digits, Recipe(1), members=1, checkpoints=2).draws(0):
        torch.testing.assert_close(draw(digits.x_test), draw.theta["last.bias"].expand(6, 3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"second": 8}, "mc_dropout: layer 'drop' is used on several shapes; give each use its own nn.Dropout"),
        ({"used": False}, "uses no nn.Dropout of p between 0 and 1"),
        ({"p": 1.0}, "uses no nn.Dropout of p between 0 and 1"),
        ({"p": 0.0}, "uses no nn.Dropout of p between 0 and 1"),
    ],
)
def test_dropout_that_gives_no_draws_is_refused(digits, options, said):
    with pytest.raises(ValueError, match=said):
        samplers.mc_dropout(lambda t, s: SharedDropout(**options), digits, Recipe(1), members=1, checkpoints=2)


class Scaled(nn.Module):
    """A first parameter without dimensions, and one that forward does not use."""

    def __init__(self):
        super().__init__()
        self.scale, self.unused = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.ones(3))
        self.layer, self.drop = nn.Linear(784, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.scale * self.layer(self.drop(x.flatten(1)))


@pytest.mark.filterwarnings("ignore:.*too few to judge")
@pytest.mark.parametrize("name", ["deep_ensemble", "swag", "sgld", "sghmc", "laplace", "mc_dropout"])
def test_a_parameter_without_dimensions_and_one_without_use(digits, name):
    options = {"swag": {"collect": 2}, "sgld": {"burn_in": 1, "thin": 1}, "sghmc": {"burn_in": 1, "thin": 1}}
    asked = {"members": 2, "checkpoints": 2} | options.get(name, {})
    posterior = samplers.get(name)(lambda t, s: Scaled(), digits, Recipe(2), **asked)
    result = attribute(posterior, ["loo", "ats", "if", "gd", "gc"], workers=1)
    assert result.tau.notnull().all() and (result.tau.std("sample") > 0).any()


def test_laplace_takes_the_symmetric_root(regression):
    """Σ^½ of the weights in another order is that of Σ in that order; a triangular root is not."""
    (mode,) = posterior("laplace", regression, 1, temperature=0, **OPTIONS["laplace"]).draws(0)
    stream = torch.Generator().manual_seed(0)
    fitted, *_ = gaussians._fit(mode, regression.train, N, "all", "full")
    z = torch.randn(3, len(fitted.mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root = scipy.linalg.sqrtm(np.linalg.inv(fitted.posterior_precision.numpy()))
    expected = fitted.mean.numpy() + z.numpy() @ root
    np.testing.assert_allclose(gaussians._drawn(fitted, 3, stream, "full"), expected, rtol=1e-5)
