"""The loop against plain PyTorch, and what leaving a point out means."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tdalib import models, training
from tdalib.stacked import train_stack
from tdalib.training import Recipe, batch_order, losses, train

RECIPE = Recipe(epochs=3, batch_size=4)


def test_batches_cover_every_point_once_an_epoch():
    order = batch_order(10, RECIPE, 5)
    assert [len(batch) for batch in order[0]] == [4, 4, 2]
    assert all(sorted(torch.cat(epoch).tolist()) == list(range(10)) for epoch in order)
    assert not torch.equal(torch.cat(order[0]), torch.cat(order[1]))


def test_loop_equals_plain_pytorch(digits):
    model = models.cnn2(digits, 0)
    plain = copy.deepcopy(model)
    batches = batch_order(6, RECIPE, 1)
    (kept,) = train(model, digits.x_train, digits.y_train, RECIPE, batches, seed=0, without=[2], keep=2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, weight_decay=5e-3)
    for epoch in batches:
        for batch in epoch:
            optimizer.zero_grad()
            rest = batch[batch != 2]  # the mean is still over the whole batch
            F.cross_entropy(plain(digits.x_train[rest]), digits.y_train[rest], reduction="sum").div(
                len(batch)
            ).backward()
            optimizer.step()
    assert len(kept) == 2
    for name, value in plain.named_parameters():
        torch.testing.assert_close(kept[-1][name], value.detach(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(kept[0]["0.weight"], kept[1]["0.weight"])


def test_a_linear_schedule_is_pytorchs(digits):
    recipe = replace(RECIPE, schedule="linear")
    model = models.logreg(digits, 0)
    plain, batches = copy.deepcopy(model), batch_order(6, recipe, 1)
    ((theta,),) = train(model, digits.x_train, digits.y_train, recipe, batches, seed=0)
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
    ((constant,),) = train(models.logreg(digits, 0), digits.x_train, digits.y_train, RECIPE, batches, seed=0)
    assert not torch.allclose(constant["1.weight"], theta["1.weight"], atol=1e-4)


def test_same_seed_same_bytes(digits):
    def trained():
        ((theta,),) = train(models.cnn2(digits, 3), digits.x_train, digits.y_train, RECIPE, order, seed=4)
        return theta

    order = batch_order(6, RECIPE, 4)
    runs = trained(), trained()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_losses_do_not_depend_on_the_evaluation_batch(digits, monkeypatch):
    model = models.cnn2(digits, 0)
    theta = dict(model.named_parameters())
    whole = losses(model, theta, digits.x_test, digits.y_test)
    monkeypatch.setattr("tdalib.training.EVAL_BATCH", 4)
    torch.testing.assert_close(losses(model, theta, digits.x_test, digits.y_test), whole)
    assert not whole.requires_grad


def test_dropout_is_active_in_training_and_follows_from_the_seed(digits):
    def trained(seed, **options):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(784, 3))
        state = torch.get_rng_state()
        ((theta,),) = train(model, digits.x_train, digits.y_train, RECIPE, batches, seed=seed, **options)
        assert torch.equal(state, torch.get_rng_state()) and not model.training
        return theta["2.weight"]

    batches = [[batch[batch != 2] for batch in epoch] for epoch in batch_order(6, RECIPE, 1)]
    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
    assert torch.equal(trained(1), trained(1, without=[2]))  # a point in no batch, the same masks


def noisy(task, seed):
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(1352, 3)
    )


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_runs_that_start_at_their_point_equal_whole_runs_to_the_bit(digits, monkeypatch, schedule):
    def trained():
        model, order = models.get(noisy)(digits, 3), batch_order(6, Recipe(epochs=3, batch_size=1), 4)
        return list(
            train(
                model,
                digits.x_train,
                digits.y_train,
                replace(RECIPE, schedule=schedule),
                order,
                seed=4,
                without=points,
                keep=3,
            )
        )

    points = [None, 5, 0, 3, 1]
    shared = trained()
    monkeypatch.setattr(training, "_first_use", lambda epoch, j: 0)
    for a, b in zip(shared, trained(), strict=True):
        assert all(torch.equal(one[name], two[name]) for one, two in zip(a, b, strict=True) for name in one)
    assert len(shared) == 5 and len(shared[0]) == 3


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("model", ["cnn2", noisy], ids=["cnn2", "dropout"])
def test_a_stack_trains_what_one_by_one_trains(digits, model, schedule):
    recipe = replace(RECIPE, schedule=schedule)
    task = replace(digits, x_train=digits.x_train.double(), x_test=digits.x_test.double())
    points, order = [None, 5, 0, 3], batch_order(6, RECIPE, 4)
    one_by_one, stack = (
        list(
            trainer(
                models.get(model)(task, 3), task.x_train, task.y_train, recipe, order, seed=4, without=points, keep=2
            )
        )
        for trainer in (train, train_stack)
    )
    for a, b in zip(one_by_one, stack, strict=True):
        for one, two in zip(a, b, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-9)
    assert not torch.equal(stack[0][0]["0.weight"], stack[1][0]["0.weight"])


def test_a_stack_leaves_frozen_parameters_out(digits):
    model = noisy(digits, 0)
    model[0].weight.requires_grad_(False)
    ((theta,),) = train_stack(model, digits.x_train, digits.y_train, RECIPE, batch_order(6, RECIPE, 1), seed=0)
    assert set(theta) == {"0.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"weight_decay": -1}, {"schedule": "step"}], ids=str
)
def test_impossible_recipes_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}:? .* is not (possible|known)"):
        Recipe(**bad)


def test_small_losses_are_not_rounded_to_zero():
    model = torch.nn.Linear(1, 2, bias=False)
    theta = {"weight": torch.tensor([[20.0], [0.0]])}
    (loss,) = losses(model, theta, torch.ones(1, 1), torch.tensor([0]))
    assert loss.item() == pytest.approx(2.061153620314381e-09, rel=1e-6)  # log(1 + e⁻²⁰)
