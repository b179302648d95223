"""Where float32 ends: confident networks, losses of hundreds of nats, masked logits; against float64 and dense ones."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from tdalib import Recipe, attribute, attributors, data, deep_ensemble

POINTS, TESTS, FEATURES, CLASSES = 12, 5, 6, 3
METHODS = ["gd", "gc", "if"]


def task_of(dtype, pixels=1.0):
    stream = np.random.default_rng(3)
    train, test = (pixels * stream.normal(size=(n, FEATURES)) for n in (POINTS, TESTS))
    labels = [np.arange(n) % CLASSES for n in (POINTS, TESTS)]
    return data.from_arrays(train.astype(dtype), labels[0], test.astype(dtype), labels[1])


def network(task, seed):
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, CLASSES))


class Masked(nn.Sequential):
    """A network that rules a class out."""

    def forward(self, x):
        outputs = super().forward(x)
        possible = torch.tensor([True] * CLASSES + [False])
        return outputs.masked_fill(~possible, -torch.inf)


def masked(task, seed):
    return Masked(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, CLASSES + 1))


def draw_of(task, confidence, build=network):
    """A draw whose logits are so many times those of the initial weights."""
    draw = deep_ensemble(build, task, Recipe(epochs=1), members=1, checkpoints=1).draws(0)[0]
    theta = {name: p.to(task.train.dtype) for name, p in build_at_0(build, task).items()}
    return replace(draw, theta=theta | {"2.weight": confidence * theta["2.weight"]})


def build_at_0(build, task):
    torch.manual_seed(0)
    return {name: p.detach() for name, p in build(task, 0).named_parameters()}


def tau(draw, task, method, **options):
    return attributors.get(method).function(draw, task, **options).double()


def dense(draw, task):
    """Gradients (n, P) of train and test points and the influence function, by autograd and a dense matrix, float64."""
    theta = {name: p.double() for name, p in draw.theta.items()}
    lam, n, model = draw.recipe.weight_decay, len(task.train), deepcopy(draw.model).double()

    def outputs(theta, x):
        return functional_call(model, theta, (x.double(),))

    def jacobian_of(points):  # (n, C, P)
        by_name = jacrev(lambda t: outputs(t, points.inputs))(theta)
        return torch.cat([j.flatten(2) for j in by_name.values()], 2)

    def gradients(points):  # of the label as minus the sum of the others: p − 1 would be 0 where p is nearly 1
        z = outputs(theta, points.inputs)
        label = nn.functional.one_hot(points.targets, z.shape[1]).bool()
        others = z.softmax(1).masked_fill(label, 0)
        residuals = torch.where(label, -others.sum(1, keepdim=True), others)
        return torch.einsum("nc,ncp->np", residuals, jacobian_of(points))

    jacobian = jacobian_of(task.train)
    p = outputs(theta, task.x_train).softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / n
    train, test = gradients(task.train), gradients(task.test)
    inverse = torch.linalg.inv(hessian + lam * torch.eye(len(hessian), dtype=torch.float64))
    return train, test, train @ inverse @ test.T / n


@pytest.mark.parametrize("confidence", [1, 30, 100, 300, 1000, 5000])
def test_float32_gives_what_float64_gives_from_guesses_to_losses_of_thousands_of_nats(confidence):
    single, double = (task_of(dtype) for dtype in ("float32", "float64"))
    low, high = draw_of(single, confidence), draw_of(double, confidence)
    for method, options in [("gd", {}), ("gc", {}), ("if", {}), ("if", {"solver": "cg"})]:
        expected = tau(high, double, method, **options)
        torch.testing.assert_close(
            tau(low, single, method, **options), expected, rtol=0, atol=1e-4 * expected.abs().max()
        )
    if confidence >= 1000:
        assert low.losses(single.train).max() > 690  # beyond what the inverse root of a probability can hold


@pytest.mark.parametrize("confidence", [1, 100, 300])
def test_influence_of_lost_points_is_that_of_the_dense_matrix(confidence):
    task = task_of("float64")
    draw = draw_of(task, confidence)
    train, test, expected = dense(draw, task)
    scale = expected.abs().amax(1, keepdim=True)
    found = tau(draw, task, "if")
    lost = draw.losses(task.train) > 20  # points whose class the network all but rules out
    assert confidence == 1 or lost.any()
    big = scale[:, 0] > 1e-8 * scale.max()  # smaller ones come and go with the rounding of the inverse
    torch.testing.assert_close(found[big] / scale[big], expected[big] / scale[big], rtol=0, atol=1e-5)
    torch.testing.assert_close(tau(draw, task, "gd"), train @ test.T)


def test_cosines_of_confident_networks_on_unscaled_pixels():
    single, double = (task_of(dtype, pixels=255.0) for dtype in ("float32", "float64"))
    low, high = draw_of(single, 3), draw_of(double, 3)
    train, test, _ = dense(high, double)
    smallest = train.norm(dim=1)[train.norm(dim=1) > 0].min()
    assert float(smallest) ** 2 < np.finfo(np.float32).tiny  # what float32 cannot square
    expected = (train / train.norm(dim=1, keepdim=True).clamp(min=1e-300)) @ (test / test.norm(dim=1, keepdim=True)).T
    assert (expected.abs() > 0.5).any()
    torch.testing.assert_close(tau(high, double, "gc"), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(tau(low, single, "gc"), expected, rtol=0, atol=1e-3)


def test_a_set_of_confident_points_has_the_cosine_of_its_sum():
    task = task_of("float32", pixels=255.0)
    draw = draw_of(task, 3)
    removed = [np.array([0, 1]), np.array([2]), np.array([3, 4, 5])]
    train, test, _ = dense(draw_of(task_of("float64", pixels=255.0), 3), task_of("float64", pixels=255.0))
    sums = torch.stack([train[points].sum(0) for points in removed])
    expected = (sums / sums.norm(dim=1, keepdim=True)) @ (test / test.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(tau(draw, task, "gc", removed=removed), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_class_that_is_ruled_out_changes_nothing(dtype):
    task = task_of(dtype)
    plain, ruled = draw_of(task, 1), draw_of(task, 1, masked)
    theta = {"2.weight": torch.cat([plain.theta["2.weight"], torch.ones(1, 5).to(task.train.dtype)])}
    theta |= {"2.bias": torch.cat([plain.theta["2.bias"], torch.ones(1).to(task.train.dtype)])}
    ruled = replace(ruled, theta=plain.theta | theta)
    for method, options in [("ats", {}), ("gd", {}), ("gc", {}), ("if", {}), ("if", {"solver": "cg"})]:
        expected = tau(plain, task, method, **options)
        torch.testing.assert_close(
            tau(ruled, task, method, **options), expected, rtol=0, atol=1e-4 * expected.abs().max()
        )


def test_a_network_with_a_class_ruled_out_is_attributed_with():
    posterior = deep_ensemble(masked, task_of("float32"), Recipe(epochs=2), members=2, checkpoints=1)
    assert attribute(posterior, ["loo", "ats", *METHODS], workers=1).tau.notnull().all()


class Prompts(nn.Module):
    """Image features against one vector for each class that a linear layer makes of a prompt: two, or three."""

    def __init__(self, classes):
        super().__init__()
        self.image = nn.Linear(FEATURES, 4)
        self.text = nn.Linear(3, 4)
        self.register_buffer("prompts", torch.randn(classes, 3, generator=torch.Generator().manual_seed(5)))

    def forward(self, x):
        return self.image(x) @ self.text(self.prompts).T


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_a_linear_layer_that_sees_no_examples_is_no_outer_product(classes):
    stream = np.random.default_rng(3)
    x, y = stream.normal(size=(12, FEATURES)), np.arange(12) % classes
    task = data.from_arrays(x, y, x[:classes] + 1, y[:classes])
    draw = deep_ensemble(lambda t, s: Prompts(classes), task, Recipe(epochs=1), members=1, checkpoints=1).draws(0)[0]
    train, test, _ = dense(draw, task)
    torch.testing.assert_close(tau(draw, task, "gd"), train @ test.T)
    units = [rows / rows.norm(dim=1, keepdim=True) for rows in (train, test)]
    torch.testing.assert_close(tau(draw, task, "gc"), units[0] @ units[1].T)
