"""Every attributor against a case with a closed form, brute force, or refits."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import without
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, objectives
from tdalib.attributors.gradients import Gradients, cosines, loss_gradients
from tdalib.networks import SlowerPath
from tdalib.training import Training, train, train_stack

STRONG_L2 = Recipe(epochs=300, batch_size=90, learning_rate=0.01, weight_decay=1.0)


@pytest.fixture(scope="module")
def convex(blobs):
    """Logistic regression with strong L2, trained to convergence on full batches."""
    return deep_ensemble("logreg", blobs, STRONG_L2, members=1, checkpoints=1)


@pytest.fixture(scope="module")
def conv_draw():
    """A float64 draw of cnn2 after two epochs, and its task."""
    task = data.load("mnist3", train_per_class=3, test_per_class=2).to(torch.float64)
    (draw,) = deep_ensemble("cnn2", task, Recipe(epochs=2), members=1, checkpoints=1).draws(0)
    return draw, task


def brute_gradients(draw, x, y):
    """∇L one point at a time, (points, P)."""
    rows = []
    for xi, yi in zip(x, y, strict=True):
        theta = {name: p.detach().requires_grad_() for name, p in draw.theta.items()}
        loss = F.cross_entropy(functional_call(draw.model, theta, (xi[None],)), yi[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(theta.values()))]))
    return torch.stack(rows)


def loo(posterior, points=None):
    """τ_LOO (1, points, test) of member 0 at its last checkpoint, straight from the attributor."""
    task = posterior.task
    points = range(len(task.train)) if points is None else points
    draw = posterior.draws(0)[-1]
    before = F.cross_entropy(draw(task.x_test), task.y_test, reduction="none").detach()
    return attributors.leave_one_out(posterior, 0, without(task, *points))[-1:] - before


def test_loo_agrees_with_influence_on_convex_model(convex, blobs):
    (draw,) = convex.draws(0)
    pull = brute_gradients(draw, blobs.x_train, blobs.y_train).mean(0)
    pull += STRONG_L2.weight_decay * torch.cat([p.flatten() for p in draw.theta.values()])
    assert pull.norm() < 1e-6  # converged
    truth = loo(convex, range(0, 90, 3))[0]
    estimate = attributors.influence(draw, blobs)[::3]
    assert spearmanr(truth.flatten(), estimate.flatten()).statistic > 0.99
    slope = (truth * estimate).sum() / estimate.square().sum()
    assert abs(slope - 1) < 0.03
    assert (truth - estimate).norm() / truth.norm() < 0.03


def test_influence_equals_dense_hessian(convex, blobs):
    (draw,) = convex.draws(0)
    names, shapes = list(draw.theta), [p.shape for p in draw.theta.values()]
    flat = torch.cat([p.flatten() for p in draw.theta.values()])

    def mean_loss(vector):
        parts = vector.split([s.numel() for s in shapes])
        theta = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(draw.model, theta, (blobs.x_train,)), blobs.y_train)

    hessian = torch.func.hessian(mean_loss)(flat) + STRONG_L2.weight_decay * torch.eye(len(flat), dtype=torch.float64)
    train = brute_gradients(draw, blobs.x_train, blobs.y_train)
    test = brute_gradients(draw, blobs.x_test, blobs.y_test)
    expected = train @ torch.linalg.solve(hessian, test.T) / len(train)
    torch.testing.assert_close(attributors.influence(draw, blobs), expected, rtol=1e-8, atol=1e-12)


def test_influence_equals_dense_gauss_newton_on_a_network(conv_draw):
    draw, task = conv_draw
    network = draw.module()
    p = network(task.x_train).softmax(1).detach()
    jacobian = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(out, list(network.parameters()), retain_graph=True)])
            for xi in task.x_train
            for out in network(xi[None])[0]
        ]
    )  # (n·C, P)
    n, damping = len(p), 0.01
    curvature = torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / n  # (n·C, n·C)
    train = brute_gradients(draw, task.x_train, task.y_train)
    test = brute_gradients(draw, task.x_test, task.y_test)
    # (λI + JᵀΛJ)⁻¹ = (I − Jᵀ (λI + ΛJJᵀ)⁻¹ ΛJ) / λ
    inner = torch.linalg.solve(
        damping * torch.eye(len(curvature), dtype=torch.float64) + curvature @ jacobian @ jacobian.T, curvature
    )
    solved = (train - train @ jacobian.T @ inner.T @ jacobian) / damping
    expected = solved @ test.T / n
    torch.testing.assert_close(attributors.influence(draw, task, damping=damping), expected, rtol=1e-6, atol=1e-10)
    by_cg = attributors.influence(draw, task, damping=damping, solver="cg")
    assert (by_cg - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("method", ["gd", "gc"])
def test_gradient_products_equal_brute_force(conv_draw, method):
    draw, task = conv_draw
    train = brute_gradients(draw, task.x_train, task.y_train)
    test = brute_gradients(draw, task.x_test, task.y_test)
    if method == "gc":
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    tau = attributors.get(method).function(draw, task)
    torch.testing.assert_close(tau, train @ test.T, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["gd", "gc", "if"])
def test_float32_is_right_where_the_network_is_sure(method):
    """After training, p_y is 1 − 1e-6 and closer for most points; their small gradients must still be right."""
    task = data.load("mnist3", train_per_class=10, test_per_class=20)
    (draw,) = deep_ensemble("cnn2", task, Recipe(epochs=60), members=1, checkpoints=1).draws(0)
    exact_task = task.to(torch.float64)
    theta = {name: p.double() for name, p in draw.theta.items()}
    exact_draw = replace(draw, theta=theta, model=deepcopy(draw.model).double())
    exact = attributors.get(method).function(exact_draw, exact_task)
    single = attributors.get(method).function(draw, task)
    worst = (single - exact).norm(dim=0) / exact.norm(dim=0)  # (test,)
    assert exact.abs().amin(0).min() < 1e-6 or method == "gc"
    assert worst.max() < 1e-3


class Twice(nn.Module):
    """A linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Tokens(Twice):
    """A linear layer on a sequence."""

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.stack([x, 2 * x], 1))).sum(1))


