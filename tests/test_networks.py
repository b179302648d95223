"""Networks of any inputs: floats, integers, dicts; and what a network holds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, samplers

RECIPE = Recipe(epochs=2, batch_size=4)
METHODS = ["loo", "ats", "if", "gd", "gc"]


class Words(nn.Module):
    """Mean of embeddings of token ids."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(20, 6), nn.Linear(6, 2)

    def mean(self, ids, mask):
        held = self.embedding(ids) * mask[..., None]
        return self.last(held.sum(1) / mask.sum(1, keepdim=True))


class ByKeys(Words):
    def forward(self, ids, mask):
        return self.mean(ids, mask.float())


class AsOne(Words):
    def forward(self, words):
        return self.mean(words["ids"], words["mask"].float())


class IdsAlone(Words):
    def forward(self, ids):
        return self.mean(ids, torch.ones_like(ids, dtype=torch.float32))


@pytest.fixture(scope="module")
def words():
    """Token ids, a mask of booleans, and a source for each of 12 train and 5 test texts."""
    stream = np.random.default_rng(0)
    ids, mask = stream.integers(0, 20, (17, 7)), np.arange(7) < stream.integers(1, 8, (17, 1))
    inputs = {"ids": ids, "mask": mask}
    train, test = ({key: x[part] for key, x in inputs.items()} for part in (slice(12), slice(12, None)))
    source = np.array(["a", "b"])[stream.integers(0, 2, 17)]
    return data.from_arrays(
        train, np.arange(12) % 2, test, np.arange(5) % 2, labels={"source": (source[:12], source[12:])}
    )


def one_loss(draw, points, j):
    theta = {name: p.detach().requires_grad_() for name, p in draw.theta.items()}
    loss = draw.objective.loss(draw.outputs(theta, points[[j]].inputs), points.targets[[j]])[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(theta.values()))])


@pytest.mark.parametrize("kind", [ByKeys, AsOne, IdsAlone])
def test_token_inputs_go_through_every_method(words, kind):
    task = words
    if kind is IdsAlone:
        train, test = (replace(points, inputs=points.inputs["ids"]) for points in (words.train, words.test))
        task = replace(words, train=train, test=test)
    posterior = deep_ensemble(lambda task, seed: kind(), task, RECIPE, members=2, checkpoints=2)
    result = attribute(posterior, METHODS, workers=1)
    assert result.tau.shape == (4, 12, 5, 5) and np.isfinite(result.tau).all()
    draw = posterior.draws(0)[0]
    gradients = [
        torch.stack([one_loss(draw, points, j) for j in range(len(points))]) for points in (task.train, task.test)
    ]
    expected = gradients[0] @ gradients[1].T
    np.testing.assert_allclose(result.tau.loc[{"method": "gd"}][0], expected, rtol=1e-4, atol=1e-6)
    stacked = attribute(replace(posterior, stack=25), ["loo"], workers=1)
    np.testing.assert_allclose(stacked.tau[..., 0], result.tau.loc[{"method": "loo"}], atol=2e-5)
    by = attribute(posterior, METHODS, removals={"by": "source"}, workers=1)
    assert (
        by.train_source.values.tolist() == ["a", "b"]
        and by.test_source.values.tolist() == task.test.labels["source"].tolist()
    )


def test_tokens_and_masks_go_through_the_samplers(words):
    for name, options in (
        ("swag", {"collect": 2}),
        ("sgld", {"burn_in": 1, "thin": 1}),
        ("sghmc", {"burn_in": 1, "thin": 1}),
    ):
        posterior = samplers.get(name)(lambda task, seed: ByKeys(), words, RECIPE, members=1, checkpoints=2, **options)
        draws, without = posterior.draws(0), posterior.draws(0, torch.ones(12).index_fill(0, torch.tensor([3]), 0))
        assert not torch.equal(draws[0].theta["last.weight"], without[0].theta["last.weight"])
    laplace = samplers.laplace(lambda task, seed: ByKeys(), words, RECIPE, members=1, checkpoints=1)
    with pytest.raises(ValueError, match="laplace-torch takes inputs of one tensor, not a dict"):
        laplace.draws(0)


def test_tokens_stay_integers_and_cross_to_other_types(words):
    assert words.x_train["ids"].dtype == torch.int64 and words.x_train["mask"].dtype == torch.bool
    moved = words.to(torch.float64)
    assert moved.x_train["ids"].dtype == torch.int64 and words.train.dtype == torch.float32
    again = data.from_arrays(words.x_train, words.y_train, words.x_test, words.y_test)
    assert again.fingerprint() == words.fingerprint()
    fewer = words.first(train=3)
    assert len(fewer.train) == 3 and fewer.x_train["mask"].shape == (3, 7) and fewer.train_index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mlp", "mlp needs points that are floats; the task has a dict or integers"),
        ("cnn2", r"cnn2 needs images \(n, channels, height, width\); the task has a dict"),
        ("vit_lora", r"vit_lora needs images"),
    ],
)
def test_models_of_images_refuse_tokens(words, model, message):
    with pytest.raises(ValueError, match=message):
        attribute(deep_ensemble(model, words, RECIPE, members=1, checkpoints=1), "gd")


def test_a_network_that_is_given_is_copied_for_every_training(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    before = {name: p.clone() for name, p in network.state_dict().items()}
    posterior = deep_ensemble(network, digits, RECIPE, members=2, checkpoints=1, vary="batch")
    attribute(posterior, ["loo", "gd"], workers=1)
    assert all(torch.equal(before[name], p) for name, p in network.state_dict().items())
    assert not torch.equal(posterior.draws(0)[0].theta["1.weight"], posterior.draws(1)[0].theta["1.weight"])


def test_module_and_draw_agree(digits):
    (draw,) = deep_ensemble("cnn2", digits, RECIPE, members=1, checkpoints=1).draws(0)
    torch.testing.assert_close(draw.module()(digits.x_test), draw(digits.x_test))
    torch.testing.assert_close(draw.all_outputs(digits.test), draw(digits.x_test).detach())
    expected = F.cross_entropy(draw(digits.x_test).double(), digits.y_test, reduction="none").detach()
    torch.testing.assert_close(draw.losses(digits.test), expected)
    copy = draw.copy()
    for p in copy.theta.values():
        p.fill_(0)
    assert draw.theta["0.weight"].any() and attributors.grad_dot(draw, digits).any()
