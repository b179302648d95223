"""A method of every scope, written as a user would, and what each is given."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from tdalib import Recipe, attribute, attributors, deep_ensemble, samplers
from tdalib.samplers import Run

RECIPE = Recipe(epochs=3, batch_size=4, optimizer="sgd", momentum=0.9, schedule="linear")


@pytest.fixture(autouse=True)
def own_names():
    """What a test registers is forgotten after it."""
    with patch.dict(attributors.METHODS):
        yield


@pytest.fixture(scope="module")
def posterior(digits):
    return deep_ensemble("mlp", digits, RECIPE, members=2, checkpoints=2)


def test_a_run_is_followed_step_by_step_to_the_bit(posterior):
    draws = posterior.draws(1)
    run = Run(posterior, posterior.members[1], draws)
    assert run.kept == [4, 6]
    network = posterior.build(posterior.task, posterior.members[1].init_seed)
    optimizer = RECIPE.start(network.parameters())
    for number, step in enumerate(run.steps()):
        assert step.number == number and step.rate == RECIPE.learning_rate * (1 - number / 6)
        assert step.seed == posterior.members[1].batch_seed + number and step.draw.checkpoint == number // 2 + 1
        assert all(torch.equal(p, step.draw.theta[name]) for name, p in network.named_parameters())
        held = optimizer.state_dict()["state"]
        assert all(torch.equal(held[k]["momentum_buffer"], step.optimizer["state"][k]["momentum_buffer"]) for k in held)
        optimizer.param_groups[0]["lr"] = step.rate
        optimizer.zero_grad()
        points = posterior.task.train[step.batch]
        nn.functional.cross_entropy(network(points.inputs), points.targets, reduction="none").mean().backward()
        optimizer.step()
    assert number == 5
    assert all(torch.equal(p, draws[-1].theta[name]) for name, p in network.named_parameters())


def test_a_method_of_the_whole_run(posterior):
    @attributors.register("tracin", scope="run", unit="{loss}", sets="sum")
    def tracin(run, task):
        """Σ over steps of (rate / |B|) ∇L(z_j)·∇L(z) for z_j in the batch, up to each draw."""
        tau, found = torch.zeros(len(task.train), len(task.test)), []
        for step in run.steps():
            if step.number in run.kept:
                found.append(tau.clone())
            products = attributors.grad_dot(step.draw, task)
            tau[step.batch] += step.rate / len(step.batch) * products[step.batch]
        return torch.stack([*found, tau])

    result = attribute(posterior, ["tracin", "gd"], workers=1)
    tau = result.tau.loc[{"method": "tracin"}].transpose("sample", "train", "test")
    assert tau.shape == (4, 6, 6) and (tau[0] != tau[1]).any() and result.tau.attrs["units"].count("nats") == 2
    by = attribute(posterior, "tracin", removals={"by": "class"}, workers=1).tau[..., 0]
    np.testing.assert_allclose(by.values, tau.values.reshape(4, 3, 2, 6).sum(2), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="a run is a training's, whose epochs sampler 'swag' does not draw"):
        attribute(samplers.swag("mlp", posterior.task, RECIPE, members=1, collect=2), "tracin")


def test_a_method_of_the_whole_posterior(posterior):
    @attributors.register("covariance", scope="posterior", unit="{loss}²")
    def covariance(members, task):
        """Cov over the draws of a member of L(z_j) and L(z)."""
        found = []
        for draws in members:
            train, test = (torch.stack([draw.losses(points) for draw in draws]) for points in (task.train, task.test))
            found.append((train - train.mean(0)).T @ (test - test.mean(0)) / (len(draws) - 1))
        return torch.stack(found)

    tau = attribute(posterior, ["covariance", "gd"], workers=1).tau.loc[{"method": "covariance"}]
    for k in range(2):
        losses = [
            torch.stack([d.losses(p) for d in posterior.draws(k)]) for p in (posterior.task.train, posterior.task.test)
        ]
        expected = np.cov(*[x.T.numpy() for x in losses])[:6, 6:]
        for sample in (2 * k, 2 * k + 1):
            np.testing.assert_allclose(tau[sample], expected, rtol=1e-4, atol=1e-9)
    several = attribute(posterior, ["covariance"], workers=2).tau  # in worker processes
    np.testing.assert_array_equal(several[..., 0], tau)


def test_one_value_for_every_draw_of_the_posterior(posterior):
    @attributors.register("ensemble", scope="posterior", unit="{loss}")
    def ensemble(members, task):
        losses = torch.stack([draw.losses(task.test) for draws in members for draw in draws])  # (draw, test)
        return (losses - losses.mean(0))[:, None].expand(-1, len(task.train), -1)

    result = attribute(posterior, "ensemble", workers=1)
    expected = (result.loss - result.loss.mean("sample")).values
    np.testing.assert_allclose(result.tau[:, 3, :, 0], expected, rtol=1e-3, atol=1e-6)


def test_a_peers_library_on_a_plain_module(posterior):
    tracin_cp = pytest.importorskip("captum.influence").TracInCP

    @attributors.register("captum", unit="{loss} / learning rate")
    def captum(draw, task):
        train = torch.utils.data.TensorDataset(task.x_train, task.y_train)
        loss = nn.CrossEntropyLoss(reduction="none")
        peer = tracin_cp(draw.module(), train, ["θ"], lambda *_: 1.0, loss_fn=loss, batch_size=6)
        return peer.influence((task.x_test, task.y_test)).T

    tau = attribute(posterior, ["captum", "gd"], workers=1).tau
    np.testing.assert_allclose(tau[..., 0], tau[..., 1], rtol=1e-4, atol=1e-5)


def test_what_a_method_does_to_its_draw_reaches_nobody_else(posterior):
    @attributors.register("vandal", unit="1")
    def vandal(draw, task):
        for p in [*draw.theta.values(), *draw.model.parameters()]:
            p.data.fill_(7)
        return torch.zeros(len(task.train), len(task.test))

    after = attribute(posterior, ["vandal", "gd"], workers=1).tau[..., 1]
    np.testing.assert_array_equal(after, attribute(posterior, ["gd"], workers=1).tau[..., 0])


class Counting(nn.Module):
    """A buffer that training changes and the outputs depend on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 3)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.scale += 0.1
        return self.scale * self.layer(x.flatten(1))