class Folded(Twice):
    """A linear layer on a sequence that is folded into the batch."""

    def forward(self, x):
        return self.last(torch.tanh(self.layer(torch.stack([x, 2 * x], 1).flatten(0, 1))).view(len(x), 2, 4).sum(1))


class Reused(Twice):
    """A linear layer whose weight serves a second time, past its call."""

    def forward(self, x):
        return self.last(torch.tanh(self.layer(x)) @ self.layer.weight)


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize("kind", [Twice, Tokens, Folded, Reused, Tied])
def test_linear_layers_with_no_outer_product_take_the_general_path(blobs, kind):
    (draw,) = deep_ensemble(lambda task, seed: kind(), blobs, Recipe(epochs=1), members=1, checkpoints=1).draws(0)
    expected = brute_gradients(draw, blobs.x_train, blobs.y_train) @ brute_gradients(draw, blobs.x_test, blobs.y_test).T
    torch.testing.assert_close(attributors.grad_dot(draw, blobs), expected, rtol=1e-5, atol=1e-12)


def test_frozen_parameters_stay_out_of_the_gradients(blobs):
    def half_frozen(task, seed):
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        model[0].requires_grad_(False)
        model[2].bias.requires_grad_(False)
        return model

    (draw,) = deep_ensemble(half_frozen, blobs, Recipe(epochs=1), members=1, checkpoints=1).draws(0)
    assert set(draw.theta) == {"2.weight"}
    expected = brute_gradients(draw, blobs.x_train, blobs.y_train) @ brute_gradients(draw, blobs.x_test, blobs.y_test).T
    torch.testing.assert_close(attributors.grad_dot(draw, blobs), expected, rtol=1e-5, atol=1e-12)


def test_ats_is_one_adam_step(conv_draw):
    draw, task = conv_draw
    recipe = draw.recipe
    gradient = brute_gradients(draw, task.x_train[:1], task.y_train[:1])[0]
    theta = torch.cat([p.flatten() for p in draw.theta.values()])
    step = gradient + recipe.weight_decay * theta
    moved = theta - recipe.learning_rate * step / (step.abs() + 1e-8)  # Adam's first step, bias-corrected
    parts = moved.split([p.numel() for p in draw.theta.values()])
    after = {name: v.view_as(p) for v, (name, p) in zip(parts, draw.theta.items(), strict=True)}

    def losses(theta):
        return F.cross_entropy(functional_call(draw.model, theta, (task.x_test,)), task.y_test, reduction="none")

    expected = losses(draw.theta) - losses(after)
    torch.testing.assert_close(attributors.one_more_step(draw, task)[0], expected, rtol=1e-6, atol=1e-10)


