"""Objectives: curvature against autograd, and attribution of any loss against closed forms."""

import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, objectives

N, DECAY = 40, 0.1
CONVERGED = Recipe(400, N, learning_rate=0.3, weight_decay=DECAY, optimizer="sgd", momentum=0.5)


def linear(task, seed):
    return nn.Linear(3, task.outputs, bias=False)


def huber(outputs, targets):
    """Flat curvature beyond 1: a gradient that lies beside the span of the curvature."""
    return F.huber_loss(outputs, targets, reduction="none").sum(1)


def poisson(outputs, targets):
    return F.poisson_nll_loss(outputs, targets, reduction="none").sum(1)


def joint(outputs, targets):
    """A loss in which the outputs of a point depend on each other."""
    return torch.logsumexp(outputs - targets, 1)


@pytest.fixture(scope="module")
def regression():
    stream = np.random.default_rng(3)
    x = stream.normal(size=(N + 7, 3)) * [1, 0.7, 0.4]
    y = np.stack([x @ [1, -2, 0.5], x @ [0, 1, 1]], 1) + stream.normal(size=(N + 7, 2))
    return data.from_arrays(x[:N], y[:N], x[N:], y[N:])


def closed_form(task, without=()):
    """Ridge weights (2, 3) that minimise (1/n) Σ ½ ‖W x − y‖² + (λ/2) ‖W‖² without some points."""
    keep = [i for i in range(N) if i not in without]
    x, y = task.x_train[keep], task.y_train[keep]
    return torch.linalg.solve(x.T @ x + N * DECAY * torch.eye(3, dtype=x.dtype), x.T @ y).T


def test_floats_mean_regression(regression):
    assert regression.objective.name == "squared_error" and regression.classes == () and regression.outputs == 2
    single = data.from_arrays(np.ones((3, 2)), [1.0, 2.0, 3.0], np.ones((2, 2)), [1.0, 2.0])
    assert single.y_train.shape == (3, 1)


def test_influence_of_linear_regression_is_the_closed_form(regression):
    """(1/n) ∇L(z)ᵀ (XᵀX/n + λ)⁻¹ ∇L(z_j), by hand."""
    (draw,) = deep_ensemble(linear, regression, CONVERGED, members=1, checkpoints=1).draws(0)
    x, z = regression.x_train, regression.x_test
    inverse = torch.linalg.inv(x.T @ x / N + DECAY * torch.eye(3, dtype=x.dtype))
    weights = draw.theta["weight"]
    of_train, of_test = x @ weights.T - regression.y_train, z @ weights.T - regression.y_test  # residuals
    expected = (x @ inverse @ z.T) * (of_train @ of_test.T) / N
    for solver in ("ggn", "cg"):
        found = attributors.influence(draw, regression, solver=solver)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_leave_one_out_of_linear_regression_is_the_leverage_formula(regression):
    """W\\j = W − e_j (A⁻¹ x_j)ᵀ / (1 − h_j), A = XᵀX + nλ, e_j = y_j − W x_j, h_j = x_jᵀ A⁻¹ x_j."""
    posterior = deep_ensemble(linear, regression, CONVERGED, members=1, checkpoints=1)
    tau = attribute(posterior, "loo", removals={"points": [0, 5, 39]}, device="cpu", workers=1)
    x, whole = regression.x_train, closed_form(regression)
    solved = torch.linalg.solve(x.T @ x + N * DECAY * torch.eye(3, dtype=x.dtype), x.T).T  # A⁻¹ x_j, (n, 3)
    leverage = (x * solved).sum(1)
    error = (regression.y_train - x @ whole.T) / (1 - leverage)[:, None]
    without = whole - error[:, :, None] * solved[:, None, :]  # (n, 2, 3)
    torch.testing.assert_close(without[5], closed_form(regression, [5]))
    outputs = torch.einsum("jok,zk->jzo", without, regression.x_test)
    expected = (outputs - regression.y_test).square().sum(2) / 2
    found = attributors.leave_one_out(posterior, 0, 1 - torch.eye(N))[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tau.loss_without[0], expected[[0, 5, 39]], rtol=1e-5)
    assert json.loads(tau.tau.attrs["units"]) == {"loo": "target²"} and tau.loss.attrs["units"] == "target²"
    assert "train_class" not in tau.coords and tau.train_index.values.tolist() == [0, 5, 39]