@pytest.mark.parametrize("stack", [1, 2])
def test_what_changes_in_training_is_part_of_the_draw(digits, stack):
    posterior = deep_ensemble(lambda task, seed: Counting(), digits, RECIPE, members=1, checkpoints=2, stack=stack)
    draws = posterior.draws(0)
    assert [round(float(draw.rest["scale"]), 4) for draw in draws] == [1.4, 1.6]
    for draw in draws:
        expected = draw.rest["scale"] * nn.functional.linear(
            digits.x_test.flatten(1), draw.theta["layer.weight"], draw.theta["layer.bias"]
        )
        torch.testing.assert_close(draw(digits.x_test), expected)
        torch.testing.assert_close(draw.module()(digits.x_test), expected)
    gd = attribute(posterior, "gd", workers=1).tau
    np.testing.assert_allclose(gd[0, ..., 0], attributors.grad_dot(draws[0], digits), rtol=1e-5)


@pytest.mark.parametrize(
    ("scope", "gives", "message"),
    [
        ("run", lambda run, task: torch.zeros(2, 1), r"'odd' gave τ of shape \(2, 1\) where \(2, 2, 1\) is needed"),
        ("run", lambda run, task: torch.zeros(3, 2, 1), r"gave τ of shape \(3, 2, 1\) where \(2, 2, 1\) is needed"),
        (
            "posterior",
            lambda members, task: torch.zeros(3, 2, 1),
            r"of shape \(3, 2, 1\) where \(1, 2, 1\) or \(2, 2, 1\) is needed",
        ),
        ("draw", lambda draw, task: torch.zeros(1, 2), r"gave τ of shape \(1, 2\) where \(2, 1\) is needed"),
        ("retrain", lambda posterior, member, weights: torch.zeros(2), "gave losses of shape"),
    ],
)
def test_a_wrong_shape_is_refused_before_any_work(posterior, scope, gives, message):
    attributors.register("odd", unit="1", scope=scope)(gives)
    with pytest.raises(ValueError, match=message):
        attribute(posterior, "odd", workers=1)


def test_an_unknown_scope_is_refused():
    for facts, message in (({"scope": "world"}, "scope: 'world' is not"), ({"sets": "mean"}, "sets: 'mean' is not")):
        with pytest.raises(ValueError, match=message):
            attributors.register("odd", unit="1", **facts)(lambda draw, task: None)


def test_two_ground_truths_in_one_result_are_refused(posterior):
    attributors.register("mine", unit="1", scope="retrain")(attributors.leave_one_out)
    with pytest.raises(ValueError, match="loo, mine retrain, and a result holds the losses of one alone"):
        attribute(posterior, ["loo", "mine"])
    with pytest.raises(ValueError, match="gd, gd names a method twice"):
        attribute(posterior, ["gd", "gd"])


def test_a_method_of_the_posterior_sees_the_members_in_order(digits):
    @attributors.register("numbers", scope="posterior", unit="1")
    def numbers(members, task):
        index = torch.tensor([float(draws[0].member) for draws in members])
        return index[:, None, None].expand(-1, len(task.train), len(task.test))

    three = deep_ensemble("logreg", digits, RECIPE, members=3, checkpoints=2)
    tau = attribute(three, "numbers", workers=2).tau
    assert tau[:, 0, 0, 0].values.tolist() == [0, 0, 1, 1, 2, 2]