def test_many_steps_of_ats_shrink_the_residual_of_least_squares():
    """Gradient descent on one point of a linear model: each step multiplies its residual by 1 − η‖x‖²."""
    stream = np.random.default_rng(0)
    x, y = stream.normal(size=(9, 3)), stream.normal(size=(9, 1))
    task = data.from_arrays(x[:4], y[:4], x[4:], y[4:])
    recipe = Recipe(epochs=1, optimizer="sgd", learning_rate=0.1, weight_decay=0)
    linear = nn.Linear(3, 1).double()
    (draw,) = deep_ensemble(linear, task, recipe, members=1, checkpoints=1).draws(0)
    seen, unseen = np.c_[x[:4], np.ones(4)], np.c_[x[4:], np.ones(5)]
    theta = torch.cat([p.flatten() for p in draw.theta.values()]).numpy()
    for steps in (1, 2, 7):
        tau = attributors.one_more_step(draw, task, steps=steps)
        for j, (a, target) in enumerate(zip(seen, y[:4, 0], strict=True)):
            shrunk = 1 - (1 - 0.1 * a @ a) ** steps
            moved = theta - shrunk * (a @ theta - target) / (a @ a) * a
            before, after = (0.5 * (unseen @ each - y[4:, 0]) ** 2 for each in (theta, moved))
            np.testing.assert_allclose(tau[j], before - after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stack", [1, 100], ids=["one by one", "stack"])
def test_point_in_no_batch_has_no_effect(digits, stack):
    """The same sampler, except that its batches skip point 4: removing that point must change nothing at all."""

    def skipping(posterior, member, weights):
        training = posterior.training(member)
        training.__dict__["batches"] = [[batch[batch != 4] for batch in epoch] for epoch in training.batches]
        trainer = train if stack == 1 else train_stack
        for states in trainer(training, weights):
            yield posterior.made(member, training.network, states)

    whole = deep_ensemble("cnn2", digits, Recipe(epochs=2, batch_size=2), members=1, checkpoints=1)
    skipped = replace(whole, sample=skipping, stack=stack)
    tau = attribute(skipped, ["loo"], workers=1).tau.values[0, :, :, 0]
    assert (tau[4] == 0).all()
    assert all((tau[j] != 0).any() for j in (0, 1, 2, 3, 5))


def test_tau_permutes_with_the_train_set(convex, blobs):
    order = np.random.default_rng(1).permutation(len(blobs.train))
    shuffled = replace(blobs, train=blobs.train[order])
    moved = deep_ensemble("logreg", shuffled, STRONG_L2, members=1, checkpoints=1)
    for name in ("ats", "if", "gd", "gc"):
        function = attributors.get(name).function
        before, after = function(convex.draws(0)[0], blobs), function(moved.draws(0)[0], shuffled)
        torch.testing.assert_close(after, before[order], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loo(moved, range(3)), loo(convex, order[:3]), rtol=1e-3, atol=1e-6)


def test_continue_protocol_trains_on_from_each_checkpoint(digits):
    posterior = deep_ensemble("cnn2", digits, Recipe(epochs=2), members=1, checkpoints=2)
    draws = posterior.draws(0)
    losses = attributors.leave_one_out(posterior, 0, without(digits, 3), protocol="continue")
    model = posterior.build(digits, 0)
    model.load_state_dict(draws[0].theta)
    list(train(Training(model, digits, posterior.recipe, draws[0].batch_seed), without(digits, 3)))
    expected = F.cross_entropy(model(digits.x_test), digits.y_test, reduction="none")
    torch.testing.assert_close(losses[0, 0], expected.detach().double(), rtol=1e-4, atol=1e-5)
    assert losses.shape == (2, 1, 6)


def test_grad_dot_equals_captum_tracin(conv_draw):
    tracin = pytest.importorskip("captum.influence").TracInCP
    draw, task = conv_draw
    dataset = torch.utils.data.TensorDataset(task.x_train, task.y_train)

    def load(model, _):
        model.load_state_dict(draw.theta)
        return 1.0

    model = draw.module().to(memory_format=torch.contiguous_format)  # captum takes views of the gradients
    peer = tracin(model, dataset, ["only"], load, loss_fn=nn.CrossEntropyLoss(reduction="none"), batch_size=4)
    expected = peer.influence((task.x_test, task.y_test)).T
    torch.testing.assert_close(attributors.grad_dot(draw, task), expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"damping": 0}, "if.damping: 0 is not possible; input should be greater than 0"),
        ({"solver": "lu"}, "if.solver: 'lu' is not possible; input should be 'ggn' or 'cg'"),
    ],
)
def test_influence_refuses(conv_draw, bad, message):
    with pytest.raises(ValueError, match=message):
        attributors.influence(*conv_draw, **bad)


def test_a_faster_path_that_is_wrong_is_seen_for_every_objective(blobs, monkeypatch):
    """Where the first of the curvature's roots is 0, as that of a softmax by autograd is, the longest is looked at."""

    def own(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

    task = replace(blobs, objective=objectives.get(own))
    (draw,) = deep_ensemble("logreg", task, Recipe(epochs=2), members=1, checkpoints=1).draws(0)
    expected = attributors.get("if").function(draw, task)
    right = Gradients._at_once

    def twice(self, points, cotangents):
        rows = right(self, points, cotangents)
        return replace(rows, lengths=2 * rows.lengths)

    monkeypatch.setattr(Gradients, "_at_once", twice)
    with pytest.warns(SlowerPath, match="under vmap the network gives other ones"):
        found = attributors.get("if").function(draw, task)
    torch.testing.assert_close(found, expected)


def test_rows_that_were_kept_are_made_anew_where_the_other_side_is_slower(blobs):
    (draw,) = deep_ensemble("mlp", blobs, Recipe(epochs=1), members=1, checkpoints=1).draws(0)
    train, test = (loss_gradients(draw, points, memory=1.0) for points in (blobs.train, blobs.test))
    expected = cosines(train, test)
    assert train.whole is not None and train.layers
    slower = loss_gradients(draw, blobs.test, memory=1.0)
    slower.go_one_by_one()
    torch.testing.assert_close(cosines(train, slower), expected)
