"""The loop against plain PyTorch, and what leaving a point out means."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import without

from tdalib import data, models
from tdalib.samplers import from_checkpoints
from tdalib.training import Recipe, Training, batch_order, train, train_stack

RECIPE = Recipe(epochs=3, batch_size=4)


def skipping(point, training):
    """The same training, except that its batches skip a point."""
    training.__dict__["batches"] = [[batch[batch != point] for batch in epoch] for epoch in training.batches]
    return training


def test_batches_cover_every_point_once_an_epoch():
    order = batch_order(10, RECIPE, 5)
    assert [len(batch) for batch in order[0]] == [4, 4, 2]
    assert all(sorted(torch.cat(epoch).tolist()) == list(range(10)) for epoch in order)
    assert not torch.equal(torch.cat(order[0]), torch.cat(order[1]))


def test_loop_equals_plain_pytorch(digits):
    model = models.cnn2(digits, 0)
    plain = copy.deepcopy(model)
    (kept,) = train(Training(model, digits, RECIPE, 1), without(digits, 2), keep=2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=5e-3)
    for epoch in batch_order(6, RECIPE, 1):
        for batch in epoch:
            optimizer.zero_grad()
            rest = batch[batch != 2]  # the mean is still over the whole batch
            F.cross_entropy(plain(digits.x_train[rest]), digits.y_train[rest], reduction="sum").div(
                len(batch)
            ).backward()
            optimizer.step()
    assert len(kept) == 2
    for name, value in plain.named_parameters():
        torch.testing.assert_close(kept[-1].theta[name], value.detach(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(kept[0].theta["0.weight"], kept[1].theta["0.weight"])


def test_a_linear_schedule_is_pytorchs(digits):
    recipe = replace(RECIPE, schedule="linear")
    model = models.logreg(digits, 0)
    plain, batches = copy.deepcopy(model), batch_order(6, recipe, 1)
    (((theta, _),),) = train(Training(model, digits, recipe, 1))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=5e-3)
    steps = sum(map(len, batches))
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for batch in (batch for epoch in batches for batch in epoch):
        optimizer.zero_grad()
        F.cross_entropy(plain(digits.x_train[batch]), digits.y_train[batch]).backward()
        optimizer.step()
        decay.step()
    for name, value in plain.named_parameters():
        torch.testing.assert_close(theta[name], value.detach(), rtol=1e-5, atol=1e-6)
    (((constant, _),),) = train(Training(models.logreg(digits, 0), digits, RECIPE, 1))
    assert not torch.allclose(constant["1.weight"], theta["1.weight"], atol=1e-4)


def test_same_seed_same_bytes(digits):
    def trained():
        ((state,),) = train(Training(models.cnn2(digits, 3), digits, RECIPE, 4))
        return state.theta

    runs = trained(), trained()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_losses_do_not_depend_on_the_evaluation_batch(digits, monkeypatch):
    (draw,) = from_checkpoints("cnn2", digits, [models.cnn2(digits, 0).state_dict()]).draws(0)
    draw = replace(draw, theta={name: p.requires_grad_() for name, p in draw.theta.items()})
    whole = draw.losses(digits.test)
    monkeypatch.setattr("tdalib.samplers.draw.EVAL_BATCH", 4)
    torch.testing.assert_close(draw.losses(digits.test), whole)
    assert not whole.requires_grad


def test_dropout_is_active_in_training_and_follows_from_the_seed(digits):
    def trained(seed, weights=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(784, 3))
        training = Training(model, digits, RECIPE, seed)
        training.__dict__["batches"] = batches
        state = torch.get_rng_state()
        (((theta, _),),) = train(training, weights)
        assert torch.equal(state, torch.get_rng_state()) and not model.training
        return theta["2.weight"]

    batches = [[batch[batch != 2] for batch in epoch] for epoch in batch_order(6, RECIPE, 1)]
    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
    assert torch.equal(trained(1), trained(1, without(digits, 2)))  # a point in no batch, the same masks


def noisy(task, seed):
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(1352, 3)
    )


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_each_of_many_trainings_equals_one_alone_to_the_bit(digits, schedule):
    def trained(*points):
        recipe = Recipe(epochs=3, batch_size=1, schedule=schedule)
        training = Training(models.get(noisy)(digits, 3), digits, recipe, 4)
        return list(train(training, without(digits, *points), keep=3))

    points = [None, 5, 0, 3, 1]
    together, alone = trained(*points), [trained(point)[0] for point in points]
    for a, b in zip(together, alone, strict=True):
        for one, two in zip(a, b, strict=True):
            assert all(torch.equal(one.theta[name], two.theta[name]) for name in one.theta)
    assert len(together) == 5 and len(together[0]) == 3


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("model", ["cnn2", noisy], ids=["cnn2", "dropout"])
def test_a_stack_trains_what_one_by_one_trains(digits, model, schedule):
    task, recipe = digits.to(torch.float64), replace(RECIPE, schedule=schedule)
    weights = without(task, None, 5, 0, 3)
    one_by_one, stack = (
        list(trainer(Training(models.get(model)(task, 3), task, recipe, 4), weights, keep=2))
        for trainer in (train, train_stack)
    )
    for a, b in zip(one_by_one, stack, strict=True):
        for one, two in zip(a, b, strict=True):
            torch.testing.assert_close(one.theta, two.theta, rtol=1e-7, atol=1e-9)
    assert not torch.equal(stack[0][0].theta["0.weight"], stack[1][0].theta["0.weight"])


@pytest.mark.parametrize("trainer", [train, train_stack])
def test_a_point_in_no_batch_changes_nothing_to_the_bit(digits, trainer):
    training = skipping(2, Training(models.get(noisy)(digits, 3), digits, RECIPE, 4))
    ((whole,), (same,), (other,)) = trainer(training, without(digits, None, 2, 3))
    assert all(torch.equal(whole.theta[name], same.theta[name]) for name in whole.theta)
    assert not torch.equal(whole.theta["0.weight"], other.theta["0.weight"])


def test_a_stack_leaves_frozen_parameters_out(digits):
    model = noisy(digits, 0)
    model[0].weight.requires_grad_(False)
    ((state,),) = train_stack(Training(model, digits, RECIPE, 1))
    assert set(state.theta) == {"0.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"weight_decay": -1},
        {"schedule": "step"},
        {"optimizer": "lion"},
        {"momentum": 1, "optimizer": "sgd"},
        {"momentum": -0.1, "optimizer": "sgd"},
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(bad):
    with pytest.raises(ValueError, match=f"^{next(iter(bad))}: .* is not possible; "):
        Recipe(**bad)


def test_small_losses_are_not_rounded_to_zero():
    one = np.ones((2, 1), np.float32)
    task = data.from_arrays(one, [0, 1], one[:1], [0])
    weights = {"weight": torch.tensor([[20.0], [0.0]])}
    (draw,) = from_checkpoints(torch.nn.Linear(1, 2, bias=False), task, [weights]).draws(0)
    (loss,) = draw.losses(task.test)
    assert loss.item() == pytest.approx(2.061153620314381e-09, rel=1e-6)  # log(1 + e⁻²⁰)