@pytest.mark.parametrize("loss", [huber, poisson, joint, "squared_error", "cross_entropy"])
def test_curvature_is_the_hessian_and_coefficients_give_the_gradient(loss):
    objective, stream = objectives.get(loss), torch.Generator().manual_seed(0)
    outputs = 2 * torch.randn(20, 4, generator=stream, dtype=torch.float64)
    targets = torch.randn(20, 4, generator=stream, dtype=torch.float64)
    if loss == "cross_entropy":
        targets = torch.arange(20) % 4
    root, coefficients, beside = objective.curvature(outputs, targets)
    for i in range(20):

        def one(f, i=i):
            return objective.loss(f[None], targets[i : i + 1])[0]

        torch.testing.assert_close(root[i].T @ root[i], torch.func.hessian(one)(outputs[i]), rtol=1e-8, atol=1e-10)
        gradient = root[i].T @ coefficients[i] + beside[i]
        torch.testing.assert_close(gradient, torch.func.grad(one)(outputs[i]), rtol=1e-6, atol=1e-8)
    assert bool(beside.any()) == (loss in (huber, joint))  # whose slope reaches where they are flat


@pytest.mark.parametrize("loss", [huber, poisson, joint])
@pytest.mark.parametrize("solver", ["ggn", "cg"])
def test_influence_of_ones_own_loss_is_that_of_the_dense_matrix(regression, loss, solver):
    task = data.from_arrays(
        regression.x_train, regression.y_train.abs(), regression.x_test, regression.y_test.abs(), objective=loss
    )
    (draw,) = deep_ensemble(linear, task, Recipe(20, 8, 0.05), members=1, checkpoints=1).draws(0)

    def mean_loss(weights):
        return loss(task.x_train @ weights.T, task.y_train).mean()

    def each(points):
        def losses(weights):
            return loss(points.inputs @ weights.T, points.targets)

        return torch.func.jacrev(losses)(draw.theta["weight"]).flatten(1)

    hessian = torch.func.hessian(mean_loss)(draw.theta["weight"]).reshape(6, 6) + 0.01 * torch.eye(6)
    expected = each(task.train) @ torch.linalg.solve(hessian, each(task.test).T) / N
    found = attributors.influence(draw, task, damping=0.01, solver=solver)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attributors.grad_dot(draw, task), each(task.train) @ each(task.test).T)


@pytest.fixture
def own_names():
    """What a test registers is forgotten after it."""
    with patch.dict(objectives.OBJECTIVES):
        yield


def test_one_of_your_own_is_one_decorator(regression, own_names):
    @objectives.register("absolute", unit="target")
    def absolute(outputs, targets):
        return (outputs - targets).abs().sum(1)

    task = data.from_arrays(
        regression.x_train, regression.y_train, regression.x_test, regression.y_test, objective=absolute
    )
    result = attribute(
        deep_ensemble("logreg", task, Recipe(3, 8), members=2, checkpoints=2), ["loo", "ats", "gd", "gc"], workers=1
    )
    assert result.loss.attrs["units"] == "target" and np.isfinite(result.tau).all()


def saddle(outputs, targets):
    return -(outputs - targets).square().sum(1)


def total(outputs, targets):
    return (outputs - targets).square().sum()


@pytest.mark.parametrize(
    ("loss", "methods", "message"),
    [
        (saddle, "if", "objective 'saddle' is not convex in the outputs"),
        (total, "gd", r"objective 'total' gave losses of shape \(\) for 10 points; give one each"),
        ("cross_entropy", "gd", "objective 'cross_entropy' needs classes as targets"),
        ("hinge", "gd", "objective 'hinge' is not known; choose from cross_entropy, next_token, squared_error"),
    ],
)
def test_refusals(regression, loss, methods, message):
    arrays = (regression.x_train, regression.y_train, regression.x_test, regression.y_test)
    with pytest.raises(ValueError, match=message):
        attribute(deep_ensemble("logreg", data.from_arrays(*arrays, objective=loss), members=1), methods)


def test_outputs_that_do_not_fit_the_targets_are_refused(regression):
    def one_output(task, seed):
        return nn.Linear(3, 1)

    with pytest.raises(ValueError, match=r"outputs of shape \(1,\) do not fit targets \(2,\)"):
        attribute(deep_ensemble(one_output, regression, members=1), "gd")
